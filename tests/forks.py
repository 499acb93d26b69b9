"""Preload of the Dask workers in tests: makes a run a fork, which has imported everything already.

A worker otherwise starts an interpreter per run, which takes as long as hundreds of toy epochs.
"""

import contextlib
import os
import signal
import subprocess
import sys

import sklearn.datasets  # noqa: F401
import torch._dynamo  # noqa: F401 — torch.optim imports it when it is first used

import sMNIST_task  # noqa: F401
from Training import once

Popen = subprocess.Popen


def popen(command, *args, **options):
    """Popen, but a fork in place of `python -m Training.once WORD ...`."""
    if "Training.once" not in command:
        return Popen(command, *args, **options)

    def run():
        os.closerange(3, 256)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(options["env"])
        code = 1
        with contextlib.suppress(Exception):
            code = once.main(command[3:])
        sys.stdout.flush()
        os._exit(code)

    return Popen(command, *args, preexec_fn=run, **options)


def dask_setup(worker):
    """Called by a worker when it starts."""
    subprocess.Popen = popen
