"""The report: stable names, the values of the single metrics, any tree, state and layout."""

import functools

import geometry_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import EmberDimensionNumbers, ember, geometry, token_tables

V, D = 24, 8
RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(V, D)), jnp.float32) + 0.2
PARAMS = {"embed": {"embedding": TABLE}, "dense": {"kernel": jnp.ones((4, 4))}}
GRADS = {"embed": {"embedding": 0.1 * TABLE.at[::2].set(0.0)}, "dense": {"kernel": jnp.ones((4, 4))}}
COUNTS = jnp.asarray(RNG.poisson(2.0, V), jnp.int32)
TX = ember(1e-2, body=optax.sgd(1e-2))

OF_TABLE = {
    "mean_row_norm", "largest_row_norm", "largest_token", "smallest_row_norm", "smallest_token", "iso_score",
    "mean_cosine_similarity", "mean_cosine_similarity_centered",
}  # fmt: skip
SPECTRAL = {
    f"{name}{centered}" for name in ("effective_rank", "stable_rank", "partition_isotropy") for centered in ("", "_centered")
}
OF_GRADIENT = {"gradient_norm", "active_rows", "active_share"}
OF_STEPS = {"update_size", "median_row_step", "largest_row_step", "largest_row_step_token", "cold_row_ratio"}
OF_COUNTS = {
    "tokens_never_seen", "mean_row_norm_weighted", "mean_cosine_similarity_weighted", "rare/mean_row_norm",
    "rare/mean_cosine_similarity", "frequent/mean_row_norm", "frequent/mean_cosine_similarity",
}  # fmt: skip


@functools.cache
def trained(tx=TX):
    state = tx.init(PARAMS)
    for scale in (0.5, 2.0):
        _, state = tx.update(jax.tree.map(lambda g, scale=scale: g * scale, GRADS), state, PARAMS)
    return state


@functools.cache
def whole():
    return geometry.report(PARAMS, GRADS, trained(), COUNTS)


def names_of(metrics, path="embed/embedding"):
    return {name.removeprefix(f"geometry/{path}/") for name in metrics if name.startswith(f"geometry/{path}/")}


def test_names_are_stable():
    """Loggers and pictures know them: what is renamed here breaks them."""
    assert names_of(geometry.report(PARAMS, spectral=False)) == OF_TABLE
    assert names_of(whole()) == (
        OF_TABLE | SPECTRAL | OF_GRADIENT | {"gradient_effective_rank", "gradient_stable_rank"} | OF_STEPS | OF_COUNTS
        | {"steps", "skipped_batches", "tokens_without_gradient"}
        | {"mean_row_step_weighted", "rare/mean_row_step", "frequent/mean_row_step"}
    )  # fmt: skip
    assert all(np.shape(value) == () for value in whole().values())
    assert {str(value.dtype) for value in whole().values()} == {"float32", "int32"}
    assert not any(name.startswith("geometry/dense") for name in whole())


