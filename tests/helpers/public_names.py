"""Every public name of the package."""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

MODULES = (
    "geometry",
    "large_tables",
    "losses",
    "regularizers",
    "row_sparse",
    "vocab",
    "integrations.haliax",
    "integrations.keras",
    "integrations.linen",
    "integrations.nnx",
    "integrations.plots",
)


def public_names() -> Iterator[tuple[str, Any]]:
    """`ember_optax.name` and its value, for every name in every face."""
    for module in ("", *MODULES):
        face = importlib.import_module(f"ember_optax.{module}" if module else "ember_optax")
        names = getattr(face, "__all__", None) or [
            n for n in vars(face) if not n.startswith("_") and not inspect.ismodule(vars(face)[n])
        ]
        for name in sorted(names):
            value = getattr(face, name)
            if getattr(value, "__module__", "").split(".")[0] == "ember_optax":
                yield f"{face.__name__}.{name}", value
