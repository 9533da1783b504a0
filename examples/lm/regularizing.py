"""The regularizers that the programs offer by name: what each does to a loss or to an optimizer, and its usual coefficient."""

import functools
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ember_optax import TokenTables, regularizers

from .errors import UsageError

_SAMPLES = 256


class Subject(NamedTuple):
    """What a run's regularizers work on.

    Attributes:
      counts: how often each token occurs in the training text, one count for each row of the tables.
      input_table: the path of the input table; what else is a table is a head.
      rate: the learning rate of the tables by step.
    """

    counts: np.ndarray
    input_table: str
    rate: optax.Schedule


class Kind(NamedTuple):
    """One regularizer; of its three functions those that are there, each called with the coefficient and the subject.

    Attributes:
      usual: the coefficient where none is given; None for one that takes none.
      describe: what it is, and what the coefficient means.
      term: `term(coefficient, subject)` is a function of parameters and a key, added to the loss.
      transformation: `transformation(coefficient, subject)` goes behind the optimizer.
      weights: `weights(coefficient, subject)` are those of each token's loss, (V,).
      takes_rows: whether it works in row-sparse steps.
    """

    usual: float | None
    describe: str
    term: Callable[[float, Subject], Callable[[Any, jax.Array], jax.Array]] | None = None
    transformation: Callable[[float, Subject], optax.GradientTransformation] | None = None
    weights: Callable[[float, Subject], jax.Array] | None = None
    takes_rows: bool = False


class Chosen(NamedTuple):
    """A regularizer by its name, with a coefficient."""

    name: str
    coefficient: float

    @property
    def kind(self) -> Kind:
        """What the name stands for."""
        return KINDS[self.name]

    def __str__(self) -> str:
        return self.name if self.kind.usual is None else f"{self.name}={self.coefficient:g}"


def regularizer(text: str) -> Chosen:
    """Reads NAME or NAME=COEFFICIENT; for the `type` of argparse."""
    name, equals, number = text.partition("=")
    if name not in KINDS:
        raise ArgumentTypeError(f"{name!r} is no regularizer: {', '.join(KINDS)}")
    usual = KINDS[name].usual
    if usual is None:
        if equals:
            raise ArgumentTypeError(f"{name} takes no coefficient: write {name}")
        return Chosen(name, 1.0)
    try:
        coefficient = float(number) if equals else usual
    except ValueError:
        coefficient = float("nan")
    if not abs(coefficient) < float("inf"):
        raise ArgumentTypeError(f"{number!r} is no finite number: write for example {name}={usual:g}")
    if name in ("spectral-norm", "cap") and not coefficient > 0:
        raise ArgumentTypeError(f"{name}={number} is no bound: write one above zero, for example {name}={usual:g}")
    return Chosen(name, coefficient)


def add_regularizer_option(add: Callable[..., Any]) -> None:
    """The option, which may be repeated."""
    known = "; ".join(
        f"{name}{'' if kind.usual is None else f'={kind.usual:g}'}: {kind.describe}" for name, kind in KINDS.items()
    )
    add("--regularizer", type=regularizer, action="append", default=[], metavar="NAME[=COEFFICIENT]", help=f"{known}; repeatable")


def with_terms(loss_fn: Callable[..., jax.Array], chosen: Sequence[Chosen], subject: Subject | None) -> Callable[..., Any]:
    """`loss(params, *batch)` that gives the loss with the terms, and as its second value the loss without them.

    Random tokens are drawn by a key that the batch decides, so that a run that is resumed draws as it would have.
    """
    terms = [one.kind.term(one.coefficient, subject) for one in chosen if one.kind.term and subject is not None]

    def loss_with_terms(params, *batch):
        loss = loss_fn(params, *batch)
        if not terms:
            return loss, loss
        key = jax.random.key(jnp.sum(batch[0]).astype(jnp.uint32))
        return sum((term(params, jax.random.fold_in(key, i)) for i, term in enumerate(terms)), loss), loss

    return loss_with_terms


