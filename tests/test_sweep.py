"""Sweeps: which runs they train and where, and how they resume after failures and signals."""

import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import joblib
import psutil
import pytest
import torch

from NetworkCreation.checkpoints import LAST
from tests.conftest import PTB, REPOSITORY, SMNIST, TOY, call_main, rows, write_corpus
from tests.forks import Fork, dask, wait_for
from tests.test_scripts import metrics
from Training import once, sweep, workers
from Training.run_directory import LOCK, RunBusy, find_runs, take_lock

SCRIPT = str(REPOSITORY / SMNIST)
DIGITS = ["--dataset", "digits", "--nonlin", "gamma", "--nhid", "4", "--limit-batches", "2"]
ONE, TWO, THREE = ([*DIGITS, "--epochs", number] for number in "123")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words):
    """What a sweep that must succeed prints."""
    code, out, err = call_main(sweep.main, SCRIPT, *words)
    assert code == 0, err
    return out


def saved(root="SavedModels"):
    """{seed: run} of the runs below root, which differ in their seeds."""
    runs = find_runs(root)
    by_seed = {run.config["arguments"]["seed"]: run for run in runs}
    assert len(by_seed) == len(runs)
    return by_seed


def back_to_start(run):
    """Turns a run of two epochs into one that was stopped in the first."""
    (run.path / "e_2.pth.tar").unlink()
    (run.path / LAST).write_bytes((run.path / "e_0.pth.tar").read_bytes())


def log(run):
    return (run.path / "log.txt").read_text()


def test_every_combination_is_trained_once(folder, in_this_process):
    def initial():
        arguments = [run.config["arguments"] for run in find_runs("SavedModels")]
        return sorted((a["n"], a["s"]) for a in arguments)

    out = call("--gain", "1", "-2.5", "--saturation", "0", "--", *ONE)
    assert out == "2 runs: 2 finished\n" and initial() == [(-2.5, 0), (1, 0)]
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth.tar")}
    out = call("--gain=1.0", "-2.5", "--saturation", "0", "0.5", "--", *ONE)
    assert out == "4 runs: 4 finished\n"
    assert initial() == [(-2.5, 0), (-2.5, 0.5), (1, 0), (1, 0.5)]
    assert all(path.stat().st_mtime_ns == before for path, before in files.items())


def test_other_data_make_another_run(folder, in_this_process, error_of):
    for place, symbol in {"A": b"a", "B": b"b", "copy of A": b"a"}.items():
        write_corpus(folder / place / "pennchar", (symbol + b" _ c\n") * 200)
    script, flags = str(REPOSITORY / PTB), [*TOY[PTB][2:], "--any-corpus", "--epochs", "1"]
    assert once.main([script, *flags, "--data", "A"]) == 0
    assert sweep.main([script, "--data", "A", "B", "--", *flags]) == 0
    assert len(find_runs("SavedModels")) == 2
    code, out, _ = call_main(once.main, script, *flags, "--data", "copy of A")
    assert code == 0 and "already finished" in out
    error = error_of(sweep.main, script, "--data", "A", "copy of A", "--", *flags)
    assert "--data A and --data 'copy of A' are the same run" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gain", "1", "0", "--", *ONE], "argument --n/--gain"),  # rejected by the script
        (["--gian", "1", "--", *ONE], "--gian: did you mean --gain?"),
        (["1", "--gain", "2"], "unrecognized argument 1"),
        (["--gain", "--", *ONE], "--gain: has no values"),
        (["--n", "1", "2", "--gain=3"], "--gain: given twice"),
        (["--n", "1", "2", "--", "--n=9"], "--n: given twice"),
        (["--seed", "1", "--", "--lr", "1e-3", "--lr=1e-4"], "--lr: given twice"),
        (["--note", "x", "y"], "--note x and --note y are the same run"),
        (["--seed", "1", "01"], "--seed 1 and --seed 01 are the same run"),
        (["--seed", "1", "-p"], "-p: has no values; flags for all runs go after --"),
        (["--jobs", "2", "--scheduler", "a:1", "--gain", "1"], "--scheduler: not allowed with"),
    ],
)
def test_a_mistake_is_a_one_line_error_before_any_run(folder, error_of, words, message):
    assert message in error_of(sweep.main, SCRIPT, *words)
    assert not list(folder.iterdir())


def test_a_file_that_is_no_script_and_a_folder_that_cannot_be_written(folder, error_of):
    for script in ("README.md", "absent_task.py", "tests/conftest.py"):
        error = error_of(sweep.main, REPOSITORY / script, "--gain", "1")
        assert f"{script} is not a task script" in error
    error = error_of(sweep.main, SCRIPT, "--seed", "1", "--", "--test", code=1)
    assert "--test and --resume do not train a new run" in error
    (folder / "file").touch()
    error = error_of(once.main, SCRIPT, *ONE, "--save-dir", "file/in the way", code=1)
    assert error == "once.py: error: file/in the way/.sweep: Not a directory\n"


