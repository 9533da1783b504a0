"""`local_token_ids`: token ids relative to the shards of a row-sharded table."""

from typing import Any

import jax

from .._math.rows import shifted_ids
from .._optimizer.checks import check_bound, mesh_names
from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.inputs import check_tree
from .._tree.tables import read_tree, tables_with_ids
from .._tree.token_ids import token_ids_by_name


def local_token_ids(
    token_ids: Any, params: Any, mesh_axes: str | tuple[str, ...], *, tables: DimensionNumbersLike = AUTO
) -> dict[str, jax.Array]:
    """Inside `jax.shard_map`, the ids relative to this device's shard of each table. Ids of other shards become -1.

    With these ids `row_sparse.lookup` returns zeros for the rows of other shards, so that the sum over the devices is the lookup.
    `tx.update` (of `scale_by_ember` with `token_mesh_axes`) and `row_sparse.apply_updates` ignore the rows of other shards. Under
    `jax.jit`, with automatic or explicit mesh axes, arrays are whole and this is not needed.

    Args:
      token_ids: ids of the whole table, the same on all devices along `mesh_axes`, as a tree like `params` or a dictionary from
        paths.
      params: the parameters, with this device's shard of each table.
      mesh_axes: the mesh axes that shard the token axes, major to minor.
      tables: which axis of the tables is the vocabulary, as in `ember`.

    Returns:
      A dictionary from paths to ids, of the same shapes.

    Raises:
      TypeError: ids are not integers, or `mesh_axes` are not names.
      ValueError: ids are given for a path that is not a parameter, a mesh axis is not in use here, or none is named.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec
      >>> from ember_optax import row_sparse
      >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> def part(table, ids):
      ...     local = row_sparse.local_token_ids({"wte": ids}, {"wte": table}, "fsdp")["wte"]
      ...     return jax.lax.psum(row_sparse.lookup(table, local), "fsdp")
      >>> specs = (PartitionSpec("fsdp"), PartitionSpec())
      >>> lookup = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
      >>> lookup(jnp.arange(6.0)[:, None], jnp.array([5, 2]))[:, 0]
      Array([5., 2.], dtype=float32)

    References:
      docs/row_sparse.md
    """
    check_tree(params, "params")
    names = mesh_names(mesh_axes, "mesh_axes")
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"mesh_axes must name each mesh axis that splits the tokens once, got {mesh_axes!r}; pass for example 'fsdp'."
        )
    check_bound({"mesh": names})
    found = tables_with_ids(read_tree(params, token_ids_by_name(token_ids), what="the parameters are"), tables)
    return {
        table.name: shifted_ids(table.ids, jax.lax.axis_index(names), table.shape[table.axes.token[0]])
        for table in found.tables
        if table.ids is not None
    }
