"""`RowSlice`, which replaces a table while a loss is differentiated, and `lookup`, which reads rows of either."""

from typing import Any

import jax
import jax.numpy as jnp

from .._math.mesh import entry_names, in_auto_mode, spec_entries, spec_of
from .._math.rows import flat_ids, is_narrow, places_among, rows_first, take_rows
from .._tree.inputs import checked_axis
from ._checks import check_slice, check_tap, checked_ids, checked_table
from ._refusals import RefusesWholeTable, whole_table_error


@jax.tree_util.register_pytree_node_class
class RowSlice(RefusesWholeTable):
    """Some rows of a token table. `row_sparse.value_and_grad` passes it to the loss instead of the table.

    `table[ids]` and `row_sparse.lookup(table, ids)` work as on the whole table, for the declared ids. Negative ids are padding,
    whose rows are zeros. They do not count from the end. Every operation that needs all rows (`table.T`, a product with the
    table) raises. A `RowSlice` is a pytree of `rows`, of `ids` in a form that refuses arithmetic, and of an empty array with the
    dtype of lookups. `value_and_grad` keeps rows of 16 bits in float32, so that the gradients of all lookups are added up in
    float32.

    Args:
      rows: the rows, which are differentiated, of the table's shape with N instead of V.
      ids: the ids of the rows, (N,) int32, increasing, V for padding.
      num_rows: V, the number of rows of the whole table.
      token_axis: the token axis of `rows`.

    Attributes:
      shape: the shape of the whole table.
      dtype: the dtype of lookups.

    Raises:
      TypeError: an operation needs the whole table, compares it or uses it as a truth value; `ids` are not integers, or `rows`
        are not floating.
      ValueError: the numbers of ids and rows differ, the ids do not increase, or an id is above V.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> table = row_sparse.RowSlice(jnp.ones((2, 4)), jnp.array([3, 7]), num_rows=100, token_axis=0)
      >>> table[jnp.array([[7, 3, 3]])].shape, table.shape
      ((1, 3, 4), (100, 4))

    References:
      docs/row_sparse.md
    """

    def __init__(self, rows: jax.Array, ids: jax.Array, num_rows: int, token_axis: int = 0):
        check_slice(rows, ids, num_rows, token_axis)
        self.rows, self._guarded_ids, self.num_rows, self.token_axis = rows, _guard(ids), num_rows, token_axis
        # The dtype of lookups, as an empty array: a cast of all leaves of the parameters reaches it too.
        self._of_dtype = jnp.zeros(0, rows.dtype)
        self._head: Any = None
        self._link: Any = None

    @property
    def ids(self) -> jax.Array:
        return jax.random.key_data(self._guarded_ids)[..., 0].astype(jnp.int32)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.rows.shape)
        shape[self.token_axis] = self.num_rows
        return tuple(shape)

    @property
    def ndim(self) -> int:
        return self.rows.ndim

    @property
    def dtype(self):
        return self._of_dtype.dtype

    def astype(self, dtype) -> "RowSlice":
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{self!r} was cast to {jnp.dtype(dtype)}, but its rows must be floats: cast what is looked up.")
        if self._head is not None and self.dtype not in (self._head.table.dtype, jnp.dtype(dtype)):
            raise TypeError(
                f"the fused head {self._head.name!r} was cast to {self.dtype} and then to {jnp.dtype(dtype)}, but only the last "
                f"cast would count: cast it once, or leave it out of heads."
            )
        # 16-bit rows that are kept in float32 stay in float32, so that gradients are added up in float32.
        is_wider = self.rows.dtype == jnp.float32 != self.dtype
        new = self.read_as(dtype)
        if not is_wider or jnp.dtype(dtype) not in (jnp.float32, self.dtype):
            new.rows = self.rows.astype(dtype)
        return new

    def read_as(self, dtype: Any) -> "RowSlice":
        """The same rows with another dtype for lookups."""
        new = RowSlice(self.rows, self.ids, self.num_rows, self.token_axis)
        new._of_dtype, new._head, new._link = jnp.zeros(0, dtype), self._head, self._link
        return new

    def with_head(self, head: Any, link: Any) -> "RowSlice":
        """The same rows of a table that is a fused head too. `value_and_grad(heads=...)` calls this.

        `link` is a number that passes through the loss function along with the rows. Its gradient shows whether the head's
        gradient reaches the parameters.
        """
        new = self.read_as(self.dtype)
        new._head, new._link = head, link
        return new

    def __getitem__(self, ids: Any) -> Any:
        if ids is Ellipsis:  # nnx.Variable
            return self
        if isinstance(ids, tuple) and len(ids) == 1:
            ids = ids[0]
        if self.token_axis or ids is None or isinstance(ids, tuple | slice):
            raise whole_table_error(self, f"it was indexed with {ids!r}")
        return lookup(self, ids)

    def tree_flatten(self):
        # The head is not a child, so that a map over all leaves, for example a cast, does not change its table.
        return (self.rows, self._guarded_ids, self._of_dtype, self._link), (self.num_rows, self.token_axis, self._head)

    @classmethod
    def tree_unflatten(cls, static, children):
        new = object.__new__(cls)
        new.rows, new._guarded_ids, new._of_dtype, new._link = children
        new.num_rows, new.token_axis, new._head = static
        return new

    def __repr__(self) -> str:
        return f"RowSlice({self.rows.shape[self.token_axis]} of {self.num_rows} rows, shape={self.shape}, dtype={self.dtype})"


