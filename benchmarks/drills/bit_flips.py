"""Flips single bits of a checkpoint's files, one at a time, and restores it: what is refused, by whom, and what comes back wrong.

The checkpoint is one that `examples/pretrain.py` writes (`examples/lm/checkpoints.py`), with parameters in float32 and bfloat16
and Ember's state. Bits are drawn twice: each bit with the same probability, which hits the arrays' data most, and each file with
the same probability, which hits the files that describe them. Orbax or its JSON refuses some; checksums refuse what Orbax would
have given back changed; the rest is harmless, because nothing reads the bit or it says what was there.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.harness.report import markdown
from benchmarks.harness.results import RESULTS, load, parser, save
from ember_optax import ember
from examples.lm.checkpoints import Checkpoint, Checkpoints
from examples.lm.config import CheckpointConfig
from examples.lm.errors import UsageError

_OUTCOMES = ("refused by Orbax", "refused by checksums", "harmless", "restored wrong")
_BY_CHECKSUM = ("what was restored is not what was saved", "are not those that were saved")


def main() -> None:
    """Runs the drill and writes its results."""
    arguments = parser(__doc__)
    arguments.add_argument("--flips", type=int, default=300, help="how many bits to flip, one at a time, in each of two drills")
    arguments.add_argument("--seed", type=int, default=0, help="seed of their places")
    arguments.add_argument("--output", type=Path, default=RESULTS / "bit_flips.json", help="results")
    options = arguments.parse_args()
    if not (results := load(options.output)):
        with tempfile.TemporaryDirectory() as folder:
            results = measure(Path(folder), options.flips, options.seed)
        save(options.output, results)
    print(table(results))
    if any(of["restored wrong"] for of in results.values() if isinstance(of, dict)):
        raise SystemExit("the drill failed")


def measure(folder: Path, flips: int, seed: int) -> dict[str, Any]:
    """How many flips had which outcome, and messages that were given."""
    saved = _checkpoint()
    with _open(folder) as checkpoints:
        checkpoints.save(saved)
    files = sorted(path for path in (folder / str(saved.step)).rglob("*") if path.is_file())
    sizes = np.array([path.stat().st_size for path in files])
    random = np.random.default_rng(seed)
    results: dict[str, Any] = {"bytes": int(sizes.sum()), "files": len(files)}
    for name, weights in (("every bit alike", sizes / sizes.sum()), ("every file alike", (sizes > 0) / (sizes > 0).sum())):
        counts, messages = Counter(), Counter()
        for which in tqdm(random.choice(len(files), flips, p=weights), desc=name, unit="flip"):
            byte, bit = divmod(int(random.integers(8 * sizes[which])), 8)
            outcome, message = _after_flip(folder, saved, files[which], byte, bit)
            counts[outcome] += 1
            messages[message] += 1
        results[name] = {
            "bits flipped": flips,
            **{of: counts[of] for of in _OUTCOMES},
            "messages": dict(messages.most_common(12)),
        }
    return results


def table(results: dict[str, Any]) -> str:
    """Of all flips, how many had each outcome."""
    headers = ("bits flipped", *_OUTCOMES)
    rows = [(name, *(str(of[header]) for header in headers)) for name, of in results.items() if isinstance(of, dict)]
    return markdown(rows, ("drawn", *headers))


def _after_flip(folder: Path, saved: Checkpoint, file: Path, byte: int, bit: int) -> tuple[str, str]:
    before = file.read_bytes()
    changed = bytearray(before)
    changed[byte] ^= 1 << bit
    file.write_bytes(changed)
    try:
        with _open(folder) as checkpoints:
            found = checkpoints.restore_newest(jax.eval_shape(lambda: saved.state))
    except UsageError as error:
        reason = str(error).partition("is damaged: ")[2].partition(";")[0]
        by_checksum = any(part in reason for part in _BY_CHECKSUM)
        return ("refused by checksums" if by_checksum else "refused by Orbax"), reason.partition(":")[0][:80]
    finally:
        file.write_bytes(before)
    return ("harmless", "") if found is not None and _same(found, saved) else ("restored wrong", file.name)


def _same(found: Checkpoint, saved: Checkpoint) -> bool:
    """Compared as bytes, and not by the checksums that are on trial."""
    ours, theirs = (jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), of.state) for of in (found, saved))
    return jax.tree.all(jax.tree.map(lambda a, b: a == b, ours, theirs)) and found._replace(state=0) == saved._replace(state=0)


def _open(folder: Path) -> Checkpoints:
    return Checkpoints(CheckpointConfig(folder, 1, resume=True, stop_after=None), folder, {"steps": 3, "seed": 0})


def _checkpoint() -> Checkpoint:
    """After three steps on random gradients: arrays with bits in every place."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "embed": {"embedding": jax.random.normal(keys[0], (512, 32))},
        "lm_head": {"kernel": jax.random.normal(keys[1], (32, 512), jnp.bfloat16)},
        "mlp": {"kernel": jax.random.normal(keys[2], (32, 64))},
    }
    tx = ember(1e-3, optax.adamw(1e-3))
    state = tx.init(params)
    for step in range(3):
        grads = jax.tree.map(
            lambda leaf, step=step: jax.random.normal(jax.random.fold_in(keys[3], step), leaf.shape, leaf.dtype), params
        )
        _, state = tx.update(grads, state, params)
    history = {"losses": [2.5, 2.25, float(jax.random.uniform(keys[3]))]}
    return Checkpoint(3, {"params": params, "opt_state": state}, history)


if __name__ == "__main__":
    main()
