"""Whether two runs may be compared: same text, same numbers to begin with, same settings, whatever the machine."""

from typing import Any

from benchmarks.evidence.records import Record

# What a run measures, or where it was made. Everything else in a line is a setting, and has to be the same.
_MEASURED = {
    *("loss_before", "losses", "table_steps", "rewards", "table_state_bytes"),
    *("seconds", "processor_seconds", "machine"),
}


class UnlikeRunsError(ValueError):
    """Two runs that were to be compared differ in more than what trains the tables."""


def check_alike(ours: Record, theirs: Record, ignored: tuple[str, ...] = ()) -> None:
    """Refuses a pair of runs that differ in more than method and rates.

    Lines of earlier versions have no hash of the base model: there its loss before the first step must be the same.
    What is `ignored` may differ, for example `seed` and `base`, which follows from the seed in pretraining.

    Raises:
      UnlikeRunsError: with both runs, and both values of everything that differs.

    Example:
      >>> from benchmarks.evidence.records import Run
      >>> ours, theirs = (Record(Run("finetuning", "small", m, 0.01, 1), 5.0, {"text": m[:2]}) for m in ("ember", "adamw"))
      >>> check_alike(ours, theirs)
      Traceback (most recent call last):
      ...
      benchmarks.evidence.likeness.UnlikeRunsError: finetuning, small, seed 1: 'ember' and 'adamw' are no pair: text 'em' and 'ad'
    """
    a, b = _conditions(ours), _conditions(theirs)
    unlike = [
        f"{key} {a.get(key)!r} and {b.get(key)!r}"
        for key in sorted((a.keys() | b.keys()) - set(ignored))
        if a.get(key) != b.get(key)
    ]
    if unlike:
        where = f"{ours.run.task}, {ours.run.setting}, seed {ours.run.seed}"
        raise UnlikeRunsError(f"{where}: {ours.run.method!r} and {theirs.run.method!r} are no pair: {', '.join(unlike)}")


def _conditions(record: Record) -> dict[str, Any]:
    settings = {key: value for key, value in record.details.items() if key not in _MEASURED}
    base = settings.get("base", record.details.get("loss_before"))
    return settings | {"task": record.run.task, "setting": record.run.setting, "seed": record.run.seed, "base": base}
