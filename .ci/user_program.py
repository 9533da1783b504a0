"""What a user writes, for environments with nothing but the package: type-checked strictly, then run (`package.py`)."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

import ember_optax
from ember_optax import (
    EmberDimensionNumbers,
    ScaleByEmberState,
    describe_token_tables,
    ember,
    geometry,
    losses,
    row_sparse,
    vocab,
)

Params = dict[str, jax.Array]


def loss_fn(params: Params, ids: jax.Array) -> jax.Array:
    """Each token predicts itself, through a tanh and an untied head."""
    hidden = jnp.tanh(params["embed"][ids])
    return jnp.mean(losses.linear_softmax_cross_entropy(hidden, params["lm_head"], ids))


def dense_step(tx: optax.GradientTransformationExtraArgs, params: Params, state: optax.OptState) -> tuple[Params, optax.OptState]:
    """The usual step of Optax; what its trees hold, its types leave open."""
    grads = cast(Params, jax.grad(loss_fn)(params, jnp.arange(12)))
    updates: Any
    updates, state = tx.update(grads, state, params)
    new_params: Any = optax.apply_updates(params, updates)
    return new_params, state


def main() -> None:
    """Trains, measures, and grows the vocabulary."""
    params: Params = {
        "embed": jax.random.normal(jax.random.key(0), (12, 4)),
        "lm_head": jax.random.normal(jax.random.key(1), (12, 4)),
        "kernel": jnp.eye(4),
    }
    declared = {"embed": EmberDimensionNumbers(0), "lm_head": EmberDimensionNumbers(token_axis=0), "kernel": None}
    tx = ember(1e-2, body=optax.adamw(1e-3), b2=0.99, weight_decay=0.0, tables=declared)
    print(describe_token_tables(params, tables=declared))
    before = float(loss_fn(params, jnp.arange(12)))
    params, state = dense_step(tx, params, tx.init(params))

    rows: dict[str, jax.Array] = {"embed": jnp.array([3, 5])}
    _, grads = row_sparse.value_and_grad(loss_fn)(params, rows, jnp.array([3, 5]))
    updates, state = tx.update(grads, state, params)
    params = cast(Params, optax.apply_updates(params, updates))
    assert float(loss_fn(params, jnp.arange(12))) < before

    rank: jax.Array = geometry.effective_rank(params["embed"])
    assert 1.0 <= float(rank) <= 4.0
    grown = vocab.resize(tx, params, state, 16, tables=declared)
    assert grown.params["embed"].shape == (16, 4)

    scale = ember_optax.scale_by_ember(b2=0.99, eps=1e-8, dimension_numbers=EmberDimensionNumbers(0))
    moments = scale.init(params["embed"])
    assert isinstance(moments, ScaleByEmberState)
    tables = ember_optax.TokenTables(include=["kernel"])
    assert tables({"kernel": jnp.eye(4)})["kernel"].token_axis == 1
    print(ember_optax.__version__)


if __name__ == "__main__":
    main()