def test_values_are_those_of_the_metrics():
    got = {name: float(whole()[f"geometry/embed/embedding/{name}"]) for name in names_of(whole())}
    norms, gradient = geometry.row_norms(TABLE), GRADS["embed"]["embedding"]
    steps = geometry.row_step(gradient, geometry.table_states(trained())["embed/embedding"])
    expected = {
        "mean_row_norm": norms.mean(),
        "largest_token": norms.argmax(),
        "smallest_token": norms.argmin(),
        "iso_score": oracle.iso_score(TABLE),
        "gradient_norm": jnp.linalg.norm(gradient),
        "gradient_stable_rank": oracle.stable_rank(gradient),
        "mean_cosine_similarity_weighted": geometry.mean_cosine_similarity(TABLE, weights=COUNTS),
        "tokens_never_seen": jnp.sum(COUNTS == 0),
        "update_size": jnp.sqrt(jnp.mean(steps**2)),
        "cold_row_ratio": geometry.cold_row_ratio(steps),
        "largest_row_step_token": steps.argmax(),
        "mean_row_step_weighted": jnp.sum(steps * COUNTS) / jnp.sum(COUNTS),
    }
    for name in ("effective_rank", "partition_isotropy", "mean_cosine_similarity"):
        expected |= {name: getattr(oracle, name)(TABLE), f"{name}_centered": getattr(oracle, name)(TABLE, centered=True)}
    seen = np.argsort(COUNTS, kind="stable")[int(np.sum(COUNTS == 0)) :]
    expected["rare/mean_row_norm"] = norms[seen[: len(seen) // 2]].mean()
    expected["frequent/mean_row_norm"] = norms[seen[len(seen) // 2 :]].mean()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


def test_what_ember_counts():
    got = {name: whole()[f"geometry/embed/embedding/{name}"] for name in names_of(whole())}
    assert (got["steps"], got["skipped_batches"], got["tokens_without_gradient"], got["active_rows"]) == (2, 0, V // 2, V // 2)
    assert got["active_share"] == 0.5
    poisoned = {**GRADS, "embed": {"embedding": TABLE * jnp.nan}}
    _, state = TX.update(poisoned, trained(), PARAMS)
    after = geometry.report(PARAMS, opt_state=state, spectral=False)
    assert after["geometry/embed/embedding/skipped_batches"] == 1
    assert after["geometry/skipped_batches"] == 1


def test_compiled_by_the_caller_and_of_a_head():
    def report(params, grads, state, counts):
        return geometry.report(params, grads, state, counts, spectral=False, tables=EmberDimensionNumbers(1))

    heads = [{"head": tree["embed"]["embedding"].T} for tree in (PARAMS, GRADS)]
    tx = ember(1e-2, optax.adamw(1e-2), tables=EmberDimensionNumbers(1))
    state = tx.init(heads[0])
    for scale in (0.5, 2.0):
        _, state = tx.update({"head": heads[1]["head"] * scale}, state, heads[0])
    for name, value in jax.jit(report)(*heads, state, COUNTS).items():
        expected = whole()[name.replace("head", "embed/embedding")]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_gradient_may_be_left_out():
    """As that of an input table in a row-sparse step, which is compact."""
    params = {"wte": {"embedding": TABLE}, "lm_head": {"kernel": TABLE.T}}
    metrics = geometry.report(params, {"wte": {"embedding": None}, "lm_head": {"kernel": TABLE.T}}, spectral=False)
    assert names_of(metrics, "wte/embedding") == OF_TABLE
    assert names_of(metrics, "lm_head/kernel") == OF_TABLE | OF_GRADIENT


@pytest.mark.parametrize("name", ["adamw", "sgd", "MultiSteps"])
def test_other_optimizers(name):
    """Adam's rows step too; what has no such state has no such metrics."""
    tx = {"adamw": optax.adamw(1e-3), "sgd": optax.sgd(1e-3), "MultiSteps": optax.MultiSteps(TX, 2)}[name]
    state = tx.init(PARAMS)
    metrics = geometry.report(PARAMS, GRADS, state, spectral=False)
    of_state = {"adamw": {"steps"} | OF_STEPS, "sgd": set()}.get(name)
    assert names_of(metrics) == OF_TABLE | OF_GRADIENT | (
        of_state if of_state is not None else {"steps", "skipped_batches", "tokens_without_gradient"} | OF_STEPS
    )
    assert ("geometry/skipped_batches" in metrics) == (name == "MultiSteps")
    if name != "sgd":
        np.testing.assert_allclose(metrics["geometry/embed/embedding/median_row_step"], 1, rtol=0.5)


@pytest.mark.parametrize(
    "tx", [ember(1e-2, optax.adamw(1e-2), tables=EmberDimensionNumbers(1, (0,))), optax.adam(1e-3)], ids=["ember", "adam"]
)
def test_stacked_tables_are_measured_one_by_one(tx):
    stacked = {"codebooks": jnp.stack([TABLE, 2 * TABLE])}
    state = tx.init(stacked)
    metrics = geometry.report(
        stacked, stacked, state, {"codebooks": COUNTS}, tables=EmberDimensionNumbers(1, (0,)), spectral=False
    )
    for number, scale in enumerate((1, 2)):
        norm = metrics[f"geometry/codebooks/{number}/mean_row_norm"]
        np.testing.assert_allclose(norm, scale * geometry.mean_row_norm(TABLE), rtol=1e-6)
        np.testing.assert_allclose(metrics[f"geometry/codebooks/{number}/update_size"], 1, rtol=0.3)
    assert names_of(metrics, "codebooks/0") == names_of(metrics, "codebooks/1")


def test_skipped_batches_of_a_stack_add_up():
    tx = ember(1e-2, optax.adamw(1e-2), tables=EmberDimensionNumbers(1, (0,)))
    stacked = {"codebooks": jnp.stack([TABLE, TABLE])}
    spoilt = {"codebooks": stacked["codebooks"].at[1, 0].set(jnp.nan)}
    state = tx.update(spoilt, tx.init(stacked), stacked)[1]
    metrics = geometry.report(stacked, None, state, tables=EmberDimensionNumbers(1, (0,)), spectral=False)
    assert metrics["geometry/skipped_batches"] == 1


def test_counts_by_path():
    params = {"wte": {"embedding": TABLE}, "lm_head": {"kernel": TABLE.T}}
    metrics = geometry.report(params, token_counts={"lm_head/kernel": COUNTS}, spectral=False)
    assert "tokens_never_seen" in names_of(metrics, "lm_head/kernel")
    assert "tokens_never_seen" not in names_of(metrics, "wte/embedding")


@pytest.mark.parametrize("shape, axes", [((V,), EmberDimensionNumbers(0)), ((3, V), EmberDimensionNumbers(1, (0,)))], ids=str)
def test_a_declared_bias_is_left_out_and_named(shape, axes):
    """`vocab` asks for it, and one declaration goes to everything."""
    declared = {"embed": {"embedding": EmberDimensionNumbers(0)}, "dense": {"kernel": None}, "head": {"bias": axes}}
    params, grads = ({**tree, "head": {"bias": jnp.ones(shape)}} for tree in (PARAMS, GRADS))
    state = ember(1e-2, optax.sgd(1e-2), tables=declared).init(params)
    metrics = geometry.report(params, grads, state, COUNTS, tables=declared, spectral=False)
    assert names_of(metrics, "head/bias") == {"left_out"}
    assert metrics["geometry/head/bias/left_out"] == 1
    of_table = geometry.report(PARAMS, GRADS, TX.init(PARAMS), COUNTS, spectral=False)
    assert metrics.keys() == of_table.keys() | {"geometry/head/bias/left_out"}
    for name, value in of_table.items():
        np.testing.assert_array_equal(metrics[name], value, err_msg=name)


def test_a_bias_that_the_finder_is_told_of():
    """The declaration that the message of `vocab.resize` gives."""
    params = {**PARAMS, "head": {"bias": jnp.ones(V)}}
    tables = functools.partial(token_tables, include=["head/bias"])
    assert names_of(geometry.report(params, tables=tables, spectral=False), "head/bias") == {"left_out"}
    by_path = geometry.report(params, token_counts={"head/bias": COUNTS}, tables=tables, spectral=False)
    assert names_of(by_path, "head/bias") == {"left_out"}


def test_a_report_of_nothing_but_a_bias():
    with pytest.raises(ValueError, match=r"only \['head'\], which have no features"):
        geometry.report({"head": jnp.ones(V)}, tables=EmberDimensionNumbers(0))
