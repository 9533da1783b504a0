"""Every transformation of the installed Optax on compact gradients: plain arrays, and leaves that know their ids.

What comes is the same as with dense gradients, an error, or other numbers without an error: docs/row_sparse.md says which. An
array of rows does not tell Optax that it is not a whole table.
"""

import functools
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import to_dense

from ember_optax import row_sparse

V, D = 20, 6
SHAPES = {"w": (3, 2), "wte": (V, D)}
IDS = {"distinct": jnp.array([3, 7, 9, 1, 0, 19]), "equal": jnp.array([3, 7, 3, 3, 0, 7])}
# What a transformation makes of distinct ids, as those of `row_sparse.value_and_grad`, and of equal ones.
NAMES = {
    # Linear in each row, without a look at the other rows.
    ("same", "same"): """
centralize freeze identity reduce_on_plateau scale scale_by_learning_rate scale_by_param_block_norm
scale_by_param_block_rms scale_by_schedule set_to_zero sgd snapshot stateless stateless_with_tree_map zero_nans
""",
    # Elementwise but not linear, or by a norm.
    ("same", "other"): """
clip clip_by_global_norm normalize normalize_by_update_norm polyak_sgd scale_by_distance_over_gradients
scale_by_polyak scale_by_sign scale_by_trust_ratio sign_sgd
""",
    # By the number of elements, or by their places.
    ("other", "other"): """
add_noise clip_by_block_rms noisy_sgd
""",
    # With a number for each element of the table, or with the parameters: shapes do not fit.
    ("refused", "refused"): """
acprop adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan adaptive_grad_clip add_decayed_weights
ademamix adopt amsgrad apply_every cocob dadapt_adamw ema fromage galore keep_params_nonnegative lamb lars lion
madgrad momo momo_adam muon novograd optimistic_adam_v2 optimistic_gradient_descent prodigy radam
rmsprop rprop scale_by_acprop scale_by_adadelta scale_by_adam scale_by_adamax scale_by_adan scale_by_ademamix
scale_by_adopt scale_by_amsgrad scale_by_belief scale_by_cocob scale_by_galore scale_by_lbfgs scale_by_lion
scale_by_madgrad scale_by_muon scale_by_novograd scale_by_optimistic_gradient scale_by_radam scale_by_rms
scale_by_rprop scale_by_rss scale_by_simplified_ademamix scale_by_sm3 scale_by_stddev scale_by_yogi
schedule_free_adamw schedule_free_sgd signum simplified_ademamix sm3 trace yogi
""",
}
VERDICTS = {name: verdict for verdict, names in NAMES.items() for name in names.split()}
NORM = lambda updates, **_: optax.tree.norm(updates)  # noqa: E731
KEY = jax.random.key(0)
ARGUMENTS = {
    "adaptive_grad_clip": (0.01,),
    "add_decayed_weights": (0.1,),
    "add_noise": (0.1, 0.5, KEY),
    "apply_every": (2,),
    "clip": (0.5,),
    "clip_by_block_rms": (0.3,),
    "clip_by_global_norm": (0.3,),
    "ema": (0.9,),
    "freeze": ({"w": False, "wte": False},),
    "noisy_sgd": (0.1, 0.01, 0.55, KEY),
    "per_example_global_norm_clip": (1.0,),
    "scale": (0.5,),
    "scale_by_rprop": (0.1,),
    "scale_by_schedule": (lambda count: 0.5 / (count + 1),),
    "snapshot": ("norm", NORM),
    "stateless": (lambda updates, _: jax.tree.map(lambda leaf: 2 * leaf, updates),),
    "stateless_with_tree_map": (lambda leaf, _: 2 * leaf,),
    "trace": (0.9,),
}
# These wrap a transformation (test_row_composition.py), want more than gradients of a batch, or are deprecated.
LEFT_OUT = """
optimistic_adam
apply_if_finite chain conditionally_mask conditionally_transform differentially_private_aggregate dpsgd flatten
inject_hyperparams inject_stateful_hyperparams lookahead masked measure_with_ema mechanize multi_transform named_chain
partition sam schedule_free selective_transform split_real_and_imaginary with_extra_args_support lbfgs
scale_by_backtracking_linesearch scale_by_zoom_linesearch sophia
"""


