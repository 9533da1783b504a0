"""Long runs, and several in one process. (Counters at their end: `tests/integrations/test_bugs_of_neighbours.py`.)"""

import gc
import os
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import dense_step
from three_matrices import initial_params

from ember_optax import ember


def trained(tx, seed, steps=60):
    """Parameters and state after so many steps on random gradients, all in one program of its own."""
    step = jax.jit(dense_step(tx))
    params = initial_params()
    state, random = tx.init(params), np.random.default_rng(seed)
    for _ in range(steps):
        grads = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), params)
        params, state = step(params, state, grads)
    return jax.device_get((params, state))


@pytest.mark.slow
def test_two_trainings_in_two_threads():
    """Traced, compiled and run beside each other, they are what each is alone, to the last bit."""
    runs = {
        "schedule": (ember(optax.linear_schedule(1e-2, 1e-3, 60), optax.adamw(optax.linear_schedule(1e-2, 1e-3, 60))), 0),
        "decay": (ember(3e-3, optax.adamw(3e-3), weight_decay=0.1), 1),
    }
    alone = {name: trained(*run) for name, run in runs.items()}
    beside, start = {}, threading.Barrier(len(runs))

    def run(name):
        start.wait()
        beside[name] = trained(*runs[name])

    threads = [threading.Thread(target=run, args=(name,)) for name in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in runs:
        jax.tree.map(np.testing.assert_array_equal, alone[name], beside[name])
    assert not np.array_equal(*(jax.tree.leaves(alone[name][0])[0] for name in runs))


@pytest.mark.slow  # ten thousand steps
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from Linux")
def test_ten_thousand_steps_grow_nothing():
    """Traces, arrays alive and resident memory, from the thousandth step on."""
    tx, traces = (
        ember(
            optax.cosine_decay_schedule(1e-2, 10_000), optax.adamw(optax.cosine_decay_schedule(1e-2, 10_000)), weight_decay=0.01
        ),
        [],
    )

    def counted(*arguments):
        traces.append(1)
        return dense_step(tx)(*arguments)

    step, params = jax.jit(counted, donate_argnums=(0, 1)), initial_params()
    state, grads = tx.init(params), initial_params()

    def in_use():
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return len(jax.live_arrays()), resident

    for number in range(1, 10_001):
        params, state = step(params, state, grads)
        if number == 1_000:
            before = in_use()
    arrays, resident = in_use()
    assert len(traces) == 1
    assert arrays == before[0]
    assert resident - before[1] < 8 * 2**20
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert optax.tree.get(state, "ScaleByEmberState").count["embed"]["embedding"] == 10_000
