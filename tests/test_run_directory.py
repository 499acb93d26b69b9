"""Run directories: names, whole files, tables, locks, and which of several runs counts."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.conftest import create_run, rows, script_arguments
from Training.config import RunError, read_text, run_name
from Training.run_directory import LOCK, Run, find_runs, take_lock, write_whole


def name(**arguments):
    return run_name(script_arguments(".", **arguments))


def test_the_name_tells_the_settings_apart():
    gamma = {"nonlin": "gamma2", "n": 5.3892, "s": 0.0, "learn_params": True}
    assert name(nhid=400, **gamma) == "RNN_lr0.0001_p0.0_hs400_gamma2_n5.3892_s0"
    assert name(**gamma | {"learn_params": False}).endswith("_gamma2_n5.3892_s0_static")
    assert name(net_type="ANRU", lr=0.001, transform_ratio=0.5) == "ANRU_lr0.001_p0.5_hs4"


def test_every_run_has_its_own_directory_and_a_config(tmp_path):
    paths = [create_run(tmp_path).path for _ in range(3)]
    assert [path.parent for path in paths] == [tmp_path / "task" / "400" / name()] * 3
    date = paths[0].name
    assert [path.name for path in paths] == [date, f"{date}--1", f"{date}--2"]
    config = Run(paths[0]).config
    assert config["started"].endswith("+00:00") and len(config["code"]) == 16
    assert config["task"] == "task" and config["data"] == {"a": "1"}
    assert "resume" not in config["arguments"] and config["arguments"]["seed"] == 400
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="file/task/400"):
        create_run(tmp_path / "file")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pth.tar"
    write_whole(path, b"first")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(RunError, match="No space"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_rows_after_a_checkpoint_are_dropped_and_lost_rows_are_written_again(tmp_path):
    run = create_run(tmp_path)
    for epoch in (1, 2, 3):
        run.add_row("metrics.csv", {"epoch": epoch, "loss": 0.1 * epoch, "n_mean": None})
        if epoch == 2:
            text = run.tables["metrics.csv"]
    run.write_table("metrics.csv", text)
    assert [row["epoch"] for row in rows(run, "metrics.csv")] == ["1", "2"]
    (run.path / "metrics.csv").unlink()
    run.add_row("metrics.csv", {"loss": 0.3, "epoch": 3, "n_mean": None})
    *_, second, third = rows(run, "metrics.csv")
    assert float(second["loss"]) == 0.2 and second["n_mean"] == "" and third["epoch"] == "3"
    run.write_table("metrics.csv", "")
    assert not (run.path / "metrics.csv").exists()


def finish(run):
    run.save(f"e_{run.config['arguments']['epochs']}.pth.tar", {})
    run.finish()


def test_complete_runs_come_first_then_the_newest(tmp_path, capsys):
    tokyo, berlin, complete = (create_run(tmp_path) for _ in range(3))
    tokyo.config["started"] = "2026-11-01T08:00:00+09:00"  # two hours before the next
    berlin.config["started"] = "2026-11-01T02:00:00+01:00"
    complete.config["started"] = "2020-01-01T00:00:00+00:00"
    for run in (tokyo, berlin):
        run.write_config()
    finish(complete)
    for folder, content in (("foreign", "[1]"), ("torn", '{"script": "ta')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(content)
    runs = find_runs(tmp_path)
    assert [run.path for run in runs] == [complete.path, berlin.path, tokyo.path]
    err = capsys.readouterr().err
    assert "foreign: not a run" in err and "torn: not a run" in err


def test_a_folder_that_is_deleted_meanwhile_is_no_error(tmp_path, monkeypatch):
    run, scandir = create_run(tmp_path), os.scandir
    (tmp_path / "removed").mkdir()
    monkeypatch.setattr("os.scandir", lambda path: scandir(str(path).replace("removed", "absent")))
    assert [found.path for found in find_runs(tmp_path)] == [run.path]


def test_a_run_is_complete_while_its_files_are_there(tmp_path):
    run = create_run(tmp_path, epochs=2)
    run.add_row("metrics.csv", {"epoch": 2, "loss": 1.0})
    assert not run.complete
    for name in ("e_2.pth.tar", "metrics.csv"):
        finish(run)
        assert Run(run.path).complete
        (run.path / name).unlink()
        assert not Run(run.path).complete


def test_the_identity_is_what_is_trained_on_which_data(tmp_path):
    run, moved = create_run(tmp_path), create_run(tmp_path, note="moved", snapshot_minutes=1)
    assert run.identity == moved.identity
    for change in ({"lr": 0.1}, {"epochs": 3}, {"limit_batches": 2}):
        assert create_run(tmp_path, **change).identity != run.identity
    moved.config["data"] = {"a": "2"}
    assert moved.identity != run.identity
    for config in (moved.config, run.config):  # of a script that makes its data
        del config["arguments"]["dataset"]
    assert moved.identity == run.identity


def test_a_lock_names_its_holder(tmp_path):
    run = create_run(tmp_path)
    with pytest.raises(RunError, match=rf"another process is .* process {os.getpid()}\)"):
        Run(run.path).lock()
    (run.path / ".config.json.123.part").write_text("left by a process that was killed")
    run.close()
    other = Run(run.path)
    other.lock()
    assert not list(run.path.glob(".*.part"))
    other.close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_mentioned(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(number, "no locks")))
    for _ in range(2):  # the first process may have been killed
        assert take_lock(tmp_path / LOCK) is not None
        assert "this file system has no locks" in capsys.readouterr().err


def test_files_of_absurd_kind_or_size_are_refused(tmp_path):
    for path, reason in (("/dev/zero", "not a file"), (tmp_path / "absent", "no such file")):
        with pytest.raises(RunError, match=reason):
            read_text(Path(path))
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**27)
    with pytest.raises(RunError, match=r"larger than \d+ bytes"):
        read_text(tmp_path / "large")
    with pytest.raises(RunError, match="no such file"):
        Run(tmp_path)
