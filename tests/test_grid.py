"""Selecting the runs of a figure, and statistics over them. No network is trained."""

import csv
import json
import shlex
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pytest

import PTB_task
import sMNIST_task
from Postprocessing import grid, plots
from Postprocessing.load_runs import FigureError
from Training import once, sweep
from Training.run_directory import MODE, plain

COMMON = ["--dataset", "digits", "-p", "--nhid", "64", "--lr", "1e-3", "--epochs", "2"]
FLAGS = {
    "static": ["--nonlin", "gamma", "--no-learn_params"],
    "homogeneous": ["--nonlin", "gamma"],
    "heterogeneous": ["--nonlin", "gamma2"],
}


@pytest.fixture
def make(tmp_path):
    """Writes the directory of a finished run, with the config that the flags give."""
    made = []

    def run(*flags, curve=(0.5, 0.6), seconds=60, script=sMNIST_task, task="psDigits"):
        words = [*map(str, flags)]
        parser, args, _ = script.parse(words)
        arguments = plain({k: v for k, v in vars(args).items() if k not in MODE})
        path = tmp_path / task / str(len(made))
        path.mkdir(parents=True)
        config = {
            "script": parser.prog,
            "command": parser.command,
            "arguments": arguments,
            "model": {"task": "pixels", "classes": 10},
            "data": {},
            "device": "",
            "started": f"2026-01-01T00:{len(made):02d}",
        }
        (path / "config.json").write_text(json.dumps(config))
        epochs = range(1, len(curve) + 1)
        rows = [{"epoch": e, "validation_accuracy": v} for e, v in zip(epochs, curve, strict=True)]
        rows = [{**row, "seconds": seconds / len(curve)} for row in rows]
        test = {"epoch": arguments["epochs"], "condition": "as_is", "accuracy": curve[-1]}
        for name, lines in (("metrics.csv", rows), ("test_results.csv", [test])):
            with (path / name).open("w", newline="") as file:
                writer = csv.DictWriter(file, lines[0])
                writer.writeheader()
                writer.writerows(lines)
        (path / f"e_{arguments['epochs']}.pth.tar").touch()
        made.append(path)
        return path

    return run


def make_grid(make, common=COMMON, cells=((1, 0), (5, 0), (1, 1), (5, 1)), seeds=(400, 401)):
    for setting in FLAGS.values():
        for n, s in cells:
            for seed in seeds:
                make(*common, *setting, "--n", n, "--s", s, "--seed", seed)


def test_the_newest_run_of_every_cell_and_seed(make, tmp_path, capsys):
    make_grid(make)
    again = make(*COMMON, *FLAGS["static"], "--n", 1, "--s", 0, "--note", "again", "--data", "x")
    found = grid.load_grid(tmp_path, "psDigits")
    assert list(found) == list(FLAGS)
    assert list(found["static"]) == [(1, 0), (1, 1), (5, 0), (5, 1)]
    assert [grid.seed(run) for run in found["static"][1, 0]] == [400, 401]
    assert found["static"][1, 0][0].path == again
    assert capsys.readouterr().out == ""  # nothing is missing
    assert "Grid of 2 n × 2 s: static 8 runs, 0 cells" in grid.count(found)


def test_dry_runs_and_drawn_gains_are_not_on_the_grid(make, tmp_path):
    make_grid(make)
    make(*COMMON, *FLAGS["static"], "--n", 1, "--s", 0, "--limit-batches", 1)
    make(*COMMON, *FLAGS["static"])  # draws n
    found = grid.load_grid(tmp_path, "psDigits")["static"]
    assert len(found) == 4 and sum(map(len, found.values())) == 8
    assert all(run.config["arguments"]["limit_batches"] is None for run in grid.runs_of(found))


def test_different_runs_are_an_error_that_says_how_to_choose(make, tmp_path):
    make_grid(make)
    make(*COMMON[:3], "--nhid", 4, *COMMON[5:], *FLAGS["static"], "--n", 5, "--s", 0)
    with pytest.raises(FigureError) as error:
        grid.load_grid(tmp_path, "psDigits")
    assert "nhid: 4 (1 run), 64 (24 runs)" in str(error.value)
    assert "arguments = {'nhid': 64}" in str(error.value)
    assert "lr" not in str(error.value).split("differ")[1]
    found = grid.load_grid(tmp_path, "psDigits", nhid=64)["static"]
    assert {run.config["arguments"]["nhid"] for run in grid.runs_of(found)} == {64}
    with pytest.raises(FigureError, match="has an argument nihd"):
        grid.load_grid(tmp_path, "psDigits", nihd=64)


def test_settings_of_a_grid_must_agree(make, tmp_path):
    make_grid(make, cells=((1, 0),))
    make(*COMMON[:-1], "4", *FLAGS["static"], "--n", 5, "--s", 0)  # more epochs
    with pytest.raises(FigureError, match=r"epochs: 4 \(1 run\), 2 \(6 runs\)"):
        grid.load_grid(tmp_path, "psDigits")


