"""Checkpoints from which a run goes on, on any number of devices and processes."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from ember_optax import checksums, verify_checksums

from .config import CheckpointConfig
from .errors import UsageError


class Checkpoint(NamedTuple):
    """A training run after `step` steps: `state` holds arrays, `history` what was measured until then, as JSON has it."""

    step: int
    state: Any
    history: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in a folder of its own; the newest two are kept.

    Orbax writes into a temporary folder and renames it, in the background, so that a process that is killed leaves the earlier
    ones. Settings, a checksum of each array and one of all the rest are saved too: what is restored is what was saved, for the
    same run, also where single bits of the files were lost.

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
        progress = {"history": history, "settings": self._settings, "checksums": checksums(checkpoint.state)}
        progress |= {"digest": _digest(progress)}
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
            if progress.pop("digest") != _digest(progress):
                raise ValueError("its history or settings are not those that were saved")
            self._check_settings(progress["settings"])
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state)))["state"]
            verify_checksums(state, progress["checksums"])
        except UsageError:
            raise
        except Exception as error:  # what Orbax makes of files that are not there, cut off or changed: assertions and names, too
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            raise self._damaged(step, reason) from error
        return Checkpoint(step, state, progress["history"])

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


def _digest(progress: dict[str, Any]) -> str:
    """Of what JSON gives back exactly as it took it: numbers too, which are written with all their digits."""
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode()).hexdigest()
