"""Checkpoints from which a run goes on, on any number of devices and processes."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from lm.errors import UsageError


class Checkpoint(NamedTuple):
    """A training run after `step` steps: `state` holds arrays, `history` what was measured until then, as JSON has it."""

    step: int
    state: Any
    history: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in one folder; the newest two are kept.

    Orbax writes into a temporary folder and renames it, in the background, so that a process that is killed leaves the earlier
    ones. Settings and a checksum of the arrays are saved too: what is restored is what was saved, for the same run.

    Raises:
      UsageError: the folder holds checkpoints and `resume` is not set.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], resume: bool):
        self._folder, self._settings = folder, settings
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)
        if self._manager.latest_step() is not None and not resume:
            raise UsageError(f"--checkpoint-dir: {folder} holds checkpoints already; go on with --resume or name another folder")

    def save(self, checkpoint: Checkpoint) -> None:
        """Starts to write a checkpoint and returns once the arrays are copied; a checkpoint of the same step is kept."""
        if checkpoint.step in self._manager.all_steps():
            return
        history = copy.deepcopy(checkpoint.history)  # written in the background, while the caller's grows
        progress = {"history": history, "settings": self._settings, "checksum": int(checksum(checkpoint.state))}
        items = ocp.args.Composite(state=ocp.args.StandardSave(checkpoint.state), progress=ocp.args.JsonSave(progress))
        self._manager.save(checkpoint.step, args=items)

    def restore_newest(self, abstract_state: Any) -> Checkpoint | None:
        """The newest checkpoint, laid out like `abstract_state` (`jax.ShapeDtypeStruct` with shardings); None without any.

        Raises:
          UsageError: it was made with other settings, or its arrays are not those that were saved.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        progress = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
        for name, value in self._settings.items():
            if (saved := progress["settings"].get(name)) != value:
                raise UsageError(
                    f"--resume: the checkpoint in {self._folder} was made with {name} = {saved}, this run has {value}"
                )
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        state = self._manager.restore(step, args=arguments)["state"]
        if int(checksum(state)) != progress["checksum"]:
            raise UsageError(
                f"--resume: checkpoint {step} in {self._folder} is damaged: its arrays have another checksum than when they were "
                f"saved; remove the folder {self._folder / str(step)} to go on from an earlier one"
            )
        return Checkpoint(step, state, progress["history"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


@jax.jit
def checksum(tree: Any) -> jax.Array:
    """A uint32 that depends on every bit and its place, and not on the layout: the sum is exact, modulo 2^32."""

    def of_leaf(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        place = jnp.arange(leaf.size, dtype=jnp.uint32).reshape(leaf.shape)
        # Odd factors are invertible modulo 2^32: no change of a single element goes unseen.
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(tree):
        total = 31 * total + of_leaf(leaf)
    return total
