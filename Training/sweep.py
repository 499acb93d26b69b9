"""Runs a task script once for every combination of lists of values.

    python3 -m Training.sweep sMNIST_task.py --n 1 2.5 5 --s 0 0.5 1 --seed 400 401 \\
        -- --dataset digits --nonlin gamma --no-learn_params

Each flag before -- has a list of values; the arguments after it apply to all runs. Every run is a
process; runs share the processors, or have a GPU each. With --scheduler, the workers of a Dask
cluster train them; the repository, the working directory and the folder of runs must have the same
paths on every worker. --commands prints the commands, for a batch system, GNU parallel or a shell.

Re-running a sweep skips finished runs and resumes the others, which it recognises by their
arguments and data. Several sweeps can share the work: runs already being trained by another process
are skipped. A failed run does not stop the others. Ctrl-C and SIGTERM save the runs in progress; if
the sweep is killed, they save and exit as well.

The paper's grid: --n 1 2.5 5 7.5 10 12.5 15 17.5 20 --s 0 0.25 0.5 0.75 1
"""

import Training.machine  # isort: skip  # noqa: F401 — settings that torch reads when it loads

import contextlib
import itertools
import os
import shlex
import signal
import sys
import threading
from collections import Counter, namedtuple
from concurrent.futures import CancelledError

import joblib
import torch
from tqdm import tqdm

from NetworkCreation.checkpoints import LAST
from NetworkCreation.errors import UserError
from Training import workers
from Training.console import Progress, entry_point
from Training.machine import REPOSITORY
from Training.once import LOCKS, identity_of, load_script
from Training.parser import Parser, positive_int
from Training.run_directory import RunBusy, find_runs

TICK = 0.2  # seconds between checks of the runs
OUTCOMES = {0: "finished", RunBusy.exit_code: "being trained elsewhere"}


SweepRun = namedtuple("SweepRun", ["words", "args", "identity"])  # words: of its command


def combinations(parser, script, lists, common):
    """The runs, one for each choice of a value from every list.

    script: of `load_script`. lists: (flag, words). common: words for all runs. Exits if the script
    rejects one of them, or if two combinations are the same run.
    """
    runs = {}
    if flag := script["make_parser"]().repeated([*(flag for flag, _ in lists), *common]):
        parser.error(f"argument {flag}: given twice")
    pairs = ([(flag, value) for value in values] for flag, values in lists)
    for choice in itertools.product(*pairs):
        own = [word for pair in choice for word in pair]
        args, _ = script["parse"](own + common)
        run = SweepRun([script["path"], *own, *common], args, identity_of(args))
        same = runs.setdefault((run.identity, args.save_dir), run)
        if same is not run:
            before = shlex.join(same.words[1 : 1 + len(own)])
            parser.error(f"{before} and {shlex.join(own)} are the same run")
    return list(runs.values())


def unfinished(runs):
    """The runs that have no complete directory yet."""
    folders = {run.args.save_dir for run in runs}
    complete = {(saved.identity, f) for f in folders for saved in find_runs(f) if saved.complete}
    return [run for run in runs if (run.identity, run.args.save_dir) not in complete]


