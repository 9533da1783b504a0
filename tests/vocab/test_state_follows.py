"""Whatever optimizer trains a table, its state follows the tokens: what remains goes on as if nothing had happened."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from next_token import needs_nnx_optimizer
from steps import dense_step, jitted

from ember_optax import TokenTables, ember, row_sparse, scale_by_ember, token_table_labels, vocab

V, D = 12, 4
OPTIMIZERS = {
    "ember": lambda: ember(1e-2, optax.adamw(1e-2)),
    "two rates": lambda: ember(1e-2, optax.adamw(1e-2), head_learning_rate=optax.linear_schedule(1e-2, 1e-3, 9)),
    "scale_by_ember for all": lambda: optax.chain(scale_by_ember(), optax.scale(-0.1)),
    "adamw for all": lambda: optax.adamw(1e-2),
    "ember for one table, adam for the other": lambda: ember(
        1e-2, optax.adam(1e-2), tables=TokenTables(exclude=["lm_head/kernel"])
    ),
    "partition": lambda: optax.partition({"ember": ember(1e-2, optax.adamw(1e-2)), "body": optax.lion(1e-3)}, token_table_labels),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), ember(1e-2, optax.adamw(1e-2))),
    "micro-batches": lambda: optax.MultiSteps(ember(1e-2, optax.adamw(1e-2)), 2),
    "hyperparameters": lambda: optax.inject_hyperparams(ember, hyperparam_dtype=jnp.float32)(1e-2, optax.adamw(1e-2)),
    "if finite": lambda: optax.apply_if_finite(ember(1e-2, optax.adamw(1e-2)), 3),
    "averaged updates": lambda: optax.chain(ember(1e-2, optax.adamw(1e-2)), optax.ema(0.9)),
    "schedule-free": lambda: optax.contrib.schedule_free(optax.sgd(1e-2), 1e-2),
    "adagrad": lambda: optax.adagrad(1e-2),
}
USUAL = ("ember", "ember for one table, adam for the other", "micro-batches", "schedule-free")
EACH = pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in USUAL else pytest.mark.slow) for n in OPTIMIZERS])
make = functools.cache(lambda name: OPTIMIZERS[name]())


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def model(seed=0):
    return {
        "embed": {"embedding": draw((V, D), seed)},
        "lm_head": {"kernel": draw((D, V), seed + 1)},
        "mlp": draw((D, D), seed + 2),
    }


def with_rows(tree, ids):
    """The same tree with other rows, -1 for zeros."""
    ids = np.asarray(ids)

    def rows(table):
        return jnp.where((ids >= 0)[:, None], table[ids], 0)

    return {
        "embed": {"embedding": rows(tree["embed"]["embedding"])},
        "lm_head": {"kernel": rows(tree["lm_head"]["kernel"].T).T},
        "mlp": tree["mlp"],
    }


def train(tx, params, state, seeds, ids=None):
    for seed in seeds:
        grads = model(seed) if ids is None else with_rows(model(seed), ids)
        params, state = jitted(dense_step, tx)(params, state, grads)
    return params, state


def assert_close(ours, theirs, rtol=2e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-6), ours, theirs)


@EACH
def test_grown_by_zeros_is_the_run_that_had_them_from_the_start(name):
    tx, params, ids = make(name), model(), np.r_[np.arange(V), [-1] * 6]
    params, state = train(tx, params, tx.init(params), (10, 20, 30))
    grown = vocab.resize(tx, params, state, V + 6, initializer="zeros")
    ours, _ = train(tx, grown.params, grown.opt_state, (40, 50), ids)
    padded = with_rows(model(), ids)
    theirs, _ = train(tx, padded, tx.init(padded), (10, 20, 30, 40, 50), ids)
    assert_close(ours, theirs)


def test_grown_by_zeros_with_averages_over_active_rows():
    """Here padding changes the steps, so the run with the rows from the start is elsewhere; but state and next step agree."""
    tx, params, ids = ember(1e-2, optax.adamw(1e-2), feature_mean="active_rows"), model(), np.r_[np.arange(V), [-1] * 6]
    params, state = train(tx, params, tx.init(params), (10, 20))
    padded = with_rows(model(), ids)
    padded, padded_state = train(tx, padded, tx.init(padded), (10, 20), ids)
    grown = vocab.resize(tx, params, state, V + 6, initializer="zeros")
    ours, theirs = (optax.tree.get(s, "ScaleByEmberState") for s in (grown.opt_state, padded_state))
    assert_close(ours.nu_feature["embed"], theirs.nu_feature["embed"])
    (updates, _), (expected, _) = (
        tx.update(with_rows(model(40), ids), s, p) for s, p in ((grown.opt_state, grown.params), (padded_state, padded))
    )
    assert_close(updates["embed"], expected["embed"])


@EACH
def test_permuted(name):
    tx, params = make(name), model()
    params, state = train(tx, params, tx.init(params), (10, 20, 30))
    order = np.random.default_rng(0).permutation(V)
    moved = vocab.take(tx, params, state, order)
    assert (moved.new_ids[order] == np.arange(V)).all()
    ours, _ = train(tx, moved.params, moved.opt_state, (40, 50), order)
    theirs, _ = train(tx, params, state, (40, 50))
    assert_close(ours, with_rows(theirs, order))


@EACH
def test_a_duplicate_begins_like_the_original(name):
    tx, params = make(name), model()
    params, state = train(tx, params, tx.init(params), (10, 20))
    twice = vocab.take(tx, params, state, [*range(V), 3])
    assert twice.new_ids.tolist() == list(range(V))
    ours, _ = train(tx, twice.params, twice.opt_state, (40,), [*range(V), 3])
    table = ours["embed"]["embedding"]
    np.testing.assert_array_equal(table[V], table[3])


def test_the_state_of_new_tokens_is_what_init_gives():
    tx = optax.chain(optax.adagrad(1e-2, initial_accumulator_value=0.5), optax.contrib.schedule_free(optax.sgd(1e-2), 1e-2))
    params = model()
    params, state = train(tx, params, tx.init(params), (10, 20))
    grown = vocab.resize(tx, params, state, V + 2)
    sums = optax.tree.get(grown.opt_state, "sum_of_squares")["embed"]["embedding"]
    assert (sums[V:] == 0.5).all() and (sums[:V] != 0.5).any()
    # A second copy of the parameters.
    np.testing.assert_array_equal(grown.opt_state[1].z["embed"]["embedding"][V:], grown.params["embed"]["embedding"][V:])


def test_accumulated_gradients_in_the_middle_of_a_step():
    tx, params = optax.MultiSteps(ember(1e-2, optax.adamw(1e-2)), 2), model()
    params, state = train(tx, params, tx.init(params), (10, 20, 30))
    kept = np.arange(0, V, 2)
    ours = vocab.take(tx, params, state, kept)
    assert (ours.opt_state.acc_grads["embed"]["embedding"] == state.acc_grads["embed"]["embedding"][kept]).all()
    assert float(jnp.abs(ours.opt_state.acc_grads["lm_head"]["kernel"]).sum()) > 0


@pytest.mark.parametrize("make", [lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4), lambda: optax.sm3(1e-2)])
def test_factored_states_of_other_optimizers(make):
    tx, params = make(), model()
    params, state = train(tx, params, tx.init(params), (10,))
    grown = vocab.resize(tx, params, state, V + 4)
    train(tx, grown.params, grown.opt_state, (40,), np.r_[np.arange(V), [-1] * 4])


def test_a_state_without_the_tokens_is_refused():
    tx, params = optax.flatten(optax.adam(1e-3)), model()
    with pytest.raises(
        ValueError, match=r"the state of tx at '0/mu' cannot follow the vocabulary.* shape \(112,\).*makes \(128,\)"
    ):
        vocab.resize(tx, params, tx.init(params), V + 2)


def test_a_state_that_takes_another_form_is_refused():
    """optax.adafactor factors large matrices only, so growing may change what its state is."""
    tx, params = optax.adafactor(1e-2, min_dim_size_to_factor=14), {"wte": draw((V, 14), 0)}
    with pytest.raises(ValueError, match=r"the state of tx at '0/v_row/wte' cannot follow the vocabulary"):
        vocab.resize(tx, params, tx.init(params), 16)


def test_old_checkpoint_into_a_new_vocabulary(tmp_path):
    tx, params = ember(1e-2, optax.adamw(1e-2)), model()
    params, state = train(tx, params, tx.init(params), (10, 20))
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.StandardSave({"params": params, "opt_state": state}))
    target = jax.eval_shape(lambda: {"params": model(), "opt_state": tx.init(model())})
    with ocp.CheckpointManager(tmp_path) as manager:
        restored = manager.restore(1, args=ocp.args.StandardRestore(target))
    ids = np.r_[np.arange(V), [-1] * 4]
    straight, from_disk = (
        train(tx, *vocab.resize(tx, p, s, V + 4)[:2], (30, 40), ids)
        for p, s in ((params, state), (restored["params"], restored["opt_state"]))
    )
    jax.tree.map(np.testing.assert_array_equal, from_disk, straight)


def test_row_sparse_steps_go_on():
    tx, params = ember(1e-2, optax.adamw(1e-2)), {"embed": {"embedding": draw((V, D), 0)}, "mlp": draw((D, D), 1)}
    ids = jnp.array([[1, 5, 5, 2]])

    def loss_fn(params, batch):
        rows = row_sparse.lookup(params["embed"]["embedding"], batch)
        return jnp.square(rows @ params["mlp"]).mean()

    def step(params, state, batch):
        loss, grads = row_sparse.value_and_grad(loss_fn)(params, {"embed/embedding": batch}, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state, _ = step(params, tx.init(params), ids)
    grown = vocab.resize(tx, params, state, V + 4)
    ours, _, _ = step(grown.params, grown.opt_state, ids)
    theirs, _, _ = step(params, state, ids)
    assert_close(ours["embed"]["embedding"][:V], theirs["embed"]["embedding"])


def test_linen_boxes_keep_their_names():
    import flax.linen as nn  # noqa: PLC0415

    params = {"embed": {"embedding": nn.Partitioned(draw((V, D), 0), ("vocab", "embed"))}, "mlp": draw((D, D), 1)}
    tx = ember(1e-2, optax.adamw(1e-2))
    grown = vocab.resize(tx, params, tx.init(params), V + 4)
    box = grown.params["embed"]["embedding"]
    assert box.names == ("vocab", "embed") and box.value.shape == (V + 4, D)
    nu_token = optax.tree.get(grown.opt_state, "ScaleByEmberState").nu_token["embed"]["embedding"]
    assert nu_token.names == ("vocab",) and nu_token.value.shape == (V + 4,)


@needs_nnx_optimizer
def test_nnx_optimizer():
    from flax import nnx  # noqa: PLC0415

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(V, D, rngs=rngs)
            self.lm_head = nnx.Linear(D, V, rngs=rngs)

        def __call__(self, ids):
            return self.lm_head(self.embed(ids))

    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.square(model(jnp.arange(5))).mean())(model)
        optimizer.update(model, grads)

    tx = ember(1e-2, optax.adamw(1e-2))
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step(model, optimizer)
    changed = vocab.resize(tx, nnx.state(model, nnx.Param), optimizer.opt_state, V + 4)
    nnx.update(model, changed.params)
    optimizer.opt_state = changed.opt_state
    step(model, optimizer)
    assert model(jnp.array([V + 3])).shape == (1, V + 4)


def test_equinox_model():
    import equinox as eqx  # noqa: PLC0415

    class Model(eqx.Module):
        embed: eqx.nn.Embedding
        lm_head: eqx.nn.Linear
        activation: object

    keys = jax.random.split(jax.random.key(0))
    model = Model(eqx.nn.Embedding(V, D, key=keys[0]), eqx.nn.Linear(D, V, key=keys[1]), jnp.tanh)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    tx = ember(1e-2, optax.adamw(1e-2))
    grown = vocab.resize(tx, params, tx.init(params), V + 4)
    whole = eqx.combine(grown.params, static)
    logits = whole.lm_head(whole.activation(whole.embed(V + 1)))
    assert logits.shape == (V + 4,)
