"""A fused head whose loss is masked afterwards, or whose table has rows of padding: the dense step of Optax's loss, again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chunked_loss import dense
from fused import assert_same, dense_step, fused_step, run, transformation
from products import in_turn

from ember_optax import EmberDimensionNumbers, row_sparse, stochastic_rounding
from ember_optax.losses import linear_softmax_cross_entropy

OPTIONS = (("soft_cap", 5.0), ("z_loss", 0.1), ("label_smoothing", 0.1))


@dataclasses.dataclass(frozen=True)
class Masked:
    """A model whose head has `num_tokens` tokens and then rows of padding, and whose labels are to be masked after the loss."""

    size: int = 40
    num_tokens: int = 40
    width: int = 8
    tokens: int = 12
    token_axis: int = 0
    tied: bool = False
    options: tuple = ()
    is_dense: bool = False
    label: int = -100
    state: float = 1.0
    dtype: type = jnp.float32

    @property
    def numbers(self):
        return {"body": None, "head": EmberDimensionNumbers(self.token_axis)}

    def params(self):
        rng = np.random.default_rng(0)
        head = rng.standard_normal((self.size, self.width))
        head = jnp.asarray(head if self.token_axis == 0 else head.T, self.dtype)
        return {"body": jnp.asarray(rng.standard_normal((self.width, self.width)), jnp.float32), "head": head}

    def batch(self, seed):
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, self.size, self.tokens)  # rows of padding are looked up, too
        counts = (rng.random(self.tokens) < 0.6) | (np.arange(self.tokens) == 0)
        labels = np.where(counts, rng.integers(0, self.num_tokens, self.tokens), self.label)
        return jnp.asarray(ids), jnp.asarray(labels), jnp.asarray(counts)

    def looked_up(self, ids):
        return {"head": ids} if self.tied else {}

    def loss(self, params, ids, labels, counts):
        head, given = params["head"], jnp.sin(ids[:, None] + jnp.arange(self.width, dtype=jnp.float32))
        rows = row_sparse.lookup(head, ids, token_axis=self.token_axis).astype(jnp.float32) if self.tied else given
        hidden, options = jnp.tanh(rows @ params["body"]), dict(self.options)
        if not self.is_dense:
            hidden = jnp.where(counts[:, None], hidden, self.state)
            options |= {"chunk": 8, "num_tokens": self.num_tokens}
            losses = linear_softmax_cross_entropy(hidden, head, labels, token_axis=self.token_axis, **options)
        else:
            head = jax.lax.slice_in_dim(head, 0, self.num_tokens, axis=self.token_axis)
            losses = dense(hidden, head, jnp.where(counts, labels, 0), token_axis=self.token_axis, **options)
        return jnp.where(counts, losses, 0.0).sum() / counts.sum()


def compare(model, steps=5, **options):
    """Fused steps of `linear_softmax_cross_entropy` against dense steps of Optax's loss, behind clips."""
    of_dense, tx = (
        transformation(model, clip, **options) for clip in (optax.clip_by_global_norm, row_sparse.clip_by_global_norm)
    )
    wanted = dense_step(dataclasses.replace(model, is_dense=True), of_dense)
    found = run(lambda _: fused_step(model, tx), model, tx, steps)
    assert_same(found, run(lambda _: wanted, model, of_dense, steps))
    return found[0]


# Every other one has a tied head by default.
LABELS = [(-100, 1.0, False), (40, np.inf, True), (3, -np.inf, True), (2**31 - 1, np.nan, False)]
PADDED = [(33, True), (1, True), (32, False), (39, False)]


@pytest.mark.parametrize("label, state, with_options, tied", in_turn(LABELS, [False, True]), ids=str)
def test_masked_afterwards(label, state, with_options, tied):
    compare(Masked(label=label, state=state, options=OPTIONS * with_options, tied=tied, token_axis=int(tied)))


@pytest.mark.parametrize("num_tokens, with_options, tied", in_turn(PADDED, [False, True]), ids=str)
def test_rows_of_padding(num_tokens, with_options, tied):
    """Statistics over all rows, those of padding with a gradient of zero; where the table is tied, they may be looked up."""
    model = Masked(num_tokens=num_tokens, options=OPTIONS * with_options, tied=tied, token_axis=int(not tied))
    params = compare(model)
    if not tied:
        axis = model.token_axis
        now, before = (np.moveaxis(np.asarray(tree["head"]), axis, 0)[num_tokens:] for tree in (params, model.params()))
        np.testing.assert_array_equal(now, before)


def test_weight_decay_reaches_rows_of_padding():
    """As in a dense step."""
    for model in (Masked(num_tokens=19), Masked(num_tokens=33, tied=True)):
        compare(model, weight_decay=0.1, feature_mean="active_rows")


def test_rows_of_padding_that_are_not_finite():
    """The head does not read them."""
    model = Masked(num_tokens=33)
    params = model.params()
    params["head"] = params["head"].at[33:].set(jnp.nan)
    tx = transformation(model)
    after, state, loss = fused_step(model, tx)(params, tx.init(params), *model.batch(0))
    assert np.isfinite(loss) and np.isfinite(after["head"][:33]).all() and (after["head"][:33] != params["head"][:33]).any()
    assert optax.tree.get(state, "total_notfinite")["head"] == 0


def test_rows_of_padding_under_stochastic_rounding():
    model = Masked(num_tokens=33, dtype=jnp.bfloat16)
    tx = optax.chain(transformation(model), stochastic_rounding(0))
    after, _, _ = fused_step(model, tx)(model.params(), tx.init(model.params()), *model.batch(0))
    np.testing.assert_array_equal(after["head"][33:], model.params()["head"][33:])
    assert (after["head"][:33] != model.params()["head"][:33]).any()


@pytest.mark.parametrize("label, state", [(-100, 1.0), (3, np.nan), (40, np.inf)])
def test_behind_a_stopped_gradient(label, state):
    """The head's gradient is exactly zero, whatever the loss: no batch is skipped."""
    model = Masked()

    def loss(params, ids, labels, counts):
        del ids
        hidden = jnp.where(counts[:, None], jnp.ones((12, 8)), state)
        losses = linear_softmax_cross_entropy(hidden, jax.lax.stop_gradient(params["head"]), labels, chunk=8)
        return losses.sum() + params["body"].sum()

    ids, labels, counts = model.batch(0)
    labels = jnp.where(counts, labels, label)
    gradient = row_sparse.value_and_grad(loss, heads="head", tables=model.numbers)
    tap = jax.jit(lambda *batch: gradient(model.params(), {}, *batch)[1]["head"].tap)(ids, labels, counts)
    for array in jax.tree.leaves(tap):
        np.testing.assert_array_equal(array, 0.0)


def test_a_slice_of_a_fused_head_names_the_argument():
    model = Masked(num_tokens=33)

    def sliced(params, ids, labels, counts):
        del ids, counts
        return linear_softmax_cross_entropy(jnp.ones((12, 8)), params["head"][:33], labels).mean()

    with pytest.raises(TypeError, match="num_tokens"):
        row_sparse.value_and_grad(sliced, heads="head", tables=model.numbers)(model.params(), {}, *model.batch(0))
