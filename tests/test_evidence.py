"""The sweep's rules, its files, and that the page says what the files say."""

import json
import math
from statistics import mean, stdev

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from benchmarks.evidence import conclusions, page, pictures, plan, pretraining, records, studies, sweep
from benchmarks.evidence.ablations import scale_by_part, scale_by_token_sum
from benchmarks.evidence.comparison import results
from benchmarks.evidence.methods import METHODS, make_method, title
from benchmarks.evidence.pair_comparison import pair_results
from benchmarks.evidence.plan import Cell
from benchmarks.evidence.records import FOLDER, Record
from benchmarks.evidence.statistics import paired_difference
from benchmarks.evidence.verdicts import compared
from benchmarks.harness.results import ROOT
from examples.lm.errors import UsageError

CELL = Cell("pretraining", "0.5M", "ember", (1e-3, 2e-3, 5e-3), seeds=3)


def distance_from(best):
    """A loss that is lowest at a rate, and diverges far above it."""

    def run(rate, seed):
        loss = abs(math.log(rate / best)) + seed / 100
        details = {"machine": "m", "table_state_bytes": 8, "table_parameters": 4, "body_rate": 1e-3, "losses": [loss] * 20}
        return (None if rate > 50 * best else loss), details

    return run


@pytest.fixture
def prepared(monkeypatch):
    """Counts what is run, with losses by rate alone."""
    made = []

    def prepare(cell):
        run = distance_from({"ember": 2e-2, "adamw": 1e-3, "sgd": 7.0}[cell.method])
        return lambda rate, seed, head_rate: made.append((cell.method, rate, seed)) or run(rate, seed)

    monkeypatch.setattr(sweep, "_prepare", prepare)
    return made


def test_the_grid_is_extended_until_the_best_is_inside(prepared, tmp_path):
    assert sweep.sweep([CELL], tmp_path, math.inf)
    rates = [rate for _, rate, seed in prepared if seed == plan.SWEEP_SEED]
    assert rates == [1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2]
    found = records.read(tmp_path / "pretraining" / "0.5M.jsonl")
    assert plan.best(CELL, found) == (2e-2, True)
    assert [(rate, seed) for _, rate, seed in prepared[len(rates) :]] == [(2e-2, 1), (2e-2, 2), (2e-2, 3)]
    assert list(plan.fresh(CELL, found)) == [1, 2, 3]


