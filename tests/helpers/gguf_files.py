"""Files of models that tests write."""

from pathlib import Path

import gguf
import numpy as np
import tokenizers


def write_gguf(
    path: Path,
    arrays: dict[str, np.ndarray],
    *,
    types: dict[str, gguf.GGMLQuantizationType] | None = None,
    tokens: list[str] | list[bytes] | None = None,
    token_types: list[int] | None = None,
    tokenizer: str = "gpt2",
    big_endian: bool = False,
) -> Path:
    """Writes a file of arrays, each of its own type or quantized to the one in `types`."""
    order = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    if tokens is not None:
        writer.add_tokenizer_model(tokenizer)
        writer.add_token_list(tokens)
    if token_types is not None:
        writer.add_token_types(token_types)
    for name, array in arrays.items():
        kind = (types or {}).get(name)
        writer.add_tensor(name, array if kind is None else gguf.quantize(array, kind), raw_dtype=kind)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    """Writes what a writer was given, and closes the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny_llama(
    path: Path,
    width: int = 16,
    hidden: int = 32,
    heads: int = 4,
    *,
    big_endian: bool = False,
    more: dict[str, object] | None = None,
) -> Path:
    """Writes a model of SmolLM2's layout whose vocabulary is bytes and two merges. `more` are further arrays and texts."""
    generator = np.random.default_rng(0)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|end|>", *alphabet, "de", "def"]
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE)
    writer.add_block_count(2)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads // 2)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["d e", "de f"])
    shapes = {"attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, width), "attn_k": (width // 2, width)}
    shapes |= {"attn_v": (width // 2, width), "attn_output": (width, width)}
    shapes |= {"ffn_gate": (hidden, width), "ffn_up": (hidden, width), "ffn_down": (width, hidden)}
    arrays = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    arrays |= {f"blk.{i}.{name}": shape for i in range(2) for name, shape in shapes.items()}
    for name, shape in arrays.items():
        values = np.ones(shape) if len(shape) == 1 else 0.2 * generator.normal(size=shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    for name, value in (more or {}).items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_string(name, str(value))
    finish(writer)
    return path
