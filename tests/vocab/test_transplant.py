"""A model that gets another tokenizer: what both know stays, what is new begins with its pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import ember, vocab

OLD, D, ROWS = "abcdef", 4, 8  # two rows are padding
NEW = ["c", "fade", "a", "be", "ccc", "x", "f", "y"]
KEPT = {0: 2, 2: 0, 6: 5}  # new ids to old ones


def pieces(text):
    return {"x": [0, 3], "y": [1]}.get(text) or [OLD.index(letter) for letter in text]


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(0)
    embedding, kernel, dense = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((ROWS, D), (D, ROWS), (D, D)))
    params = {"embed": {"embedding": embedding}, "lm_head": {"kernel": kernel}, "dense": dense}
    tx = ember(1e-2, optax.adamw(1e-2))
    return tx, params, tx.update(params, tx.init(params), params)[1]


def tables_of(params):
    """Both tables, tokens first."""
    return np.asarray(params["embed"]["embedding"]), np.asarray(params["lm_head"]["kernel"]).T


@pytest.mark.parametrize("made_of", [pieces, None], ids=["pieces", "no pieces"])
def test_rows(trained, made_of):
    _, params, _ = trained
    found, _, new_ids = vocab.transplant(None, params, None, list(OLD), NEW, pieces=made_of, pad_to_multiple_of=5)
    assert new_ids.tolist() == [2, -1, 0, -1, -1, 6, -1, -1]
    for table, before in zip(tables_of(found), tables_of(params), strict=True):
        assert table.shape == (10, D)
        for new_id, old_id in KEPT.items():
            np.testing.assert_array_equal(table[new_id], before[old_id])
        for new_id in set(range(10)) - set(KEPT):
            from_pieces = made_of is not None and new_id < len(NEW)
            rows = before[pieces(NEW[new_id])] if from_pieces else before
            np.testing.assert_allclose(table[new_id], rows.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found["dense"], params["dense"])


def test_state(trained):
    tx, params, state = trained
    found, after, _ = vocab.transplant(tx, params, state, dict(zip(OLD, range(6), strict=True)), NEW, pieces=pieces)
    before, new = (optax.tree.get(one, "nu_token") for one in (state, after))
    for old_V, new_V in zip(jax.tree.leaves(before), jax.tree.leaves(new), strict=True):
        assert np.asarray(old_V).all()
        np.testing.assert_array_equal(new_V, [old_V[KEPT[i]] if i in KEPT else 0 for i in range(len(NEW))])
    tx.update(found, after, found)


def test_a_mapping_is_as_good_as_a_sequence(trained):
    _, params, _ = trained
    shuffled = {text: i for i, text in sorted(enumerate(NEW), key=lambda pair: pair[1])}
    one, other = (vocab.transplant(None, params, None, list(OLD), new, pieces=pieces) for new in (NEW, shuffled))
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