def with_transformations(
    tx: optax.GradientTransformation, chosen: Sequence[Chosen], subject: Subject | None
) -> optax.GradientTransformation:
    """The optimizer with the transformations behind it, in the order of the command line."""
    made = [
        one.kind.transformation(one.coefficient, subject) for one in chosen if one.kind.transformation and subject is not None
    ]
    return optax.chain(tx, *made) if made else tx


def token_weights(chosen: Sequence[Chosen], subject: Subject | None) -> jax.Array | None:
    """The weight of each token's loss, None for one each."""
    found = [one.kind.weights(one.coefficient, subject) for one in chosen if one.kind.weights and subject is not None]
    return functools.reduce(jnp.multiply, found) if found else None


def check_row_sparse(chosen: Sequence[Chosen]) -> None:
    """Raises UsageError for what needs every row of a table."""
    if refused := [one.name for one in chosen if not one.kind.takes_rows]:
        raise UsageError(f"--regularizer {refused[0]} needs every row of a table: leave out --row-sparse")


def check_frozen_rows(chosen: Sequence[Chosen]) -> None:
    """Raises UsageError for what would move rows that are to stay."""
    if moving := [one.name for one in chosen if one.kind.transformation and not one.kind.takes_rows]:
        raise UsageError(f"--regularizer {moving[0]} moves every row of a table: train all of them")


def check_head(chosen: Sequence[Chosen], *, tied: bool) -> None:
    """Raises UsageError where a head of its own is needed."""
    if tied and any(one.name == "center" for one in chosen):
        raise UsageError("--regularizer center needs a head of its own: a shift of a tied table is seen by the model")


def _over_tables(term: Callable[..., jax.Array]) -> Callable[[float, Subject], Callable[[Any, jax.Array], jax.Array]]:
    def of(coefficient: float, subject: Subject):
        return lambda params, key: regularizers.over_tables(
            functools.partial(term, coefficient=coefficient, subject=subject, key=key), params
        )

    return of


def _anisotropy(table, *, token_axis, coefficient, subject, key):
    del key
    weights = subject.counts > 0
    return regularizers.anisotropy(table, coefficient, token_axis=token_axis, weights=weights)


def _spectral(table, *, token_axis, coefficient, subject, key):
    del subject, key
    return regularizers.spectral_penalty(table, coefficient, token_axis=token_axis)


def _alignment(table, *, token_axis, coefficient, subject, key):
    sample = regularizers.sampled_tokens(subject.counts, key, min(_SAMPLES, subject.counts.size))
    return regularizers.frequency_alignment(table, sample, coefficient, token_axis=token_axis)


def _center(_, subject):
    heads = TokenTables(exclude=[subject.input_table])
    return regularizers.center_rows("table", tables=heads)


def _cap(coefficient, subject):
    return regularizers.cap_row_steps(lambda step: coefficient * subject.rate(step))


KINDS = {
    "anisotropy": Kind(0.3, "mean cosine of the rows, a negative one raises it", term=_over_tables(_anisotropy)),
    "spectral": Kind(1e-3, "half the squared spectral norm", term=_over_tables(_spectral)),
    "alignment": Kind(0.3, "distance of rare and frequent rows as distributions", term=_over_tables(_alignment)),
    "spectral-norm": Kind(
        20.0, "the largest spectral norm of a table", transformation=lambda most, _: regularizers.normalize_spectral_norm(most)
    ),
    "center": Kind(None, "the mean row of the head is zero", transformation=_center),
    "weighted-rows": Kind(
        0.25,
        "updates of rows times (count + 1) to the power of minus so much",
        transformation=lambda power, subject: regularizers.scale_by_frequency(power, token_counts=subject.counts),
        takes_rows=True,
    ),
    "weighted-loss": Kind(
        0.25,
        "losses of tokens times (count + 1) to the power of minus so much",
        weights=lambda power, subject: regularizers.frequency_weights(subject.counts, power),
        takes_rows=True,
    ),
    "cap": Kind(3.0, "the largest step of a row, in learning rates", transformation=_cap, takes_rows=True),
}