def gpus():
    """The names of the visible GPUs, for CUDA_VISIBLE_DEVICES."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(count)] if visible is None else visible.split(",")[:count]


def train(runs, submit, stopped):
    """Trains these runs until `stopped` is set; yields (run, exit code, output) as they end.

    submit: takes the words of a command and returns a future of its exit code and output. A run
    whose Dask workers died is submitted again as long as it progresses. Raises UserError if the
    connection to the Dask scheduler is lost.
    """
    pending = {submit(run.words): (run, None) for run in runs}
    while pending and not stopped.wait(TICK):
        for future in [future for future in pending if future.done()]:
            run, before = pending.pop(future)
            try:
                code, output = future.result()
            except CancelledError:  # by Dask
                message = "lost the connection to the scheduler; its runs save and exit"
                raise UserError(message) from None
            except Exception as error:  # of a Dask worker
                now = _saved_at(run)
                if type(error).__name__ == "KilledWorker" and now != before:
                    pending[submit(run.words)] = run, now
                    continue
                code, output = None, str(error)
            yield run, code, output


def _saved_at(run):
    """When the state of a run was last saved; None if it never was."""
    directories = [d for d in find_runs(run.args.save_dir) if d.identity == run.identity]
    states = [d.path / LAST for d in directories if (d.path / LAST).exists()]
    return max((state.stat().st_mtime_ns for state in states), default=None)


def parse(argv):
    """The sweep's parser and arguments, the lists (flag, words), and the words after --."""
    parser = Parser("python3 -m Training.sweep", __doc__)
    parser.usage = (
        "%(prog)s [-h] [--jobs N | --scheduler ADDRESS | --commands]\n"
        "           SCRIPT --FLAG VALUE ... [-- ARGUMENT ...]"
    )
    parser.add_argument("script", type=load_script, metavar="SCRIPT", help="a task script")
    flag = parser.add_mutually_exclusive_group().add_argument
    flag("--jobs", type=positive_int, metavar="N", help="runs at a time (default: one per GPU, or "
         "without GPUs one per processor)")  # fmt: skip
    flag("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://host:8786")
    flag("--commands", action="store_true", help="print the commands of the unfinished runs; "
         "do not train")  # fmt: skip
    end = argv.index("--") if "--" in argv else len(argv)
    args, words = parser.parse_known_args(argv[:end])
    lists = []
    for word in words:
        if parser.is_flag(word):
            name, equals, value = word.partition("=")
            lists.append((name, [value] if equals else []))
        elif lists:
            lists[-1][1].append(word)
        else:
            parser.error(f"unrecognized argument {word}")
    for name, values in lists:
        if not values:
            parser.error(f"argument {name}: has no values; flags for all runs go after --")
    return parser, args, lists, argv[end + 1 :]


def make_executor(args, runs, stopped):
    """The context manager of `Training.workers` that the flags ask for."""
    if args.scheduler is None:
        devices = gpus() if any(run.args.cuda is not False for run in runs) else []
        jobs = args.jobs or len(devices) or joblib.cpu_count()
        return workers.processes(jobs, devices, stopped.is_set)
    folders = {run.args.save_dir.absolute() / LOCKS for run in runs}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return workers.cluster(args.scheduler, [str(REPOSITORY), os.getcwd(), *map(str, folders)])


@entry_point
def main(argv=None):
    parser, args, lists, common = parse(sys.argv[1:] if argv is None else argv)
    runs = combinations(parser, args.script, lists, common)
    left = unfinished(runs)
    if args.commands:
        for run in left:
            print(shlex.join(["python3", "-m", "Training.once", *run.words]))
        return 0
    stopped, signum = threading.Event(), []

    def stop(number, frame):
        signum.append(number)
        stopped.set()

    counts, failures = Counter(finished=len(runs) - len(left)), []
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, stop))
        executor = make_executor(args, left, stopped)
        try:
            submit = stack.enter_context(executor)
        except (OSError, ValueError) as error:
            parser.error(f"argument --scheduler: {error}")
        bar = stack.enter_context(
            Progress(total=len(runs), initial=counts["finished"], desc="runs")
        )
        for run, code, output in train(left, submit, stopped):
            lines = output.strip().splitlines() or [""]
            for line in lines:
                if line.startswith("warning:"):
                    tqdm.write(f"{shlex.join(run.words)}\n    {line}", file=sys.stderr)
            if code in OUTCOMES:
                counts[OUTCOMES[code]] += 1
            elif not stopped.is_set():
                counts["failed"] += 1
                reason = lines[-1] if code is None else f"exit code {code}: {lines[-1]}"
                failures.append(f"failed: {shlex.join(run.words)}\n    {reason}")
                tqdm.write(failures[-1], file=sys.stderr)
            bar.update()
    counts["not trained to the end"] = len(runs) - counts.total()
    summary = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    print("\n".join([f"{len(runs)} runs: {summary}", *failures]))
    if signum:
        return 128 + signum[0]
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
