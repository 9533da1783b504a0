"""Lookups, and what stands in a table's place: `lookup` and `RowSlice`."""

import copy

import jax
import jax.numpy as jnp
import numpy as np

from bad_inputs.examples import IDS, PARAMS, TABLE, D, V, a_function, row_slice
from ember_optax import row_sparse

TIED = r"tied to the head.*leave its ids None"


def lookup(table=TABLE, ids=IDS, *tap, **options):
    return lambda: row_sparse.lookup(table, ids, *tap, **options)


def built(rows=TABLE[:2], ids=IDS, *numbers):
    return lambda: row_sparse.RowSlice(rows, ids, *(numbers or (V,)))


BAD = {
    f"lookup: {what}": (provoke, error, message)
    for what, (provoke, error, message) in {
        "ids of floats": (
            lookup(ids=jnp.ones(3)),
            TypeError,
            r"ids must be integers, got float32 of shape \(3,\); pass a list",
        ),
        "ids of truth values": (
            lookup(ids=IDS > 1),
            TypeError,
            r"ids must be integers, got bool of shape \(2,\); np",
        ),
        "ids of None": (lookup(ids=None), TypeError, r"ids must be integers, got None of type NoneType; pass a list"),
        "ids of text": (lookup(ids="x"), TypeError, r"ids must be integers, got 'x' of type str; pass a list"),
        "ids of a function": (
            lookup(ids=a_function),
            TypeError,
            r"ids must be integers, got <function.*; pass a list",
        ),
        "ragged ids": (
            lookup(ids=[1, [2]]),
            TypeError,
            r"ids must be integers, got \[1, \[2\]\] of type list; pass a list",
        ),
        "ids of a mapping": (
            lookup(ids={"a": 1}),
            TypeError,
            r"ids must be integers, got {'a': 1} of type dict; pass a list",
        ),
        "ids of text of a RowSlice": (
            lambda: row_sparse.lookup(row_slice(), "x"),
            TypeError,
            r"ids must .* got 'x' .*; pass a list",
        ),
        "table and ids swapped": (lookup(IDS, TABLE), TypeError, r"ids must be integers, got float32 of shape \(6, 4\); pass"),
        "table of None": (lookup(None), TypeError, r"table must be an array .* got None of type NoneType; pass one leaf"),
        "table of a number": (lookup(3), TypeError, r"table must be an array .* got 3 of type int; pass one leaf"),
        "table of lists": (lookup([[1.0]]), TypeError, r"table must be an array .* got \[\[1.0\]\] of type list; pass one leaf"),
        "all parameters": (lookup(PARAMS), TypeError, r"table must be an array .* of type dict; pass one leaf"),
        "table of text": (
            lookup(np.array(["a"])),
            TypeError,
            r"table of shape \(1,\) has dtype <U1, but must hold numbers: conv",
        ),
        "table of keys": (
            lookup(jax.random.key(0)),
            TypeError,
            r"table of shape \(\) has dtype key<fry>, but must hold .*: conv",
        ),
        "scalar table": (lookup(jnp.float32(1)), ValueError, r"token_axis 0 is out of range .* shape \(\); name its vocabulary"),
        "empty table": (lookup(TABLE[:0]), ValueError, r"table has the shape \(0, 4\) and no rows; pass"),
        "axis too far": (lookup(token_axis=2), ValueError, r"token_axis 2 is out of range .* shape \(6, 4\); name"),
        "axis below": (lookup(token_axis=-3), ValueError, r"token_axis -3 is out of range .* shape \(6, 4\); name"),
        "axis of a fraction": (lookup(token_axis=0.5), TypeError, r"token_axis must be an integer, got 0.5 of type float; pass"),
        "axis of text": (lookup(token_axis="0"), TypeError, r"token_axis must be an integer, got '0' of type str; pass"),
        "axis of None": (lookup(token_axis=None), TypeError, r"token_axis must be an integer, got None of .*; pass"),
        "axis of a truth value": (lookup(token_axis=True), TypeError, r"token_axis must be an integer, got True of .*; pass"),
        "axis of a tuple": (lookup(token_axis=(0,)), TypeError, r"token_axis must be an integer, got \(0,\) of type tuple; pass"),
        "axis of an array": (lookup(token_axis=IDS), TypeError, r"token_axis must be an integer, got Array.*; pass"),
        "tap of another shape": (
            lookup(TABLE, IDS, jnp.ones((2, 2))),
            ValueError,
            r"tap has shape \(2, 2\).*pass jnp.zeros\(\(2, 4",
        ),
        "tap of a number": (lookup(TABLE, IDS, 3.0), TypeError, r"tap must be .* got 3.0 of type float; pass jnp.zeros\(\(2, 4"),
        "tap of text": (lookup(TABLE, IDS, "x"), TypeError, r"tap must be .* got 'x' of type str; pass jnp.zeros\(\(2, 4"),
        "tap of lists": (lookup(TABLE, IDS, [[0.0] * D] * 2), TypeError, r"tap must be .* of type list; pass jnp.zeros\(\(2, 4"),
        "tap of integers": (lookup(TABLE, IDS, jnp.ones((2, D), int)), TypeError, r"tap must be .* got Array.*; pass jnp.zeros"),
        "complex tap": (lookup(TABLE, IDS, jnp.ones((2, D)) + 0j), TypeError, r"tap must be .* got Array.*; pass jnp.zeros"),
        "tap of a RowSlice": (
            lambda: row_sparse.lookup(row_slice(), IDS, jnp.ones(3)),
            ValueError,
            r"tap has shape \(3,\).*pass jnp.zeros\(\(2, 4\)\)",
        ),
    }.items()
}
BAD |= {
    f"RowSlice with {what}": (provoke, error, message)
    for what, (provoke, error, message) in {
        "rows of None": (built(None), TypeError, r"rows must be an array, got None of type NoneType; pass the rows"),
        "rows of a type": (built(jnp.float32), TypeError, r"rows must be an array, got .*float32.*; pass the rows"),
        "rows of lists": (built([[1.0]]), TypeError, r"rows must be an array, got \[\[1.0\]\] of type list; pass the rows"),
        "rows of integers": (
            built(jnp.ones((2, D), int)),
            TypeError,
            r"rows of shape \(2, 4\) has dtype int32.*floats: convert",
        ),
        "rows of text": (built(np.full((2, D), "a")), TypeError, r"rows of shape \(2, 4\) has dtype <U1.*floats: convert"),
        "a scalar for rows": (
            built(jnp.float32(1)),
            ValueError,
            r"token_axis must be in 0 to -1 for rows of shape \(\), got 0; na",
        ),
        "ids of a list": (built(TABLE[:2], [1, 3]), TypeError, r"ids must .* got \[1, 3\] of type list; pass .*jnp.asarray"),
        "ids of None": (built(TABLE[:2], None), TypeError, r"ids must .* got None of type NoneType; pass .*jnp.asarray"),
        "ids of floats": (built(TABLE[:2], IDS * 1.0), TypeError, r"ids must .* got Array\(\[1.*; pass .*jnp.asarray"),
        "too few ids": (built(TABLE[:2], IDS[:1]), ValueError, r"ids must have shape \(2,\).* got \(1,\); pass one id"),
        "ids of two axes": (built(TABLE[:2], IDS[None]), ValueError, r"ids must have shape \(2,\).* got \(1, 2\); pass one id"),
        "ids that fall": (built(TABLE[:2], IDS[::-1]), ValueError, r"ids must increase.* got \[3, 1\] of type list; sort"),
        "ids that fall later": (built(TABLE[:3], jnp.array([1, 4, 3])), ValueError, r"ids must increase.* got \[1, 4, 3\] of"),
        "an id twice": (built(TABLE[:2], jnp.array([1, 1])), ValueError, r"ids must increase.* got \[1, 1\] of type list; sort"),
        "an id too large": (
            built(TABLE[:2], jnp.array([1, 9])),
            ValueError,
            r"ids must be in 0 to num_rows, 6 .* \[9\] .*; correct",
        ),
        "a negative id": (
            built(TABLE[:2], jnp.array([-1, 1])),
            ValueError,
            r"ids must be in 0 to num_rows, 6 .* \[-1\] .*; correct",
        ),
        "fewer rows than ids": (built(TABLE[:2], IDS, 1), ValueError, r"ids must be in 0 to num_rows, 1 .* \[3\] .*; correct"),
        "negative num_rows": (built(TABLE[:2], IDS, -1), ValueError, r"num_rows must be .* got -1; pass V"),
        "num_rows beyond int32": (built(TABLE[:2], IDS, 10**20), ValueError, r"num_rows must be .* got 10{20}; pass V"),
        "a fraction of num_rows": (
            built(TABLE[:2], IDS, 6.5),
            TypeError,
            r"num_rows must be an integer, got 6.5 of type float; pass",
        ),
        "num_rows of text": (built(TABLE[:2], IDS, "6"), TypeError, r"num_rows must be an integer, got '6' of type str; pass"),
        "num_rows of None": (built(TABLE[:2], IDS, None), TypeError, r"num_rows must be an integer, got None of .*; pass"),
        "num_rows of True": (built(TABLE[:2], IDS, True), TypeError, r"num_rows must be an integer, got True of .*; pass"),
        "an axis too far": (built(TABLE[:2], IDS, V, 2), ValueError, r"token_axis must be in 0 to 1 .* got 2; name"),
        "a negative axis": (built(TABLE[:2], IDS, V, -1), ValueError, r"token_axis must be in 0 to 1 .* got -1; name"),
        "an axis of text": (
            built(TABLE[:2], IDS, V, "0"),
            TypeError,
            r"token_axis must be an integer, got '0' of type str; pass",
        ),
    }.items()
}
BAD |= {
    f"RowSlice: {what}": (
        lambda use=use: use(row_slice()),
        TypeError,
        rf"only the rows .*RowSlice\(2 of 6 rows.* {reason}.*{TIED}",
    )
    for what, (use, reason) in {
        "equal": (lambda table: table == row_slice(), "it was compared"),
        "unequal": (lambda table: table != 0, "it was compared"),
        "less": (lambda table: table < 0, "it was compared"),
        "contains": (lambda table: 1 in table, "it was compared"),
        "truth": (bool, "its truth was asked for"),
        "not": (lambda table: not table, "its truth was asked for"),
        "rows": (list, "its rows were iterated over"),
        "T": (lambda table: table.T, "its transpose was asked for"),
        "sum": (lambda table: table.sum(), "its attribute 'sum' was asked for"),
        "reshape": (lambda table: table.reshape(-1), "its attribute 'reshape' was asked for"),
        "at": (lambda table: table.at[IDS].set(0), "its attribute 'at' was asked for"),
        "assignment": (lambda table: table.__setitem__(0, 1), "its rows were assigned to"),
        "jnp.sum": (jnp.sum, "it was used as an array"),
        "np.asarray": (np.asarray, "it was used as an array"),
        "product": (lambda table: table @ TABLE.T, "it was multiplied with a matrix"),
        "product from the left": (lambda table: np.ones((2, V)) @ table, "it was (multiplied with a matrix|used as an array)"),
        "times": (lambda table: 2 * table, "arithmetic was done with it"),
        "floor": (lambda table: table // 2, "arithmetic was done with it"),
        "remainder": (lambda table: 2 % table, "arithmetic was done with it"),
        "power": (lambda table: 2**table, "arithmetic was done with it"),
        "plus": (lambda table: +table, "arithmetic was done with it"),
        "slice": (lambda table: table[1:2], r"it was indexed with slice\(1, 2"),
        "two indices": (lambda table: table[0, 1], r"it was indexed with \(0, 1\)"),
        "no index": (lambda table: table[None], "it was indexed with None"),
    }.items()
}
BAD |= {
    "index of text": (lambda: row_slice()["x"], TypeError, r"ids must be integers, got 'x' of type str; pass"),
    "index of a mask": (
        lambda: row_slice()[IDS > 1],
        TypeError,
        r"ids must be integers, got bool of shape \(2,\); np",
    ),
    "RowSlice of integers": (
        lambda: row_slice().astype(int),
        TypeError,
        r"RowSlice.* was cast to int.*must be floats: cast what is looked up",
    ),
}
GOOD = {
    "ids in a list": lookup(ids=[1, 3]),
    "ids of NumPy": lookup(ids=np.array([1, -1, 99], np.int8)),
    "one id": lookup(ids=3),
    "a negative axis": lookup(token_axis=-1),
    "a tap in half precision": lookup(TABLE.astype(jnp.bfloat16), IDS, jnp.zeros((2, D), jnp.bfloat16)),
    "ids with padding in a RowSlice": built(jnp.ones((4, D)), jnp.array([1, 3, V, V])),
    "no rows in a RowSlice": built(TABLE[:0], IDS[:0]),
    "hasattr of a RowSlice": lambda: hasattr(row_slice(), "sum"),
    "copies of a RowSlice": lambda: (copy.copy(row_slice()).rows, copy.deepcopy(row_slice()).rows),
}
