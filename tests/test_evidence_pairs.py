"""The sweep over two rates: its rules, its files, what may be compared, and the page's part."""

import json
import math
from statistics import mean

import pytest

from benchmarks.evidence import page, pair_tables, pairs, records, studies, sweep
from benchmarks.evidence.comparison import paired, results
from benchmarks.evidence.likeness import UnlikeRunsError, check_alike
from benchmarks.evidence.pair_comparison import against, best_of, pair_results
from benchmarks.evidence.pairs import GRID_SEEDS, PairCell
from benchmarks.evidence.plan import Cell
from benchmarks.evidence.pretraining import SETTINGS
from benchmarks.evidence.records import Record, Run
from benchmarks.evidence.verdicts import compared, refusals

CELL = PairCell("pretraining", "0.5M", "ember", (5e-3,), (2e-2,), seeds=3)
BEST = {"ember": (1e-2, 5e-3), "adamw": (5e-3, 2e-2), "rmsprop": (5e-3, 1e-2), "frozen": (1e-1, 1e-1)}
OFFSET = {"ember": 0.05, "adamw": 0.07, "rmsprop": 0.08, "frozen": 1.0}
DETAILS = {"machine": "m", "table_state_bytes": 8, "text": "t", "base": "b", "steps": 300, "processor_seconds": 36.0}


def loss_of(method, rate, head_rate, seed):
    """Lowest at the method's best pair; one step of the grid is worth more than seeds vary."""
    best = BEST[method]
    return abs(math.log(rate / best[0])) + 0.5 * abs(math.log(head_rate / best[1])) + seed % 7 / 1000 + OFFSET[method]


@pytest.fixture
def made(monkeypatch):
    """What is run, with losses by rates and seed alone."""
    found = []

    def prepare(cell):
        def run(rate, seed, head_rate):
            found.append((cell.method, rate, head_rate, seed))
            return loss_of(cell.method, rate, head_rate, seed), dict(DETAILS)

        return run

    monkeypatch.setattr(sweep, "_prepare", prepare)
    return found


def finished(folder):
    return records.read(folder / "pretraining" / "0.5M.jsonl")


def test_the_grid_moves_until_the_best_pair_is_inside(made, tmp_path):
    assert sweep.sweep([CELL], tmp_path, math.inf)
    found = pairs.best(CELL, finished(tmp_path))
    assert found == ((1e-2, 5e-3), True)
    grid = pairs.tried(CELL, finished(tmp_path))
    # The best pair and all that it moved through have every seed of the grid; a neighbour far behind needs the first alone.
    assert set(grid[found.pair]) == set(grid[(5e-3, 2e-2)]) == set(GRID_SEEDS)
    assert all(set(grid[pair]) == {GRID_SEEDS[0]} for pair in [(2e-2, 5e-3), (1e-2, 2e-3)])
    assert set(pairs.neighbours(found.pair)) <= set(grid)
    assert [run[1:] for run in made[-3:]] == [(1e-2, 5e-3, seed) for seed in (1, 2, 3)]
    assert not set(pairs.fresh(CELL, finished(tmp_path))) & set(GRID_SEEDS)
    assert len(set(made)) == len(made)


def test_the_first_grid_has_every_seed(made, tmp_path):
    cell = CELL._replace(rates=(5e-3, 1e-2, 2e-2), head_rates=(2e-3, 5e-3, 1e-2))
    assert sweep.sweep([cell], tmp_path, math.inf)
    assert len(made) == 9 * len(GRID_SEEDS) + cell.seeds


def test_a_close_neighbour_needs_every_seed(made, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "CLEARLY_WORSE", 10.0)
    assert sweep.sweep([CELL], tmp_path, math.inf)
    assert {len(runs) for runs in pairs.tried(CELL, finished(tmp_path)).values()} == {len(GRID_SEEDS)}


def test_a_best_pair_that_is_never_inside_is_told(made, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "MOST_EXTENSIONS", 2)
    far = CELL._replace(head_rates=(1.0,))
    assert sweep.sweep([far], tmp_path, math.inf)
    (result,) = pair_results([far], records.read_all(tmp_path)).values()
    assert not result.best.inside
    assert not result.is_complete
    assert "(at the edge)" in pair_tables.methods({CELL[:3]: result}, "pretraining", "0.5M")


def test_what_is_not_trained_has_no_rates(made, tmp_path):
    assert sweep.sweep([CELL._replace(method="frozen")], tmp_path, math.inf)
    assert len(made) == len(GRID_SEEDS) + CELL.seeds


