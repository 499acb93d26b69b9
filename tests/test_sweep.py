"""Sweeps: which runs they train and where, and how they resume after failures and signals."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import joblib
import pytest
import torch

from tests.conftest import REPOSITORY
from tests.forks import Fork, dask, wait_for
from Training import once, sweep, workers
from Training.run_directory import LAST, LOCK, find_runs

SCRIPT = str(REPOSITORY / "sMNIST_task.py")
TOY = ["--dataset", "digits", "--nonlin", "gamma", "--nhid", "4", "--limit-batches", "2"]
TOY += ["--epochs", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words, script=SCRIPT):
    return sweep.main([script, *words])


@contextlib.contextmanager
def one_after_the_other(*_):
    """Replaces `workers.processes`: trains the runs in this process."""

    def submit(words):
        future, out = Future(), io.StringIO()
        with contextlib.redirect_stdout(out):
            code = once.main(words)
        future.set_result((code, out.getvalue().strip().splitlines()[-1]))
        return future

    yield submit


@pytest.fixture
def in_this_process(monkeypatch):
    """For tests that are not about processes."""
    monkeypatch.setattr(workers, "processes", one_after_the_other)
    monkeypatch.setattr(sweep, "TICK", 0.01)


def back_to_start(run):
    """Turns a run of two epochs into one that was stopped in the first."""
    (run.path / "e_2.pth.tar").unlink()
    (run.path / LAST).write_bytes((run.path / "e_0.pth.tar").read_bytes())


def without_times(run):
    return [{**row, "seconds": None} for row in run.rows("metrics.csv")]


def initial(runs):
    return sorted((r.config["arguments"]["n"], r.config["arguments"]["s"]) for r in runs)


def test_every_combination_is_trained_once(folder, in_this_process, capsys):
    common = ["--", *TOY, "--no-learn_params"]
    assert call("--gain", "1", "-2.5", "--saturation", "0", *common) == 0
    assert initial(find_runs("SavedModels")) == [(-2.5, 0), (1, 0)]
    assert "2 trained" in capsys.readouterr().out
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth.tar")}
    assert call("--gain", "1.0", "-2.5", "--saturation", "0", "0.5", *common) == 0
    assert initial(find_runs("SavedModels")) == [(-2.5, 0), (-2.5, 0.5), (1, 0), (1, 0.5)]
    assert "2 already finished, 2 trained" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == then for path, then in files.items())


def test_other_arguments_make_another_run(folder, in_this_process, capsys):
    assert call("--seed", "1", "--", *TOY) == 0
    assert call("--seed", "1", "--", *TOY, "--lr", "1e-3") == 0
    assert "finished" not in capsys.readouterr().out
    assert len(find_runs("SavedModels")) == 2


def test_an_incomplete_run_is_resumed(folder, in_this_process, capsys):
    assert call("--seed", "1", "--", *TOY, "--epochs", "2") == 0
    (run,) = find_runs("SavedModels")
    rows = without_times(run)
    back_to_start(run)
    capsys.readouterr()
    anew = {"data": str(folder / "elsewhere"), "note": "moved", "verbose": True, "cuda": False}
    words = ["--data", "elsewhere", "--note", "moved", "-v", "--no-cuda"]
    assert call("--seed", "1", "--", *TOY, "--epochs", "2", *words) == 0
    (run,) = find_runs("SavedModels")
    assert run.complete and run.config["arguments"].items() >= anew.items()
    assert "resumed after 0 epochs" in (run.path / "log.txt").read_text()
    assert without_times(run) == rows


def test_equal_values_make_one_run(folder, in_this_process, capsys):
    assert call("--gain", "1", "1.0", "1e0", "--seed", "1", "01", "--", *TOY) == 0
    assert len(find_runs("SavedModels")) == 1
    assert "1 runs: 1 trained" in capsys.readouterr().out


def test_a_failed_run_is_listed_and_does_not_stop_the_others(folder, in_this_process, capsys):
    words = ["--lr", "1e30", "1e-3", "--", *TOY, "--limit-batches", "9"]
    assert call(*words) == 1
    out = capsys.readouterr().out
    assert "1 trained to the end, 1 failed" in out
    assert f"failed: {SCRIPT} --lr 1e30" in out and "exit code 1: stopped:" in out
    assert [r.config["arguments"]["lr"] for r in find_runs("SavedModels") if r.complete] == [1e-3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gain", "1", "0", "--", *TOY], "--gain"),  # rejected by the script
        (["--gian", "1", "--", *TOY], "--gian"),
        (["--gain", "--", *TOY], "--gain: has no values"),
        (["--gain", "1", "--gain", "2"], "--gain: given twice"),
        (["--jobs", "0", "--gain", "1"], "--jobs"),
        (["--jobs", "2", "--scheduler", "a:1", "--gain", "1"], "--scheduler: not allowed with"),
        (["--seed", "1", "--", "--test"], "--test: does not train"),
        (["--seed", "1", "--", "--resume=x"], "--resume: does not train"),
    ],
)
def test_a_mistake_is_a_one_line_error_before_any_run(folder, capsys, words, said):
    with pytest.raises(SystemExit) as exit:
        call(*words)
    err = capsys.readouterr().err
    assert exit.value.code == 2 and said in err and err.count("\n") == 1
    assert not list(folder.iterdir())


@pytest.mark.parametrize("script", ["README.md", "nothing_task.py"])
def test_a_file_that_is_not_a_script_is_rejected(folder, capsys, script):
    with pytest.raises(SystemExit) as exit:
        call("--gain", "1", script=str(REPOSITORY / script))
    assert exit.value.code == 2 and script in capsys.readouterr().err


@pytest.mark.parametrize("held", ["the combination's", "the run's"])
def test_a_run_locked_by_another_process_is_left_to_it(
    folder, in_this_process, capsys, monkeypatch, held
):
    words = ["--seed", "1", "2", "--", *TOY, "--epochs", "2"]
    assert call("--seed", "1", "--", *TOY, "--epochs", "2") == 0
    (run,) = find_runs("SavedModels")
    back_to_start(run)
    (lock,) = (
        [run.path / LOCK] if held == "the run's" else (folder / "SavedModels/.sweep").iterdir()
    )
    lock = once.take(lock)
    assert lock is not None
    monkeypatch.setattr(sweep, "POLL", 0.02)
    capsys.readouterr()

    def other_is_trained():
        return any(r.complete for r in find_runs("SavedModels", seed=2))

    def release():
        wait_for(other_is_trained)
        lock.close()

    with ThreadPoolExecutor() as pool:
        released = pool.submit(release)
        assert call(*words) == 0
        released.result()
    out, err = capsys.readouterr()
    assert f"another process is training this run: {SCRIPT} --seed 1" in err
    assert "2 runs: 2 trained to the end" in out
    assert len(find_runs("SavedModels")) == 2 and run.complete


def test_a_run_finished_meanwhile_is_not_trained_again(folder, in_this_process, capsys):
    words = [SCRIPT, "--seed", "1", *TOY]
    assert once.main(words) == 0
    assert once.main(words) == 0
    assert "already finished" in capsys.readouterr().out
    assert len(find_runs("SavedModels")) == 1


def test_commands_are_those_of_unfinished_runs(folder, in_this_process, capsys):
    assert call("--seed", "1", "--", *TOY) == 0
    capsys.readouterr()
    assert call("--commands", "--seed", "1", "2", "--", *TOY, "--note", "it's new") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"python3 -m Training.once {SCRIPT} --seed 2 --dataset digits")
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True)
    words = words.stdout.splitlines()
    assert words[-1] == "it's new"
    assert once.main(words[3:]) == 0
    assert call("--commands", "--seed", "1", "2", "--", *TOY) == 0
    assert len(find_runs("SavedModels")) == 2


def test_a_full_standard_output_loses_no_run(folder, in_this_process, capsys, monkeypatch):
    words = ["--seed", "1", "--", *TOY, "--note", "γ"]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert call("--commands", *words) == 0
    assert b"--note '\\u03b3'" in sys.stdout.buffer.getvalue()
    for number, more in enumerate([["--commands"], []]):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert call(*more, *words) == 1
        said = "sweep.py: error: /dev/full: cannot be written (No space left on device)\n"
        assert capsys.readouterr().err.endswith(said)
        assert len(find_runs("SavedModels")) == number


@pytest.mark.parametrize("visible", [None, "5,GPU-7,9"])
def test_each_run_has_its_own_gpu(folder, monkeypatch, visible):
    """With two simulated GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 6)
    monkeypatch.setattr(sweep, "TICK", 0.01)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    in_use, seen, lock, together = [], [], threading.Lock(), threading.Barrier(2)

    def attend(words, stopped, threads, repository, **environment):
        device = environment.get("CUDA_VISIBLE_DEVICES")
        with lock:
            in_use.append(device)
            seen.append((device, threads, len(in_use), in_use.count(device)))
        together.wait(timeout=60)
        with lock:
            in_use.remove(device)
        return 0, ""

    monkeypatch.setattr(workers, "attend", attend)
    seeds = ["--seed", *"123456"]
    assert call(*seeds, "--", *TOY) == 0
    names = {"0", "1"} if visible is None else {"5", "GPU-7"}
    assert {device for device, *_ in seen} == names and len(seen) == 6
    assert all(threads == 3 and alike == 1 for _, threads, _, alike in seen)
    assert max(number for _, _, number, _ in seen) == 2

    seen.clear()
    assert call("--jobs", "4", *seeds, "--", *TOY) == 0  # two runs per GPU
    assert {device for device, *_ in seen} == names
    assert all(threads == 1 and alike <= 2 for _, threads, _, alike in seen)

    seen.clear()
    together = threading.Barrier(6)
    assert call(*seeds, "--", *TOY, "--no-cuda") == 0
    assert {(device, threads) for device, threads, _, _ in seen} == {(None, 1)}
    assert max(number for _, _, number, _ in seen) == 6


