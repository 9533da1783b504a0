"""What the tokens of a vocabulary stand for, as text that can be shown."""

from pathlib import Path

import tokenizers

from .damage import damage_named

_ALPHABET = tokenizers.pre_tokenizers.ByteLevel.alphabet()
_OWN = {ord(character) for character in _ALPHABET if ord(character) < 256}
_OTHERS = sorted(set(range(256)) - _OWN)
# Byte-level vocabularies write each byte as a printable character: most as themselves, the others from 256 on, in order.
_BYTE = {chr(byte): byte for byte in _OWN} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


def shown_bytes(content: bytes) -> str:
    """Text; bytes that are not UTF-8, such as a part of a character, as `\\xe4`."""
    return content.decode("utf-8", "backslashreplace")


def token_text(token: str, byte_level: bool) -> str:
    """The text of one entry of a vocabulary, with its spaces. What it does not know, such as `##ing` or `<0x0A>`, stays."""
    if byte_level:
        return shown_bytes(bytes(_BYTE[character] for character in token)) if set(token) <= _BYTE.keys() else token
    return token.replace("\u2581", " ")


def read_texts(path: Path, most: int) -> tuple[list[str], int]:
    """The texts of a tokenizer.json by token id, "" for ids without a token, and the number of ids.

    The list ends after `most` ids: a short file can have a token whose id is 2**32 - 1.
    """
    tokenizer = damage_named(path, lambda: tokenizers.Tokenizer.from_file(str(path)))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()  # these are plain text in every vocabulary
    byte_level = "ByteLevel(" in repr(tokenizer.decoder)
    count = max(vocabulary.values(), default=-1) + 1
    texts = [""] * min(count, most)
    for token, i in vocabulary.items():
        if i < len(texts):
            texts[i] = token if i in added else token_text(token, byte_level)
    return texts, count
