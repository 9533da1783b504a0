"""The optimizers that are compared, and the bytes of their state."""

from typing import Any

import jax
import optax

from ember_optax import ember, stochastic_rounding, token_table_labels

from .config import FUSED, ROW_SPARSE, RatesConfig


def make_optimizer(name: str, rates: RatesConfig, steps: int, rounding_seed: int | None = None) -> optax.GradientTransformation:
    """`adamw` trains the tables with AdamW, `ember` with Ember; the body has the same AdamW in both.

    With a `rounding_seed` parameters of 16 bits are rounded stochastically.
    """
    body = make_body_optimizer(rates, steps)
    if name in ("ember", ROW_SPARSE, FUSED):
        tx = ember(table_schedule(name, rates, steps), body)
    else:
        tables = optax.adamw(table_schedule(name, rates, steps))
        tx = optax.partition({"ember": tables, "body": body}, token_table_labels)
    return tx if rounding_seed is None else optax.chain(tx, stochastic_rounding(rounding_seed))


def make_body_optimizer(rates: RatesConfig, steps: int) -> optax.GradientTransformation:
    """AdamW for everything but the tables."""
    return optax.adamw(schedule(rates.learning_rate, steps))


def table_schedule(name: str, rates: RatesConfig, steps: int) -> optax.Schedule:
    """The learning rate of the tables under an optimizer of `make_optimizer`."""
    return schedule(rates.adamw_table_learning_rate if name == "adamw" else rates.ember_learning_rate, steps)


def with_label(params: Any, wanted: str) -> list[Any]:
    """The leaves of token tables, `ember`, or of everything else, `body`."""
    labels = jax.tree.leaves(token_table_labels(params))
    return [leaf for leaf, label in zip(jax.tree.leaves(params), labels, strict=True) if label == wanted]


def state_bytes(tx: optax.GradientTransformation, params: Any) -> int:
    """Bytes of the optimizer state for these parameters, without allocating it."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(tx.init, params)))


def schedule(peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up over a tenth of the steps, then a cosine to a tenth of the peak."""
    steps = max(2, steps)  # a warm-up of one step and at least one after it
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(1, steps // 10), steps, 0.1 * peak)
