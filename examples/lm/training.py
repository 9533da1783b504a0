"""One training run: a jitted step, a progress bar where there is a terminal, validation and checkpoints on the way."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from ember_optax import row_sparse, state_shardings, token_table_labels

from .checkpoints import Checkpoint, Checkpoints
from .config import ModelConfig, TrainingConfig
from .devices import is_main_process, param_shardings, place_batch, report
from .geometry_log import GeometryLog
from .head import Head
from .model import Transformer
from .regularizing import Chosen, Subject, token_weights, with_terms, with_transformations
from .tokens import Corpus, random_batch, validation_batches

# The number of training losses that a shown one is the mean of.
SMOOTHED_STEPS = 20
VALIDATION_BATCHES = 20


class TrainingResult(NamedTuple):
    """What one run measured; the lists begin at the first step also where the run was resumed.

    `median_seconds_per_step` is that of this session, None if no step was left. Runs that were made one after the other on a
    machine that does other things too say little about speed: `benchmarks/` compares it.
    """

    training_losses: list[float]
    validation_steps: list[int]
    validation_losses: list[float]
    median_seconds_per_step: float | None
    parameters: Any
    geometry: list[dict[str, float]]


class _Program(NamedTuple):
    """The compiled functions of a run and the layout of what they take."""

    init: Callable[[], dict[str, Any]]
    step: Callable[[dict[str, Any], jax.Array], tuple[dict[str, Any], jax.Array]]
    evaluate: Callable[[Any, jax.Array], jax.Array]
    abstract_state: dict[str, Any]


def init_params(config: ModelConfig, seed: int | jax.Array) -> dict:
    """A nested dictionary of fresh parameters, from a seed or a key."""
    return with_table_dtype(nnx.to_pure_dict(nnx.state(Transformer(config, nnx.Rngs(seed)))), config.table_dtype)


def with_table_dtype(params: Any, dtype: str) -> Any:
    """The parameters, with token tables in another dtype."""
    labels = token_table_labels(params)
    return jax.tree.map(lambda p, label: p.astype(jnp.dtype(dtype)) if label == "ember" else p, params, labels)


def model_function(config: ModelConfig) -> Callable[[dict], Transformer]:
    """The model with given parameters; the function holds no arrays."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))

    def model(params: dict) -> Transformer:
        state = jax.tree.map(lambda x: x, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    return model


def logits_function(config: ModelConfig) -> Callable[[dict, jax.Array], jax.Array]:
    """The model as a function `logits(params, ids)`; it holds no arrays."""
    model = model_function(config)
    return lambda params, ids_BxT: model(params)(ids_BxT)


def hidden_function(config: ModelConfig) -> Callable[[dict, jax.Array], jax.Array]:
    """The model before its head as a function `hidden(params, ids)`; it holds no arrays."""
    model = model_function(config)
    return lambda params, ids_BxT: model(params).hidden(ids_BxT)


def head_of(config: ModelConfig) -> Head:
    """The table of the model's logits."""
    return Head("embed/embedding", 0) if config.tied else Head("lm_head/kernel", 1)


def fused_next_token_loss(config: ModelConfig) -> Callable[[dict, jax.Array], jax.Array]:
    """`next_token_loss` in chunks of the vocabulary, without logits: for heads without rows of padding."""
    hidden, head = hidden_function(config), head_of(config)

    def loss_fn(params: dict, batch_BxT: jax.Array) -> jax.Array:
        return jnp.mean(head.losses(params, hidden(params, batch_BxT[:, :-1]), batch_BxT[:, 1:]))

    return loss_fn


def next_token_loss(config: ModelConfig, weights_V: Any = None) -> Callable[[dict, jax.Array], jax.Array]:
    """`loss(params, batch)` of the model of `init_params`, as `next_token_loss_of`."""
    return next_token_loss_of(logits_function(config), weights_V)


def next_token_loss_of(
    logits: Callable[[Any, jax.Array], jax.Array], weights_V: Any = None
) -> Callable[[Any, jax.Array], jax.Array]:
    """`loss(params, batch)`: the mean cross-entropy of each next token, in nats, times its weight; a batch is (B, T + 1)."""

    def loss_fn(params: Any, batch_BxT: jax.Array) -> jax.Array:
        logits_BxTxV = logits(params, batch_BxT[:, :-1])
        losses_BxT = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, batch_BxT[:, 1:])
        return jnp.mean(losses_BxT if weights_V is None else jnp.asarray(weights_V)[batch_BxT[:, 1:]] * losses_BxT)

    return loss_fn