def test_a_sweep_with_two_rates_goes_on_where_it_was_stopped(made, tmp_path):
    cells = [CELL._replace(seeds=1), CELL._replace(method="adamw"), CELL]
    assert sweep.sweep(cells, tmp_path / "whole", math.inf)
    whole, lines = list(made), (tmp_path / "whole" / "pretraining" / "0.5M.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == len(whole) == len(set(whole))
    path = tmp_path / "pretraining" / "0.5M.jsonl"
    path.parent.mkdir()
    for kept in (0, 5, len(lines) - 1):
        made.clear()
        path.write_text("".join(lines[:kept]) + lines[kept][:40])  # killed while it wrote
        assert sweep.sweep(cells, tmp_path, math.inf)
        assert made == whole[kept:]
    assert sum(cell.missing(finished(tmp_path)) for cell in cells) == 0
    assert CELL.missing({}) == len(GRID_SEEDS) + CELL.seeds


def test_lines_with_one_rate_and_with_two_share_a_file(made, tmp_path):
    one = Cell("pretraining", "0.5M", "adamw", (1e-3, 2e-3, 5e-3), 1)
    path = tmp_path / "pretraining" / "0.5M.jsonl"
    for rate in one.rates:
        records.append(path, Record(one.run(rate, 0), loss_of("adamw", rate, rate, 0), dict(DETAILS)))
    assert "head_rate" not in path.read_text()
    two = CELL._replace(method="adamw")
    assert sweep.sweep([two], tmp_path, math.inf)
    assert json.loads(path.read_text().splitlines()[-1])["head_rate"] == 2e-2
    assert pairs.best(two, finished(tmp_path)) == ((5e-3, 2e-2), True)
    (result,) = results([one], records.read_all(tmp_path)).values()
    assert set(result.sweep) == set(one.rates)
    assert not result.fresh


def test_missing_runs_are_taken_from_another_folder(made, tmp_path):
    assert sweep.sweep([CELL._replace(method="adamw")], tmp_path / "a", math.inf)
    assert sweep.sweep([CELL], tmp_path / "b", math.inf)
    ours = len(finished(tmp_path / "b"))
    assert records.merge(tmp_path / "b", tmp_path / "a") == ours
    assert records.merge(tmp_path / "b", tmp_path / "a") == 0
    assert finished(tmp_path / "b").items() <= finished(tmp_path / "a").items()


def record(method="ember", seed=1, setting="0.5M", **details):
    return Record(Run("pretraining", setting, method, 0.01, seed, 0.02), 4.0, DETAILS | details)


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ({"text": "u"}, "text 't' and 'u'"),
        ({"base": "c"}, "base 'b' and 'c'"),
        ({"steps": 1200}, "steps 300 and 1200"),
        ({"clip": 0.1}, "clip None and 0.1"),
    ],
)
def test_a_wrong_pair_is_refused(details, said):
    other = record("adamw", **details)
    with pytest.raises(UnlikeRunsError, match=f"^pretraining, 0.5M, seed 1: 'ember' and 'adamw' are no pair: {said}$"):
        check_alike(record(), other)
    with pytest.raises(UnlikeRunsError, match=said):
        paired({1: record(), 2: record(seed=2)}, {1: record("adamw"), 2: record("adamw", seed=2, **details)})


def test_runs_of_two_machines_are_a_pair():
    other = record("adamw", machine="n", processor_seconds=1.0, seconds=2.0, losses=[1.0], table_state_bytes=9, loss_before=3.0)
    check_alike(record(), other)
    with pytest.raises(UnlikeRunsError, match="seed 1 and 2"):
        check_alike(record(), record(seed=2))
    with pytest.raises(UnlikeRunsError, match=r"setting '0.5M' and '1.6M'"):
        check_alike(record(), record(setting="1.6M"))


def test_lines_without_a_hash_need_the_same_loss_before():
    old = {"text": "t", "steps": 300, "machine": "m"}
    ours, theirs = (Record(record().run, 4.0, old | {"loss_before": before}) for before in (0.56, 0.57))
    check_alike(ours, ours)
    with pytest.raises(UnlikeRunsError, match=r"base 0.56 and 0.57"):
        check_alike(ours, theirs)
    with pytest.raises(UnlikeRunsError, match=r"base 0.56 and 'b'"):
        check_alike(ours, record(loss_before=0.56))


def test_a_grid_from_two_bases_is_refused(made, tmp_path):
    assert sweep.sweep([CELL], tmp_path, math.inf)
    found = finished(tmp_path)
    run = next(iter(found))
    found[run] = found[run]._replace(details=DETAILS | {"base": "c"})
    with pytest.raises(UnlikeRunsError, match="base 'c' and 'b'"):
        pair_results([CELL], {"pretraining": found})


@pytest.fixture
def three(made, tmp_path):
    cells = [CELL._replace(method=method) for method in ("adamw", "rmsprop", "ember")]
    assert sweep.sweep(cells, tmp_path, math.inf)
    return studies.QUICK._replace(cells=[], pairs=(*cells, CELL._replace(setting="1.6M"))), records.read_all(tmp_path)


