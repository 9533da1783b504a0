"""Row-sparse mistakes are named, with the path and the fix."""

import jax
import jax.numpy as jnp
import pytest
from small_model import IDS, D, V, make_params

from ember_optax import EmberDimensionNumbers, ember, row_sparse, scale_by_ember

PARAMS = make_params()
STATE = ember(1e-2).init(PARAMS)
GRADS = {**PARAMS, "embed": {"embedding": jnp.ones((5, D))}}
FIVE = jnp.arange(5)


def update(grads=GRADS, params=PARAMS, **ids):
    return ember(1e-2).update(grads, STATE, params, token_ids={"embed/embedding": FIVE} | ids)


def tied_loss(params, ids):
    table = params["embed"]["embedding"]
    return jnp.mean(table[ids] @ table.T)


MISTAKES = {
    "ids of floats": (lambda: update(**{"embed/embedding": FIVE * 1.0}), TypeError, r"'embed/embedding' .* integers .* float32"),
    "ids in a list": (
        lambda: update(**{"embed/embedding": [1, 2]}),
        TypeError,
        r"'embed/embedding/0' must be an array .* type int",
    ),
    "ids of another number": (lambda: update(**{"embed/embedding": FIVE[:3]}), ValueError, r"shape \(5, 8\).*\(3,\).*\(3, 8\)"),
    "compact without ids": (lambda: ember(1e-2).update(GRADS, STATE, PARAMS), ValueError, r"embedding' has shape \(5, 8\)"),
    "dense with ids": (lambda: update(PARAMS), ValueError, r"is dense, of shape \(50, 8\).*tied to the head.*None"),
    "ids of the body": (lambda: update(**{"layers": FIVE}), ValueError, r"'layers' of shape \(3, 8, 8\), trained by the body"),
    "unknown path": (lambda: update(**{"embed/table": FIVE}), ValueError, r"\['embed/table'\].* correct the path"),
    "no parameters": (lambda: update(params=None), ValueError, r"token_ids need the parameters: call update\(updates, state"),
    "no parameters of one table": (
        lambda: scale_by_ember().update(GRADS["embed"], scale_by_ember().init(PARAMS["embed"]), token_ids={"embedding": FIVE}),
        ValueError,
        r"token_ids need the parameters: call update\(updates, state",
    ),
    "apply without ids": (
        lambda: row_sparse.apply_updates(PARAMS, GRADS, None),
        ValueError,
        r"'embed/embedding' has shape \(5, 8\), but the parameter has \(50, 8\).*token_ids",
    ),
    "apply with other ids": (
        lambda: row_sparse.apply_updates(PARAMS, GRADS, {"embed/embedding": FIVE[:2]}),
        ValueError,
        r"'embed/embedding' has shape \(5, 8\).*ids of shape \(2,\).*one row for each id",
    ),
    "tied table": (
        lambda: row_sparse.value_and_grad(tied_loss)(PARAMS, {"embed/embedding": IDS}, IDS),
        TypeError,
        r"only the rows of the declared ids exist.*its transpose.*tied to the head.*own",
    ),
    "table in a product": (
        lambda: row_sparse.value_and_grad(lambda p: jnp.sum(jnp.ones(V) @ p["embed"]["embedding"]))(
            PARAMS, {"embed/embedding": IDS}
        ),
        TypeError,
        r"only the rows of the declared ids exist",
    ),
    "table in jnp.take": (
        lambda: row_sparse.value_and_grad(lambda p: jnp.take(p["embed"]["embedding"], FIVE, 0).sum())(
            PARAMS, {"embed/embedding": IDS}
        ),
        TypeError,
        r"used as an array.*row_sparse.lookup",
    ),
    "sliced table": (
        lambda: row_sparse.value_and_grad(lambda p: p["embed"]["embedding"][2:4].sum())(PARAMS, {"embed/embedding": IDS}),
        TypeError,
        r"indexed with slice",
    ),
    "ids cast with the parameters": (
        lambda: row_sparse.value_and_grad(
            lambda p: jax.tree.map(lambda x: x.astype(jnp.bfloat16), p)["embed"]["embedding"][IDS].sum()
        )(PARAMS, {"embed/embedding": IDS}),
        NotImplementedError,
        r"astype",
    ),
    "indexed with a mask": (
        lambda: row_sparse.value_and_grad(lambda p: p["embed"]["embedding"][IDS > 3].sum())(PARAMS, {"embed/embedding": IDS}),
        TypeError,
        r"ids must be integers, got bool",
    ),
    "L2 term over all leaves": (
        lambda: row_sparse.value_and_grad(lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p)))(
            PARAMS, {"embed/embedding": IDS}
        ),
        TypeError,
        r"key<fry>",
    ),
    "table times two": (
        lambda: row_sparse.value_and_grad(lambda p: jnp.sum(2.0 * p["embed"]["embedding"]))(PARAMS, {"embed/embedding": IDS}),
        TypeError,
        r"arithmetic was done with it",
    ),
    "one path of two leaves": (
        lambda: row_sparse.apply_updates({"a/b": jnp.ones((4, 2)), "a": {"b": jnp.ones((4, 2))}}, None, {"a/b": FIVE}),
        ValueError,
        r"'a/b'\], which stand for more than one leaf",
    ),
    "micro-batches of a (D, V) head": (
        lambda: row_sparse.mean_over_micro_batches({"head": jnp.ones((6, 6, 5))}, {"head": jnp.zeros((6, 5), jnp.int32)}),
        ValueError,
        r"'head' has shape \(6, 6, 5\), but its ids have shape \(6, 5\)",
    ),
    "lookup of floats": (lambda: row_sparse.lookup(jnp.ones((4, 2)), jnp.ones(3)), TypeError, r"ids must be integers, got f"),
    "tap of another shape": (
        lambda: row_sparse.lookup(jnp.ones((4, 2)), jnp.arange(3), jnp.ones((2, 2))),
        ValueError,
        r"tap has shape \(2, 2\).*\(3, 2\)",
    ),
    "stacked tables": (
        lambda: scale_by_ember(dimension_numbers=EmberDimensionNumbers(1, (0,))).update(
            jnp.ones((2, 3, 4)),
            scale_by_ember(dimension_numbers=EmberDimensionNumbers(1, (0,))).init(jnp.ones((2, 9, 4))),
            jnp.ones((2, 9, 4)),
            token_ids=jnp.arange(3),
        ),
        ValueError,
        r"has the batch axes \(0,\): row-sparse steps are for one table",
    ),
    "rows that do not exist": (
        lambda: row_sparse.train_only_rows(ember(1e-2), {"embed/embedding": jnp.array([3, 50])}).init(PARAMS),
        ValueError,
        r"rows of 'embed/embedding' names \[50\].*0 to 49",
    ),
    "rows of no parameter": (
        lambda: row_sparse.train_only_rows(ember(1e-2), {"wte": FIVE}).init(PARAMS),
        ValueError,
        r"names \['wte'\].*correct the path",
    ),
    "duplicates of another shape": (
        lambda: row_sparse.sum_over_duplicates({"wte": jnp.ones((3, 2))}, {"wte": jnp.arange(4)}),
        ValueError,
        r"'wte' has shape \(3, 2\), but its ids have shape \(4,\)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    mistake, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        mistake()
