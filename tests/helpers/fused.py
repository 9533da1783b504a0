"""A small language model, its dense step and the step with a fused head, for tests that compare them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ember_optax import EmberDimensionNumbers, ember, row_sparse
from ember_optax.losses import linear_softmax_cross_entropy


class Model(NamedTuple):
    """Sizes and options of the model, all static."""

    size: int = 37
    width: int = 8
    tokens: int = 12
    token_axis: int = 0
    tied: bool = False
    dtype: type = jnp.float32
    options: tuple = (("chunk", 8),)
    masked: bool = False
    labels: int | None = None

    @property
    def numbers(self):
        numbers = {"body": None, "embed": EmberDimensionNumbers(0), "head": EmberDimensionNumbers(self.token_axis)}
        return {name: numbers[name] for name in self.params()}

    def params(self, seed=0):
        rng = np.random.default_rng(seed)
        shape = (self.size, self.width) if self.token_axis == 0 else (self.width, self.size)
        shapes = {"body": (self.width, self.width), "head": shape} | ({} if self.tied else {"embed": (self.size, self.width)})
        return {name: jnp.asarray(rng.standard_normal(of), self.dtype) for name, of in shapes.items()}

    def batch(self, seed):
        rng = np.random.default_rng(seed)
        sizes = self.size, self.labels or self.size
        ids, labels = (jnp.asarray(rng.integers(0, size, self.tokens), jnp.int32) for size in sizes)
        return ids, labels, jnp.asarray(rng.random(self.tokens) < 0.7) | (jnp.arange(self.tokens) == 0)

    def hidden(self, params, ids):
        table, axis = (params["head"], self.token_axis) if self.tied else (params["embed"], 0)
        return jnp.tanh(row_sparse.lookup(table, ids, token_axis=axis) @ params["body"])

    def loss(self, params, ids, labels, where):
        options = dict(self.options) | {"token_axis": self.token_axis, "where": where if self.masked else None}
        losses = linear_softmax_cross_entropy(self.hidden(params, ids), params["head"], labels, **options)
        return losses.sum() / (where.sum() if self.masked else losses.size)

    def looked_up(self, ids):
        return {"head" if self.tied else "embed": ids}


# Models of two classes are equal if their fields are, and are kept apart by `typed`.
once = functools.lru_cache(maxsize=None, typed=True)


@once
def transformation(model, clip=None, **options):
    """`ember` on the model's tables, behind a clip by the norm of all gradients; the clip of Optax for dense steps.

    One for all cases of a model, so that they share the compiled dense step.
    """
    tx = ember(1e-2, optax.sgd(0.1), tables=model.numbers, **options)
    return tx if clip is None else optax.chain(clip(0.5), tx)


@once
def dense_step(model, tx, loss_fn=None):
    """`loss_fn` is another loss than the model's."""

    @jax.jit
    def step(params, opt_state, *batch):
        loss, grads = jax.value_and_grad(loss_fn or model.loss)(params, *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


@once
def fused_step(model, tx, lookups=True, loss_fn=None):
    """`lookups=False` leaves an untied input table dense: in a row-sparse step only the touched rows decay."""
    gradient = row_sparse.value_and_grad(loss_fn or model.loss, heads="head", tables=model.numbers)

    @jax.jit
    def step(params, opt_state, *batch):
        loss, grads = gradient(params, model.looked_up(batch[0]) if lookups else {}, *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


def run(step_of, model, tx, steps):
    """Parameters, state and losses after some steps; `step_of(number)` is the step that is taken."""
    params = model.params()
    opt_state, losses = tx.init(params), []
    for number in range(steps):
        params, opt_state, loss = step_of(number)(params, opt_state, *model.batch(number))
        losses.append(float(loss))
    return params, opt_state, losses


def step_with(model, tx, loss_fn=None, *, fused):
    """A step with a loss, whose fused and dense form update an untied input table alike."""
    return fused_step(model, tx, model.tied, loss_fn) if fused else dense_step(model, tx, loss_fn)


def run_clipped(model, loss_fn=None, *, fused, steps=3, **options):
    """`run` with a loss, behind a clip by the global norm."""
    clip = row_sparse.clip_by_global_norm if fused else optax.clip_by_global_norm
    tx = transformation(model, clip, **options)
    step = step_with(model, tx, loss_fn, fused=fused)
    return run(lambda _: step, model, tx, steps)


def assert_same(found, expected, tolerance=1e-6):
    """Every leaf within `tolerance` of the largest number in it."""
    leaves, wanted = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)] for tree in (found, expected))
    for ours, theirs in zip(leaves, wanted, strict=True):
        assert np.isfinite(ours).all()
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