def test_networks_may_have_their_own_arguments(make, tmp_path, capsys):
    rate = COMMON.index("--lr") + 1
    slow = [*COMMON[:rate], "5e-4", *COMMON[rate + 1 :]]
    for seed in (400, 401):
        make(*slow, "--net-type", "ANRU", "--seed", seed)
        make(*COMMON, "--net-type", "LSTM", "--seed", seed)
        for n in (2.5, 4, 10):
            make(*COMMON, *FLAGS["static"], "--n", n, "--s", 0, "--seed", seed)
    make(*COMMON, *FLAGS["heterogeneous"])  # two runs with drawn n
    make(*COMMON, *FLAGS["heterogeneous"], "--seed", 401)
    found = grid.load_networks(tmp_path, "psDigits")
    assert list(found) == ["ANRU", "gamma2-RNN", "static γ", "LSTM"]
    assert {grid.initial(run) for run in found["static γ"]} == {(4, 0)}
    assert all(len(runs) == 2 for runs in found.values())
    assert "GRU: 2 missing" in capsys.readouterr().out
    assert "static γ 2 (lr 0.001, n 4, s 0), LSTM 2 (lr 0.001)" in grid.in_detail(found)

    make(*COMMON, *FLAGS["heterogeneous"], "--n", 10, "--s", 0)  # the n and s of both are equal
    found = grid.load_networks(tmp_path, "psDigits")
    assert {grid.initial(run) for run in found["static γ"] + found["gamma2-RNN"]} == {(10, 0)}
    with pytest.raises(FigureError, match=r"no initial .*gamma2-RNN from \[\(10"):
        grid.load_networks(tmp_path, "psDigits", **{"static γ": {"n": 4}})

    make(*COMMON, "--net-type", "ANRU")
    with pytest.raises(FigureError) as error:
        grid.load_networks(tmp_path, "psDigits")
    assert "runs of ANRU differ" in str(error.value)
    assert "lr: 0.001 (1 run), 0.0005 (2 runs)" in str(error.value)
    assert "arguments = {'ANRU': {'lr': 0.0005}}" in str(error.value)
    assert len(grid.load_networks(tmp_path, "psDigits", ANRU={"lr": 5e-4})["ANRU"]) == 2

    make(*COMMON[:3], "--nhid", 4, *COMMON[5:], "--net-type", "GRU")
    with pytest.raises(FigureError, match=r"nhid: 64 \(7 runs\), 4 \(1 run\)"):
        grid.load_networks(tmp_path, "psDigits", ANRU={"lr": 5e-4})


def test_captions_fit_the_page():
    plots.use_style()
    words = "mean over seeds; static γ 2 (lr 0.001, n 5, s 0), homogeneous, ReLU-RNN, NaN MMM " * 9
    figure, _ = plots.panels(2, 3, caption=textwrap.fill(words, grid.CAPTION))
    figure.set_dpi(plt.rcParams["savefig.dpi"])
    figure.canvas.draw()
    assert figure.texts[0].get_window_extent().x1 < figure.bbox.x1
    plt.close(figure)


def commanded(text, script=sMNIST_task):
    """The arguments of all runs of the sweeps in a text, as the sweep parses them."""
    lines = text.split("train them with:\n")[1].replace(" && \\\n", "\n").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line)
        assert words[:3] == ["python3", "-m", "Training.sweep"]
        _, _, lists, common = sweep.parse(words[3:])
        found += [c.arguments for c in sweep.combinations(script.__file__, lists, common)[0]]
    return found


def test_one_command_trains_the_missing_runs_of_a_grid(make, tmp_path, capsys):
    make_grid(make)
    missing = make(*COMMON, *FLAGS["homogeneous"], "--n", 7.5, "--s", 0, seconds=100)
    config = json.loads((missing / "config.json").read_text())["arguments"]
    (missing / "e_2.pth.tar").unlink()  # incomplete, so not counted
    for n, s in ((7.5, 0), (7.5, 1)):
        for seed in (400, 401):
            make(*COMMON, *FLAGS["heterogeneous"], "--n", n, "--s", s, "--seed", seed)
    make(*COMMON, *FLAGS["static"], "--n", 7.5, "--s", 0, "--seed", 401)
    grid.load_grid(tmp_path, "psDigits")
    said = capsys.readouterr().out
    assert "static: 3 missing, about 3.0 minutes in one process" in said
    assert "homogeneous: 4 missing, about 4.0 minutes" in said
    assert said.count("train them with:") == 1
    arguments = commanded(said)
    assert {k: v for k, v in config.items() if k not in once.ASIDE} in arguments
    assert len(arguments) == 2 * 3 * 2 * 2  # settings, n, s, seeds: no heterogeneous run is missing


