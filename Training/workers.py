"""Workers for the runs of a sweep: processes of this machine, or a Dask cluster.

`processes` and `cluster` are context managers. Each yields a function that takes the arguments of
`Training.once` and returns a future, whose `result()` is the exit code and the output.
"""

import contextlib
import itertools
import os
import queue
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import joblib

from Training.machine import REPOSITORY

RESOURCE = {"run": 1}  # of a Dask worker: it trains one run at a time


def run_in_subprocess(words, stopped, threads, repository, cwd=None, **environment):
    """Runs `Training.once` until it ends; returns its exit code and what it printed.

    stopped: a function; once it returns true, the run saves and exits. It does so as well if this
    process dies, which closes the pipe between them. threads: of the run.
    """
    path = os.pathsep.join(filter(None, [str(repository), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    # Dask sets both to 1 for its workers, and torch heeds MKL's before OpenMP's.
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    environment["PYTHONIOENCODING"] = "utf-8"
    with tempfile.TemporaryFile() as output:
        # In a session of its own, so that Ctrl-C reaches the sweep, which passes it on once.
        process = subprocess.Popen(
            [sys.executable, "-m", "Training.once", "--attended", *words],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
        with process.stdin:
            while process.returncode is None:
                if stopped():
                    process.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
        output.seek(0)
        return process.returncode, output.read().decode(errors="replace")


@contextlib.contextmanager
def processes(jobs, devices, stopped):
    """Trains `jobs` runs at a time, which share the processors and these GPUs."""
    threads = max(1, joblib.cpu_count() // jobs)
    free = queue.SimpleQueue()
    for device in itertools.islice(itertools.cycle(devices or [None]), jobs):
        free.put({} if device is None else {"CUDA_VISIBLE_DEVICES": device})

    def train(words):
        if stopped():
            return None, ""
        environment = free.get()
        try:
            return run_in_subprocess(words, stopped, threads, REPOSITORY, **environment)
        finally:
            free.put(environment)

    with ThreadPoolExecutor(jobs) as pool:
        yield lambda words: pool.submit(train, words)


@contextlib.contextmanager
def cluster(address, folders):
    """Trains one run at a time on each worker of the Dask scheduler at this address.

    folders: paths that every worker needs, the repository first. Raises ModuleNotFoundError without
    `distributed`, and OSError if there is no scheduler or a worker lacks a folder.
    """
    import cloudpickle
    import distributed

    class OneRun(distributed.WorkerPlugin):
        """Gives each worker the resource of a run, also a later one, if it has the folders."""

        name = "one run at a time"

        async def setup(self, worker):
            for folder in folders:
                if not os.path.isdir(folder):
                    raise FileNotFoundError(f"worker {worker.address} has no {folder}")
            await worker.set_resources(**RESOURCE)
            # The scheduler does not give waiting runs to a worker that gets a resource, but to one
            # that begins to run.
            if worker.status == distributed.Status.running:
                worker.status = distributed.Status.paused
                worker.status = distributed.Status.running

    def train(words):
        """Trains a run on a worker, until the task is cancelled or the sweep is gone."""
        worker = distributed.get_worker()
        key = worker.get_current_task()

        def stopped():
            # The scheduler cancels the tasks of a client that has disconnected.
            task = worker.state.tasks.get(key)
            closing = worker.status.name not in ("running", "paused")
            return closing or task is None or task.state != "executing"

        code, output = run_in_subprocess(words, stopped, worker.state.nthreads, folders[0], cwd)
        # After SIGINT or SIGTERM, for example from the batch system that ends the worker's job.
        if code in (-2, -15, 130, 143):
            raise distributed.Reschedule
        return code, output

    # Sends the functions of this file by value, so that workers need not import it.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cwd = os.getcwd()
    with distributed.Client(address) as client:
        client.register_plugin(OneRun())
        yield lambda words: client.submit(train, words, resources=RESOURCE, pure=False)
