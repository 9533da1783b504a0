"""Sums written as text, whose answers can be checked: worked out, "7+12+3=:19,22.", or answered at once, "7+12+3=22.".

A number is one token, as in the vocabularies of today's models, which have one for each number up to 999; so a table of more
than a thousand rows is trained by batches that touch a few dozen of them.
"""

import re
from typing import NamedTuple

import numpy as np

_MARKS = ("<pad>", "+", "=", ":", ",", ".")
_NUMBERS = 1000
PAD, END = 0, len(_MARKS) - 1
VOCABULARY_SIZE = len(_MARKS) + _NUMBERS
LARGEST_TERM = 9
LEVELS = (2, 3, 4)  # terms of a sum: every further one is one more place to go wrong
# A prompt of n terms has 2 n tokens, its completion 2 n - 1 where it is worked out.
LENGTH = 4 * max(LEVELS) - 1


class Problems(NamedTuple):
    """Prompts in rows of `LENGTH` tokens, filled up with `PAD`.

    Attributes:
      tokens: (N, LENGTH) int32.
      lengths: tokens of each prompt, (N,) int32.
      answers: (N,) int32.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    answers: np.ndarray


def encode(text: str) -> list[int]:
    """Tokens of a text of sums.

    Example:
      >>> encode("7+12=19.")
      [13, 1, 18, 2, 25, 5]
    """
    parts = re.findall(r"\d+|[+=:,.]", text)
    return [len(_MARKS) + int(part) if part.isdecimal() else _MARKS.index(part) for part in parts]


def decode(tokens: np.ndarray | list[int]) -> str:
    """The text of tokens, without padding.

    Example:
      >>> decode([13, 1, 18, 2, 25, 5, 0, 0])
      '7+12=19.'
    """
    texts = (str(int(token) - len(_MARKS)) if token >= len(_MARKS) else _MARKS[int(token)] for token in tokens if token != PAD)
    return "".join(texts)


def draw_problems(count: int, levels: tuple[int, ...], seed: tuple[int, ...]) -> Problems:
    """Random sums with numbers of terms of `levels`, which depend on the seed alone."""
    generator = np.random.default_rng(seed)
    terms = [generator.integers(1, LARGEST_TERM + 1, generator.choice(levels)) for _ in range(count)]
    return _problems(["+".join(map(str, one)) + "=" for one in terms], [int(one.sum()) for one in terms])


def solutions(problems: Problems, seed: tuple[int, ...]) -> np.ndarray:
    """The problems with right completions, half of them worked out and half answered at once, (N, LENGTH) int32."""
    is_worked = np.random.default_rng(seed).integers(0, 2, len(problems.answers))
    prompts = map(decode, problems.tokens)
    return np.stack(
        [_padded(prompt + _solution(prompt, bool(worked))) for prompt, worked in zip(prompts, is_worked, strict=True)]
    )


def rewards(problems: Problems, tokens_NxT: np.ndarray) -> np.ndarray:
    """1 where the completion ends, and ends with the right answer, else 0; (N,) float32.

    Example:
      >>> problems = draw_problems(3, (2,), (0,))
      >>> rewards(problems, solutions(problems, (0,)))
      array([1., 1., 1.], dtype=float32)
    """
    answers = map(read_answer, map(decode, tokens_NxT))
    return np.asarray([answer == right for answer, right in zip(answers, problems.answers, strict=True)], np.float32)


def worked_rewards(problems: Problems, tokens_NxT: np.ndarray) -> np.ndarray:
    """1 where the completion is right and worked out, with every partial sum, else 0; (N,) float32.

    Example:
      >>> problems = draw_problems(4, (2,), (0,))
      >>> worked_rewards(problems, solutions(problems, (0,))).tolist()  # half of the solutions are answered at once
      [1.0, 1.0, 0.0, 1.0]
    """
    prompts, texts = map(decode, problems.tokens), map(decode, tokens_NxT)
    return np.asarray([text == prompt + _solution(prompt, True) for prompt, text in zip(prompts, texts, strict=True)], np.float32)


def read_answer(text: str) -> int | None:
    """The last number of a text that ends as it should.

    Example:
      >>> read_answer("7+12=:19."), read_answer("7+12=19."), read_answer("7+12=:19,"), read_answer("7+12=19,19.")
      (19, 19, None, None)
    """
    found = re.fullmatch(r"[\d+]+=(?::(?:\d+,)*)?(\d+)\.", text)
    return int(found[1]) if found else None


def repeated(problems: Problems, times: int) -> Problems:
    """Each problem several times in a row: the group whose completions are compared."""
    return Problems(*(np.repeat(field, times, axis=0) for field in problems))


def _problems(prompts: list[str], answers: list[int]) -> Problems:
    lengths = np.asarray([len(encode(prompt)) for prompt in prompts], np.int32)
    return Problems(np.stack([_padded(prompt) for prompt in prompts]), lengths, np.asarray(answers, np.int32))


def _solution(prompt: str, worked: bool) -> str:
    sums = [str(total) for total in np.cumsum([int(term) for term in prompt[:-1].split("+")])[1:]]
    return f":{','.join(sums)}." if worked else f"{sums[-1]}."


def _padded(text: str) -> np.ndarray:
    tokens = encode(text)
    return np.asarray(tokens + [PAD] * (LENGTH - len(tokens)), np.int32)