def test_a_best_rate_that_is_never_inside_is_told(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MOST_EXTENSIONS", 2)
    cell = CELL._replace(method="sgd")
    assert sweep.sweep([cell], tmp_path, math.inf)
    (result,) = results([cell], records.read_all(tmp_path)).values()
    assert result.best == (2e-2, False)
    assert not result.is_complete


def test_a_sweep_goes_on_where_it_was_stopped(prepared, tmp_path):
    cells = [CELL, CELL._replace(method="adamw")]
    assert sweep.sweep(cells, tmp_path / "whole", math.inf)
    whole = list(prepared)
    prepared.clear()
    assert not sweep.sweep(cells, tmp_path, -1.0)
    assert prepared == []
    path = tmp_path / "pretraining" / "0.5M.jsonl"
    lines = (tmp_path / "whole" / "pretraining" / "0.5M.jsonl").read_text().splitlines(keepends=True)
    path.parent.mkdir()
    path.write_text("".join(lines[:4]) + lines[4][:30])  # killed while it wrote
    assert sweep.sweep(cells, tmp_path, math.inf)
    assert prepared == whole[4:]
    assert records.read(path).keys() == records.read(tmp_path / "whole" / "pretraining" / "0.5M.jsonl").keys()


def test_no_run_is_begun_that_would_end_too_late(prepared, tmp_path):
    """By the runs of the same setting on such a machine; one that was stopped for hours changes nothing."""
    assert not sweep.sweep([CELL], tmp_path, 1e-9)
    assert len(prepared) <= 1
    path = records.path_of(tmp_path, CELL.task, CELL.setting)
    assert sweep.sweep([CELL], tmp_path, math.inf)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    prepared.clear()
    for machine, begun in ((lines[0]["machine"], 0), ("another", 8)):
        path.write_text("".join(json.dumps(line | {"seconds": 3600.0, "machine": machine}) + "\n" for line in lines[:-8]))
        assert sweep.sweep([CELL], tmp_path, 600) == bool(begun)
        assert len(prepared) == begun
    prepared.clear()
    stopped = [json.dumps(line | {"seconds": 3600.0 if line is lines[0] else 1.0}) for line in lines[:-2]]
    path.write_text("\n".join(stopped) + "\n")
    assert sweep.sweep([CELL], tmp_path, 600)
    assert len(prepared) == 2


def test_a_model_that_is_not_installed_is_left_out(prepared, tmp_path, capsys, monkeypatch):
    make = sweep._prepare

    def prepare(cell):
        if cell.method == "ember":
            raise UsageError("not installed")
        return make(cell)

    monkeypatch.setattr(sweep, "_prepare", prepare)
    assert not sweep.sweep([CELL, CELL._replace(method="adamw")], tmp_path, math.inf)
    assert "0.5M, ember: left out: not installed" in "".join(capsys.readouterr())
    assert {method for method, *_ in prepared} == {"adamw"}


def test_a_damaged_line_is_named(tmp_path):
    record = Record(CELL.run(1e-3, 0), None, {"losses": records.rounded([1.0, math.nan, 1.234567])})
    records.append(tmp_path / "a.jsonl", record)
    assert json.loads((tmp_path / "a.jsonl").read_text())["losses"] == [1.0, None, 1.2346]
    assert records.read(tmp_path / "a.jsonl") == {record.run: record}
    (tmp_path / "a.jsonl").write_text("{}\n" + (tmp_path / "a.jsonl").read_text())
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: 'task'; remove that line"):
        records.read(tmp_path / "a.jsonl")


def test_what_diverged_loses():
    found = {CELL.run(rate, 0): Record(CELL.run(rate, 0), loss, {}) for rate, loss in ((1e-3, 9.0), (2e-3, 8.0), (5e-3, None))}
    assert plan.best(CELL, found) == (2e-3, True)


def test_intervals_are_those_of_the_paired_t_test():
    ours, theirs = np.random.default_rng(0).normal(size=(2, 8))
    difference = paired_difference(ours, theirs)
    interval = scipy.stats.ttest_rel(ours, theirs).confidence_interval()
    np.testing.assert_allclose([difference.mean - difference.half, difference.mean + difference.half], interval, rtol=1e-6)
    assert paired_difference([1.0, math.inf], [1.0, 1.0]).verdict == "no difference seen"


@pytest.mark.parametrize("part", ["token", "feature", "scalar"])
def test_parts_of_the_second_moment(part):
    """Against the formula, on an embedding and on a head stored (D, V), over two steps."""
    g = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    params = {"embed": {"embedding": jnp.ones((6, 4))}, "lm_head": {"kernel": jnp.ones((4, 6))}}
    tx = scale_by_part(part, b2=0.9, eps=0.0)
    state = tx.init(params)
    for step in g:
        updates, state = tx.update({"embed": {"embedding": step}, "lm_head": {"kernel": step.T}}, state)
    axes = {"token": 1, "feature": 0, "scalar": (0, 1)}[part]
    mean_squares = [np.mean(step**2, axis=axes, keepdims=True) for step in g]
    v_hat = (0.09 * mean_squares[0] + 0.1 * mean_squares[1]) / (1 - 0.9**2)
    np.testing.assert_allclose(updates["embed"]["embedding"], g[1] / np.sqrt(v_hat), rtol=1e-5)
    np.testing.assert_allclose(updates["lm_head"]["kernel"], (g[1] / np.sqrt(v_hat)).T, rtol=1e-5)


def test_row_wise_adagrad():
    g = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    tx = scale_by_token_sum(eps=0.0)
    state = tx.init({"embed": jnp.ones((6, 4))})
    for step in g:
        updates, state = tx.update({"embed": step}, state)
    np.testing.assert_allclose(updates["embed"], g[1] / np.sqrt(np.mean(g**2, axis=2).sum(0))[:, None], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_are_made_of_their_names(name):
    params = {"embed": {"embedding": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)}}
    tx = make_method(name, tokens_per_step=512)
    updates, _ = tx.update(params, tx.init(params), params)
    (update,) = jax.tree.leaves(updates)
    assert bool(jnp.isfinite(update).all())
    assert bool(jnp.any(update != 0)) == (name != "frozen")
    # All of them ascend: the descent is the learning rate's.
    assert float(jnp.vdot(update, params["embed"]["embedding"])) >= 0
    assert title(name)


def test_numbers_of_a_name_are_used():
    params = {"embed": {"embedding": jnp.ones((4, 3))}}
    gradients = [jax.tree.map(lambda p, scale=scale: scale * p, params) for scale in (1.0, 2.0)]

    def second_update(name):
        tx = make_method(name, tokens_per_step=512)
        state = tx.init(params)
        for gradient in gradients:
            updates, state = tx.update(gradient, state, params)
        return float(updates["embed"]["embedding"][0, 0])

    assert second_update("ember b2=0") == pytest.approx(1.0)
    assert second_update("ember half_life=512") == pytest.approx(2 / math.sqrt((0.25 + 0.5 * 4) / 0.75), rel=1e-5)
    assert second_update("ember accumulate=2") == pytest.approx(1.0)
    assert second_update("ember eps=2") == pytest.approx(2 / (math.sqrt(2.5) + 2), rel=1e-3)
    assert {cell.method.split()[0] for cell in (*studies.FULL.cells, *studies.FULL.pairs)} == set(METHODS)
    with pytest.raises(ValueError, match="'adam' is no method: adamw, rmsprop"):
        make_method("adam", 512)


@pytest.mark.slow  # three runs
def test_a_run_of_pretraining(monkeypatch, text, tmp_path):
    """The real task at a size of nothing: it learns, the rate is an argument, and the seed decides."""
    documents = [path.read_text() for path in sorted(text.glob("*.py"))]
    monkeypatch.setattr(pretraining, "read_documents", lambda _: documents)
    monkeypatch.setattr(pretraining, "default_cache_dir", lambda: tmp_path)
    setting = pretraining.SETTINGS["quick"]._replace(vocabulary=512, width=16, steps=12, batch=2)
    run = pretraining.prepare(setting, "ember")
    (loss, details), (slower, _), (again, _) = run(5e-2, 1), run(2e-2, 1), run(5e-2, 1)
    assert loss == again < slower < math.log(512)
    assert details["table_state_bytes"] == 2 * (4 * (512 + 16) + 8)
    assert details["table_parameters"] == 2 * 512 * 16
    assert len(details["losses"]) == len(details["table_steps"]) == 12
    assert run(5e-2, 2)[0] != loss
    assert run(1e30, 1)[0] is None
    for cached in (pretraining.corpus, pretraining._fingerprint, pretraining._init, pretraining.validation):
        cached.cache_clear()


def test_the_page_says_what_the_files_say():
    """It is exactly what the program makes of them, and its first comparison is computed here once more from the lines."""
    found = records.read_all()
    assert (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8") == page.page(studies.FULL, found)
    document = (ROOT / "docs" / "evidence_runs.md").read_text(encoding="utf-8")
    assert document == page.runs_page(studies.FULL, found)
    lines = [json.loads(line) for line in records.path_of(FOLDER, "pretraining", "0.5M").read_text().splitlines()]
    at_best = {}
    for method in studies.HEADLINE:
        runs = [line for line in lines if line["method"] == method and "head_rate" not in line]
        sweep_of = {line["rate"]: line["loss"] for line in runs if line["seed"] == 0}
        best = min(sweep_of, key=sweep_of.get)
        assert min(sweep_of) < best < max(sweep_of)
        at_best[method] = [line["loss"] for line in runs if line["rate"] == best and line["seed"] > 0]
        assert len(at_best[method]) == 8
        assert f"{mean(at_best[method]):.4f} ± {stdev(at_best[method]):.4f}" in document
    interval = scipy.stats.ttest_rel(at_best["ember"], at_best["adamw"]).confidence_interval()
    assert f"[{interval.low:+.4f}, {interval.high:+.4f}]" in document


def test_the_readme_says_what_the_files_say():
    """Its two tables, and how often Ember is below AdamW."""
    one = results(studies.FULL.cells, records.read_all())
    two = pair_results(studies.FULL.pairs, records.read_all())
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"\n{conclusions.lengths(two, studies.FULL)}\n" in text
    for method, shown in (("adamw", "AdamW"), ("ember", "Ember")):
        runs = one["pretraining", "2.1M, main job", method]
        assert len(runs.fresh) == 8
        spread = f"{runs.losses.mean:.4f} ± {runs.losses.deviation:.4f}"
        assert f"| {shown} | {runs.best.rate:g} | {runs.any.loss:.4f} | {spread} |" in text
    readme = " ".join(text.split())
    words = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    for task, shown in (("pretraining", "of pretraining"), ("finetuning", "of fine-tuning")):
        found = [compared(one, two, *key, "ember", "adamw") for key in studies.FULL.settings if key[0] == task]
        verdicts = [each.verdict for each in found if each]
        assert (
            f"{words[verdicts.count('lower')]} of {words[len(verdicts)]}{' settings' * (task == 'pretraining')} {shown}" in readme
        )
        assert set(verdicts) <= {"lower", "not higher by 0.01", "the same within 0.01"}
    found = {key: compared(one, two, *key, "ember", "rmsprop") for key in studies.FULL.settings}
    means = [each.difference.mean for key, each in found.items() if each and key[0] != "reinforcement"]
    assert f"between {min(means):+.4f} and {max(means):+.4f} nats" in readme
    answers = found["reinforcement", "tables alone, 64 completions"].difference.mean
    assert f"and in reinforcement learning {answers:+.4f} of the answers" in readme
    assert compared(one, two, "reinforcement", "tables alone, 64 completions", "ember", "adamw").verdict == "open"


def test_the_page_of_a_few_runs(prepared, tmp_path):
    """Also where hardly anything is finished."""
    study = studies.QUICK._replace(cells=[CELL._replace(setting="quick", method=m) for m in ("adamw", "ember")])
    assert "not measured yet" in page.page(study, {})
    sweep.sweep(study.cells, tmp_path, math.inf)
    found = records.read_all(tmp_path)
    assert "| Pretraining: quick" in page.page(study, found)
    assert "| Pretraining | quick" in page.runs_page(study, found)
    drawn = pictures.draw(results(study.cells, found), pair_results(study.pairs, found), study, tmp_path)
    assert {path.stem.removeprefix("evidence_") for path in drawn} == {"pareto", "rates", "scaling"}
