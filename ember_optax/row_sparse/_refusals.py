"""The operations that a `RowSlice` refuses because they need every row of its table."""

from typing import Any


class WholeTableError(TypeError, AttributeError):
    """A `RowSlice` was used as the whole table. An `AttributeError` too, so that `hasattr` is False for array methods."""


def whole_table_error(table: Any, reason: str) -> WholeTableError:
    """The error for a table that has only some rows. `reason` says which operation needs more rows."""
    if (head := getattr(table, "_head", None)) is not None:
        return WholeTableError(
            f"{head.name!r} of shape {table.shape} is named in heads. Only losses.linear_softmax_cross_entropy(hidden, table, "
            f"labels) may use it as a head, and only table[ids] may look up rows, those declared in token_ids; but {reason}. "
            f"Call that loss (num_tokens=... keeps rows of padding out of it), or leave {head.name!r} out of heads."
        )
    return WholeTableError(
        f"only the rows of the declared ids exist of this table ({table!r}), but {reason}. Look rows up with table[ids] or "
        f"row_sparse.lookup(table, ids), or use ember_optax.integrations.nnx.Embed or linen.Embed instead of Flax's. A table "
        f"that is tied to the head, or a head of all tokens, has a gradient in every row and cannot be row-sparse: leave its "
        f"ids None, or train an input table next to a separate head."
    )


class RefusesWholeTable:
    """The operators, conversions and array methods that a `RowSlice` does not have."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(self, "rows"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        wanted = "its transpose" if name in ("T", "mT", "transpose") else f"its attribute {name!r}"
        raise whole_table_error(self, f"{wanted} was asked for")

    def __jax_array__(self):
        raise whole_table_error(self, "it was used as an array")

    def __array__(self, *_, **__):
        raise whole_table_error(self, "it was used as an array")

    def __matmul__(self, _):
        raise whole_table_error(self, "it was multiplied with a matrix")

    __rmatmul__ = __matmul__

    def __mul__(self, *_):
        raise whole_table_error(self, "arithmetic was done with it")

    __rmul__ = __add__ = __radd__ = __sub__ = __rsub__ = __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mul__
    __mod__ = __rmod__ = __divmod__ = __rdivmod__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = __round__ = __mul__
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = __mul__

    # Without these methods Python would compare identities, and any object would be true.
    def __eq__(self, _):
        raise whole_table_error(self, "it was compared")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    __hash__ = object.__hash__

    def __bool__(self):
        raise whole_table_error(self, "its truth was asked for")

    def __iter__(self):
        raise whole_table_error(self, "its rows were iterated over")

    def __setitem__(self, *_):
        raise whole_table_error(self, "its rows were assigned to")
