"""The model that all runs of reinforcement learning begin with. It is a file: if each process trained it, each would differ.

`python -m benchmarks.evidence.reinforcement_base` made it. Made again on another machine its numbers differ in the last digits,
and runs that begin with it are not compared with those that are there.
"""

import collections
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from examples.lm.config import ModelConfig, RatesConfig
from examples.lm.damage import read_npz
from examples.lm.optimizers import make_optimizer
from examples.lm.reinforcement import model_config, warm_up

_FILE = Path(__file__).parent / "data" / "sums_after_2000_steps.npz"
_STEPS, _BATCH = 2000, 64


def model() -> ModelConfig:
    """Its sizes."""
    return model_config(32, 2, 2, tied=False)


def read() -> dict[str, Any]:
    """Its parameters."""
    return traverse_util.unflatten_dict({name: jnp.asarray(array) for name, array in read_npz(_FILE).items()}, sep="/")


def make(path: Path = _FILE, steps: int = _STEPS) -> None:
    """Learns from solutions, of which half are worked out, with AdamW, and writes the parameters."""
    tx = make_optimizer("adamw", RatesConfig(2e-3, 0.0, 1e-2), steps)
    params, _ = collections.deque(warm_up(model(), steps, _BATCH, tx, seed=0), maxlen=1).pop()
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    np.savez(path, **arrays)


if __name__ == "__main__":
    make()
