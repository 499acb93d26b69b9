"""The table of saved runs, and the common code of the analyses."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from Postprocessing import analyse, results, runs
from Postprocessing.networks import NotApplicable, Unsuitable, kept_model, layer_input
from tests.conftest import SMNIST
from tests.toy_runs import train
from Training.run_directory import Run, RunError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a heterogeneous RNN and an LSTM of another learning rate."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--epochs", "2", "--save-freq", "1"]
    train(folder / "a", SMNIST, *flags, "--nonlin", "gamma2", "--n", "5", "--s", "0.5")
    train(folder / "b", SMNIST, *flags, "--net-type", "LSTM", "--lr", "1e-2")
    return folder


@pytest.fixture
def two_runs(trained, tmp_path, monkeypatch):
    """The paths of a copy of these runs, below SavedModels in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "SavedModels")
    return list(runs.load("SavedModels")["path"].map(Path))


def test_the_table_has_the_arguments_and_scores_of_every_run(two_runs):
    table = runs.load("SavedModels")
    assert list(table["network"]) == ["heterogeneous", "LSTM"]
    assert table["setting"][0] == "heterogeneous" and pd.isna(table["setting"][1])
    assert list(table["lr"]) == [1e-3, 1e-2] and list(table["task"]) == ["sDigits"] * 2
    assert table["n"][0] == 5 and np.isnan(table["n"][1])
    assert table["finished"].all() and list(table["epochs_done"]) == [2, 2]
    assert table["dry"].all()  # TOY has --limit-batches
    for path, row in zip(two_runs, table.itertuples(), strict=True):
        metrics, tests = (pd.read_csv(path / name) for name in ("metrics.csv", "test_results.csv"))
        assert row.validation == metrics["validation_accuracy"].iloc[-1]
        assert row.hours == pytest.approx(metrics["seconds"].sum() / 3600)
        assert row.test == tests.loc[tests["condition"] == "as_is", "accuracy"].iloc[-1]
    curves = runs.curves(table)
    assert list(curves["epoch"]) == [1, 2, 1, 2] and set(runs.KEYS) <= set(curves)
    assert curves["n_mean"].isna().tolist() == [False, False, True, True]
    # an unfinished run is listed with what it has
    (two_runs[0] / "test_results.csv").unlink()
    (two_runs[1] / "metrics.csv").unlink()
    first, second = runs.load("SavedModels").itertuples()
    assert not first.finished and np.isnan(first.test) and first.epochs_done == 2
    assert second.epochs_done == 0 and np.isnan(second.validation)


@pytest.mark.parametrize(
    ("name", "pattern", "text"),
    [
        ("config.json", r"\A.*", '{"of": "something else"}'),
        ("config.json", '"arguments": {', '"arguments": {}, "others": {'),
        ("metrics.csv", r"\A.*", "a;b\n1;2;3\n"),
        ("metrics.csv", "\n.*", "\n" + "x," * 13 + "x\n"),
    ],
)
def test_a_foreign_file_is_named_and_its_run_skipped(two_runs, name, pattern, text, capsys):
    path = two_runs[0] / name
    path.write_text(re.sub(pattern, text, path.read_text(), flags=re.DOTALL))
    table = runs.load("SavedModels")
    assert list(table["path"]) == [str(two_runs[1])]
    message = capsys.readouterr().err
    assert message.startswith("skipped: ") and message.count("\n") == 1
    assert str(two_runs[0]) in message


def test_the_command_prints_selected_runs(two_runs, succeed, error_of):
    header, first, second = succeed(runs.main).splitlines()
    columns = ["task", "network", "n", "s", "lr", "epochs", "state", "validation", "test", "hours"]
    assert [name for name in columns if name in header.split()] == header.split()[:-1]
    assert first.split()[:2] == ["sDigits", "LSTM"] and "2/2 dry run" in first
    assert second.endswith(str(two_runs[0]))
    out = succeed(runs.main, "--where", "network == 'LSTM' and lr > 1e-3", "--csv")
    rows = pd.read_csv(io.StringIO(out))
    assert list(rows["path"]) == [str(two_runs[1])] and set(runs.COLUMNS) <= set(rows)
    for where in ("netwrk == 'LSTM'", "lr >", "lr > 'a'"):
        message = error_of(runs.main, "--where", where)
        assert f"argument --where: {where}: " in message and "the columns are" in message
    assert "no runs below nowhere" in error_of(runs.main, "nowhere")


def test_other_data_than_those_of_a_run_are_rejected(two_runs):
    run = Run(two_runs[0])
    run.config["data"]["sha256"] = {}
    with pytest.raises(RunError, match="was trained on other data"):
        layer_input(run, kept_model(run), 5)


@pytest.fixture
def counted(monkeypatch):
    """An analysis called lyapunov, of the heterogeneous run only; returns its calls."""
    calls = []

    def analysis(run, data, device, *, size=1, bad=1, sizes=(1.0,)):
        calls.append(run.path)
        if run.config["model"]["net_type"] != "RNN":
            raise NotApplicable("needs an RNN")
        if size == 3:
            raise Unsuitable("3 is too large")
        if size == 4:
            torch.linalg.svd(torch.full((2, 2), torch.nan))
        return {"values": np.array([size, np.nan if bad == 2 else 0.0])}

    monkeypatch.setattr(analyse.ANALYSES["lyapunov"], "compute", analysis)
    return calls


def compute(*words):
    return analyse.main(["lyapunov", *map(str, words)])


