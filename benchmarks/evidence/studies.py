"""What is compared, in the order in which the sweep goes through it."""

from typing import NamedTuple

from benchmarks.evidence.plan import Cell, cells

RATES = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
_ANY_RATE = (1.0,)  # of what is not trained
HEADLINE = ("adamw", "ember")
ALL = (
    "adamw",
    "ember",
    "rmsprop",
    "token_factor",
    "feature_factor",
    "scalar",
    "ember_active_rows",
    "rowwise_adagrad",
    "adafactor",
    "factored_rms",
    "sm3",
    "lion",
    "sign",
    "sgd",
    "sgd_momentum",
)
# As b2 = 0.999 forgets at 512 tokens a step, and ten times as fast.
HALF_LIVES = ("ember half_life=354717", "ember half_life=35472")
DECAYS = ("adamw weight_decay=0.1", "ember weight_decay=0.01", "ember weight_decay=0.1")
MEMORIES = ("ember b2=0", "ember b2=0.9", "ember b2=0.99", "ember b2=0.9999", "adamw b2=0.99", "rmsprop b2=0.99")


class Task(NamedTuple):
    """Its comparisons, and what its loss is."""

    cells: list[Cell]
    loss: str


def _pretraining() -> list[Cell]:
    def pretraining(settings: tuple[str, ...], methods: tuple[str, ...], seeds: int = 8, rates=RATES) -> list[Cell]:
        return cells("pretraining", settings, methods, rates, seeds)

    small, tied = ("0.5M",), ("0.3M tied",)
    few, many, longer = ("0.5M, batch 128",), ("0.5M, batch 2048",), ("0.5M, 1200 steps",)
    three = ("adamw", "ember", "rmsprop")
    return [
        *pretraining(small, ALL),
        *pretraining(small, ("frozen",), rates=_ANY_RATE),
        *pretraining(tied, (*three, "token_factor", "ember_active_rows")),
        *pretraining((*many, *few), (*three, *HALF_LIVES)),
        *pretraining(small, (*MEMORIES, *DECAYS)),
        *pretraining(("1.6M",), three),
        *pretraining(("4.2M",), three),
        *pretraining(longer, ("adamw", "ember", "ember b2=0.99", "ember b2=0.9999"), seeds=4),
        *pretraining(("12.6M",), HEADLINE, seeds=3),
        *pretraining(("2.1M, main job",), HEADLINE),
    ]


def _quick() -> list[Cell]:
    rates = (5e-3, 1e-2, 2e-2)
    return [
        *cells("pretraining", ("quick",), ("adamw", "ember", "scalar"), rates, 2),
        *cells("pretraining", ("quick, batch 64", "quick, larger"), HEADLINE, rates, 2),
    ]


FULL = {"pretraining": Task(_pretraining(), "validation loss, nats per token")}
QUICK = {"pretraining": Task(_quick(), "validation loss, nats per token")}
