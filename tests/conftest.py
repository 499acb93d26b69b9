"""Shared fixtures and settings: the real data, and scripts at toy size."""

import argparse
import contextlib
import csv
import io
import os
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

import PTB_task
import sMNIST_task
from Training import once, sweep, workers
from Training.config import describe
from Training.run_directory import Run
from Training.trainer import Trainer

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("DATA_DIR", REPOSITORY / "data")).resolve()

# One thread: at toy size a second one does not help, and on a busy machine the two wait for each
# other. Subprocesses inherit this.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

SMNIST, PTB = "sMNIST_task.py", "PTB_task.py"
MAINS = {SMNIST: sMNIST_task.main, PTB: PTB_task.main}
# Arguments of runs that take a second.
TOY = {
    SMNIST: "--dataset digits --nhid 8",
    PTB: "--dataset pydoc --nhid 8 --emsize 6 --batch_size 16 --bptt 12",
}
TOY = {name: f"{flags} --limit-batches 3 --lr 1e-3".split() for name, flags in TOY.items()}
# The arguments of a trainer and a run directory, unless a test changes them.
ARGUMENTS = vars(sMNIST_task.parse(["--nhid", "4", "--epochs", "2", "--save-freq", "1"])[0])
ARGUMENTS |= dict.fromkeys(("nonlin", "n", "s", "learn_params"))
ARGUMENTS |= {"script": "task.py", "cuda": False}

# An unclosed file may belong to another test, as Python reports it only on collecting it.
WARNINGS_FAIL = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")

# Files whose tests share slow fixtures; each group runs on one worker of pytest-xdist.
SHARING = {f"test_{name}.py": "toy runs" for name in ("notebooks", "supervision")}
SHARING |= {f"test_{name}.py": "forks" for name in ("scripts", "faults", "sweep")}
SHARING |= {f"test_{name}.py": name for name in ("report", "load_runs", "gamma_function")}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Schedules tests one by one, except for the groups of `SHARING`, which go first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return SHARING.get(Path(nodeid.split("::")[0]).name, nodeid)

    return Scheduler(config, log)


def call_main(main, *words):
    """Calls the main of a script or command; returns exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as exit:
            code = exit.code
    return code, out.getvalue(), err.getvalue()


def script_arguments(root, **changes):
    """The arguments of a script that saves its runs below root."""
    return argparse.Namespace(**{**ARGUMENTS, "save_dir": Path(root), **changes})


def rows(run, name):
    """The rows of a table of a run, as dictionaries of strings."""
    path = run.path / name
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


CREATED = contextlib.ExitStack()


def make_trainer(root, model, optimizer, scheduler=None, **changes):
    """A Trainer whose run is closed after the test; changes: to `ARGUMENTS`."""
    args = script_arguments(root, **changes)
    scheduler = scheduler or torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    trainer = Trainer(args, "task", model, {}, optimizer, scheduler, {"a": "1"})
    CREATED.callback(trainer.run.close)
    return trainer


def create_run(root, task="task", **changes):
    """A new run directory, which is closed after the test; changes: to `ARGUMENTS`."""
    args = script_arguments(root, **changes)
    config = describe(args, task, {}, {"a": "1"})
    return CREATED.enter_context(contextlib.closing(Run.create(args, config)))


def only_run_below(folder):
    """The directory of the only run below a folder."""
    (config,) = folder.rglob("config.json")
    return config.parent


def write_corpus(folder, content=b"a b\nc a\n", **parts):
    """Writes train.txt, valid.txt and test.txt; parts: those whose content differs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid", "test"):
        (folder / f"{name}.txt").write_bytes(parts.get(name, content))


def data_root(name):
    """The folder of the real data, or skips the test if it has no folder of this name."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in {DATA}; set DATA_DIR to the folder that holds it")
    return DATA


@pytest.fixture(autouse=True)
def independent():
    """Undoes the flushing that a script run in this process turns on; closes created runs."""
    torch.set_flush_denormal(False)
    with CREATED:
        yield


@pytest.fixture(scope="session")
def toy_runs(tmp_path_factory):
    """The folder of the analysed toy runs; see `tests.toy_runs.make`."""
    from tests import toy_runs

    return toy_runs.make(tmp_path_factory.mktemp("notebooks"))


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs a script, or the main of a command, in an empty directory; as `call_main`."""
    monkeypatch.chdir(tmp_path)
    return lambda script, *words: call_main(MAINS.get(script, script), *words)


@pytest.fixture
def succeed(call):
    """Runs a script or command that must succeed; returns stdout."""

    def run(script, *words):
        code, out, err = call(script, *words)
        assert code == 0, err
        return out

    return run


@pytest.fixture
def error_of(call):
    """Runs a script or command that must end with one line on stderr; returns this line."""

    def run(script, *words, code=2):
        ended, _, err = call(script, *words)
        assert ended == code and err.count("\n") == 1, err
        return err

    return run


@pytest.fixture
def in_this_process(monkeypatch):
    """Replaces `workers.processes`: trains runs one by one in this process; their exit codes."""
    codes = []

    def submit(words):
        future, (code, out, err) = Future(), call_main(once.main, *words)
        codes.append(code)
        future.set_result((code, out + err))
        return future

    monkeypatch.setattr(workers, "processes", lambda *_: contextlib.nullcontext(submit))
    monkeypatch.setattr(sweep, "TICK", 0.01)
    return codes


@pytest.fixture
def only_run(tmp_path):
    """The directory of the only run below a folder of the test's directory."""
    return lambda save_dir="SavedModels": only_run_below(tmp_path / save_dir)