def test_commands_are_those_of_unfinished_runs(folder, in_this_process):
    call("--seed", "1", "--", *ONE)
    out = call("--commands", "--seed", "1", "2", "--", *ONE, "--note", "it's new")
    (line,) = out.splitlines()
    assert line.startswith(f"python3 -m Training.once {SCRIPT} --seed 2 --dataset digits")
    words = shlex.split(line)
    assert words[-1] == "it's new" and once.main(words[3:]) == 0
    assert call("--commands", "--seed", "1", "2", "--", *ONE) == "" and len(saved()) == 2


def test_an_incomplete_run_is_resumed_and_its_warning_is_passed_on(folder, in_this_process):
    words = ["--seed", "1", "--", *TWO, "--save-dir=-x"]
    call(*words)
    run = saved("-x")[1]
    rows = metrics(run.path)
    back_to_start(run)
    run.config["code"] = "other"
    run.write_config()
    changed = {"data": str(folder / "elsewhere"), "note": "moved", "cuda": False}
    words += ["--data", "elsewhere", "--note", "moved", "--no-cuda"]
    code, _, err = call_main(sweep.main, SCRIPT, *words)
    run = saved("-x")[1]
    assert run.complete and run.config["arguments"].items() >= changed.items()
    assert "resumed after 0 epochs" in log(run) and metrics(run.path) == rows
    command, warning = err.splitlines()
    assert code == 0 and command.startswith(f"{SCRIPT} --seed 1 ")
    assert warning.startswith("    warning: this run was begun with other code")


def test_a_failed_run_is_listed_and_does_not_stop_the_others(folder, in_this_process):
    words = ["--lr", "1e30", "1e-3", "--", *DIGITS[:-1], "9", "--epochs", "1"]
    code, out, _ = call_main(sweep.main, SCRIPT, *words)
    assert code == 1 and "2 runs: 1 finished, 1 failed\n" in out
    assert f"failed: {SCRIPT} --lr 1e30" in out and "exit code 1: stopped:" in out
    assert [r.config["arguments"]["lr"] for r in find_runs("SavedModels") if r.complete] == [1e-3]


def test_a_run_locked_by_another_process_is_left_to_it(folder, in_this_process):
    call("--seed", "1", "--", *TWO)
    run = saved()[1]
    back_to_start(run)
    for path in (*Path("SavedModels/.sweep").iterdir(), run.path / LOCK):
        lock = take_lock(path)
        out = call("--seed", "1", "2", "--", *TWO)
        assert out == "2 runs: 1 finished, 1 being trained elsewhere\n"
        assert once.main([SCRIPT, "--seed", "1", *TWO]) == os.EX_TEMPFAIL
        assert saved()[2].complete and not saved()[1].complete
        lock.release()


