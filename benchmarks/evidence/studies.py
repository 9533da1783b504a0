"""What is compared, in the order in which the sweep goes through it: what the page claims first, then what explains it."""

from typing import NamedTuple

from benchmarks.evidence.pairs import PairCell
from benchmarks.evidence.plan import SWEEP_SEED, Cell, cells


class Task(NamedTuple):
    """What a task's loss is, and the rates that its sweeps begin with."""

    title: str
    loss: str
    rates: tuple[float, ...]


class Study(NamedTuple):
    """What is run, and what the page shows of it.

    Attributes:
      cells: in the order of the sweep.
      main: the setting of each task in which most methods are compared.
      sizes: settings of pretraining by size.
      batches: settings by batch size, for each task that has several.
      pairs: cells with two rates, in the order of the sweep, which goes through them first. A cell may come twice, first with
        few fresh seeds.
      lengths: settings of pretraining by the number of steps.
    """

    cells: list[Cell]
    main: dict[str, str]
    sizes: tuple[str, ...]
    batches: dict[str, tuple[str, ...]]
    pairs: tuple[PairCell, ...] = ()
    lengths: tuple[str, ...] = ()

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Tasks and settings in which Ember is compared, each once, task by task."""
        found = dict.fromkeys(
            (cell.task, cell.setting)
            for cell in (*self.cells, *self.pairs)
            if cell.method == OURS and cell.setting not in (*ESTIMATES, *REPLACED)
        )
        return sorted(found, key=lambda key: list(TASKS).index(key[0]))


TASKS = {
    "pretraining": Task("Pretraining", "validation loss, nats per token", (2e-3, 5e-3, 1e-2, 2e-2, 5e-2)),
    "finetuning": Task("Fine-tuning", "held-out loss of answers, nats per token", (2e-4, 5e-4, 1e-3, 2e-3, 5e-3)),
    "reinforcement": Task("Reinforcement learning", "share of wrong answers", (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)),
}
BASELINE, OURS, NO_MOMENTUM, LESS_MOMENTUM = "adamw", "ember", "rmsprop", "adamw b1=0.5"
HEADLINE = (BASELINE, OURS)
_THREE = (*HEADLINE, NO_MOMENTUM)
PARTS = ("token_factor", "feature_factor", "scalar")
OTHERS = ("adafactor", "factored_rms", "sm3", "lion", "sign", "sgd", "sgd_momentum", "rowwise_adagrad", "ember_active_rows")
_ACTIVE_ROWS = ("ember_active_rows",)  # in the other settings too, as it was the best of its own
_ANY_RATE = (1.0,)  # of what is not trained
# As b2 = 0.999 forgets at 512 tokens a step, and ten times as fast.
_HALF_LIVES = ("ember half_life=354717", "ember half_life=35472")
_DECAYS = ("adamw weight_decay=0.1", "ember weight_decay=0.01", "ember weight_decay=0.1")
_MEMORIES = ("ember b2=0", "ember b2=0.9", "ember b2=0.99", "ember b2=0.9999", "adamw b2=0.99", "rmsprop b2=0.99")


def _of(task: str, settings: tuple[str, ...], methods: tuple[str, ...], seeds: int = 8, rates=None) -> list[Cell]:
    return cells(task, settings, methods, rates or TASKS[task].rates, seeds)


# AdamW as it is used, with less momentum and without any, and Ember: by these the page says what momentum is worth.
MOMENTA = (BASELINE, LESS_MOMENTUM, NO_MOMENTUM)
FOUR = (*MOMENTA, OURS)
RIVALS = ("row_norm", "rmnp", "hybrid", "scale", "token_factor", "ember_active_rows")
# The best pair of all four at 0.5M, 300 steps, and the grid around it.
_PAIR = ((5e-3,), (2e-2,))
_LATE_PAIR = ((2e-3,), (2e-2,))  # the best of AdamW after 1,200 steps
_ADAFACTOR_PAIR = ((1e-1,), (2e-1,))  # its rate is in units of a table's root mean square
_RL_PAIR = ((2e-3,), (2e-3,))
_TUNING_PAIR = ((1e-2,), (1e-2,))
_GRID = ((2e-3, 5e-3, 1e-2), (1e-2, 2e-2, 5e-2))
_EQUAL = ((5e-3, 5e-3), (1e-2, 1e-2), (2e-2, 2e-2))
_SHORT, _LONGER, _LONGEST = "0.5M", "0.5M, 1200 steps", "0.5M, 4800 steps"
VARIANTS = ("ember_equal_rows", "ember_classes", "ember_power", "ember_by_occurrence")
# Its text is whatever packages are installed, so nobody else can run it; "small, Python's manual" has its text in the repository.
REPLACED = ("small",)
ESTIMATES = ("0.3M tied, estimates", "0.5M, batch 128, estimates")
ONE_VOCABULARY = ("size 3.1M", "size 4.7M", "size 6.3M", "size 9.4M", "size 12.6M")


def _pairs(
    setting: str, start, methods: tuple[str, ...] = FOUR, task: str = "pretraining", seeds: int = 8, **more
) -> list[PairCell]:
    rates, head_rates = start
    return [PairCell(task, setting, method, rates, head_rates, seeds, **more) for method in methods]


# A run of 4,800 steps takes two minutes: pairs are tried with one seed, and what decides most comes first.
_LONGEST_ORDER = (BASELINE, OURS, NO_MOMENTUM, LESS_MOMENTUM)
_ONE_SEED: tuple[int, ...] = (SWEEP_SEED,)
_PAIRS = [
    *_pairs(_SHORT, _GRID, seeds=3),
    *_pairs(_LONGER, _PAIR, seeds=3),
    *_pairs(_SHORT, _GRID, also=_EQUAL),
    *_pairs(_LONGER, _PAIR),
    *_pairs(_LONGEST, _LATE_PAIR, _LONGEST_ORDER, seeds=3, grid_seeds=_ONE_SEED),
    *_pairs("0.5M, batch 2048", _GRID),
    *_pairs("tables alone, 64 completions", _RL_PAIR, task="reinforcement"),
    *_pairs("0.5M, batch 128", _GRID),
    *_pairs("small, Python's manual", _TUNING_PAIR, (*FOUR, "frozen"), task="finetuning"),
    *_pairs(_SHORT, _PAIR, RIVALS),
    *_pairs(_SHORT, _ADAFACTOR_PAIR, ("adafactor",)),
    *_pairs("small, Python's manual", _TUNING_PAIR, RIVALS, task="finetuning"),
    *_pairs("small, Python's manual", _ADAFACTOR_PAIR, ("adafactor",), task="finetuning"),
    *_pairs("all parameters, 64 completions", _RL_PAIR, (*FOUR, "frozen"), task="reinforcement"),
    *_pairs(_LONGEST, _LATE_PAIR, _LONGEST_ORDER, grid_seeds=_ONE_SEED),
    *_pairs("2.1M, main job", _GRID),
    *_pairs("tables alone, 256 completions", _RL_PAIR, task="reinforcement"),
    *_pairs("tables alone, 8 completions", _RL_PAIR, task="reinforcement"),
    *_pairs(_LONGER, _PAIR, RIVALS),
    *_pairs(_LONGER, _ADAFACTOR_PAIR, ("adafactor",)),
    *_pairs("0.5M, batch 64", _PAIR),
    *_pairs("0.5M, batch 8192", _PAIR),
    *(cell for setting in ONE_VOCABULARY for cell in _pairs(setting, _PAIR)),
]
_FULL = [
    *_of("pretraining", ("0.5M",), (*_THREE, *PARTS)),
    *_of("finetuning", ("small",), HEADLINE),
    *_of("finetuning", ("SmolLM2-135M",), _THREE, seeds=3, rates=(1e-4, 2e-4, 5e-4)),
    *_of("finetuning", ("SmolLM2-135M",), ("frozen",), seeds=3, rates=_ANY_RATE),
    *_of("pretraining", ("0.5M",), OTHERS),
    *_of("pretraining", ("0.5M",), ("frozen",), rates=_ANY_RATE),
    *_of("pretraining", ("0.5M, batch 2048", "0.5M, batch 128"), (*HEADLINE, *_HALF_LIVES)),
    *_of("pretraining", ("0.3M tied", "1.6M"), HEADLINE),
    *_of("pretraining", ("0.5M",), (*_MEMORIES, *_DECAYS)),
    *_of("finetuning", ("small",), (NO_MOMENTUM, *PARTS, "sgd", "adafactor")),
    *_of("finetuning", ("small",), ("frozen",), rates=_ANY_RATE),
    *_of("pretraining", ("4.2M",), HEADLINE),
    *_of("pretraining", ("12.6M",), HEADLINE, seeds=3),
    *_of("pretraining", ("2.1M, main job",), HEADLINE),
    *_of("pretraining", ("0.3M tied", "1.6M", "0.5M, batch 2048", "0.5M, batch 128"), (NO_MOMENTUM, "token_factor")),
    *_of("pretraining", ("2.1M, main job", "0.3M tied", "0.5M, batch 2048", "0.5M, batch 128"), _ACTIVE_ROWS),
]
_FULL += _of("pretraining", ESTIMATES, (OURS, NO_MOMENTUM, *VARIANTS), rates=(5e-3, 1e-2, 2e-2))
# What is still missing of the baselines in settings with one rate; last, since two rates say more.
_FULL += _of("pretraining", ("4.2M", "12.6M"), (NO_MOMENTUM,))
_FULL += _of("pretraining", ("0.3M tied", "1.6M", "4.2M", "12.6M"), (LESS_MOMENTUM,))
_QUICK = [
    *_of("pretraining", ("quick",), (*HEADLINE, "scalar"), seeds=2, rates=(2e-2, 5e-2)),
    *_of("pretraining", ("quick, batch 64", "quick, larger"), HEADLINE, seeds=2, rates=(1e-2, 2e-2)),
    *_of("finetuning", ("quick",), HEADLINE, seeds=2, rates=(2e-3, 5e-3)),
    *_of("reinforcement", ("quick",), HEADLINE, seeds=2, rates=(1e-3, 2e-3)),
]
FULL = Study(
    _FULL,
    {"pretraining": "0.5M", "finetuning": "small", "reinforcement": "tables alone, 64 completions"},
    ("0.5M", "1.6M", "2.1M, main job", "4.2M", "12.6M", *ONE_VOCABULARY),
    {
        "pretraining": ("0.5M, batch 64", "0.5M, batch 128", "0.5M", "0.5M, batch 2048", "0.5M, batch 8192"),
        "reinforcement": tuple(f"tables alone, {number} completions" for number in (8, 64, 256)),
    },
    tuple(_PAIRS),
    (_SHORT, _LONGER, _LONGEST),
)
# For one GPU; the toy shows that everything of it runs. The rates are ten times the body's, the best ratio of the small models,
# and its neighbours.
_GPT2 = ("124M, GPT-2 small",)
GPT2 = Study(
    _of("pretraining", _GPT2, _THREE, seeds=2, rates=(2e-3, 5e-3, 1e-2)),
    dict.fromkeys(TASKS, *_GPT2),
    _GPT2,
    {"pretraining": _GPT2, "reinforcement": ()},
)
_TOY = ("GPT-2 toy",)
GPT2_TOY = Study(
    _of("pretraining", _TOY, _THREE, seeds=2, rates=(2e-2, 5e-2)),
    dict.fromkeys(TASKS, *_TOY),
    _TOY,
    {"pretraining": _TOY, "reinforcement": ()},
)
QUICK = Study(
    _QUICK,
    dict.fromkeys(TASKS, "quick"),
    ("quick", "quick, larger"),
    {"pretraining": ("quick, batch 64", "quick"), "reinforcement": ("quick",)},
    tuple(_pairs("quick", ((1e-2,), (5e-2,)), (BASELINE, NO_MOMENTUM, OURS), seeds=2)),
)