def test_an_analysis_is_computed_once_and_skips_other_networks(two_runs, counted, capsys):
    assert compute("SavedModels") == 0 and len(counted) == 2
    assert capsys.readouterr() == ("lyapunov: 1 computed, 1 not applicable\n", "")
    assert compute("SavedModels") == 0
    assert capsys.readouterr().out == "lyapunov: 1 up to date, 1 not applicable\n"
    assert analyse.load(two_runs[0], "lyapunov")["values"].tolist() == [1, 0]
    assert analyse.load(two_runs[1], "lyapunov") is None
    counted.clear()
    assert compute(two_runs[0], "--recompute") == 0 and counted == [two_runs[0]]
    assert compute("SavedModels", "--where", "network == 'LSTM'") == 0
    assert counted[-1] == two_runs[1]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("size=3", "3 is too large"),
        ("size=4", "linalg.svd"),
        ("bad=2", "lyapunov: values is not finite"),
    ],
)
def test_a_failed_run_is_named_and_nothing_is_saved(two_runs, counted, setting, reason, capsys):
    assert compute("SavedModels", "--set", f"lyapunov.{setting}") == 1
    out, err = capsys.readouterr()
    assert f"failed: lyapunov of {two_runs[0]}: " in err and reason in err
    assert out == "lyapunov: 1 not applicable, 1 failed\n"
    assert not (two_runs[0] / "analysis").exists()


def test_other_settings_and_checkpoints_make_an_analysis_stale(two_runs, counted, call):
    path, two = two_runs[0], ("--set", "lyapunov.size=2")
    assert compute(path) == 0 and compute(path, *two) == 0
    assert analyse.load(path, "lyapunov")["values"].tolist() == [2, 0]
    assert call(SMNIST, "--resume", path, "--epochs", 3)[0] == 0
    with pytest.raises(RunError, match="stale, computed from other checkpoints") as error:
        analyse.load(path, "lyapunov")
    assert str(error.value).endswith("run " + analyse.command(["lyapunov"], [path]))
    assert compute(path, *two) == 0 and len(counted) == 3
    assert analyse.load(path, "lyapunov")["values"].tolist() == [2, 0]


def test_a_damaged_analysis_is_named_and_computed_again(two_runs, counted):
    assert compute(two_runs[0]) == 0
    file = analyse.file_of(two_runs[0], "lyapunov")
    for data in (b"", b"PK\x03\x04", file.read_bytes()[:-30]):
        file.write_bytes(data)
        with pytest.raises(RunError, match=r"lyapunov\.npz: cannot be read"):
            analyse.load(two_runs[0], "lyapunov")
        assert compute(two_runs[0]) == 0
        assert analyse.load(two_runs[0], "lyapunov")["values"].tolist() == [1, 0]


def test_one_command_computes_what_a_figure_lacks(two_runs, counted):
    path, table = two_runs[0], runs.load("SavedModels")[:1]
    with pytest.raises(analyse.FigureError) as error:
        analyse.load_all({"lyapunov": table, "jacobian": table}, "dynamics")
    assert "lyapunov: missing or stale for 1 of 1 runs\njacobian: missing" in str(error.value)
    assert str(error.value).endswith(analyse.command(["dynamics"], [path]))
    assert compute(path) == 0
    assert list(analyse.load_all({"lyapunov": table}, "dynamics")["lyapunov"]) == [str(path)]
    shutil.copytree(path, path.parent / "copy")
    assert compute(path.parent / "copy", "--set", "lyapunov.size=2") == 0
    table = runs.load("SavedModels").query("network == 'heterogeneous'")
    with pytest.raises(analyse.FigureError, match="computed with different settings"):
        analyse.load_all({"lyapunov": table}, "dynamics")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["lyapunof", "SavedModels"], "argument NAME: must be one of dynamics"),
        (["lyapunov"], "argument RUN: no run or folder is given"),
        (["lyapunov", "nowhere"], "argument RUN: no runs at or below nowhere"),
        (["lyapunov", "SavedModels", "--device", "nonsense"], "cannot compute on nonsense: "),
        (["lyapunov", "SavedModels", "--set", "lyapunov.siz=2"], "must begin with one of"),
        (["lyapunov", "SavedModels", "--set", "lyapunov.size=-1"], "argument --set: "),
        (["lyapunov", "SavedModels", "--set", "lyapunov.sizes=[]"], "argument --set: "),
    ],
)
def test_a_mistyped_command_is_a_one_line_error(two_runs, counted, words, reason, error_of):
    assert reason in error_of(analyse.main, *words)


def test_rows_are_those_of_finished_runs(two_runs, succeed, error_of):
    rows, end = ("--rows", "SavedModels"), " is unfinished, dry or repeated; see --where\n"
    assert error_of(results.main, *rows).endswith(f"{two_runs[0]}{end}")  # dry
    for path in (path / "config.json" for path in two_runs):
        path.write_text(re.sub('(limit_batches": )[0-9]+', r"\1null", path.read_text()))
    lines = succeed(results.main, *rows).splitlines()
    assert len(lines) == 3 and lines[0].startswith("task,network,setting,n,s,seed,nhid")
    shutil.copytree(two_runs[0], two_runs[0].parent / "copy")
    (two_runs[1] / "test_results.csv").unlink()
    for where, path in (("lr > 1e-3", two_runs[1]), ("lr < 1e-2", two_runs[0].parent / "copy")):
        assert error_of(results.main, *rows, "--where", where).endswith(f"{path}{end}")
