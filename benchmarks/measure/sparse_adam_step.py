"""(Of `sparse_adam`.) One of the two processes: it makes a table, reads numbers, and takes that number of steps.

It imports either JAX or PyTorch, so that each runs in an environment that has only the one.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np


def main() -> None:
    """Answers with the seconds of each step, wall and CPU time of all threads together."""
    kind, threads, rows, width, rate, path = sys.argv[1:]
    if threads == "1" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sets = np.load(path)
    make = {"ember": ember_step, "torch": torch_step}[kind]
    step, version = make(int(threads), (int(rows), int(width)), float(rate))
    for ids in sets:
        step(ids)
    print(json.dumps({"version": version}), flush=True)
    taken = 0
    for line in sys.stdin:
        times: dict[str, list[float]] = {"wall": [], "cpu": []}
        for _ in range(int(line)):
            start, cpu = time.perf_counter(), time.process_time()
            step(sets[taken % len(sets)])
            times["wall"].append(time.perf_counter() - start)
            times["cpu"].append(time.process_time() - cpu)
            taken += 1
        print(json.dumps(times), flush=True)


def ember_step(threads: int, shape: tuple[int, int], rate: float) -> tuple[Callable[[np.ndarray], None], str]:
    """A step of Ember on a table in host memory."""
    del threads  # XLA takes them from the environment and the cores
    jax, jnp, large_tables = map(importlib.import_module, ("jax", "jax.numpy", "ember_optax.large_tables"))
    table = large_tables.HostTable(shape, seed=0, std=0.0)

    @jax.jit
    def update(fetched):
        def loss_fn(rows):
            return jnp.mean(jnp.square(large_tables.lookup(rows, fetched.places) - 1.0))

        return large_tables.update(fetched, jax.grad(loss_fn)(fetched.rows), rate)

    return lambda ids: table.write(update(table.fetch(ids))), f"jax {jax.__version__}"


def torch_step(threads: int, shape: tuple[int, int], rate: float) -> tuple[Callable[[np.ndarray], None], str]:
    """A step of `SparseAdam` on an embedding with sparse gradients."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    embedding = torch.nn.Embedding.from_pretrained(torch.zeros(*shape), freeze=False, sparse=True)
    optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=rate)

    def step(ids):
        optimizer.zero_grad()
        (embedding(torch.from_numpy(ids)) - 1.0).square().mean().backward()
        optimizer.step()

    return step, f"torch {torch.__version__}"


if __name__ == "__main__":
    main()
