"""Every number of docs/evidence.md and evidence_runs.md that compares methods, computed once more from the lines.

The code of the pages is not used.
"""

import math
import re
from statistics import mean

import pytest
from recomputed import (
    LINES,
    PAGE,
    REFUSED,
    TASKS,
    best_pair,
    difference,
    fresh,
    grid_seeds,
    method_of,
    runs,
    same_numbers,
    shown,
    table_after,
)


def two_rate_settings():
    part = PAGE.split("\n## Two rates\n")[1].split("\n## ")[0] if "\n## Two rates\n" in PAGE else ""
    return [(part, heading) for heading in re.findall(r"^### (.*), two rates$", part, re.MULTILINE)]


def task_of(setting):
    (task,) = {line["task"] for line in LINES if line["setting"] == setting and "head_rate" in line}
    return task


@pytest.mark.parametrize(("part", "setting"), two_rate_settings(), ids=[setting for _, setting in two_rate_settings()])
def test_two_rates(part, setting):
    task = task_of(setting)
    rows = table_after(f"### {setting}, two rates", part)
    baselines = {}
    for name in ("adamw", "rmsprop"):
        if any(method_of(row["tables trained by"]) == name for row in rows):
            found = runs(task, setting, name, two=True)
            baselines[name] = fresh(found, best_pair(found)[0])
    for row in rows:
        method = method_of(row["tables trained by"])
        found = runs(task, setting, method, two=True)
        pair, inside, _ = best_pair(found)
        inside = inside or method == "frozen"
        assert row["best rates: input, head"] == f"{pair[0]:g}, {pair[1]:g}" + ("" if inside else " (at the edge)")
        ours = fresh(found, pair)
        assert row["n"] == str(len(ours))
        same_numbers(row["loss"], shown(ours))
        for name, title in (("adamw", "AdamW"), ("rmsprop", "Adam without momentum")):
            expected = "" if name == method or name not in baselines else difference(ours, baselines[name])
            same_numbers(row[f"difference to {title}"], expected)
        assert row["diverged"] == str(sum(math.isinf(loss) for losses in found.values() for s, (loss, _) in losses.items()))


@pytest.mark.parametrize(("part", "setting"), two_rate_settings(), ids=[setting for _, setting in two_rate_settings()])
def test_grids_of_two_rates(part, setting):
    """Every pair that was tried is in the table, the best one in bold."""
    rows = table_after(
        "Mean over the seeds of the grid (the best in bold; with fewer seeds in brackets):",
        part.split(f"### {setting}, two rates\n")[1],
    )
    for title in dict.fromkeys(row["tables trained by"] for row in rows):
        found = runs(task_of(setting), setting, method_of(title), two=True)
        pair, _, means = best_pair(found)
        of_grid = {key: [losses[s][0] for s in grid_seeds(found) if s in losses] for key, losses in found.items()}
        in_table = {}
        for row in rows:
            if row["tables trained by"] == title:
                cells = {float(head[5:]): cell for head, cell in row.items() if head.startswith("head ")}
                in_table |= {(float(row["input rate"]), head): cell for head, cell in cells.items() if cell}
        assert in_table.keys() == {key for key, losses in of_grid.items() if losses}
        for key, cell in in_table.items():
            value = "diverged" if any(map(math.isinf, of_grid[key])) else f"{mean(of_grid[key]):.3f}"
            assert cell == (f"**{value}**" if key == pair else value if key in means else f"({value})")


def test_the_headline_of_two_rates():
    momenta = {"AdamW": "adamw", "AdamW, b1 = 0.5": "adamw b1=0.5", "Adam without momentum": "rmsprop"}
    rows = table_after("## Two rates", PAGE)
    for row in rows:
        setting, task = row["setting"], task_of(row["setting"])
        found = {title: runs(task, setting, method, two=True) for title, method in (momenta | {"Ember": "ember"}).items()}
        best = {title: best_pair(of_method) for title, of_method in found.items() if of_method}
        at_best = {title: fresh(found[title], pair) for title, (pair, *_) in best.items()}
        for title, ours in at_best.items():
            same_numbers(row[title], shown(ours))
        assert row["n"] == str(len(at_best["Ember"]))
        same_numbers(row["Ember - AdamW, 95 % interval"], difference(at_best["Ember"], at_best["AdamW"]))
        others = {title: means[pair] for title, (pair, _, means) in best.items() if title != "Ember"}
        chosen = min(others, key=others.get)
        expected = difference(at_best["Ember"], at_best[chosen])
        same_numbers(row["Ember - best of the others"], f"{expected} ({chosen})" if expected else "")