def lookup(table: Any, ids: jax.Array, tap: jax.Array | None = None, *, token_axis: int = 0) -> jax.Array:
    """The rows of a table for token ids, with zeros for padding (ids below zero, or V and above).

    .. math:: x_n = table_{ids_n} + tap_n

    The gradient with respect to `table` has the size of the table. There are two ways to avoid it. In the loss of
    `row_sparse.value_and_grad` the table is a `RowSlice`, whose gradient is compact. Or pass a `tap` of zeros and differentiate
    with respect to it: the table then gets no gradient, and the gradient of the tap is the compact gradient of `ids`. Apply it
    with `row_sparse.apply_updates`, because `optax.apply_updates` would add the gradient of a single id to every row.

    Args:
      table: (V, D), any floating dtype, or a `RowSlice`.
      ids: integers of any shape.
      tap: an array of the result's shape that is added to the rows, or None.
      token_axis: the axis of an array that is the vocabulary. A `RowSlice` has its own.

    Returns:
      An array of shape `ids.shape + (D,)` in the table's dtype. The row of an id that a `RowSlice` does not have is NaN: it was
      not declared.

    Raises:
      TypeError: `ids` are not integers, `table` is not an array, or `tap` is not floating.
      ValueError: `token_axis` is out of range, `table` has no rows, or `tap` and the result have different shapes.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ember_optax import row_sparse
      >>> table, ids = jnp.ones((100, 4)), jnp.array([3, 7, 3])
      >>> grads = jax.grad(lambda tap: row_sparse.lookup(table, ids, tap).sum())(jnp.zeros((3, 4)))
      >>> grads.shape
      (3, 4)

    References:
      docs/row_sparse.md
    """
    ids = checked_ids(ids)
    stored = table.rows if isinstance(table, RowSlice) else checked_table(table)
    token_axis = checked_axis(token_axis, stored.shape)
    token_axis = table.token_axis if isinstance(table, RowSlice) else token_axis

    def lookup_automatically(table, ids):
        if isinstance(table, RowSlice):
            rows_NxF = _lookup_slice(table, flat_ids(ids, table.num_rows))
        else:
            rows_NxF = take_rows(table, flat_ids(ids, table.shape[token_axis]), token_axis)
        return rows_NxF.reshape(*ids.shape, *rows_NxF.shape[1:])

    def spec():
        features = [entry for axis, entry in enumerate(spec_entries(stored)) if axis != token_axis]
        taken = {name for entry in spec_entries(ids) for name in entry_names(entry)}
        return spec_of([*spec_entries(ids), *(None if taken & set(entry_names(entry)) else entry for entry in features)])

    rows = in_auto_mode(lookup_automatically, spec, table if isinstance(table, RowSlice) else stored, ids)
    if tap is None:
        return rows
    check_tap(tap, rows.shape)
    return jax.lax.stop_gradient(rows) + tap


def slice_rows(table: jax.Array, ids: jax.Array, token_axis: int) -> tuple[jax.Array, jax.Array]:
    """The distinct ids in increasing order, padded with V, and their rows. For V ids or more, all V ids and rows.

    Rows of 16 bits are returned in float32, so that the gradients of all lookups are added up in float32. A single id gets a
    second row of padding, because `optax.apply_updates` would silently broadcast a gradient of one row to all rows.
    """
    size = table.shape[token_axis]
    places = 2 if ids.size == 1 else ids.size

    def slice_automatically(table, ids):
        # With at least V ids, take all rows in their order, so that the compact gradient equals the dense one.
        many = places >= size
        ids_N = jnp.arange(size, dtype=jnp.int32) if many else jnp.unique(flat_ids(ids, size), size=places, fill_value=size)
        rows = jnp.take(table, ids_N, token_axis, mode="fill", fill_value=0)
        return ids_N, rows.astype(jnp.float32) if is_narrow(rows) else rows

    def specs():
        entries = list(spec_entries(table))
        entries[token_axis] = None
        return spec_of([]), spec_of(entries)

    return in_auto_mode(slice_automatically, specs, table, ids)


def _guard(ids: jax.Array) -> jax.Array:
    """The ids as random keys, on which JAX refuses arithmetic.

    Losses map over all leaves of the parameters, for example for a cast or an L2 term. Integer ids would silently take part.
    """
    words = jnp.stack([ids.astype(jnp.uint32), jnp.zeros_like(ids, jnp.uint32)], -1)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def _lookup_slice(table: RowSlice, ids_M: jax.Array) -> jax.Array:
    rows_NxF = rows_first(table.rows, table.token_axis, 1)
    count = table.ids.size
    if not count:
        rows_NxF = jnp.zeros((1, *rows_NxF.shape[1:]), rows_NxF.dtype)  # `take` needs one row, which no id reads
    place_M = places_among(ids_M, table.ids)
    known_M = (jnp.take(table.ids, place_M, mode="fill", fill_value=-1) == ids_M) if count else jnp.zeros(ids_M.shape, bool)
    found = take_rows(rows_NxF, jnp.where(known_M, place_M, max(count, 1)), 0, jnp.nan).astype(table.dtype)
    padding_M = (ids_M == table.num_rows).reshape(-1, *(1 for _ in rows_NxF.shape[1:]))
    return jnp.where(padding_M, jnp.zeros((), found.dtype), found)


def head_of(table: Any) -> Any:
    """The fused head of a `RowSlice`, or None for an array. Raises for a `RowSlice` that is not a head."""
    if not isinstance(table, RowSlice):
        return None
    if table._head is None:
        raise whole_table_error(table, "it was used as a head")
    return table._head.linked_by(table._link)


def refuse_attend(table: Any) -> None:
    """Raises if the table is a `RowSlice`, which the `attend` method of a layer cannot use as a head."""
    if isinstance(table, RowSlice):
        raise whole_table_error(table, "it was used as a head")