def test_the_page_compares_momentum_apart(three):
    study, found = three
    compared = pair_results(study.pairs, found)
    key = ("pretraining", "0.5M", "ember")
    # The seeds of the grid choose the opponent: by them Adam without momentum is behind AdamW.
    assert best_of(compared, "pretraining", "0.5M", ("adamw", "rmsprop")) == "adamw"
    difference = against(compared, key, "rmsprop")
    assert difference.mean == pytest.approx(-0.03)
    assert difference.size == 3
    written = page.page(study, found) + page.runs_page(study, found)
    assert "| 0.5M      |   3 | 0.0720 ± 0.0010 |" in written
    assert "-0.0200 [-0.0200, -0.0200] (AdamW)" in written
    assert "**0.052**" in written
    # What is missing is named, with what it costs. That setting has no finished run yet: as many runs as others took, 36 s times
    # the ratio of the work.
    (row,) = [line for line in written.split("## What is missing")[1].splitlines() if "1.6M" in line]
    usual = round(mean(len([run for run in found["pretraining"] if run.method == cell.method]) for cell in study.pairs[:3]))
    assert [cell.strip() for cell in row.split("|")[1:-2]] == ["Pretraining", "1.6M", "two", "Ember", str(usual)]
    assert f"| All         |           |         |                     | {usual:6} |" in written
    of_task = found["pretraining"]
    found = {"pretraining": {run: record._replace(details=dict(DETAILS)) for run, record in of_task.items()}}
    written = page.page(study._replace(pairs=(*study.pairs, CELL._replace(seeds=13))), found)
    (row,) = [line for line in written.split("## What is missing")[1].splitlines() if "0.5M" in line]
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == ["10", "0.1"]
    (row,) = [line for line in written.split("## What is missing")[1].splitlines() if "1.6M" in line]
    hours = f"{usual * 36 * SETTINGS['1.6M'].work / SETTINGS['0.5M'].work / 3600:.1f}"
    assert row.split("|")[-2].strip() == hours != "0.0"


def test_a_refused_comparison_is_named_on_the_page(three):
    study, found = three
    of_task = found["pretraining"]
    for run in [run for run in of_task if run.method == "rmsprop"]:
        of_task[run] = of_task[run]._replace(details=DETAILS | {"base": "c"})
    compared = pair_results(study.pairs, found)
    assert "are no pair: base 'b' and 'c'" in against(compared, ("pretraining", "0.5M", "ember"), "rmsprop")
    assert "refused: runs that are no pairs" in page.runs_page(study, found)
    assert "'ember' and 'rmsprop' are no pair: base 'b' and 'c'" in page.page(study, found).split("## What was refused")[1]


def test_a_refused_comparison_is_not_replaced_by_the_one_with_one_rate(three):
    study, found = three
    cells = [Cell("pretraining", "0.5M", method, (5e-3,), 3) for method in ("rmsprop", "ember")]
    one_rate = {cell.run(5e-3, seed): Record(cell.run(5e-3, seed), 4.0, DETAILS) for cell in cells for seed in range(4)}
    of_task = found["pretraining"] | one_rate
    one, two = results(cells, {"pretraining": of_task}), pair_results(study.pairs, {"pretraining": of_task})
    key = ("pretraining", "0.5M", "ember", "rmsprop")
    assert compared(one, two, *key).rates == "two"
    assert compared(one, {}, *key).rates == "one"
    for run in [run for run in of_task if run.method == "rmsprop" and run.head_rate]:
        of_task[run] = of_task[run]._replace(details=DETAILS | {"text": "u"})
    two = pair_results(study.pairs, {"pretraining": of_task})
    assert compared(one, two, *key) is None


def test_every_baseline_that_is_refused_is_named():
    """Also of runs with one rate, and where AdamW is not concerned."""
    cells = [Cell("pretraining", "0.5M", method, (5e-3,), 3) for method in ("adamw b1=0.5", "ember")]
    texts = dict(zip(("adamw b1=0.5", "ember"), "tu", strict=True))
    runs = [cell.run(5e-3, seed) for cell in cells for seed in range(4)]
    of_task = {run: Record(run, 4.0, DETAILS | {"text": texts[run.method]}) for run in runs}
    (reason,) = refusals(results(cells, {"pretraining": of_task}), {})
    assert reason == "pretraining, 0.5M, seed 1: 'ember' and 'adamw b1=0.5' are no pair: text 'u' and 't'"


def test_runs_that_chose_a_rate_are_alike(three):
    """A sweep over rates with another text refuses the cell; a grid of pairs with another text raises."""
    study, found = three
    cell = Cell("pretraining", "0.5M", "ember", (5e-3,), 2)
    texts = {0: "u", 1: "t", 2: "t"}
    of_task = {cell.run(5e-3, s): Record(cell.run(5e-3, s), 4.0, DETAILS | {"text": text}) for s, text in texts.items()}
    (result,) = results([cell], {"pretraining": of_task}).values()
    assert "text 'u' and 't'" in result.refused
    of_pairs = found["pretraining"]
    for run in [run for run in of_pairs if run.method == "ember" and run.seed in GRID_SEEDS]:
        of_pairs[run] = of_pairs[run]._replace(details=DETAILS | {"text": "u"})
    with pytest.raises(UnlikeRunsError, match="text 'u' and 't'"):
        pair_results(study.pairs, found)