def test_what_the_gain_is_made_of():
    """Every difference of the table, at two rates where a setting has three fresh seeds of both methods, else at one."""
    rows = table_after("## What the gain is made of", PAGE)
    assert len(rows) > 5
    for row in rows:
        title, setting = row.pop("setting").split(": ", 1)
        rates, numbers = set(row.pop("rates").split(" or ")), set(row.pop("n").split(" or "))
        seen = {"rates": set(), "n": set()}
        for names, text in row.items():
            at_best = {False: [], True: []}
            for method in map(method_of, names.split(" - ")):
                for two, chosen in at_best.items():
                    found = runs(TASKS[title], setting, method, two=two)
                    if two and any(all(s in losses for s in grid_seeds(found)) for losses in found.values()):
                        chosen.append(fresh(found, best_pair(found)[0]))
                    elif not two and (sweep := {rate: losses[0][0] for rate, losses in found.items() if 0 in losses}):
                        chosen.append(fresh(found, min(sorted(sweep), key=sweep.get)))
            two = len(at_best[True]) == 2 and all(len(losses) >= 3 for losses in at_best[True])
            expected = difference(*at_best[two]) if len(at_best[two]) == 2 else ""
            same_numbers(text, "" if expected == REFUSED else expected)
            if text:
                seen["rates"].add("two" if two else "one")
                seen["n"].add(str(len(at_best[two][0].keys() & at_best[two][1].keys())))
        assert (rates, numbers) == (seen["rates"], seen["n"])


def test_what_a_second_rate_is_worth():
    rows = table_after("## What a second rate is worth", PAGE)
    assert len(rows) > 5
    for row in rows:
        setting, method = row["setting"], method_of(row["tables trained by"])
        two, one = runs("pretraining", setting, method, two=True), runs("pretraining", setting, method, two=False)
        pair, sweep = best_pair(two)[0], {rate: losses[0][0] for rate, losses in one.items() if 0 in losses}
        rate = min(sorted(sweep), key=sweep.get)
        assert (row["best pair: input, head"], row["best single rate"]) == (f"{pair[0]:g}, {pair[1]:g}", f"{rate:g}")
        ours, theirs = fresh(two, pair), fresh(one, rate)
        assert row["n"] == str(len(ours.keys() & theirs.keys()))
        without = {seed: (loss, {k: v for k, v in line.items() if k != "base"}) for seed, (loss, line) in ours.items()}
        same_numbers(row["pair - single rate"], difference(without, theirs))


def test_runs_with_one_rate_and_with_two_begin_with_the_same_parameters():
    """Lines with one rate have no hash of them. But at a pair of equal rates, the losses are those of the single rate."""
    differences = [
        abs(losses[0][0] - one[pair[0]][0][0])
        for setting in ("0.5M", "0.5M, batch 2048")
        for method in ("adamw", "rmsprop", "ember")
        for one in [runs("pretraining", setting, method, two=False)]
        for pair, losses in runs("pretraining", setting, method, two=True).items()
        if pair[0] == pair[1] and 0 in losses and 0 in one.get(pair[0], {})
    ]
    assert len(differences) > 5
    assert max(differences) < 1e-5


def one_rate_settings():
    found = []
    for title, task in TASKS.items():
        if f"\n## {title}\n" not in PAGE:
            continue  # no run at one rate
        part = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
        found += [(task, part, setting) for setting in re.findall(r"^### (.*)$", part, re.MULTILINE)]
    return found


@pytest.mark.parametrize(
    ("task", "part", "setting"), one_rate_settings(), ids=["-".join(one[::2]) for one in one_rate_settings()]
)
def test_one_rate(task, part, setting):
    rows = table_after(f"### {setting}", part)
    at_best = {}
    for row in rows:
        method = method_of(row["tables trained by"])
        found = runs(task, setting, method, two=False)
        sweep = {rate: losses[0][0] for rate, losses in found.items() if 0 in losses}
        best = min(sorted(sweep), key=sweep.get)
        inside = min(sweep) < best < max(sweep) or method == "frozen"
        assert row["best rate"] == f"{best:g}" + ("" if inside else " (at the edge)")
        at_best[method] = fresh(found, best)
        assert row["n"] == str(len(at_best[method]))
        same_numbers(row["loss"], shown(at_best[method]))
    for row in rows:
        method = method_of(row["tables trained by"])
        expected = "" if method == "adamw" else difference(at_best[method], at_best.get("adamw", {}))
        same_numbers(row["difference to AdamW, 95 % interval"], expected)
