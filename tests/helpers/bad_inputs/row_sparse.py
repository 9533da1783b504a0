"""Row-sparse steps: losses, compact updates and their ids."""

import jax
import jax.numpy as jnp

from bad_inputs.examples import (
    COMPACT,
    IDS,
    PARAMS,
    SCALE,
    TABLE,
    TOKEN_IDS,
    TX,
    WTE,
    D,
    V,
    a_function,
    row_slice,
    state,
)
from bad_inputs.frozen_rows import frozen
from bad_inputs.lookups import TIED
from bad_inputs.row_sums import STACKED_IDS, duplicates, local, micro
from bad_inputs.steps import NO_TREES
from ember_optax import EmberDimensionNumbers, row_sparse, scale_by_ember
from ember_optax.integrations import linen

FIVE = jnp.arange(5)


def loss(params):
    return params["embed"]["embedding"][IDS].sum() + params["dense"]["kernel"].sum()


def grad(loss_fn=loss, params=PARAMS, token_ids=TOKEN_IDS, **options):
    return lambda: row_sparse.value_and_grad(loss_fn, **options)(params, token_ids)


def of_table(use):
    return grad(lambda params: use(params["embed"]["embedding"]))


def apply(params=PARAMS, updates=COMPACT, token_ids=TOKEN_IDS, **options):
    return lambda: row_sparse.apply_updates(params, updates, token_ids, **options)


def with_kernel(leaf, tree=COMPACT):
    return {**tree, "dense": {"kernel": leaf}}


def compact_update(grads=COMPACT, params=PARAMS, **ids):
    return lambda: TX.update(grads, state(), params, token_ids=TOKEN_IDS | ids)