def test_one_command_trains_the_missing_networks(make, tmp_path, capsys):
    make(*COMMON, "--net-type", "LSTM", "--seed", 401, "--shuffle")
    grid.load_networks(tmp_path, "psDigits")
    arguments = commanded(capsys.readouterr().out)
    kinds = [(a["net_type"], a["nonlin"], a["learn_params"], a["n"]) for a in arguments]
    assert kinds == [
        ("ANRU", None, None, None),
        ("RNN", "gamma2", True, 5),
        ("RNN", "gamma", False, 5),
        ("RNN", "ReLU", None, None),
        ("GRU", None, None, None),
    ]
    for one in arguments:
        assert (one["seed"], one["nhid"], one["shuffle"], one["epochs"]) == (401, 64, True, 2)
        assert one["permute"] and one["lr"] == 1e-3


@pytest.mark.parametrize(("task", "script"), [("psDigits", sMNIST_task), ("pydoc", PTB_task)])
def test_without_runs_there_is_a_command_to_start_with(task, script, make, tmp_path):
    make(*COMMON, "--net-type", "LSTM", task="sDigits")
    for load, number in ((grid.load_grid, 27), (grid.load_networks, 6)):
        with pytest.raises(FigureError, match=r"sDigits \(1 run\)") as error:
            load(tmp_path, task)
        arguments = commanded(str(error.value), script)
        assert len(arguments) == number
        assert {a["dataset"] for a in arguments} == {"pydoc" if task == "pydoc" else "digits"}


def test_the_task_is_the_only_one_or_the_requested_one(make, tmp_path, monkeypatch):
    monkeypatch.delenv("TASK", raising=False)
    with pytest.raises(FigureError, match="no runs"):
        grid.find_task(tmp_path)
    make(*COMMON, task="sDigits")
    (tmp_path / "figures").mkdir()
    assert grid.find_task(tmp_path) == "sDigits"
    make(*COMMON, task="psDigits")
    with pytest.raises(FigureError, match=r"TASK.*psDigits \(1 run\), sDigits \(1 run\)"):
        grid.find_task(tmp_path)
    monkeypatch.setenv("TASK", "psDigits")
    assert grid.find_task(tmp_path) == "psDigits"


def test_figures_are_saved_beside_the_runs_by_default(tmp_path, monkeypatch):
    for name in ("RUNS", "FIGURES"):
        monkeypatch.delenv(name, raising=False)
    root = grid.REPOSITORY / "SavedModels"
    assert grid.folders() == (root, root / "figures")
    monkeypatch.setenv("RUNS", str(tmp_path))
    assert grid.folders() == (tmp_path, tmp_path / "figures")
    monkeypatch.setenv("FIGURES", "Postprocessing/figures")
    assert grid.folders() == (tmp_path, grid.REPOSITORY / "Postprocessing" / "figures")


def test_differences_are_paired_by_cell_and_seed(make, tmp_path):
    scores = {
        ("static", 1, 400): 0.5,
        ("static", 1, 401): 0.7,
        ("static", 1, 402): 0.5,
        ("static", 5, 400): 0.2,
        ("heterogeneous", 1, 400): 0.6,
        ("heterogeneous", 1, 401): 0.9,
        ("heterogeneous", 1, 402): 0.65,
        ("heterogeneous", 5, 400): 0.1,
        ("heterogeneous", 5, 401): 0.99,  # without a partner
        ("homogeneous", 1, 400): 0.5,
    }
    for (setting, n, seed), value in scores.items():
        flags = ("--n", n, "--s", 0, "--seed", seed)
        make(*COMMON, *FLAGS[setting], *flags, curve=(0.1, value))
    found = grid.load_grid(tmp_path, "psDigits")
    pair = found["heterogeneous"], found["static"]
    np.testing.assert_allclose(grid.paired(*pair, grid.score), [0.15, -0.1])
    np.testing.assert_allclose(grid.paired(*pair, grid.validation), [[0, 0.15], [0, -0.1]])
    np.testing.assert_allclose(grid.paired(*pair, grid.score, by=grid.seed) + 1, [1, 1.2, 1.15])
    first, second, third = grid.comparison(found, grid.score, " of 1", least=0.01)
    assert first.startswith("heterogeneous − static: +0.025 [−0.1, +0.15] of 1 (2 cells)")
    assert first.endswith("; by seed +0, +0.2, +0.15, mean ± 0.26")
    assert second == "homogeneous − static: below the spread"
    assert third.startswith("heterogeneous − homogeneous: +0.1 [")
    best = grid.best_quarter(grid.runs_of(found["heterogeneous"]))
    assert [grid.score(run) for run in best] == [0.99, 0.9]
    learned = [grid.has_learned(run) for run in grid.runs_of(found["heterogeneous"])]
    assert learned == [True, True, True, False, True]


def test_the_interval_is_that_of_the_mean_over_cells():
    values = np.random.default_rng(0).normal(0.3, 1, size=(200, 3))
    mean, low, high = grid.interval(values)
    np.testing.assert_allclose(mean, values.mean(axis=0))
    error = values.std(axis=0, ddof=1) / np.sqrt(200)
    np.testing.assert_allclose(low, mean - 1.96 * error, atol=0.03)
    np.testing.assert_allclose(high, mean + 1.96 * error, atol=0.03)
    assert np.isnan(grid.interval(values[:1])[1]).all()