def test_each_run_has_its_own_gpu(folder, monkeypatch):
    """With two simulated GPUs and six processors."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 6)
    monkeypatch.setattr(sweep, "TICK", 0.01)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweep.gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7,9")
    started = []

    def run_in_subprocess(words, stopped, threads, repository, **environment):
        started.append((environment.get("CUDA_VISIBLE_DEVICES", "none"), threads))
        together.wait(timeout=60)
        return 0, ""

    monkeypatch.setattr(workers, "run_in_subprocess", run_in_subprocess)
    seeds, together = ["--seed", *"1234", "--", *ONE], threading.Barrier(2)
    call(*seeds)
    assert sorted(started[:2]) == sorted(started[2:]) == [("5", 3), ("GPU-7", 3)]
    together = threading.Barrier(4)
    call("--jobs=4", *seeds)
    call(*seeds, "--no-cuda")
    assert sorted(started[4:8]) == [*[("5", 1)] * 2, *[("GPU-7", 1)] * 2]  # two runs per GPU
    assert started[8:] == [("none", 1)] * 4


def test_a_run_in_its_own_process_reports_its_error():
    code, out = workers.run_in_subprocess([SCRIPT, "--nhdi", "1"], lambda: False, 1, REPOSITORY)
    assert code == 2 and out.endswith("unrecognized argument --nhdi: did you mean --nhid?\n")


def is_free(run):
    with contextlib.suppress(RunBusy):
        return bool(take_lock(run.path / LOCK))  # which releases it at once


def epochs_of(seed):
    """The number of epochs that the run with this seed has finished."""
    run = saved().get(seed)
    return 0 if run is None else len(rows(run, "metrics.csv"))


def hold(folder, seeds):
    """Lets only the runs with these seeds pause after each epoch; see `tests.forks`."""
    for path in folder.glob("hold*"):
        path.unlink()
    for seed in seeds:
        (folder / f"hold{seed}").touch()


def test_a_stopped_sweep_is_resumed(folder, in_this_process):
    """The run in progress saves and ends when its sweep is killed, as on Ctrl-C."""
    words = ["--seed", "1", "2", "--jobs", "1", "--", *THREE, "--no-cuda"]
    hold(folder, [1])
    for epoch, number, code in ((1, signal.SIGKILL, -9), (2, signal.SIGINT, 130)):
        process = Fork(sweep.main, [SCRIPT, *words], folder=folder)
        wait_for(lambda epoch=epoch: epochs_of(1) == epoch, process)
        process.send_signal(number)
        ended, out, _ = process.finish()
        assert ended == code and ("2 runs: 2 not trained to the end" in out) == (code == 130)
        run = saved()[1]
        wait_for(lambda run=run: is_free(run))
        assert log(run).count("SIGTERM: saved") == epochs_of(1) == epoch and len(saved()) == 1
    call(*words)
    assert len(saved()) == 2 and all(run.complete for run in saved().values())


def test_a_run_whose_workers_died_is_submitted_again_while_it_progresses(folder):
    class KilledWorker(Exception):
        """Named as that of `distributed`."""

    assert once.main([SCRIPT, *ONE]) == 0
    (run,) = find_runs("SavedModels")
    parser, args, lists, common = sweep.parse([SCRIPT, "--", *ONE])
    runs = sweep.combinations(parser, args.script, lists, common)
    submitted = []

    def submit(words):
        submitted.append(words)
        os.utime(run.path / LAST, ns=(0, min(len(submitted), 3)))
        future = Future()
        future.set_exception(KilledWorker("its workers died"))
        return future

    assert [*sweep.train(runs, submit, threading.Event())] == [(runs[0], None, "its workers died")]
    assert len(submitted) == 4


def test_a_lost_scheduler_or_a_missing_folder_or_package_is_named(folder, monkeypatch, error_of):
    def error(*more):
        words = ["--scheduler", "tcp://127.0.0.1:1", "--seed", "1", "--", *ONE, *more]
        return error_of(sweep.main, SCRIPT, *words, code=1)

    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install distributed" in error()
    (future := Future()).cancel()
    monkeypatch.setattr(workers, "cluster", lambda *_: contextlib.nullcontext(lambda _: future))
    assert "error: lost the connection" in error()
    (folder / "file").touch()
    assert "error: " in (message := error("--save-dir", "file/runs"))
    assert "--scheduler" not in message


@pytest.fixture
def cluster(folder):
    """The address of a scheduler, and a function that starts a single-threaded worker process."""
    pytest.importorskip("distributed")
    file = folder / "scheduler.json"
    options = ("--host", "127.0.0.1", "--scheduler-file", str(file), "--no-dashboard")
    started = [Fork(dask, "scheduler", *options, "--port", "0")]
    wait_for(lambda: file.exists() and file.stat().st_size, *started)

    def start_worker():
        started.append(Fork(dask, "worker", *options, "--nthreads", "1", "--no-nanny"))
        return started[-1]

    yield json.loads(file.read_text())["address"], start_worker
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.finish()


def test_a_run_that_waits_for_a_worker_gets_the_first_that_joins(cluster, folder):
    distributed = pytest.importorskip("distributed")
    address, start_worker = cluster
    words = [SCRIPT, "--scheduler", address, "--seed", "1", "--", *ONE, "--no-cuda"]
    process = Fork(sweep.main, words, folder=folder)
    with distributed.Client(address) as client:

        def waiting():
            return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.unrunnable))

        wait_for(lambda: waiting() == 1, process)
        worker = start_worker()
        wait_for(lambda: waiting() == 0, process, worker)
    code, out, err = process.finish()
    assert code == 0 and "1 runs: 1 finished" in out, err


def test_a_sweep_on_a_cluster_survives_ctrl_c_and_the_death_of_a_worker(cluster, folder):
    distributed = pytest.importorskip("distributed")
    address, start_worker = cluster
    started = [start_worker(), start_worker()]
    with distributed.Client(address) as client:
        client.wait_for_workers(2, timeout=240)
    words = [SCRIPT, "--scheduler", address, "--seed", *"1234", "--", *THREE, "--no-cuda"]
    with pytest.raises(FileNotFoundError, match="has no /dev/null/absent"):
        workers.cluster(address, ["/dev/null/absent"]).__enter__()
    hold(folder, range(1, 5))
    process = Fork(sweep.main, words, folder=folder)
    wait_for(lambda: [epochs_of(seed) for seed in range(1, 5)].count(1) == 2, process, *started)
    process.send_signal(signal.SIGINT)
    assert process.finish()[0] == 130
    begun = saved()
    wait_for(lambda: all(map(is_free, begun.values())), *started)
    assert len(begun) == 2 and all("SIGTERM: saved" in log(run) for run in begun.values())

    lost, other = sorted({1, 2, 3, 4} - {*begun})
    hold(folder, [lost, other])
    process = Fork(sweep.main, words, folder=folder)
    wait_for(lambda: epochs_of(lost) == epochs_of(other) == 1, process, *started)
    (run,) = psutil.Process(started[0].process.pid).children()
    started[0].send_signal(signal.SIGKILL)
    run.kill()
    hold(folder, [])
    code, out, err = process.finish()
    assert code == 0 and "4 runs: 4 finished" in out, err
    assert all(run.complete for run in saved().values())
    assert "resumed after" in log(saved()[lost]) + log(saved()[other])
    assert once.main([SCRIPT, "--seed", str(lost), *THREE, "--save-dir", "undisturbed"]) == 0
    assert metrics(saved("undisturbed")[lost].path) == metrics(saved()[lost].path)
