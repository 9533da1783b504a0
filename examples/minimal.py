"""A small language model in plain JAX, to copy: the swap, two learning rates, a row-sparse step. Needs jax and optax besides."""

import collections
import pathlib
import re
import sysconfig

import jax
import numpy as np
import optax

from ember_optax import describe_token_tables, ember, row_sparse

STEPS, VOCABULARY, WIDTH, CONTEXT, BATCH = 200, 4096, 64, 8, 256


def read_tokens() -> np.ndarray:
    """The source of the standard library as ids of its most frequent words and signs; 0 is any other."""
    files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    words = re.findall(r"\w+|[^\w\s]|\s+", "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files))
    ids = {word: i + 1 for i, (word, _) in enumerate(collections.Counter(words).most_common(VOCABULARY - 1))}
    return np.array([ids.get(word, 0) for word in words], np.int32)


def init_params(key: jax.Array) -> dict:
    """Two token tables, which `ember` finds by their names, and two hidden layers."""
    shapes = {"embed": (VOCABULARY, WIDTH), "up": (CONTEXT * WIDTH, 256), "down": (256, WIDTH), "lm_head": (WIDTH, VOCABULARY)}
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return {name: jax.random.normal(keys[name], shape) * shape[0] ** -0.5 for name, shape in shapes.items()}


def loss_fn(params: dict, context: jax.Array, target: jax.Array) -> jax.Array:
    """The mean cross entropy of the token after each context, in nats."""
    x = params["embed"][context].reshape(len(context), -1)
    x = jax.nn.gelu(x @ params["up"]) @ params["down"]
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["lm_head"], target).mean()


# Was: optax.adamw(1e-3). The input table's rate is ten times the body's here; the head has a rate of its own.
tx = ember(1e-2, body=optax.adamw(1e-3), head_learning_rate=2e-2)


@jax.jit
def train_step(params, opt_state, context, target):
    """One step. Only its first line is special: `jax.value_and_grad(loss_fn)(params, context, target)` is the dense step."""
    loss, grads = row_sparse.value_and_grad(loss_fn)(params, {"embed": context}, context, target)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


if __name__ == "__main__":
    tokens, random, params = read_tokens(), np.random.default_rng(0), init_params(jax.random.key(0))
    opt_state = tx.init(params)
    print(describe_token_tables(params))
    for i in range(STEPS):
        rows = tokens[random.integers(0, len(tokens) - CONTEXT, BATCH)[:, None] + np.arange(CONTEXT + 1)]
        params, opt_state, loss = train_step(params, opt_state, rows[:, :-1], rows[:, -1])
        if (i + 1) % 20 == 0:
            print(f"step {i + 1}: loss {loss:.3f}", flush=True)