BAD = {
    f"params of {name}: {what}": (take(value), error, rf"^params must be a tree .*{got}: pass params")
    for name, take in {
        "value_and_grad": lambda value: grad(params=value),
        "apply_updates": apply,
        "local_token_ids": lambda value: local("fsdp", params=value),
        "train_only_rows": lambda value: frozen(params=value),
    }.items()
    for what, (value, error, got) in NO_TREES.items()
}
BAD |= {
    f"{argument} of {name}: {what}": (take(value), error, rf"^{argument} must be a tree .*{got}: pass {argument}")
    for (name, argument), take in {
        ("apply_updates", "updates"): lambda value: apply(updates=value),
        ("mean_over_micro_batches", "grads"): lambda value: micro(value, STACKED_IDS),
        ("sum_over_duplicates", "updates"): lambda value: duplicates(value, TOKEN_IDS),
    }.items()
    for what, (value, error, got) in NO_TREES.items()
}
BAD |= {
    f"loss_fn: {what}": (
        lambda value=value: row_sparse.value_and_grad(value),
        TypeError,
        rf"^loss_fn must be .*{got}; pass the func",
    )
    for what, (value, got) in {
        "None": (None, "got None of type NoneType"),
        "the parameters": (PARAMS, "of type dict"),
        "its value": (jnp.float32(1), "got Array.* of type ArrayImpl"),
    }.items()
}
BAD |= {
    f"loss of {what}": (
        grad(lambda _, value=value: value, has_aux=has_aux),
        TypeError,
        rf"^loss_fn must return a .*{got}.*; (average|return)",
    )
    for what, (value, has_aux, got) in {
        "None": (None, False, "got None of type NoneType"),
        "an integer": (3, False, "got 3 of type int"),
        "text": ("x", False, "got 'x' of type str"),
        "a vector": (jnp.ones(4), False, r"shape \(4,\)"),
        "a complex number": (jnp.complex64(1), False, r"got Array\(1"),
        "a pair": ((jnp.float32(1), 2), False, r"of type tuple"),
        "no pair": (jnp.float32(1), True, r"pair \(loss, aux\) with has_aux=True, got Array"),
    }.items()
}
BAD |= {
    f"has_aux of {value!r}": (grad(has_aux=value), TypeError, rf"^has_aux must be True or False, got {value!r} of type .*; pass")
    for value in ("yes", None, 3)
}
BAD |= {
    "no parameters at all": (grad(params={}), ValueError, r"^params has no array in it, got {} of type dict: pass the tree"),
    "a function in the parameters": (
        grad(params={**PARAMS, "f": a_function}),
        TypeError,
        r"parameter 'f' is <function .*not an array.*eqx\.filter",
    ),
    "integers in the parameters": (grad(params={**PARAMS, "i": IDS}), TypeError, r"parameter 'i' .* int32, .* floats: convert"),
    "params and ids swapped": (
        grad(params=TOKEN_IDS, token_ids=PARAMS),
        TypeError,
        r"token_ids of 'dense/kernel' .*float32: pass",
    ),
    "ids of nothing": (grad(token_ids=3), TypeError, r"token_ids must be a tree of arrays, got 3 of type int: pass token_ids"),
    "ids of no parameter": (grad(token_ids={"nope": IDS}), ValueError, r"token_ids names \['nope'\], but .*; correct the path"),
    "ids of a scalar": (grad(params={"a": jnp.float32(1)}, token_ids={"a": IDS}), ValueError, r"'a' of shape \(\).*Give its upd"),
    "ids of an empty table": (
        grad(params={"a": TABLE[:0]}, token_ids={"a": IDS}),
        ValueError,
        r"'a' of shape \(0, 4\), which is empty; remove",
    ),
    "axes of nothing": (grad(tables=None), TypeError, r"tables is None. Leave it out"),
    "axes in a list": (grad(tables=["embed"]), TypeError, r"tables holds the text 'embed'.*include="),
    "tied table": (
        of_table(lambda table: jnp.mean(table[IDS] @ table.T)),
        TypeError,
        rf"declared ids exist.*its transpose.*{TIED}",
    ),
    "table in a product": (
        of_table(lambda table: jnp.sum(jnp.ones(V) @ table)),
        TypeError,
        rf"of the declared ids exist.*{TIED}",
    ),
    "table in jnp.take": (
        of_table(lambda table: jnp.take(table, FIVE, 0).sum()),
        TypeError,
        r"used as an array.*row_sparse.lookup",
    ),
    "sliced table": (of_table(lambda table: table[2:4].sum()), TypeError, r"indexed with slice.*Look rows up"),
    "indexed with a mask": (
        of_table(lambda table: table[IDS > 3].sum()),
        TypeError,
        r"ids must be integers, got bool.*; np",
    ),
    "table times two": (of_table(lambda table: jnp.sum(2.0 * table)), TypeError, r"arithmetic was done with it.*Look rows up"),
    "ids cast with the parameters": (
        grad(lambda p: jax.tree.map(lambda x: x.astype(jnp.bfloat16), p)["embed"]["embedding"][IDS].sum()),
        NotImplementedError,
        r"astype",
    ),
    "L2 term over all leaves": (grad(lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))), TypeError, r"key<fry>"),
    "ids of floats": (
        compact_update(**{"embed/embedding": IDS * 1.0}),
        TypeError,
        r"'embed/embedding' .* integers .* float32: pass",
    ),
    "ids in a list": (
        compact_update(**{"embed/embedding": [1, 2]}),
        TypeError,
        r"'embed/embedding/0' must be an array .* type int",
    ),
    "ids of another number": (compact_update(**{"embed/embedding": FIVE}), ValueError, r"shape \(2, 4\).*\(5,\).*\(5, 4\)"),
    "compact without ids": (
        lambda: TX.update(COMPACT, state(), PARAMS),
        ValueError,
        r"embedding' has shape .*\(2, 4\).*token_ids",
    ),
    "dense with ids": (compact_update(PARAMS), ValueError, r"is dense, of shape \(6, 4\).*tied to the head.*None"),
    "ids of the body": (
        compact_update(**{"dense/kernel": FIVE}),
        ValueError,
        r"'dense/kernel' of shape \(4, 4\), trained by the body",
    ),
    "unknown path": (compact_update(**{"embed/table": FIVE}), ValueError, r"\['embed/table'\].* correct the path"),
    "compact without parameters": (
        compact_update(params=None),
        ValueError,
        r"token_ids need the parameters: call update\(updates, st",
    ),
    "compact without parameters of one table": (
        lambda: SCALE.update(WTE, state(SCALE, "WTE"), token_ids={"wte": IDS}),
        ValueError,
        r"token_ids need the parameters: call update\(updates, state",
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
    "apply without ids": (apply(token_ids=None), ValueError, r"'embed/embedding' has shape \(2, 4\), but .* \(6, 4\).*token_ids"),
    "apply with other ids": (
        apply(token_ids={"embed/embedding": FIVE}),
        ValueError,
        r"'embed/embedding' has shape \(2, 4\).*ids of shape \(5,\).*one row for each id",
    ),
    "apply of half the updates": (
        apply(updates={"embed": COMPACT["embed"]}),
        ValueError,
        r"updates must have the str.*got {'embed'",
    ),
    "apply of one update too many": (
        apply(updates={**COMPACT, "x": TABLE}),
        ValueError,
        r"updates must have the str.*, got {'dense'",
    ),
    "apply of a list": (apply(updates=[TABLE]), ValueError, r"updates must have the structure .*, got \[Array"),
    "apply of nothing": (
        apply(updates={}),
        ValueError,
        r"updates must have the structure .*'dense/kernel'.*, got {} of type dict",
    ),
    "apply of a state": (apply(updates=state()), TypeError, r"updates must .* of type PartitionState: pass updates"),
    "apply of (updates, state)": (
        apply(updates=(COMPACT, state())),
        ValueError,
        r"updates must have the structure .*, got \({'dense",
    ),
    "apply of text": (apply(updates=with_kernel("x")), TypeError, r"update of 'dense/kernel' is 'x' of type str, not an array"),
    "apply of a function": (
        apply(updates=with_kernel(a_function)),
        TypeError,
        r"update of 'dense/kernel' is <function.*not an array",
    ),
    "apply of a list for a leaf": (
        apply(updates=with_kernel([1.0])),
        TypeError,
        r"update of 'dense/kernel' is \[1.0\] .*not an array",
    ),
    "apply of a number": (
        apply(updates=with_kernel(1.0)),
        ValueError,
        r"'dense/kernel' has shape \(\), but the parameter has \(4, 4",
    ),
    "apply of a vector": (
        apply(updates=with_kernel(jnp.ones(D))),
        ValueError,
        r"'dense/kernel' has shape \(4,\), but .* \(4, 4\)",
    ),
    "complex update": (
        apply(updates=with_kernel(jnp.ones((D, D)) + 0j)),
        TypeError,
        r"update of 'dense/kernel' is complex, of dtype complex64, but the parameter is float32: pass the real part",
    ),
    "apply to text": (apply(with_kernel("x", PARAMS)), TypeError, r"parameter 'dense/kernel' is 'x' of type str, not an array"),
    "apply of (params, ids, updates)": (
        apply(updates=TOKEN_IDS, token_ids=COMPACT),
        TypeError,
        r"token_ids of 'dense/ker.* float32: pa",
    ),
    "one path of two leaves": (
        apply({"a/b": jnp.ones((4, 2)), "a": {"b": jnp.ones((4, 2))}}, WTE, {"a/b": FIVE}),
        ValueError,
        r"'a/b'\], which name more than one leaf|paths \['a/b'\] name more than one leaf",
    ),
    "Embed of another width": (
        lambda: linen.Embed(V, D + 1).apply({"params": {"embedding": row_slice()}}, IDS),
        ValueError,
        r"shape \(6, 4\), but this Embed has num_embeddings=6 and features=5; pass the parameters",
    ),
}
GOOD = {
    "a number among the parameters": grad(params={**PARAMS, "scale": 1.0}),
    "a loss with more": grad(lambda params: (loss(params), "x"), has_aux=True),
    "no ids": grad(lambda params: params["dense"]["kernel"].sum(), token_ids=None),
    "no update of a leaf": apply(updates=with_kernel(None)),
    "what is not trained": apply({**PARAMS, "f": a_function}, {**COMPACT, "f": None}),
    "a whole Embed": lambda: linen.Embed(V, D).apply({"params": {"embedding": row_slice()}}, IDS),
}