def train(
    name: str,
    model: ModelConfig,
    config: TrainingConfig,
    tx: optax.GradientTransformation,
    corpus: Corpus,
    *,
    mesh: Mesh,
    checkpoints: Checkpoints | None = None,
    row_sparse_input: bool = False,
    fused_head: bool = False,
    geometry: GeometryLog | None = None,
    regularizers: Sequence[Chosen] = (),
    subject: Subject | None = None,
) -> TrainingResult:
    """Trains a model with `tx`, from the newest checkpoint or afresh.

    `regularizers` are added to the loss, that is recorded without their terms, and put behind `tx`; they work on `subject`.

    With `row_sparse_input` the gradient of the input table has only the rows of the batch, with `fused_head` that of the head is
    no array besides; `tx` must be `ember` then. `geometry` looks at states and batches, and changes nothing.

    Parameters and batches depend on the seed and the step alone, so runs can be compared and resumed. On more than one device
    call it inside `jax.set_mesh(mesh)`.
    """
    tx = with_transformations(tx, regularizers, subject)
    plain = fused_next_token_loss(model) if fused_head else next_token_loss(model, token_weights(regularizers, subject))
    loss_fn = with_terms(plain, regularizers, subject)
    program = _compile(model, config.seed, tx, loss_fn, mesh, row_sparse_input=row_sparse_input, fused_head=fused_head)
    step, state, history = _start(name, program, checkpoints)
    held_out = validation_batches(corpus.validation, config.batch_size, config.sequence_length, VALIDATION_BATCHES)
    last = checkpoints.config.last_step(config.steps) if checkpoints else config.steps
    tokens, seconds = config.batch_size * config.sequence_length, []
    quiet = None if is_main_process() else True  # None: tqdm asks whether there is a terminal
    with tqdm(total=config.steps, initial=step, desc=name, unit="step", disable=quiet) as bar:
        while step < last:
            batch = place_batch(training_batch(corpus, config, step), mesh)
            if geometry:
                geometry.look(step, state, batch, history)
            start = time.perf_counter()
            state, loss = program.step(state, batch)
            history["losses"].append(float(loss))
            seconds.append(time.perf_counter() - start)
            step += 1
            if step % config.validate_every == 0 or step == config.steps:
                losses = [float(program.evaluate(state["params"], place_batch(batch, mesh))) for batch in held_out]
                history["validation_steps"].append(step)
                history["validation_losses"].append(float(np.mean(losses)))
            bar.set_postfix(progress(history, tokens / seconds[-1]), refresh=False)
            bar.update()
            if checkpoints and (step % checkpoints.config.checkpoint_every == 0 or step == last):
                checkpoints.save(Checkpoint(step, state, history))
    if geometry and step == config.steps:
        geometry.look(step, state, place_batch(training_batch(corpus, config, step), mesh), history, last=True)
    return TrainingResult(
        history["losses"],
        history["validation_steps"],
        history["validation_losses"],
        float(np.median(seconds[1:] or seconds)) if seconds else None,  # the first step compiles
        state["params"],
        history.get("geometry", []),
    )


def _start(name: str, program: _Program, checkpoints: Checkpoints | None) -> Checkpoint:
    """The newest checkpoint, or step 0."""
    found = checkpoints.restore_newest(program.abstract_state) if checkpoints else None
    if found:
        report(f"{name}: going on from step {found.step}")
        return found
    if checkpoints and checkpoints.config.resume:
        report(f"{name}: no checkpoint yet, starting at step 0")
    return Checkpoint(0, program.init(), {"losses": [], "validation_steps": [], "validation_losses": []})


def progress(history: dict[str, Any], tokens_per_second: float) -> dict[str, str]:
    """What the bar shows: single losses jump with their batches, a mean of the last few shows where the run goes."""
    shown = {"loss": f"{np.mean(history['losses'][-SMOOTHED_STEPS:]):.3f}"}
    if history["validation_losses"]:
        shown["validation"] = f"{history['validation_losses'][-1]:.3f}"
    return shown | {"tokens/s": f"{tokens_per_second:,.0f}"}


def _compile(
    model: ModelConfig, seed: int, tx: Any, loss_fn: Any, mesh: Mesh, *, row_sparse_input: bool, fused_head: bool
) -> _Program:
    heads = [head_of(model).path] if fused_head else []

    def init():
        params = init_params(model, seed)
        return {"params": params, "opt_state": tx.init(params)}

    def step(state, batch):
        params = state["params"]
        if row_sparse_input or fused_head:
            ids = {"embed/embedding": batch[:, :-1]}
            (_, loss), grads = row_sparse.value_and_grad(loss_fn, has_aux=True, heads=heads)(params, ids, batch)
        else:
            (_, loss), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, state["opt_state"], params)
        return {"params": optax.apply_updates(params, updates), "opt_state": opt_state}, loss

    state = jax.eval_shape(init)
    of_params = param_shardings(state["params"], mesh)
    shardings = {"params": of_params, "opt_state": state_shardings(tx, state["params"], of_params)}
    replicated = NamedSharding(mesh, PartitionSpec())

    def abstract(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return _Program(
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated)),
        evaluate=jax.jit(fused_next_token_loss(model) if fused_head else next_token_loss(model), out_shardings=replicated),
        abstract_state=jax.tree.map(abstract, state, shardings),
    )


def training_batch(corpus: Corpus, config: TrainingConfig, step: int) -> np.ndarray:
    """The batch of a step, which depends on the seed and the step alone."""
    return random_batch(corpus.training, config.batch_size, config.sequence_length, (config.seed, step))
