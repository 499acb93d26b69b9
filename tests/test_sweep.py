"""Sweeps: which runs they make, how they resume, and what a failure or a signal leaves."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time

import joblib
import pytest

import sMNIST_task
from tests.conftest import REPOSITORY
from Training import sweep
from Training.run_directory import Run, find_runs

TOY = ["--dataset", "digits", "--nonlin", "gamma", "--nhid", "4", "--limit-batches", "2"]
TOY += ["--epochs", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words, script="sMNIST_task.py"):
    return sweep.main([str(REPOSITORY / script), *words])


@pytest.fixture
def in_this_process(monkeypatch):
    """Makes the runs in this process, one at a time, in tests that are not about processes."""

    def start(self, typed):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = sMNIST_task.main(typed)
        return code, out.getvalue().strip().splitlines()[-1]

    monkeypatch.setattr(sweep.Sweep, "_start", start)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)


def initial(runs):
    return sorted((r.config["arguments"]["n"], r.config["arguments"]["s"]) for r in runs)


def test_every_combination_once_and_again_only_what_is_missing(folder, in_this_process, capsys):
    common = ["--", *TOY, "--no-learn_params"]
    assert call("--gain", "1", "-2.5", "--saturation", "0", *common) == 0
    assert initial(find_runs("SavedModels")) == [(-2.5, 0), (1, 0)]
    assert "2 trained" in capsys.readouterr().out
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth.tar")}
    assert call("--gain", "1.0", "-2.5", "--saturation", "0", "0.5", *common) == 0
    assert initial(find_runs("SavedModels")) == [(-2.5, 0), (-2.5, 0.5), (1, 0), (1, 0.5)]
    assert "2 already finished, 2 trained" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == then for path, then in files.items())


def test_other_arguments_are_another_run(folder, in_this_process, capsys):
    assert call("--seed", "1", "--", *TOY) == 0
    assert call("--seed", "1", "--", *TOY, "--lr", "1e-3") == 0
    assert "finished" not in capsys.readouterr().out
    assert len(find_runs("SavedModels")) == 2


def test_goes_on_with_a_run_that_is_not_complete(folder, in_this_process, capsys):
    assert call("--seed", "1", "--", *TOY, "--epochs", "2") == 0
    (run,) = find_runs("SavedModels")
    (run.path / "e_2.pth.tar").unlink()
    rows = run.rows("metrics.csv")
    (run.path / "last.pth.tar").write_bytes((run.path / "e_0.pth.tar").read_bytes())
    capsys.readouterr()
    assert call("--seed", "1", "--", *TOY, "--epochs", "2") == 0
    (run,) = find_runs("SavedModels")
    assert run.complete
    assert "resumed after 0 epochs" in (run.path / "log.txt").read_text()
    for row, before in zip(run.rows("metrics.csv"), rows, strict=True):
        assert {**row, "seconds": None} == {**before, "seconds": None}


def test_a_failed_run_is_listed_and_does_not_stop_the_others(folder, capsys):
    words = ["--lr", "1e30", "1e-3", "--jobs", "1", "--", *TOY, "--limit-batches", "9"]
    assert call(*words) == 1
    out = capsys.readouterr().out
    assert "1 trained to the end, 1 failed" in out
    assert "failed: sMNIST_task.py --lr 1e30" in out and "exit code 1: stopped:" in out
    assert [r.config["arguments"]["lr"] for r in find_runs("SavedModels") if r.complete] == [1e-3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gain", "1", "0", "--", *TOY], "--gain"),  # rejected by the script
        (["--gian", "1", "--", *TOY], "--gian"),
        (["--gain", "--", *TOY], "--gain: has no values"),
        (["--gain", "1", "--gain", "2"], "--gain: is given twice"),
        (["--jobs", "0", "--gain", "1"], "--jobs"),
        (["--seed", "1", "--", "--test"], "--test: is not for a sweep"),
    ],
)
def test_a_mistake_is_one_line_before_any_run(folder, capsys, words, said):
    with pytest.raises(SystemExit) as exit:
        call(*words)
    err = capsys.readouterr().err
    assert exit.value.code == 2 and said in err and err.count("\n") == 1
    assert not list(folder.iterdir())


@pytest.mark.parametrize("script", ["README.md", "nothing_task.py"])
def test_what_is_no_script_is_refused(folder, capsys, script):
    with pytest.raises(SystemExit) as exit:
        call("--gain", "1", script=script)
    assert exit.value.code == 2 and script in capsys.readouterr().err


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_stopped_goes_on_where_it_was(folder, number):
    """SIGINT saves the run in progress; after SIGKILL that run continues, holding its lock."""
    words = ["--seed", "1", "2", "--jobs", "1", "--", *TOY, "--limit-batches", "100"]
    words += ["--batch", "1", "--epochs", "4"]
    command = [sys.executable, "-m", "Training.sweep", str(REPOSITORY / "sMNIST_task.py"), *words]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, cwd=folder
    )
    wait_for(lambda: any(path.read_text() for path in folder.rglob("metrics.csv")))
    process.send_signal(number)
    code = process.wait(timeout=120)
    (config,) = folder.rglob("config.json")
    if number == signal.SIGINT:
        said = (config.parent / "log.txt").read_text()
        assert code == 130 and f"{signal.SIGTERM.name}: saved" in said
        assert not Run(config.parent).complete
    wait_for(lambda: call(*words) == 0)
    found = find_runs("SavedModels")
    assert len(found) == 2 and all(run.complete for run in found)
