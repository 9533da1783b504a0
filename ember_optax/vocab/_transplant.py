"""`transplant`: moves a model to the vocabulary of another tokenizer. Tokens that both have keep their rows and state."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from .._tree.declared import AUTO, DimensionNumbersLike
from .._tree.inputs import shown
from ._change import Changed, NewRows, change, checked_model, mean_rows
from ._resize import padded_size
from ._row_moves import mean_of_rows, mean_row
from ._take import checked_ids
from ._vocabulary import vocabulary_of

Texts = Sequence[str] | Sequence[bytes] | Mapping[str, int] | Mapping[bytes, int]


def transplant(
    tx: optax.GradientTransformation | None,
    params: Any,
    opt_state: Any,
    old_vocabulary: Texts,
    new_vocabulary: Texts,
    *,
    pieces: Callable[[Any], Sequence[int]] | None = None,
    pad_to_multiple_of: int | None = None,
    tables: DimensionNumbersLike = AUTO,
    names: Sequence[str] | None = None,
    unrelated: Sequence[str] = (),
) -> Changed:
    """Moves a model from one tokenizer's vocabulary to another's, in every table and in the optimizer's state.

    A token (its text) that both vocabularies have keeps its rows and its state, bit for bit. A new token starts with the mean of
    the rows of its pieces under the old tokenizer, or without pieces, with the mean of all rows. Its state is that of `tx.init`.
    Tables, state and devices are treated as in `resize`, and removed tokens as in `take`.

    Args:
      tx: the transformation whose `init` made `opt_state`; None without an optimizer.
      params: the parameters, a tree of arrays.
      opt_state: the state of `tx`; None without an optimizer.
      old_vocabulary: the texts of the tokens in the order of their ids, or a mapping from texts to ids, as
        `tokenizers.Tokenizer.get_vocab()` returns it. A table may have more rows. These are padding, and are dropped.
      new_vocabulary: the same for the new tokenizer. The result has its ids.
      pieces: a function from the text of a new token to old ids, which calls the old tokenizer. It gets texts exactly as in
        `new_vocabulary`. For byte-level vocabularies, it must convert them to plain text first.
      pad_to_multiple_of: rounds the number of rows up to a multiple of this. Rows of padding start with the mean of all rows.
      tables: as for `resize`.
      names: as for `resize`.
      unrelated: as for `resize`.

    Returns:
      `Changed(params, opt_state, new_ids)`.

    Raises:
      TypeError: tokens are not texts, or ids or pieces are not integers; as `resize`.
      ValueError: a text occurs twice, ids are not 0, 1, 2, ..., the old vocabulary has more tokens than the tables, or a piece is
        not an old id; as `resize`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ember_optax import vocab
      >>> params = {"wte": {"embedding": jnp.array([[1.0], [2.0], [4.0]])}}
      >>> old, new = ["a", "b", "c"], ["c", "ab", "a"]
      >>> params, _, new_ids = vocab.transplant(None, params, None, old, new, pieces=lambda text: map(old.index, text))
      >>> params["wte"]["embedding"][:, 0].tolist(), new_ids.tolist()
      ([4.0, 1.5, 1.0], [2, -1, 0])

    References:
      docs/vocabulary.md
    """
    old, new = _ids_of(old_vocabulary, "old_vocabulary"), _ids_of(new_vocabulary, "new_vocabulary")
    if pieces is not None and not callable(pieces):
        raise TypeError(f"pieces must be a function from a text to old ids, got {shown(pieces)}; leave it out for the mean row.")
    model = checked_model(tx, params, opt_state)
    vocabulary = vocabulary_of(params, tables, names, unrelated)
    if len(old) > vocabulary.size:
        raise ValueError(
            f"old_vocabulary has {len(old)} tokens, but the tables have {vocabulary.size} rows: pass the vocabulary that they "
            f"were trained with."
        )
    ids_W = np.full(padded_size(len(new), pad_to_multiple_of), -1, np.int32)
    for text, new_id in new.items():
        ids_W[new_id] = old.get(text, -1)
    made_of = {new_id: _pieces(pieces, text, len(old)) for text, new_id in new.items() if pieces and text not in old}
    return change(model, vocabulary, ids_W, _new_rows(made_of, len(ids_W)))


def _new_rows(made_of: dict[int, np.ndarray], size: int) -> NewRows:
    most = max(map(len, made_of.values()), default=0)
    if not most:
        return mean_rows
    ids_WxP = np.full((size, most), -1, np.int32)
    for new_id, ids in made_of.items():
        ids_WxP[new_id, : len(ids)] = ids

    def rows(table: jax.Array, axis: int, _: int) -> jax.Array:
        return mean_of_rows(table, ids_WxP, axis, mean_row(table, axis))

    return rows


def _ids_of(vocabulary: Any, argument: str) -> dict[Any, int]:
    """The id of each text."""
    if isinstance(vocabulary, str | bytes) or not isinstance(vocabulary, Sequence | Mapping):
        raise TypeError(
            f"{argument} must be the texts of the tokens in the order of their ids, or a mapping from texts to ids, got "
            f"{shown(vocabulary)}; tokenizers.Tokenizer.get_vocab() is one."
        )
    if not vocabulary:
        raise ValueError(f"{argument} is empty; pass the texts of all tokens.")
    texts = list(vocabulary)
    if wrong := [text for text in texts if not isinstance(text, str | bytes)]:
        raise TypeError(f"{argument} must hold texts, got {shown(wrong[0])}; pass the texts of the tokens, not their ids.")
    if isinstance(vocabulary, Mapping):
        return _checked_mapping(dict(vocabulary), argument)
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) < len(texts):
        twice = next(text for i, text in enumerate(texts) if ids[text] != i)
        raise ValueError(
            f"{argument} has {twice!r} at {texts.index(twice)} and {ids[twice]}; each token needs a text of its own."
        )
    return ids


def _checked_mapping(ids: dict[Any, Any], argument: str) -> dict[Any, int]:
    if wrong := {text: i for text, i in ids.items() if isinstance(i, bool) or not isinstance(i, int | np.integer)}:
        text, value = next(iter(wrong.items()))
        raise TypeError(f"{argument} must map texts to ids, got {shown(value)} for {text!r}; pass integers.")
    if set(ids.values()) != set(range(len(ids))):
        missing = sorted(set(range(len(ids))) - set(ids.values()))
        raise ValueError(
            f"{argument} must have the ids 0 to {len(ids) - 1}, each once, but {missing[:5]} are missing; give gaps a text of "
            f"their own."
        )
    return {text: int(i) for text, i in ids.items()}


def _pieces(pieces: Callable[[Any], Sequence[int]], text: Any, size: int) -> np.ndarray:
    found = pieces(text)
    return checked_ids(list(found) if isinstance(found, Iterable) else found, size, f"pieces({text!r})")
