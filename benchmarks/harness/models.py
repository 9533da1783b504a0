"""Language models in the shapes of published ones: parameters and loss in plain JAX, for compilers rather than for training."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ember_optax import EmberDimensionNumbers, ember
from ember_optax.losses import linear_softmax_cross_entropy


class Shape(NamedTuple):
    """A decoder-only transformer, or with `layers=0` its token table alone.

    `table` is the embedding's shape; without `tied` there is a head of the same, stored (D, V), besides.
    """

    table: tuple[int, ...]
    layers: int = 0
    heads: int = 1
    kv_heads: int = 1
    head_size: int = 1
    hidden: int = 0
    gated: bool = True
    positions: int = 0
    tied: bool = True


# As in the models' published configurations.
SHAPES = {
    "GPT-2": Shape((50_257, 768), 12, 12, 12, 64, 3_072, gated=False, positions=1_024),
    "Gemma 3 270M": Shape((262_144, 640), 18, 4, 1, 256, 2_048),
    "Gemma 3 1B": Shape((262_144, 1_152), 26, 4, 1, 256, 6_912),
    "Qwen3-0.6B": Shape((151_936, 1_024), 28, 16, 8, 128, 3_072),
    "Llama-3.2-1B": Shape((128_256, 2_048), 16, 32, 8, 64, 8_192),
    "SmolLM2-135M": Shape((49_152, 576), 30, 9, 3, 64, 1_536),
    "Llama-3-8B": Shape((128_256, 4_096), 32, 32, 8, 128, 14_336, tied=False),
    "Gemma 3n E2B, per-layer table": Shape((262_144, 30, 256)),
    "Marin, embedding": Shape((128_256, 6_144)),
}


def init_params(shape: Shape) -> dict[str, Any]:
    """Parameters in float32, the blocks' stacked over the layers: call it under `jax.eval_shape`."""
    width = shape.table[-1]
    params: dict[str, Any] = {"embed": {"embedding": jnp.zeros(shape.table)}}
    if not shape.tied:
        params["lm_head"] = {"kernel": jnp.zeros(shape.table[::-1])}
    if shape.positions:
        params["positions"] = jnp.zeros((shape.positions, width))
    if shape.layers:
        sizes = {
            "qkv": (width, (shape.heads + 2 * shape.kv_heads) * shape.head_size),
            "attention_out": (shape.heads * shape.head_size, width),
            "up": (width, (1 + shape.gated) * shape.hidden),
            "down": (shape.hidden, width),
        }
        params["blocks"] = {name: jnp.zeros((shape.layers, *size)) for name, size in sizes.items()}
        params["blocks"]["norms"] = jnp.ones((shape.layers, 2, width))
    return params


def loss_fn(
    params: dict[str, Any],
    ids_BxT: jax.Array,
    shape: Shape,
    dtype: Any = jnp.float32,
    *,
    in_chunks: bool = False,
    token_mesh_axes: str | None = None,
) -> jax.Array:
    """Next-token loss of sequences, the blocks rematerialised, everything but the loss computed in `dtype`.

    Of a table alone, the mean square of the rows that are looked up. `in_chunks` of the vocabulary the loss needs no logits,
    and the head may be split over `token_mesh_axes`.
    """
    table = params["embed"]["embedding"].astype(dtype)
    x_BxTxD = table[ids_BxT[:, :-1]]
    if not shape.layers:
        return jnp.mean(jnp.square(x_BxTxD))
    if shape.positions:
        x_BxTxD = x_BxTxD + params["positions"][: x_BxTxD.shape[1]].astype(dtype)

    def block(x, weights):
        weights = jax.tree.map(lambda leaf: leaf.astype(dtype), weights)
        x = x + _attention(_norm(x, weights["norms"][0]) @ weights["qkv"], shape) @ weights["attention_out"]
        hidden = _norm(x, weights["norms"][1]) @ weights["up"]
        gate, *up = jnp.split(hidden, 1 + shape.gated, axis=-1)
        return x + (jax.nn.gelu(gate) * (up[0] if up else 1.0)) @ weights["down"], None

    x_BxTxD, _ = jax.lax.scan(jax.checkpoint(block), x_BxTxD, params["blocks"])
    if in_chunks:
        head, token_axis = (table, 0) if shape.tied else (params["lm_head"]["kernel"].astype(dtype), 1)
        labels, options = ids_BxT[:, 1:], {"token_axis": token_axis, "token_mesh_axes": token_mesh_axes}
        return linear_softmax_cross_entropy(x_BxTxD, head, labels, **options).mean()
    head_DxV = table.T if shape.tied else params["lm_head"]["kernel"].astype(dtype)
    logits = jnp.matmul(x_BxTxD, head_DxV, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids_BxT[:, 1:]).mean()


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + 1e-6).astype(x.dtype) * scale


def _attention(qkv_BxTxH: jax.Array, shape: Shape) -> jax.Array:
    heads = qkv_BxTxH.reshape(*qkv_BxTxH.shape[:2], shape.heads + 2 * shape.kv_heads, shape.head_size)
    query, key, value = jnp.split(heads, (shape.heads, shape.heads + shape.kv_heads), axis=2)
    return jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(*qkv_BxTxH.shape[:2], -1)


def token_tables_of(params: Any) -> Any:
    """Dimension numbers of the token tables, None for everything else; positions are no vocabulary."""
    numbers = {"embed": EmberDimensionNumbers(), "lm_head": EmberDimensionNumbers(token_axis=1)}
    return {name: jax.tree.map(lambda _, name=name: numbers.get(name), params[name]) for name in params}


def muon(learning_rate: float) -> optax.GradientTransformation:
    """Muon for the stacked matrices of the blocks, Adam for what it is given besides."""
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    wanted = {"qkv", "attention_out", "up", "down"}

    def of_matrices(path, _):
        return numbers if path[-1].key in wanted else None

    return optax.contrib.muon(learning_rate, muon_weight_dimension_numbers=partial(jax.tree_util.tree_map_with_path, of_matrices))


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "SGD": lambda: optax.sgd(1e-3),
    "Adam": lambda: optax.adamw(1e-3),
    "Adafactor": lambda: optax.adafactor(1e-3),
    "Ember + Adam": lambda: ember(1e-3, optax.adamw(1e-3), tables=token_tables_of),
    "Muon + Adam": lambda: muon(1e-3),
    "Muon + Ember": lambda: ember(1e-3, muon(1e-3), tables=token_tables_of),
}
