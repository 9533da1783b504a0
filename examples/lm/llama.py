"""Models of the Llama architecture as a function of a dictionary of arrays, read from the .gguf file that one is published as.

The parameters of all blocks are stacked, and the blocks are a loop: thirty of them compile as fast as one.
"""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from .damage import damage_named, listed
from .errors import UsageError
from .gguf_file import GgufFile

_SPECIAL = 3  # the format's token type of those that are no text
# The format's names of a block's arrays, and what kind of matrix or vector they are here.
_BLOCK = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "attention_out": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


class LlamaConfig(NamedTuple):
    """What the parameters' shapes do not say."""

    heads: int
    key_value_heads: int
    rope_base: float
    epsilon: float


class Llama(NamedTuple):
    """A published model: parameters as `logits` takes them, float32, and its tokenizer."""

    config: LlamaConfig
    params: dict[str, Any]
    tokenizer: tokenizers.Tokenizer


def read_llama(path: Path) -> Llama:
    """Reads a model whose head is its embedding.

    Raises:
      UsageError: the file is damaged, or has a model that `logits` would compute wrongly: of another architecture, with a head of
        its own, with arrays, scaled or partial rotations, or a tokenizer that are not known here.
    """
    file = GgufFile(path)
    if (architecture := file.field("general.architecture")) != "llama":
        raise UsageError(f"{path}: a model of architecture {architecture}; only llama is known here")
    if "output.weight" in file.names:
        raise UsageError(f"{path}: the model has a head of its own; only tied ones are known here")
    config = LlamaConfig(
        heads=int(file.number("llama.attention.head_count")),
        key_value_heads=int(file.number("llama.attention.head_count_kv")),
        rope_base=float(file.number("llama.rope.freq_base")),
        epsilon=float(file.number("llama.attention.layer_norm_rms_epsilon")),
    )
    blocks = range(int(file.number("llama.block_count")))
    _check_known(path, file)
    if any(name.startswith(f"blk.{len(blocks)}.") for name in file.names):
        raise UsageError(f"{path}: more blocks than the {len(blocks)} that it claims to have; get or convert it again")

    def stacked(name: str) -> np.ndarray:
        return np.stack([file.array(f"blk.{i}.{name}.weight") for i in blocks])

    def read() -> Llama:
        params = {
            "embed_tokens": {"weight": file.array("token_embd.weight")},
            "blocks": {ours: {"weight": stacked(theirs)} for ours, theirs in _BLOCK.items()},
            "norm": {"weight": file.array("output_norm.weight")},
        }
        used = {"token_embd.weight", "output_norm.weight"}
        used |= {f"blk.{i}.{theirs}.weight" for i in blocks for theirs in _BLOCK.values()}
        if unused := sorted(set(file.names) - used):
            raise UsageError(f"{path}: the model has {listed(unused)}, and what these do is not known here; use another model")
        if (turned := file.field("llama.rope.dimension_count")) not in (
            None,
            params["embed_tokens"]["weight"].shape[1] // config.heads,
        ):
            raise UsageError(f"{path}: llama.rope.dimension_count is {turned}, a part of each head; use another model")
        # Shapes that do not fit each other are found here, and not where the model is first used.
        jax.eval_shape(partial(logits, config), params, jax.ShapeDtypeStruct((1, 2), jnp.int32))
        return Llama(config, params, _tokenizer(file))

    return damage_named(path, read)


def logits(config: LlamaConfig, params: dict[str, Any], ids_BxT: jax.Array) -> jax.Array:
    """(B, T) token ids to (B, T, V) logits; matrices are (outputs, inputs)."""
    return hidden(config, params, ids_BxT) @ params["embed_tokens"]["weight"].T


def hidden(config: LlamaConfig, params: dict[str, Any], ids_BxT: jax.Array) -> jax.Array:
    """The hidden states before the head, (B, T, D), float32 whatever the table is."""
    turns = _turns(config, params, ids_BxT.shape[1])

    def block(x_BxTxD, weights):
        weights = {name: leaf["weight"] for name, leaf in weights.items()}
        x_BxTxD = x_BxTxD + _attend(config, weights, _norm(x_BxTxD, weights["attention_norm"], config), turns)
        y_BxTxD = _norm(x_BxTxD, weights["mlp_norm"], config)
        gated = jax.nn.silu(y_BxTxD @ weights["gate"].T) * (y_BxTxD @ weights["up"].T)
        return x_BxTxD + gated @ weights["down"].T, None

    embedded_BxTxD = params["embed_tokens"]["weight"][ids_BxT].astype(jnp.float32)
    x_BxTxD, _ = jax.lax.scan(block, embedded_BxTxD, params["blocks"])
    return _norm(x_BxTxD, params["norm"]["weight"], config)


def _attend(config: LlamaConfig, weights: dict[str, jax.Array], x_BxTxD: jax.Array, turns: tuple[jax.Array, jax.Array]):
    batch, length, _ = x_BxTxD.shape

    def heads(name: str, count: int) -> jax.Array:
        return (x_BxTxD @ weights[name].T).reshape(batch, length, count, -1)

    query = _rotate(heads("query", config.heads), turns)
    key = _rotate(heads("key", config.key_value_heads), turns)
    mixed = jax.nn.dot_product_attention(query, key, heads("value", config.key_value_heads), is_causal=True)
    return mixed.reshape(batch, length, -1) @ weights["attention_out"].T


def _norm(x: jax.Array, scale: jax.Array, config: LlamaConfig) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + config.epsilon) * scale


def _turns(config: LlamaConfig, params: dict[str, Any], length: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each place and pair of features, (T, 1, K / 2)."""
    head = params["blocks"]["query"]["weight"].shape[1] // config.heads
    frequency = config.rope_base ** (-jnp.arange(0, head, 2, dtype=jnp.float32) / head)
    angle = jnp.outer(jnp.arange(length, dtype=jnp.float32), frequency)[:, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def _rotate(x_BxTxHxK: jax.Array, turns: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions of pairs of neighbours, which is how the format has the rows of queries and keys permuted."""
    cosine, sine = turns
    even, odd = x_BxTxHxK[..., 0::2], x_BxTxHxK[..., 1::2]
    return jnp.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).reshape(x_BxTxHxK.shape)


def _check_known(path: Path, file: GgufFile) -> None:
    """Raises for what would be left out in silence."""
    known = {"llama.rope.scaling.type": (None, "none"), "tokenizer.ggml.model": ("gpt2",), "tokenizer.ggml.pre": (None, "smollm")}
    for name, values in known.items():
        if (value := file.field(name)) not in values:
            raise UsageError(
                f"{path}: {name} is {value!r}; only {' and '.join(map(repr, values))} are known here, use another model"
            )
    tokens = file.strings("tokenizer.ggml.tokens")
    if twice := [token for token, count in Counter(tokens).items() if count > 1]:
        raise UsageError(f"{path}: {listed(twice)} are in the vocabulary more than once, and text has one id; use another model")


def _tokenizer(file: GgufFile) -> tokenizers.Tokenizer:
    tokens, types = file.strings("tokenizer.ggml.tokens"), file.field("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type does not hold one number for each of the {len(tokens)} tokens")
    merges = [tuple(merge.split(" ")) for merge in file.strings("tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    split = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence([split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, types, strict=True) if kind == _SPECIAL])
    return tokenizer
