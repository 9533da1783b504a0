"""A checkpoint on the disk and what is to be restored from it, compared by path and shape."""

import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

from ember_optax import check_shapes, ember


def model(tokens, tx=None):
    tx = tx or ember(1e-3, optax.adamw(1e-3))
    params = {"embed": {"embedding": jnp.ones((tokens, 4))}, "mlp": {"kernel": jnp.ones((4, 4))}}
    return {"params": params, "opt_state": tx.init(params)}


@pytest.fixture
def saved(tmp_path):
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(1, args=ocp.args.StandardSave(model(12)))
    with ocp.CheckpointManager(tmp_path / "checkpoints", item_handlers=ocp.StandardCheckpointHandler()) as manager:
        yield manager.item_metadata(1).tree


def test_fits(saved):
    check_shapes(saved, model(12))
    check_shapes(model(12), model(12))


def test_another_vocabulary(saved):
    with pytest.raises(
        ValueError, match=r"'params/embed/embedding' was saved with shape \(12, 4\), wanted is \(16, 4\)"
    ) as error:
        check_shapes(saved, model(16))
    assert "nu_token/embed/embedding' was saved with shape (12,), wanted is (16,)" in str(error.value)


def test_another_optimizer(saved):
    with pytest.raises(
        ValueError, match=r"'opt_state/0/mu/embed/embedding' of shape \(12, 4\) is not in the checkpoint.* and \d+ more"
    ):
        check_shapes(saved, model(12, optax.adam(1e-3)))
    with pytest.raises(ValueError, match=r"'mlp/kernel' of shape \(4, 4\) is only in the checkpoint"):
        check_shapes({"params": {"a": jnp.ones(3)}, "mlp": {"kernel": jnp.ones((4, 4))}}, {"params": {"a": jnp.ones(3)}})


def test_names_are_not_shortened():
    """`params` and `value` are dropped from names elsewhere; two arrays must not become one here."""
    ours, theirs = ({"params": {"w": jnp.ones((rows, 4))}, "w": {"value": jnp.ones(3)}} for rows in (8, 12))
    with pytest.raises(ValueError, match=r"'params/w' was saved with shape \(8, 4\), wanted is \(12, 4\)"):
        check_shapes(ours, theirs)


def test_numbers_count_as_scalars():
    check_shapes({"step": 3}, {"step": jnp.int32(4)})
