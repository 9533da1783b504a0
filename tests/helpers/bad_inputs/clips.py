"""What the clip by a global norm refuses: it knows compact gradients and fused heads."""

import optax

from bad_inputs.examples import IDS, TABLE
from bad_inputs.heads import PARAMS, updates
from ember_optax import EmberDimensionNumbers, row_sparse


def clipped(updates, params=..., tables="auto"):
    params = {"w": TABLE} if params is ... else params
    clip = row_sparse.clip_by_global_norm(1.0, tables=tables)
    return lambda: clip.update(updates, optax.EmptyState(), params, token_ids={"w": IDS})


BAD = {
    "max_norm of zero": (lambda: row_sparse.clip_by_global_norm(0), ValueError, r"max_norm must be above zero, got 0.0; pass"),
    "max_norm below zero": (lambda: row_sparse.clip_by_global_norm(-1), ValueError, r"max_norm must be .* not negative, got -1"),
    "max_norm of text": (lambda: row_sparse.clip_by_global_norm("1"), TypeError, r"max_norm must be a real number, got '1'"),
    "a clip of nothing": (lambda: row_sparse.clip_by_global_norm(1.0).init(None), TypeError, r"params must be a tree of .* None"),
    "a clip of a state": (
        lambda: row_sparse.clip_by_global_norm(1.0).update(optax.EmptyState(), optax.EmptyState()),
        TypeError,
        r"updates must be a tree of arrays, got EmptyState\(\)",
    ),
    "a clip of text": (
        lambda: row_sparse.clip_by_global_norm(1.0).update({"w": "x"}, optax.EmptyState()),
        TypeError,
        r"gradient of 'w' is 'x' of type str, not an array",
    ),
    "a clip of updates": (
        lambda: row_sparse.clip_by_global_norm(1.0).update(updates(), optax.EmptyState()),
        TypeError,
        r"update of 'lm_head/kernel' has no norm: clip the gradients, before ember",
    ),
    "a clip of other ids": (
        clipped({"w": TABLE[:3]}),
        ValueError,
        r"the update of 'w' has shape \(3, 4\), but with ids of shape \(2,\) and .* \(6, 4\) it must have shape \(2, 4\)",
    ),
    "a clip of a dense gradient with ids": (clipped({"w": TABLE}), ValueError, r"the update of 'w' is dense, of shape \(6, 4\)"),
    "a clip along another axis": (
        clipped({"w": TABLE[:2]}, tables=EmberDimensionNumbers(1)),
        ValueError,
        r"the update of 'w' has shape \(2, 4\), but with ids .* it must have shape \(6, 2\)",
    ),
    "a clip of ids without parameters": (
        clipped({"w": TABLE[:2]}, params=None),
        ValueError,
        r"token_ids need the parameters: call update\(updates, state, params, token_ids=token_ids\)",
    ),
    "a clip of ids of no parameter": (clipped({"w": TABLE[:2]}, params=PARAMS), ValueError, r"token_ids names \['w'\], but the"),
    "a clip with a declaration that is none": (
        lambda: row_sparse.clip_by_global_norm(1.0, tables=3),
        TypeError,
        r"^tables must declare tables by .*, got 3 of type int",
    ),
}

GOOD = {
    "a clip without arrays": lambda: row_sparse.clip_by_global_norm(1.0).update({}, row_sparse.clip_by_global_norm(1.0).init({})),
}
