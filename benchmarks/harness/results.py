"""Where results lie, as JSON: read and written as they come, so that a program that is interrupted loses nothing."""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "images"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line whose help shows the program's docstring and every default."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)


def load(path: Path) -> dict[str, Any]:
    """The results so far, empty without a file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(path: Path, results: dict[str, Any]) -> None:
    """Writes results, and the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def fill(path: Path, wanted: Sequence[tuple[str, ...]], measure: Callable[..., Any], unit: str) -> dict[str, Any]:
    """The results with `results[a][b] = measure(a, b)` for each wanted `(a, b)` that the file lacks, written one by one."""
    results = load(path)
    for keys in tqdm(wanted, unit=unit):
        *outer, last = keys
        inner = results
        for key in outer:
            inner = inner.setdefault(key, {})
        if last not in inner:
            inner[last] = measure(*keys)
            save(path, results)
    return results


def machine() -> str:
    """Where times were measured: kind of device, architecture, versions."""
    return f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}, optax {optax.__version__}"
