"""Selecting the runs of a figure, statistics over them, and the tables of RESULTS.md."""

import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from Postprocessing import comparison, plots, results, runs, selection
from Postprocessing.analyse import FigureError

N, S, SEEDS = (1.0, 5.0), (0.0, 0.5, 1.0), (400, 401, 402)
COMMON = {"task": "psDigits", "finished": True, "dry": False, "score": "accuracy", "chance": 0.1}
COMMON |= {"nhid": 64, "lr": 1e-3, "epochs": 2, "epochs_done": 2, "random": False}
INDEX = ["setting", "n", "s", "seed"]


def row(network, n=np.nan, s=np.nan, seed=400, **changes):
    """A row of the table of runs."""
    setting = network if network in runs.SETTINGS else None
    kind = {"network": network, "setting": setting, "n": n, "s": s, "seed": seed, "test": 0.5}
    kind |= {"net_type": "RNN" if setting else network, "nonlin": setting, "learn_params": None}
    return COMMON | kind | {"started": "2026", "path": f"{network}/{n}/{s}/{seed}"} | changes


def make_grid(n=N, s=S, seeds=SEEDS):
    """The rows of a full grid."""
    return [row(*cell) for cell in itertools.product(runs.SETTINGS, n, s, seeds)]


def test_the_grid_has_the_newest_run_of_every_cell_and_seed(capsys):
    newest = row("static", 1.0, 0.0, started="2027", path="newest")
    stray = row("heterogeneous", 7.0, 0.25)
    table = pd.DataFrame([*make_grid(), newest])
    grid = selection.grid(table)
    assert len(grid) == 54 and grid["shared"].all()
    assert grid.set_index(INDEX).loc[("static", 1, 0, 400), "path"] == "newest"
    assert capsys.readouterr().out == "grid of 2 n × 3 s × 3 seeds; 54 runs are shared\n"
    table = pd.DataFrame([*make_grid(), stray])
    assert selection.grid(table)["shared"].sum() == 54
    assert "n = 7, s = 0.25: only heterogeneous" in capsys.readouterr().out
    assert len(selection.grid(table, n=[1, 5], s=list(S))) == 54
    assert "only" not in capsys.readouterr().out


def test_a_cell_that_settings_lack_is_named_blank_and_not_compared(capsys):
    rows = [r for r in make_grid() if r["s"] != 0.5 or r["setting"] != "static"]
    grid = selection.grid(pd.DataFrame(rows))
    printed = capsys.readouterr().out
    assert "static: 6 of 18 runs missing; run its sweep again" in printed
    assert "n = 1, s = 0.5: only heterogeneous and homogeneous" in printed
    assert set(grid.loc[~grid["shared"], "s"]) == {0.5}
    # the plane of the static network has a row for s = 0.5, without values
    plane = selection.plane(grid, "static", "test")
    assert list(plane.index) == list(S) and plane.drop(index=0.5).notna().all().all()
    ax = plots.draw_plane(plane, plt.figure().add_subplot(), (0, 1))
    values = ax.collections[0].get_array()
    assert values.mask.reshape(3, 2).tolist() == [[False] * 2, [True] * 2, [False] * 2]


def test_dry_unfinished_and_random_runs_are_left_out_and_counted(capsys):
    more = [row("static", 1.0, 0.0, dry=True), row("static", 1.0, 0.0, finished=False)]
    more += [row("static", 6.1, 0.0, random=True), row("ANRU", dry=True)]
    table = pd.DataFrame([*make_grid(), *more])
    assert len(selection.grid(table)) == 54
    printed = capsys.readouterr().out
    assert "ignored: 1 run (dry run: static)" in printed
    assert "ignored: 1 run (unfinished: static)" in printed
    with pytest.raises(FigureError, match="no finished runs for: ANRU"):
        selection.networks(table, ["ANRU"])
    assert "ignored: 1 run (dry run: ANRU)" in capsys.readouterr().out


