"""Row-sparse training of a model is dense training, through Optax's wrappers and micro-batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_model import T, V, make_params, plain_loss
from steps import dense_step, sparse_step, split_value_and_grad

from ember_optax import ember, row_sparse, scale_by_ember


def train(tx, form, steps=6, micro_batches=1):
    """Dense, with compact leaves, or with compact arrays whose ids travel beside them."""
    params, sparse = make_params(), form == "arrays"

    def of_batch(params, ids):
        if not sparse:
            return jax.grad(plain_loss)(params, ids), None
        return split_value_and_grad(plain_loss)(params, {"embed/embedding": ids}, ids)[1:]

    @jax.jit
    def step(params, state, batch):
        if form == "leaves":
            grads = row_sparse.value_and_grad(plain_loss)(params, {"embed/embedding": batch}, batch)[1]
            return dense_step(tx)(params, state, grads)
        if micro_batches == 1:
            grads, token_ids = of_batch(params, batch)
        else:
            parts = batch.reshape(micro_batches, -1, T + 1)
            _, (grads, token_ids) = jax.lax.scan(lambda _, ids: (None, of_batch(params, ids)), None, parts)
            if sparse:
                grads, token_ids = row_sparse.mean_over_micro_batches(grads, token_ids, params)
            else:
                grads = jax.tree.map(lambda g: g.mean(0), grads)
        return sparse_step(tx)(params, state, grads, token_ids) if sparse else dense_step(tx)(params, state, grads)

    state = jax.jit(tx.init)(params)
    for number in range(steps):
        ids = np.random.default_rng(number).integers(0, V if number % 2 else 9, (4, T + 1))
        params, state = step(params, state, jnp.asarray(ids, jnp.int32))
    return params, state


WRAPPERS = {
    "ember": lambda: ember(1e-2, optax.adamw(1e-2)),
    "schedule": lambda: ember(optax.linear_schedule(1e-2, 1e-3, 5), optax.adamw(optax.linear_schedule(1e-2, 1e-3, 5))),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), ember(1e-2, optax.adamw(1e-2))),
    "inject_hyperparams": lambda: optax.inject_hyperparams(ember)(learning_rate=1e-2, body=optax.adamw(1e-2)),
    "apply_if_finite": lambda: optax.apply_if_finite(ember(1e-2, optax.adamw(1e-2)), 3),
    "partition": lambda: optax.partition(
        {"t": optax.chain(scale_by_ember(), optax.scale(-1e-2)), "b": optax.sgd(1e-2)},
        {"embed": "t", "layers": "b", "lm_head": "b"},
    ),
    "named chain": lambda: optax.named_chain(("first", optax.identity()), ("second", ember(1e-2, optax.contrib.muon(1e-2)))),
}


@functools.cache
def trained_densely(name):
    return train(WRAPPERS[name](), "dense")


# What looks at the elements of all gradients takes the arrays alone, and refuses the leaves.
OF_ELEMENTS = ("clipped", "apply_if_finite")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        # Each wrapper with one of the two, in turn, and those of elements with the only one that they take; the rest is slow.
        pytest.param(name, form, marks=() if (i + j) % 2 or name in OF_ELEMENTS else pytest.mark.slow)
        for i, name in enumerate(WRAPPERS)
        for j, form in enumerate(("leaves", "arrays"))
        if form == "arrays" or name not in OF_ELEMENTS
    ],
)
def test_composition(name, form):
    """The norm of distinct rows is the dense norm, so clipping agrees as well."""
    found, expected = train(WRAPPERS[name](), form), trained_densely(name)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), found, expected)


@pytest.mark.parametrize("name", OF_ELEMENTS)
def test_leaves_are_refused_by_what_looks_at_elements(name):
    with pytest.raises(TypeError, match="CompactRows"):
        train(WRAPPERS[name](), "leaves", steps=1)


def test_micro_batches_are_averaged_before_they_are_squared():
    found, expected = train(WRAPPERS["ember"](), "arrays", micro_batches=2), trained_densely("ember")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), found, expected)
