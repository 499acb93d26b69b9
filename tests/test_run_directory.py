"""Run directories: names, writing, rows, and finding runs."""

import argparse
import csv
import json
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ARGUMENTS, CONFIG, create_run
from Training import run_directory
from Training.run_directory import Run, RunError, find_runs, run_name, write_whole


def name(**arguments):
    return run_name(argparse.Namespace(**ARGUMENTS | arguments))


def test_the_name_contains_the_main_arguments():
    assert name(nhid=400, nonlin="gamma2") == "RNN_lr0.0001_p0.0_hs400_gamma2"
    changes = {"net_type": "ANRU", "lr": 0.001, "nhid": 64, "transform_ratio": 0.5}
    assert name(**changes) == "ANRU_lr0.001_p0.5_hs64"


def test_every_run_has_its_own_directory(tmp_path, capsys):
    paths = [create_run(tmp_path).path for _ in range(3)]
    assert [path.parent for path in paths] == [tmp_path / "task" / "400" / name()] * 3
    date = paths[0].name
    assert [path.name for path in paths] == [date, f"{date}--1", f"{date}--2"]
    assert json.loads((paths[0] / "config.json").read_text()) == CONFIG
    assert (paths[2] / "log.txt").read_text() in capsys.readouterr().out


def test_a_failed_creation_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="file/task/400"):
        create_run(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_directory, "write_whole", full)
    with pytest.raises(RunError, match="No space left"):
        create_run(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pth.tar"
    write_whole(path, b"first")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_rows_have_full_precision_and_are_dropped_on_resuming(tmp_path):
    run = create_run(tmp_path)
    for epoch in (1, 2, 3):
        run.add_row("metrics.csv", {"epoch": epoch, "loss": 0.1 * epoch, "n_mean": None})
        run.add_row("test_results.csv", {"epoch": epoch, "condition": "sin", "loss": 1 / 3})
    run.resume_after(2)
    run.close()
    with (run.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) == 0.2 and rows[0]["n_mean"] == ""
    assert float(run.rows("test_results.csv")[0]["loss"]) == 1 / 3
    run.resume_after(0)
    assert run.rows("metrics.csv") == []
    assert list(run.path.glob("events/*/events.out.*"))


def test_the_newest_checkpoint_is_that_of_the_latest_epoch(tmp_path):
    run = create_run(tmp_path)
    with pytest.raises(RunError, match="no checkpoint"):
        run.newest_checkpoint()
    run.save("last.pth.tar", {})
    assert run.newest_checkpoint().name == "last.pth.tar"
    for epoch in (9, 10):
        run.save(f"e_{epoch}.pth.tar", {})
    assert run.newest_checkpoint().name == "e_10.pth.tar"


def test_runs_are_found_by_their_arguments_newest_first(tmp_path, capsys):
    first = create_run(tmp_path, started="2021")
    second = create_run(tmp_path, started="2022")
    create_run(tmp_path, started="2023", arguments={"epochs": 2, "nhid": 5})
    create_run(tmp_path, started="2024", script="other.py")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"script": "ta')
    found = find_runs(tmp_path, "task.py", nhid=4)
    assert [run.path for run in found] == [second.path, first.path]
    said = capsys.readouterr().err
    assert "foreign" in said and "torn" in said
    assert find_runs(tmp_path, "task.py", nothing=1) == []


def test_runs_behind_symbolic_links_are_found_once(tmp_path):
    run = create_run(tmp_path / "disk")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "task").symlink_to(tmp_path / "disk" / "task")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "disk" / "task")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "disk")
    for root in ("runs", "disk"):
        (found,) = find_runs(tmp_path / root)
        assert found.path.resolve() == run.path.resolve()


def test_a_best_model_outside_the_run_is_rejected(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"of any run")
    run = create_run(tmp_path, arguments={"save": str(tmp_path / "best.pt")})
    with pytest.raises(RunError, match=r"not in the run, but at .*best\.pt"):
        run.scored_checkpoint()


def test_other_columns_are_rejected_on_resuming(tmp_path):
    run = create_run(tmp_path)
    run.add_row("metrics.csv", {"epoch": 1, "loss": 1.0})
    run.resume_after(1, ["epoch", "loss"])
    with pytest.raises(RunError, match=r"metrics\.csv: has other columns than a run: lr$"):
        run.resume_after(1, ["epoch", "loss", "lr"])


def test_control_characters_are_escaped(tmp_path, capsys):
    run = create_run(tmp_path)
    run.print("γ ± \x1b[31m\r\nnext")
    assert capsys.readouterr().out.endswith("γ ± \\x1b[31m\\r\nnext\n")


def test_charts_are_rewritten_from_where_a_run_resumes(tmp_path):
    """Read with TensorBoard itself: training and validation are two lines of the chart `loss`."""
    run = create_run(tmp_path)

    def write(*losses):
        for epoch, loss in losses:
            row = {"epoch": epoch, "train_loss": loss, "validation_loss": loss + 1, "lr": 0.5}
            run.add_row("metrics.csv", row)

    write((1, 1.0), (2, 2.0), (3, 3.0))
    run.close()
    run.resume_after(1)
    write((2, 5.0))
    run.close()
    for line, losses in (("train", [1.0, 5.0]), ("validation", [2.0, 6.0])):
        charts = EventAccumulator(str(run.path / "events" / line)).Reload()
        assert [event.value for event in charts.Scalars("loss")] == losses
        assert ("lr" in charts.Tags()["scalars"]) == (line == "train")


def test_a_directory_without_a_run_is_rejected(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunError, match="not a run"):
            Run(path)


def test_runs_of_earlier_versions_are_found_by_current_names(tmp_path):
    old = {"gain": 2.5, "saturation": 0.5, "batch": 50, "nonlin": "relu"}
    run = create_run(tmp_path, arguments=old)
    for asked in ({"n": 2.5}, {"s": 0.5, "batch_size": 50}, {"nonlin": "ReLU"}):
        assert [found.path for found in find_runs(tmp_path, **asked)] == [run.path]


def test_a_run_is_complete_once_its_last_epoch_is_evaluated(tmp_path):
    run = create_run(tmp_path)
    run.add_row("test_results.csv", {"epoch": 1, "condition": "as_is", "loss": 1.0})
    run.save("e_2.pth.tar", {})
    assert not run.complete
    run.put_row("test_results.csv", {"epoch": 2, "condition": "test_as_is", "loss": 1.0})
    assert not run.complete  # --test is not the run's own evaluation
    run.add_row("test_results.csv", {"epoch": 2, "condition": "as_is", "loss": 1.0})
    assert run.complete
