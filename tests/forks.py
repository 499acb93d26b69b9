"""Processes that start fast: forks of a server that has already imported the slow modules.

A toy run takes less time than `import torch`. The server only imports torch, whose threads and GPU
state do not survive a fork.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tqdm import tqdm

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch._dynamo", "tensorboardX.event_file_writer", "sklearn.datasets", "distributed"]
)
SECONDS = 300  # time limit of a process
Popen = subprocess.Popen


class Fork:
    """A process that calls function(*arguments) in a folder and exits with its return value.

    Its output goes to the files `out` and `err`. If it starts `python -m Training.once`, that
    process is a fork of it too.
    """

    def __init__(self, function, *arguments, folder="."):
        self.out, self.err = (
            tempfile.NamedTemporaryFile("r", encoding="utf-8")  # noqa: SIM115 — closed when dropped
            for _ in range(2)
        )
        arguments = (self.out.name, self.err.name, os.path.abspath(folder), function, arguments)
        self.process = SERVER.Process(target=_run, args=arguments, daemon=True)
        self.process.start()

    @property
    def ended(self):
        return self.process.exitcode is not None

    def send_signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def finish(self):
        """Waits for the process; returns exit code, stdout and stderr."""
        self.process.join(SECONDS)
        assert self.ended, f"still running:\n{self.out.read()}{self.err.read()}"
        return self.process.exitcode, self.out.read(), self.err.read()


def wait_for(condition, *processes):
    """Waits until a condition holds; these processes must not end before."""
    end = time.monotonic() + SECONDS
    while not condition():
        ended = [process for process in processes if process.ended]
        assert not ended, f"ended too early: {[process.finish() for process in ended]}"
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def _run(out, err, folder, function, arguments):
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(folder)
    tqdm.set_lock(threading.RLock())  # the default semaphore outlives a killed process
    subprocess.Popen = _popen
    sys.exit(function(*arguments))


def _popen(command, *arguments, **options):
    """Popen that forks instead of running `python -m Training.once WORD ...`."""
    if "Training.once" not in command:
        return Popen(command, *arguments, **options)

    def run():
        os.closerange(3, 256)  # including the pipe on which Popen waits for exec
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(options["env"])
        code = 1
        with contextlib.suppress(Exception):
            code = train_once(command[3:])
        sys.stdout.flush()
        os._exit(code)

    return Popen(command, *arguments, preexec_fn=run, **options)


def train_once(words):
    """`Training.once`, paused after an epoch while the file hold<seed> exists."""
    from Training import once
    from Training.trainer import Trainer

    finish = Trainer.finish_epoch

    def finish_and_wait(trainer, *arguments, **options):
        finish(trainer, *arguments, **options)
        while Path(f"hold{trainer.args.seed}").exists() and trainer._signum is None:
            time.sleep(0.02)

    Trainer.finish_epoch = finish_and_wait
    return once.main(words)


def dask(*words):
    """Runs the command `dask`."""
    from dask.cli import run_cli

    sys.argv = ["dask", *words]
    run_cli()
