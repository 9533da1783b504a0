"""Checkpoints from which a run goes on, on any number of devices and processes."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from lm.config import CheckpointConfig
from lm.errors import UsageError


class Checkpoint(NamedTuple):
    """A training run after `step` steps: `state` holds arrays, `history` what was measured until then, as JSON has it."""

    step: int
    state: Any
    history: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in a folder of its own; the newest two are kept.

    Orbax writes into a temporary folder and renames it, in the background, so that a process that is killed leaves the earlier
    ones. Settings and a checksum of the arrays are saved too: what is restored is what was saved, for the same run.

    Raises:
      UsageError: the folder holds checkpoints and the configuration does not say `resume`.
    """

    def __init__(self, config: CheckpointConfig, folder: Path, settings: dict[str, Any]):
        self.config, self._folder, self._settings = config, folder, settings
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)
        if self._manager.latest_step() is not None and not config.resume:
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
        try:
            progress = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
            history, checksum_then = progress["history"], progress["checksum"]
            self._check_settings(progress["settings"])
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state)))["state"]
        except (KeyError, ValueError, OSError) as error:  # whatever Orbax makes of files that are not there or cut off
            raise self._damaged(step, str(error).partition("\n")[0][:200]) from error
        if int(checksum(state)) != checksum_then:
            raise self._damaged(step, "its arrays have another checksum than when they were saved")
        return Checkpoint(step, state, history)

    def _check_settings(self, saved: dict[str, Any]) -> None:
        for name, value in self._settings.items():
            if saved.get(name) != value:
                raise UsageError(
                    f"--resume: the checkpoint in {self._folder} was made with {name} = {saved.get(name)}, this run has {value}"
                )

    def _damaged(self, step: int, reason: str) -> UsageError:
        remedy = f"remove the folder {self._folder / str(step)} to go on from an earlier one"
        return UsageError(f"--resume: checkpoint {step} in {self._folder} is damaged: {reason}; {remedy}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Waits until everything is written."""
        try:
            self._manager.wait_until_finished()
        finally:
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
