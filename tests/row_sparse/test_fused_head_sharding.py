"""A fused head on meshes: what XLA sends for each chunk."""

import re

import jax
import pytest
from fused import Model, fused_step, transformation
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ember_optax import state_shardings

_SENT = re.compile(r"= \w+(\[[\d,]*\])\S* (all-\w+|reduce-scatter|collective-permute)\(")
V, D, N, CHUNK = 128, 16, 24, 32
MODEL = Model(V, D, N, options=(("chunk", CHUNK),))


def mesh_with(axis_type):
    return jax.make_mesh((2, 4), ("data", "rows"), axis_types=(axis_type,) * 2)


def sent_in_loops(table, batch):
    """Shape and kind of every collective inside of the loops over chunks."""
    mesh, tx = mesh_with(AxisType.Auto), transformation(MODEL)

    def there(spec):
        return NamedSharding(mesh, spec)

    of_params = {name: there(table if name == "head" else P()) for name in MODEL.params()}
    shardings = of_params, state_shardings(tx, jax.eval_shape(MODEL.params), of_params)
    shapes = jax.eval_shape(lambda: (MODEL.params(), tx.init(MODEL.params()))), jax.eval_shape(lambda: MODEL.batch(0))

    def abstract(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    start, given = jax.tree.map(abstract, shapes[0], shardings), [abstract(leaf, there(batch)) for leaf in shapes[1]]
    step = jax.jit(fused_step(MODEL, tx).__wrapped__, donate_argnums=(0, 1), out_shardings=(*shardings, there(P())))
    text = step.lower(*start, *given).compile().as_text()
    loops = text[: text.index("\nENTRY ")]
    return sorted(" ".join(found) for found in _SENT.findall(loops))


CHUNK_SUM = f"[{CHUNK},{D}] all-reduce"


@pytest.mark.slow
@pytest.mark.parametrize("batch", [P("data"), P(("data", "rows"))], ids=str)
def test_a_replicated_head_sums_each_chunk_of_the_gradient_twice(batch):
    """For the statistics, and to apply it; for the losses nothing is sent."""
    assert sent_in_loops(P(), batch) == [CHUNK_SUM] * 2


@pytest.mark.slow
def test_a_head_split_by_rows_is_gathered_for_each_chunk():
    """Whole, in all three passes, where the loss does not say that it is split (test_fused_head_split.py: where it does)."""
    sent = sent_in_loops(P("rows"), P("data"))
    assert sent.count(f"[{V},{D}] all-gather") == 3 and sent.count(CHUNK_SUM) == 2


@pytest.mark.slow
def test_a_head_split_by_features_sends_logits_and_its_part_of_the_gradient():
    """Of the batch's part on a device; the table stays where it is."""
    sent = sent_in_loops(P(None, "rows"), P("data"))
    assert sent.count(f"[{N // 2},{CHUNK}] all-reduce") == 3 and sent.count(f"[{CHUNK},{D // 4}] all-reduce") == 2
    assert not any("gather" in one for one in sent)