def transformations():
    """All functions of Optax that return a transformation, by name."""
    found = {}
    for module in (optax, optax.contrib):
        for name in dir(module):
            member = getattr(module, name)
            is_public = inspect.isfunction(member) and not name.startswith("_") and name not in LEFT_OUT.split()
            if is_public and "Transformation" in str(inspect.signature(member).return_annotation):
                found.setdefault(name, member)
    return found


def made(name):
    factory = transformations()[name]
    if name == "scale_by_muon":
        axes = optax.contrib.MuonDimensionNumbers()
        return factory(weight_dimension_numbers={"w": axes, "wte": axes})
    if name in ARGUMENTS:
        return factory(*ARGUMENTS[name])
    try:
        return factory()
    except TypeError:
        return factory(0.1)


def updates_of(tx, ids, *, compact):
    """Of two steps, as dense arrays."""
    params = {name: jnp.asarray(np.random.default_rng(9).standard_normal(of), jnp.float32) for name, of in SHAPES.items()}
    tx, found = optax.with_extra_args_support(tx), []
    state = tx.init(params)
    for step in range(2):
        rng = np.random.default_rng(step)
        grads = {name: jnp.asarray(rng.standard_normal(of), jnp.float32) for name, of in {"w": (3, 2), "wte": (6, D)}.items()}
        if not compact:
            grads["wte"] = to_dense(grads["wte"], ids, (V, D))
        elif compact == "leaves":
            grads["wte"] = row_sparse.CompactRows(grads["wte"], ids, (V, D), 0, "wte")
        updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
        if compact == "leaves":
            updates["wte"] = jnp.zeros((V, D)) + updates["wte"]
        elif compact:
            if updates["wte"].shape != (6, D):
                raise ValueError("a dense update, which ember refuses by its shape")
            updates["wte"] = to_dense(updates["wte"], ids, (V, D))
        found.append(updates)
    return found


@functools.cache
def dense_updates(name, ids):
    return updates_of(made(name), IDS[ids], compact=None)


def verdict(name, ids, compact="arrays"):
    try:
        found = updates_of(made(name), IDS[ids], compact=compact)
    except (TypeError, ValueError):
        return "refused"
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(dense_updates(name, ids)), strict=True):
        if not np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max():
            return "other"
    return "same"


@pytest.mark.parametrize("name", sorted(transformations()))
def test_compact_arrays(name):
    """If this fails for a new transformation of Optax, name it above and, if its numbers differ, in docs/row_sparse.md."""
    assert name in VERDICTS, f"optax.{name} is new: with distinct and with equal ids it is {verdict(name, 'distinct')}"
    assert (verdict(name, "distinct"), verdict(name, "equal")) == VERDICTS[name]


# Products with numbers, and sums with an array of the table's shape.
OF_LEAVES = """
apply_every freeze identity reduce_on_plateau scale scale_by_learning_rate scale_by_param_block_norm scale_by_param_block_rms
scale_by_schedule schedule_free_sgd set_to_zero sgd stateless stateless_with_tree_map
"""


@pytest.mark.parametrize("name", sorted(transformations()))
def test_leaves_that_know_their_ids(name):
    """Never other numbers: the dense step, or an error."""
    found = {ids: verdict(name, ids, compact="leaves") for ids in IDS}
    expected = "same" if name in OF_LEAVES.split() else "refused"
    assert found == {"distinct": expected, "equal": expected}


@pytest.mark.parametrize("name", ["clip", "normalize", "clip_by_global_norm"])
def test_sums_of_equal_ids_make_them_the_same(name):
    """`sum_over_duplicates` before what is the same for distinct ids alone."""
    params, rng = {"wte": jnp.ones((V, D)), "w": jnp.ones((3, 2))}, np.random.default_rng(0)
    compact = {"wte": jnp.asarray(rng.standard_normal((6, D)), jnp.float32), "w": jnp.ones((3, 2))}
    summed = row_sparse.sum_over_duplicates(compact, {"wte": IDS["equal"]}, params)
    dense, tx = {**compact, "wte": to_dense(compact["wte"], IDS["equal"], (V, D))}, made(name)
    found, wanted = (tx.update(grads, tx.init(params), params)[0] for grads in (summed, dense))
    np.testing.assert_allclose(to_dense(found["wte"], IDS["equal"], (V, D)), wanted["wte"], rtol=1e-5, atol=1e-7)


def test_the_documents_name_each_that_differs():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "row_sparse.md").read_text()
    for name in (name for name, found in VERDICTS.items() if "other" in found):
        assert re.search(rf"`(contrib\.)?{name}`", text), name