def test_different_runs_are_an_error_that_says_how_to_choose():
    table = pd.DataFrame([*make_grid(), row("static", 5.0, 0.0, seed=403, nhid=4)])
    with pytest.raises(FigureError) as error:
        selection.grid(table)
    assert "nhid: 64 (54 runs), 4 (1 run)" in str(error.value)
    with pytest.raises(FigureError, match=r"ARGUMENTS = .'clip': None.$"):
        selection.grid(table.query("nhid == 64").assign(clip=[np.nan] * 53 + [1.0]))
    assert len(selection.matching(table.assign(clip=np.nan), {"clip": None})) == 55
    assert "ARGUMENTS = {'nhid': 64}" in str(error.value) and "lr" not in str(error.value)
    assert set(selection.grid(table, nhid=64)["nhid"]) == {64}
    with pytest.raises(FigureError, match="no run has an argument nihd"):
        selection.grid(table, nihd=64)
    with pytest.raises(FigureError, match="no finished runs for: homogeneous"):
        selection.grid(table[table["setting"] != "homogeneous"])


def test_networks_may_have_their_own_arguments(capsys):
    rows = [row("static", n, 0.0, seed) for n in (2.5, 4, 10) for seed in SEEDS]
    rows += [row("heterogeneous", n, 0.0, seed) for n in (4, 20) for seed in SEEDS]
    rows += [row("ANRU", seed=seed, lr=5e-4) for seed in SEEDS] + [row("LSTM")]
    chosen = selection.networks(pd.DataFrame(rows))
    assert list(chosen["network"].unique()) == ["ANRU", "heterogeneous", "static", "LSTM"]
    assert set(chosen["n"].dropna()) == {4}  # the nearest to 5 that both have
    printed = capsys.readouterr().out
    assert "LSTM: 2 of 3 runs missing" in printed and "GRU: 3 of 3 runs missing" in printed
    table = pd.DataFrame([*rows, row("ANRU", seed=403)])
    with pytest.raises(FigureError, match=r"runs of ANRU differ.*\n  lr: 0.0005 \(3 runs\)"):
        selection.networks(table)
    assert len(selection.networks(table, ANRU={"lr": 5e-4}).query("network == 'ANRU'")) == 3
    drawn = table[:-1].assign(random=table["setting"] == "heterogeneous")
    for wrong in (table.query("network != 'static' or n == 10"), drawn):
        with pytest.raises(FigureError, match="share no initial n and s"):
            selection.networks(wrong)


def test_the_task_and_the_folders_are_the_requested_ones(tmp_path, monkeypatch):
    monkeypatch.delenv("TASK", raising=False)
    table = pd.DataFrame([row("ANRU"), row("ANRU", task="PTB")])
    monkeypatch.setattr(runs, "load", lambda root: table)
    with pytest.raises(FigureError, match=r"set TASK.*psDigits \(1 run\), PTB \(1 run\)"):
        selection.load("root")
    with pytest.raises(FigureError, match="no runs of sMNIST"):
        selection.load("root", "sMNIST")
    assert list(selection.load("root", "PTB")["task"]) == ["PTB"]
    monkeypatch.setenv("TASK", "psDigits")
    assert list(selection.load("root")["task"]) == ["psDigits"]
    # figures are saved beside the runs by default
    for name in ("RUNS", "FIGURES"):
        monkeypatch.delenv(name, raising=False)
    root = selection.REPOSITORY / "SavedModels"
    assert selection.folders() == (root, root / "figures")
    monkeypatch.setenv("FIGURES", "Postprocessing/figures")
    assert selection.folders(tmp_path) == (tmp_path, plots.FIGURES)


def values(seeds=SEEDS, shape=()):
    index = pd.MultiIndex.from_product([runs.SETTINGS, N, S, seeds], names=INDEX)
    drawn = np.random.default_rng(0).normal(size=(len(index), *shape))
    return pd.DataFrame(drawn, index) if shape else pd.Series(drawn, index)


def test_differences_are_paired_by_cell_and_seed():
    scores = values()
    shuffled = scores.sample(frac=1, random_state=1).drop(("static", 5.0, 1.0, 400))
    paired = comparison.differences(shuffled)["heterogeneous − static"]
    assert len(paired) == 17 and ("5.0", 1.0, 400) not in paired.index
    for n, s, seed in paired.index:
        expected = scores["heterogeneous", n, s, seed] - scores["static", n, s, seed]
        assert paired[n, s, seed] == expected


