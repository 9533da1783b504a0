"""`train_only_rows`: the rows, the transformation that it wraps, and its updates."""

import jax.numpy as jnp
import optax

from bad_inputs.examples import COMPACT, IDS, PARAMS, TABLE, TOKEN_IDS, TX, WTE, each, state
from ember_optax import EmberDimensionNumbers, TokenTables, ember, row_sparse

UNNAMED = {**PARAMS, "head": {"kernel": TABLE.T}}
WITH_HEAD = ember(1e-3, optax.adamw(1e-3), tables=TokenTables(include=["head/kernel"]))


def frozen(inner=TX, token_ids=TOKEN_IDS, params=PARAMS, **options):
    return lambda: row_sparse.train_only_rows(inner, token_ids, **options).init(params)


def frozen_update(updates=PARAMS, params=PARAMS, token_ids=None, of_state=state):
    return lambda: row_sparse.train_only_rows(TX, TOKEN_IDS).update(updates, of_state(), params, token_ids=token_ids)


BAD = {
    f"inner of train_only_rows: {what}": (
        frozen(value),
        TypeError,
        rf"^inner must be an optax.GradientTransformation, got .* of type {name}: pass the transformation first",
    )
    for what, (value, name) in {
        "None": (None, "NoneType"),
        "a number": (3, "int"),
        "text": ("adam", "str"),
        "a function": (ember, "function"),
        "the rows": (TOKEN_IDS, "dict"),
    }.items()
}
BAD |= {
    "rows that do not exist": (
        frozen(token_ids={"embed/embedding": jnp.array([3, 50])}),
        ValueError,
        r"token_ids of 'embed/embedding' names \[50\].*0 to 5; correct",
    ),
    "rows below zero": (
        frozen(token_ids={"embed/embedding": jnp.array([-1])}),
        ValueError,
        r"'embed/embedding' names \[-1\].*; correct",
    ),
    "rows of no parameter": (frozen(token_ids={"wte": IDS}), ValueError, r"names \['wte'\].*correct the path"),
    "rows of None": (frozen(token_ids=None), ValueError, r"^token_ids must name .* got None of type NoneType; without them"),
    "rows of nothing": (frozen(token_ids={}), ValueError, r"^token_ids must name .* got {} of type dict; without them"),
    "rows of None for each": (frozen(token_ids=each(None)), ValueError, r"^token_ids must name .* of type dict; without them"),
    "rows of a number": (frozen(token_ids=3), TypeError, r"^token_ids must be a tree of arrays, got 3 of type int: pass"),
    "rows of a mask": (
        frozen(token_ids={"embed/embedding": jnp.ones(6, bool)}),
        TypeError,
        r"^token_ids of 'embed/embedding' .* dtype bool: jnp.flatnonzero\(mask\) turns a mask into ids",
    ),
    "rows of floats": (
        frozen(token_ids={"embed/embedding": IDS * 1.0}),
        TypeError,
        r"^token_ids of 'embed/embedding' .* float32: pass",
    ),
    "rows and transformation swapped": (frozen(TOKEN_IDS, TX), TypeError, r"^inner must be .* of type dict: pass the trans"),
    "rows of another model at update": (frozen_update(params=WTE), ValueError, r"'embed/embedding'.*(correct|pass)"),
    "rows with a compact update": (
        frozen_update(COMPACT),
        ValueError,
        r"'embed/embedding' has shape \(2, 4\), .*\(6, 4\): pass token",
    ),
    "rows with a dense update and ids": (frozen_update(token_ids=TOKEN_IDS), ValueError, r"is dense, of shape \(6, 4\).*None"),
    "rows with ids and no parameters": (
        frozen_update(COMPACT, None, TOKEN_IDS),
        ValueError,
        r"embedding'?.*(2, 4).*|token_ids need",
    ),
    "rows with text": (
        frozen_update({**PARAMS, "dense": {"kernel": "x"}}),
        TypeError,
        r"update of 'dense/kernel' is 'x' .*not an array",
    ),
    "rows with Adam's state": (
        frozen_update(of_state=lambda: None),
        TypeError,
        r"^state must be the one .* NoneType: call update",
    ),
    "rows along another axis than inner": (
        frozen(WITH_HEAD, {"head/kernel": IDS}, UNNAMED, tables=EmberDimensionNumbers(0)),
        ValueError,
        r"rows of 'head/kernel' of shape \(4, 6\) are counted along axis 0, but in inner along axis 1: pass the same tables",
    ),
    "rows of a head that no rule finds": (
        frozen(WITH_HEAD, {"head/kernel": IDS}, UNNAMED),
        ValueError,
        r"rows of 'head/kernel' of shape \(4, 6\) .*its 6 tokens are in axis 1 \(which has the vocabulary.*include=\{'head/ker",
    ),
}
GOOD = {
    "rows in all parameters but one": frozen(token_ids={"embed": {"embedding": IDS}, "dense": {"kernel": None}}),
    "no row at all": frozen(token_ids={"embed/embedding": IDS[:0]}),
    "rows along the axis of inner": frozen(WITH_HEAD, {"head/kernel": IDS}, UNNAMED, tables=TokenTables(include=["head/kernel"])),
    "rows of a table that another optimizer trains": frozen(
        optax.adamw(1e-3),
        {"head/kernel": IDS},
        UNNAMED,
        tables=TokenTables(include=["head/kernel"]),
    ),
}
