"""Mistakes in specs, shardings and mesh axes are named."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import D, V, make_mesh

from ember_optax import ember, scale_by_ember, state_partition_specs, state_shardings


class TestMistakes:
    params: ClassVar = {"embed": jax.ShapeDtypeStruct((50257, D), jnp.float32)}

    @pytest.mark.parametrize(
        "specs, error, message",
        [
            ({"embed": P("fsdp", None, None)}, ValueError, r"'embed' has 3 entries, but its shape \(50257, 40\) has 2 axes"),
            ({"embed": "fsdp"}, TypeError, r"the spec of 'embed' must be a PartitionSpec, got 'fsdp' of type str"),
            (
                {"embed": P("fdsp")},
                ValueError,
                r"of 'embed' names the mesh axis 'fdsp', but the mesh in use has the axes \('tp', 'fsdp'\)",
            ),
            ({"wte": P()}, ValueError, r"do not have the structure of the parameters \['embed'\]"),
        ],
    )
    def test_specs(self, specs, error, message):
        with jax.set_mesh(make_mesh(AxisType.Auto)), pytest.raises(error, match=message):
            state_partition_specs(ember(1e-3, optax.adamw(1e-3)), self.params, specs)

    def test_mesh_axes(self):
        with pytest.raises(TypeError, match=r"token_mesh_axes must be a mesh axis name or a tuple of them, got 3"):
            scale_by_ember(token_mesh_axes=3)
        g = jnp.ones((V, D))
        for argument, name in (("token_mesh_axes", "fdsp"), ("feature_mesh_axes", "tp")):
            tx = scale_by_ember(**{argument: name})
            message = f"{argument} names '{name}', which is no mesh axis that jax.shard_map splits arrays over at this place"
            with jax.set_mesh(make_mesh(AxisType.Auto)), pytest.raises(ValueError, match=message):
                shard = jax.shard_map if name == "fdsp" else lambda f, **_: jax.jit(f)
                shard(lambda g, tx=tx: tx.update(g, tx.init(g))[0], in_specs=P("fsdp"), out_specs=P("fsdp"))(g)

    def test_mesh_axis_named_twice(self):
        for axes in ({"token_mesh_axes": ("tp", "tp")}, {"token_mesh_axes": "tp", "feature_mesh_axes": "tp"}):
            with pytest.raises(ValueError, match="name a mesh axis twice"):
                scale_by_ember(**axes)
        with pytest.raises(TypeError, match=r"token_mesh_axes must be a mesh axis name or a tuple of them, got \('',\)"):
            scale_by_ember(token_mesh_axes="")

    def test_mesh_axis_over_which_the_table_is_whole(self):
        tx = scale_by_ember(token_mesh_axes="tp")
        message = r"gradient of '' is the same along the mesh axes \['tp'\], .* and differs along \['fsdp'\]"
        with jax.set_mesh(make_mesh(AxisType.Auto)), pytest.raises(ValueError, match=message):
            jax.shard_map(lambda g: tx.update(g, tx.init(g))[0], in_specs=P("fsdp"), out_specs=P("fsdp"))(jnp.ones((V, D)))

    def test_explicit_mesh_that_is_not_set(self):
        params = jax.device_put({"embed": jnp.ones((V, D))}, NamedSharding(make_mesh(AxisType.Explicit), P("fsdp")))
        with pytest.raises(ValueError, match=r"jax\.set_mesh"):
            jax.jit(ember(1e-3, optax.adamw(1e-3)).init)(params)

    def test_shardings(self):
        mesh, other = make_mesh(AxisType.Auto), jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        with pytest.raises(TypeError, match=r"sharding of 'embed' must be a NamedSharding, got P"):
            state_shardings(ember(1e-3, optax.adamw(1e-3)), self.params, P())
        with pytest.raises(ValueError, match=r"axis 0 of 'embed', of size 50257, .* 4 devices .* to 50432, a multiple of 256"):
            state_shardings(ember(1e-3, optax.adamw(1e-3)), self.params, NamedSharding(mesh, P("fsdp")))
        two = {"embed": self.params["embed"], "mlp": self.params["embed"]}
        with pytest.raises(ValueError, match="2 different meshes"):
            state_shardings(
                ember(1e-3, optax.adamw(1e-3)), two, {"embed": NamedSharding(mesh, P()), "mlp": NamedSharding(other, P())}
            )
