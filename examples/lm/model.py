"""A decoder-only transformer in Flax NNX: rotary positions, RMS norms, causal attention, a gated MLP."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from ember_optax.integrations.nnx import Embed

from .config import ModelConfig


class Block(nnx.Module):
    """Pre-norm attention and gated MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, hidden = config.width, 4 * config.width
        # The residual stream sums 2 * layers outputs; smaller output weights keep its variance near one.
        output_init = nnx.initializers.normal(0.02 / (2 * config.layers) ** 0.5)
        init = nnx.initializers.normal(0.02)
        self.heads = config.heads
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, kernel_init=init, rngs=rngs)
        self.attention_out = nnx.Linear(width, width, use_bias=False, kernel_init=output_init, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(width, rngs=rngs)
        self.gate_up = nnx.Linear(width, 2 * hidden, use_bias=False, kernel_init=init, rngs=rngs)
        self.mlp_out = nnx.Linear(hidden, width, use_bias=False, kernel_init=output_init, rngs=rngs)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        x_BxTxD = x_BxTxD + self._attend(self.attention_norm(x_BxTxD))
        gate, up = jnp.split(self.gate_up(self.mlp_norm(x_BxTxD)), 2, axis=-1)
        return x_BxTxD + self.mlp_out(nnx.silu(gate) * up)

    def _attend(self, x_BxTxD: jax.Array) -> jax.Array:
        batch, length, width = x_BxTxD.shape
        qkv = self.qkv(x_BxTxD).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        mixed = jax.nn.dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        return self.attention_out(mixed.reshape(batch, length, width))


class Transformer(nnx.Module):
    """Maps `(B, T)` token ids to `(B, T, rows)` logits; those of padding rows are so low that their probability is zero."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.embed = Embed(config.rows, config.width, embedding_init=init, rngs=rngs)
        self.layers = config.layers
        for i in range(config.layers):
            setattr(self, f"block_{i}", Block(config, rngs))
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.tied = config.tied
        self.vocabulary_size, self.rows = config.vocabulary_size, config.rows
        if not config.tied:
            self.lm_head = nnx.Linear(config.width, config.rows, use_bias=False, kernel_init=init, rngs=rngs)

    def __call__(self, ids_BxT: jax.Array, added_BxTxD: jax.Array | None = None) -> jax.Array:
        x = self.hidden(ids_BxT, added_BxTxD)
        logits = self.embed.attend(x) if self.tied else self.lm_head(x)
        if self.rows == self.vocabulary_size:
            return logits
        return jnp.where(jnp.arange(self.rows) < self.vocabulary_size, logits, jnp.finfo(logits.dtype).min)

    def hidden(self, ids_BxT: jax.Array, added_BxTxD: jax.Array | None = None) -> jax.Array:
        """The hidden states before the head, (B, T, D). `added_BxTxD` is added to the embeddings."""
        # A table of 16 bits is for storage: the residual stream has the dtype of the weights.
        x = self.embed(ids_BxT).astype(jnp.float32)
        x = split_batch(x if added_BxTxD is None else x + added_BxTxD)
        for i in range(self.layers):
            x = split_batch(getattr(self, f"block_{i}")(x))
        return self.norm(x)


def split_batch(x_BxTxD: jax.Array) -> jax.Array:
    """Under `jax.set_mesh`, splits activations over the batch alone; otherwise the compiler chooses.

    Left to choose, XLA on CPU (jax 0.10.2) computes wrong numbers where a lookup in a table that is split both ways is
    followed by attention, on a mesh of three axes: logits were off by 1.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x_BxTxD if mesh.empty else jax.lax.with_sharding_constraint(x_BxTxD, PartitionSpec(("data", "fsdp")))


def rotate(x_BxTxHxK: jax.Array) -> jax.Array:
    """Rotary position embedding over the time axis (https://arxiv.org/abs/2104.09864)."""
    length, half = x_BxTxHxK.shape[1], x_BxTxHxK.shape[-1] // 2
    frequency = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.outer(jnp.arange(length, dtype=jnp.float32), frequency)[None, :, None, :]
    first, second = jnp.split(x_BxTxHxK, 2, axis=-1)
    return jnp.concatenate(
        [first * jnp.cos(angle) - second * jnp.sin(angle), first * jnp.sin(angle) + second * jnp.cos(angle)], axis=-1
    )
