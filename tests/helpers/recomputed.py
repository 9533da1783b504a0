"""The lines of the evidence and its pages, read and compared by code that the pages are not made with."""

import json
import math
import re
from pathlib import Path
from statistics import mean, stdev

import pytest
import scipy.stats

ROOT = Path(__file__).parents[2]
PAGE = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("evidence.md", "evidence_runs.md"))
TASKS = {"Pretraining": "pretraining", "Fine-tuning": "finetuning", "Reinforcement learning": "reinforcement"}
METHODS = {
    "AdamW": "adamw",
    "Adam without momentum": "rmsprop",
    "Ember": "ember",
    "Ember, mean over active rows": "ember_active_rows",
    "token factor only (row-wise RMSProp)": "token_factor",
    "feature factor only": "feature_factor",
    "one number for the table": "scalar",
    "row-wise Adagrad": "rowwise_adagrad",
    "Adafactor of Optax": "adafactor",
    "its factored RMS alone": "factored_rms",
    "SM3": "sm3",
    "Lion": "lion",
    "sign of the gradient": "sign",
    "SGD": "sgd",
    "SGD with momentum 0.9": "sgd_momentum",
    "not trained": "frozen",
    "row normalization, no state (2605.18106)": "row_norm",
    "row-normalized momentum (RMNP)": "rmnp",
    "row norm, then spectral (2605.18106)": "hybrid",
    "SCALE": "scale",
    "Ember, flatter profile": "ember_power",
    "Ember, rows weigh the same in the profile": "ember_equal_rows",
    "Ember, a profile for each class of tokens": "ember_classes",
    "Ember, tokens forget by occurrence": "ember_by_occurrence",
}
NUMBERS = {"b1": "b1", "b2": "b2", "decay": "weight_decay", "eps": "eps"}
NUMBERS |= {"half-life of b2 in tokens": "half_life", "gradients in a step": "accumulate"}
FILES = sorted((ROOT / "benchmarks" / "results" / "evidence").glob("*/*.jsonl"))
LINES = [json.loads(line) for path in FILES for line in path.read_text(encoding="utf-8").splitlines()]
GRID = (0, 101, 102)
# Runs of 4,800 steps take long: their pairs are tried with one seed.
ONE_SEED = ("0.5M, 4800 steps",)
REFUSED = "refused: runs that are no pairs"


def method_of(title):
    """The name in the lines of a title of the page."""
    words = title.split(", ")
    given = [word.split(" = ") for word in words if " = " in word]
    name = METHODS[", ".join(word for word in words if " = " not in word)]
    return " ".join([name, *(f"{NUMBERS[key]}={value}" for key, value in given)])


def table_after(heading, part):
    """The first table behind a heading, as rows by the words of its header."""
    text = part.split(f"\n{heading}\n", 1)[1]
    rows = re.search(r"(?:^\|.*\n?)+", text, re.MULTILINE)[0].splitlines()
    header, _, *body = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [dict(zip(header, row, strict=True)) for row in body]


def runs(task, setting, method, *, two):
    """Loss and line of every run, by pair of rates (or rate) and seed."""
    found = {}
    for line in LINES:
        if (line["task"], line["setting"], line["method"]) == (task, setting, method) and ("head_rate" in line) == two:
            key = (line["rate"], line["head_rate"]) if two else line["rate"]
            found.setdefault(key, {})[line["seed"]] = (math.inf if line["loss"] is None else line["loss"], line)
    return found


def step(rate, direction):
    """The next number of 1, 2, 5, 10, ..."""
    grid = [float(f"{m}e{e}") for e in range(-7, 4) for m in (1, 2, 5)]
    return grid[grid.index(rate) + direction]


def grid_seeds(found):
    """The seeds with which the pairs of a setting are tried."""
    (setting,) = {line["setting"] for losses in found.values() for _, line in losses.values()}
    return (0,) if setting in ONE_SEED else GRID


def best_pair(found):
    """The pair with the lowest mean over the seeds of the grid, and whether its four neighbours are known to be no better."""
    seeds = grid_seeds(found)
    means = {pair: mean(losses[s][0] for s in seeds) for pair, losses in found.items() if all(s in losses for s in seeds)}
    pair = min(means, key=means.get)
    around = [(step(pair[0], d), pair[1]) for d in (-1, 1)] + [(pair[0], step(pair[1], d)) for d in (-1, 1)]
    known = [
        other in means or any(found[other][s][0] > found[pair][s][0] + 0.05 for s in seeds if s in found.get(other, {}))
        for other in around
    ]
    return pair, all(known), means


def fresh(found, key):
    return {seed: run for seed, run in found[key].items() if seed not in GRID}


def shown(losses):
    values = [loss for loss, _ in losses.values()]
    if not values:
        return ""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def difference(ours, theirs):
    """As the page shows it; the seeds must be there, and the runs alike."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return ""
    conditions = ("text", "base", "steps", "batch", "body_rate", "vocabulary", "width", "layers", "reward", "pinned")
    for seed in seeds:
        a, b = ours[seed][1], theirs[seed][1]
        same = all(a.get(key) == b.get(key) for key in conditions)
        if not same or ("base" not in a and a.get("loss_before") != b.get("loss_before")):
            return REFUSED
    a, b = [ours[s][0] for s in seeds], [theirs[s][0] for s in seeds]
    if len(seeds) == 1:
        return f"{a[0] - b[0]:+.4f}"
    found = scipy.stats.ttest_rel(a, b).confidence_interval()
    return f"{mean(a) - mean(b):+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def same_numbers(text, expected):
    """Equal but for the rounding of the last digit."""
    numbers = re.findall(r"[+-]?\d+\.\d+", text), re.findall(r"[+-]?\d+\.\d+", expected)
    words = re.sub(r"[\d.+-]+", "#", text), re.sub(r"[\d.+-]+", "#", expected)
    assert words[0] == words[1], (text, expected)
    assert [float(number) for number in numbers[0]] == pytest.approx([float(n) for n in numbers[1]], abs=1.01e-4), (
        text,
        expected,
    )
