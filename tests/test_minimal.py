"""The example to copy: short, named where readers look for it, and a step that is the dense one."""

import runpy
from pathlib import Path

import jax
import minimal
import numpy as np
import optax
import pytest
from programs import EXAMPLES

ROOT = Path(__file__).parents[1]


def test_the_example_to_copy_learns_and_is_the_dense_step():
    params, text = minimal.init_params(jax.random.key(0)), np.random.default_rng(0).integers(0, 50, (32, minimal.CONTEXT + 1))
    context, target = text[:, :-1].astype(np.int32), text[:, -1].astype(np.int32)
    opt_state = minimal.tx.init(params)
    grads = jax.grad(minimal.loss_fn)(params, context, target)
    dense = optax.apply_updates(params, minimal.tx.update(grads, opt_state, params)[0])
    losses = []
    for number in range(5):
        params, opt_state, loss = minimal.train_step(params, opt_state, context, target)
        losses.append(float(loss))
        if number == 0:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, dense)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.slow  # all of its steps
def test_the_example_to_copy_runs(capsys):
    runpy.run_path(str(EXAMPLES / "minimal.py"), run_name="__main__")
    losses = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.3


def test_the_example_to_copy_is_short_and_named():
    assert len((EXAMPLES / "minimal.py").read_text(encoding="utf-8").splitlines()) <= 60
    assert "(examples/minimal.py)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(../examples/minimal.py)" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
