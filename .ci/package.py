"""The distributions as strangers get them: built, compared with git, checked, and tried where there is nothing else.

    python .ci/package.py [--output FOLDER]

Needs `pip install -e ".[dev]"` and an index. An environment of its own for each: the wheel and the source distribution with the
newest jax and optax, the wheel with the oldest that pyproject.toml allows. In each, `user_program.py` runs with warnings as
errors, far from the checkout; with the newest it also passes pyright's strict mode.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = Path(__file__).with_name("user_program.py")
# What jax and optax leave open in strict mode: optax has no stubs, and the types of jax's own functions are unknown in part.
PYRIGHT = {"typeCheckingMode": "strict", "reportMissingTypeStubs": False, "reportUnknownMemberType": False}


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Runs a command, and shows it; PYTHONPATH would let the checkout be imported."""
    print("+", *command, flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([str(part) for part in command], check=True, cwd=cwd, env=environment)


def tracked(folder: str = ".") -> set[str]:
    """The files that git knows below a folder of the checkout."""
    listed = subprocess.run(["git", "ls-files", "-z", folder], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name}


def check_contents(wheel: Path, sdist: Path) -> None:
    """The source distribution is git's tree, the wheel git's package, each with its metadata and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        source = {name.split("/", 1)[1] for name in archive.getnames()} - {"PKG-INFO"}
    for name, found, wanted in ((wheel.name, packed, tracked("ember_optax")), (sdist.name, source, tracked())):
        if found != wanted:
            sys.exit(f"{name} lacks {sorted(wanted - found)} of git and has besides {sorted(found - wanted)}")
        print(f"{name}: the {len(found)} files of git")


def oldest() -> list[str]:
    """The lower bounds of pyproject.toml as exact versions; jaxlib has jax's."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    exact = [re.sub(">=", "==", requirement) for requirement in requirements]
    return exact + [requirement.replace("jax", "jaxlib") for requirement in exact if requirement.startswith("jax==")]


def try_in_an_empty_environment(distribution: Path, constraints: list[str], folder: Path) -> Path:
    """Installs and runs the user's program from an empty folder; gives the environment's interpreter."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", distribution, *constraints, cwd=folder)
    run(python, "-m", "pip", "check", cwd=folder)
    shutil.copy(PROGRAM, folder)
    run(python, "-W", "error", PROGRAM.name, cwd=folder)
    return python


def check_types(python: Path, folder: Path) -> None:
    """The user's program in strict mode, against the installed package."""
    (folder / "pyrightconfig.json").write_text(json.dumps(PYRIGHT | {"include": [PROGRAM.name]}))
    run(sys.executable, "-m", "pyright", "--pythonpath", python, cwd=folder)


def main() -> None:
    """Everything in turn; the first failure ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="where the distributions are left (default: nowhere)")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        output = (parser.parse_args().output or scratch / "dist").resolve()
        if output.exists() and any(output.iterdir()):
            sys.exit(f"--output must be an empty or a new folder, {output} has {sorted(p.name for p in output.iterdir())}")
        run(sys.executable, "-m", "build", "--outdir", output)
        (wheel,), (sdist,) = output.glob("*.whl"), output.glob("*.tar.gz")
        check_contents(wheel, sdist)
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
        for name, distribution, constraints in (("wheel", wheel, []), ("sdist", sdist, []), ("oldest", wheel, oldest())):
            folder = scratch / name
            folder.mkdir()
            python = try_in_an_empty_environment(distribution, constraints, folder)
            if name == "wheel":
                check_types(python, folder)


if __name__ == "__main__":
    main()