def test_the_comparison_has_both_intervals_and_corrected_p():
    scores = values()
    table = comparison.compare({"score": scores, "twice": 2 * scores})
    first = table.iloc[0]
    paired = (scores["heterogeneous"] - scores["static"]).unstack("seed")
    assert first["mean"] == pytest.approx(paired.to_numpy().mean())
    test = ttest_1samp(paired.mean(axis=0), 0)
    assert first["p"] == pytest.approx(test.pvalue)
    interval = test.confidence_interval()
    assert first["half"] == pytest.approx((interval.high - interval.low) / 2)
    assert first["low"] < first["mean"] < first["high"]
    assert (first["cells"], first["seeds"]) == (6, 3)
    assert (table["p_holm"] >= table["p"]).all() and (table["p_holm"] <= 1).all()
    corrected = comparison.holm([0.01, np.nan, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(corrected, [0.03, np.nan, 0.06, 0.06, 0.02])


def test_one_or_two_seeds_have_no_interval():
    for seeds in ((400,), (400, 401)):
        table = comparison.compare({"score": values(seeds)})
        assert table[["low", "high", "half", "p", "p_holm"]].isna().all().all()
        text = comparison.in_words(table.iloc[0])
        assert "±" not in text and "[" not in text and f"({len(seeds)} seeds: no interval)" in text
        paired = comparison.differences(values(seeds, (4,)))["heterogeneous − static"]
        ax = plt.figure().add_subplot()
        plots.draw_difference(paired, ax, "heterogeneous − static")
        assert len(ax.lines) == len(seeds) and not ax.collections
        plots.draw_bars(paired[: len(seeds)], ax, "static")
        assert not ax.containers  # points, without error bars
    plt.close("all")
    assert np.isnan(comparison.t_interval(np.array([[1.0], [2]]))[1]).all()


def test_the_interval_over_cells_is_one_of_95_percent():
    """Of 2,000 cells: 1.96 standard errors to each side of the mean; of 90 %, 1.64."""
    index = pd.MultiIndex.from_product([range(2000), [0], SEEDS], names=INDEX[1:])
    cells = np.random.default_rng(0).normal(0.3, 1, size=(2000, 3))
    mean, low, high = comparison.cell_interval(pd.DataFrame(np.repeat(cells, 3, axis=0), index))
    error = cells.std(axis=0, ddof=1) / np.sqrt(2000)
    np.testing.assert_allclose(mean, cells.mean(axis=0))
    np.testing.assert_allclose((mean - low) / error, 1.96, atol=0.16)
    np.testing.assert_allclose((high - mean) / error, 1.96, atol=0.16)


def test_the_tables_come_from_the_committed_rows():
    texts = [path.read_text(encoding="utf-8") for path in results.TEXTS]
    places = re.findall("<!-- table (.*?) -->", "".join(texts))
    assert set(places) == set(results.TABLES) and "claims" in places
    for text in texts:
        assert results.updated(text) == text
    size = sum(path.stat().st_size for path in (results.FOLDER / "results").iterdir())
    assert size < 2**20
    assert "±" not in results.TABLES["psMNIST"]()  # two seeds, no interval


def in_words(values, sign="+"):
    """Mean ± half the 95 % t interval of values over seeds."""
    interval = ttest_1samp(values, 0).confidence_interval()
    half = (interval.high - interval.low) / 2
    return f"{np.mean(values):{sign}.3f} ± {half:.3f}".replace("-", "−")


def test_the_tables_by_hand():
    step = results.read("psDigits_networks").set_index(["network", "seed"])["robustness step 9"]
    text = results.TABLES["digits"]()
    assert f"{in_words(step['ANRU'], '')} |\n| heterogeneous |" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| ANRU − LSTM |"))
    assert in_words(step["ANRU"] - step["LSTM"]) in row
    grid = results.read("psDigits_grid").set_index(INDEX)
    paired = grid["test"].loc["homogeneous"] - grid["test"].loc["static"]
    assert in_words(paired.groupby("seed").mean()) in results.TABLES["grid"]()
    learned = grid[grid["validation 100"] > 0.12]["validation 41"]
    quartiles = [f"{learned[setting].quantile(0.75):.3f}" for setting in runs.SETTINGS]
    assert f"epoch 41 | {' | '.join(quartiles)} |" in results.TABLES["settings"]()
