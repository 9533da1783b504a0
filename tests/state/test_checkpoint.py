"""A checkpoint on the disk and what is to be restored from it, compared by path and shape."""

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

from ember_optax import check_shapes, checksums, ember, verify_checksums


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


def with_keys(impl="threefry2x32", count=4):
    key = jax.random.key(0, impl=impl)
    return {"w": jnp.ones(3), "key": key, "keys": jax.random.split(key, count), "old": jax.random.PRNGKey(0)}


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_keys_fit_what_is_saved_of_them(impl, tmp_path):
    """Orbax holds the numbers of a key, (2,) or (4,) of uint32, and gives a key back: its shape () was said not to fit."""
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.StandardSave(with_keys(impl)))
    with ocp.CheckpointManager(tmp_path, item_handlers=ocp.StandardCheckpointHandler()) as manager:
        metadata = manager.item_metadata(1).tree
        restored = manager.restore(1, args=ocp.args.StandardRestore(with_keys(impl)))
    for target in (with_keys(impl), jax.eval_shape(lambda: with_keys(impl))):
        check_shapes(metadata, target)
        check_shapes(restored, target)
        check_shapes(target, target)
    verify_checksums(restored, checksums(with_keys(impl)))
    with pytest.raises(ValueError, match="'key' has other bits"):
        verify_checksums({**restored, "key": jax.random.key(1, impl=impl)}, checksums(with_keys(impl)))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (lambda: with_keys(count=3), r"'keys' was saved with shape \(3, 2\), wanted is \(4, 2\)"),
        (lambda: with_keys("rbg"), r"'key' was saved with shape \(4,\), wanted is \(2,\)"),
        (lambda: {**with_keys(), "key": jnp.ones(())}, r"'key' was saved with shape \(\), wanted is \(2,\)"),
    ],
)
def test_other_random_keys_do_not_fit(saved, message):
    with pytest.raises(ValueError, match=message):
        check_shapes(saved(), with_keys())


def test_keys_in_an_optimizer_state():
    tx = optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(0)), ember(1e-3, optax.adamw(1e-3)))
    check_shapes(jax.eval_shape(lambda: model(12, tx)), model(12, tx))
    verify_checksums(model(12, tx), checksums(model(12, tx)))