def log(path):
    return (path / "log.txt").read_text()


def rows(seed):
    """The number of epochs that the run with this seed has finished."""
    return sum(len(run.rows("metrics.csv")) for run in find_runs("SavedModels", seed=seed))


def test_a_stopped_sweep_is_resumed(folder, in_this_process):
    """The run in progress saves and ends when its sweep is killed, as on Ctrl-C."""
    words = ["--seed", "1", "2", "--jobs", "1", "--", *TOY, "--no-cuda", "--epochs", "3"]
    (folder / "hold1").touch()
    first = Fork(sweep.main, [SCRIPT, *words], folder=folder)
    wait_for(lambda: rows(1) == 1, first)
    first.send_signal(signal.SIGKILL)
    (run,) = find_runs("SavedModels")
    wait_for(lambda: once.is_free(run.path / LOCK))
    assert log(run.path).count("SIGTERM: saved") == 1 and rows(1) == 1

    second = Fork(sweep.main, [SCRIPT, *words], folder=folder)
    wait_for(lambda: rows(1) == 2, second)
    second.send_signal(signal.SIGINT)
    code, out, _ = second.finish()
    assert code == 130 and "2 runs: 2 not trained to the end" in out
    assert log(run.path).count("SIGTERM: saved") == 2 and rows(1) == 2
    assert len(find_runs("SavedModels")) == 1

    assert call(*words) == 0
    found = find_runs("SavedModels")
    assert len(found) == 2 and all(run.complete for run in found)


def test_a_run_in_its_own_process_reports_its_error(folder):
    code, said = workers.attend([SCRIPT, "--nhdi", "1"], lambda: False, 1, workers.REPOSITORY)
    assert code == 2 and said.endswith("unrecognized argument --nhdi: did you mean --nhid?")


# On a Dask cluster


def test_without_distributed_a_one_line_error_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SystemExit) as exit:
        call("--scheduler", "tcp://127.0.0.1:1", "--seed", "1", "--", *TOY)
    err = capsys.readouterr().err
    assert exit.value.code == 2 and "pip install distributed" in err and err.count("\n") == 1


@pytest.fixture
def cluster(folder):
    """The address of a scheduler, and its two single-threaded worker processes."""
    distributed = pytest.importorskip("distributed")
    file = folder / "scheduler.json"
    options = ("--host", "127.0.0.1", "--scheduler-file", str(file), "--no-dashboard")
    started = [Fork(dask, "scheduler", *options, "--port", "0")]
    wait_for(lambda: file.exists() and file.stat().st_size, *started)
    options += ("--nthreads", "1", "--no-nanny")
    started += [Fork(dask, "worker", *options) for _ in range(2)]
    address = json.loads(file.read_text())["address"]
    with distributed.Client(address) as client:
        client.wait_for_workers(2, timeout=240)
    yield address, started[1:]
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.finish()


def test_a_sweep_on_a_cluster_survives_ctrl_c_and_the_death_of_a_worker(
    cluster, folder, in_this_process
):
    psutil = pytest.importorskip("psutil")
    address, started = cluster
    words = ["--seed", *"123456", "--", *TOY, "--no-cuda", "--epochs", "3"]
    assert call(*words, "--save-dir", "undisturbed") == 0
    expected = {r.config["arguments"]["seed"]: without_times(r) for r in find_runs("undisturbed")}
    assert len(expected) == 6

    with (
        pytest.raises(FileNotFoundError, match="has no /nowhere"),
        workers.cluster(address, ["/nowhere"]),
    ):
        pass

    def begin(held):
        """Starts a sweep whose two workers pause in runs of these seeds, partly trained."""
        for path in folder.glob("hold*"):
            path.unlink()
        for seed in held:
            (folder / f"hold{seed}").touch()
        process = Fork(sweep.main, [SCRIPT, "--scheduler", address, *words], folder=folder)
        wait_for(lambda: [rows(seed) for seed in held].count(1) == 2, process, *started)
        return process

    interrupted = begin(range(1, 7))
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.finish()[0] == 130
    begun = find_runs("SavedModels")
    wait_for(lambda: all(once.is_free(run.path / LOCK) for run in begun), *started)
    assert len(begun) == 2 and all("SIGTERM: saved" in log(run.path) for run in begun)

    untouched = {*range(1, 7)} - {run.config["arguments"]["seed"] for run in begun}
    process = begin(sorted(untouched)[:3])
    (lost,) = psutil.Process(started[0].process.pid).children()
    (path,) = {file.path for file in lost.open_files() if file.path.endswith(f"/{LOCK}")}
    started[0].send_signal(signal.SIGKILL)
    lost.kill()
    for held in folder.glob("hold*"):
        held.unlink()
    code, out, err = process.finish()
    assert code == 0 and "6 runs: 6 trained to the end" in out, err
    assert "resumed after" in log(Path(path).parent)
    found = find_runs("SavedModels")
    assert {r.config["arguments"]["seed"]: without_times(r) for r in found} == expected
    assert len(found) == 6 and all(run.complete for run in found)
