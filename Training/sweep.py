"""Runs a task script once for every combination of lists of values.

    python3 -m Training.sweep sMNIST_task.py --gain 1 2.5 5 --saturation 0 0.5 1 --seed 400 401 \\
        -- --dataset digits --nonlin gamma --no-learn_params

Each flag before -- has a list of values; the arguments after it apply to all runs. Every run is a
process; runs share the processors, or have a GPU each. With --scheduler, the workers of a Dask
cluster train them; these need this repository, the current directory and the folder of runs at the
same paths. --commands prints the commands, for a batch system, GNU parallel or a shell.

Started again, a sweep skips finished runs and resumes the others, which it recognises by their
saved arguments. Several sweeps can share the work: a run that another process is training is left
to it, and taken over if that process dies. A failed run does not stop the others. Ctrl-C and
SIGTERM save the runs in progress; if the sweep is killed, they save and exit as well.

The paper's grid: --gain 1 2.5 5 7.5 10 12.5 15 17.5 20 --saturation 0 0.25 0.5 0.75 1
"""

import contextlib
import itertools
import json
import os
import runpy
import shlex
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import NamedTuple

import joblib
import torch
from tqdm import tqdm

from Training import workers
from Training.flags import Parser, entry_point, positive_int
from Training.once import BUSY, FINISHED, LOCKS, check_mode, identity, is_free, task_script
from Training.output import report, say
from Training.run_directory import RunError, find_runs, has_arguments

OUTCOMES = {
    "finished": "already finished",
    "trained": "trained to the end",
    "failed": "failed",
    "stopped": "not trained to the end",
}
OWN = ("--jobs", "--scheduler", "--commands")
TICK, POLL = 0.2, 5  # seconds between checks of our own runs, and of those of other processes


class Combination(NamedTuple):
    """A run to train: the words of its command, its arguments as plain values, and --save-dir."""

    words: list
    arguments: dict
    save_dir: Path


def combinations(script, lists, common):
    """A Combination for every choice of one value from each list, and whether they may use a GPU.

    lists: {flag: words}. common: words for all runs. Equal values, such as 1 and 1.0, make one
    Combination. Exits like the script if it rejects one of them.
    """
    parse, found, cuda = runpy.run_path(str(script))["parse"], {}, False
    for choice in itertools.product(*lists.values()):
        words = [w for pair in zip(lists, choice, strict=True) for w in pair] + common
        _, args, _ = parse(words)
        one = Combination([str(script), *words], identity(args), args.save_dir)
        found.setdefault((args.save_dir, json.dumps(one.arguments, sort_keys=True)), one)
        cuda = cuda or args.cuda is not False
    return list(found.values()), cuda


def unfinished(runs, script):
    """The combinations that have no finished run."""
    saved = {folder: find_runs(folder, script.name) for folder in {run.save_dir for run in runs}}

    def finished(run, combination):
        with contextlib.suppress(RunError):  # damaged; reported when it is its turn
            return has_arguments(run, combination.arguments) and run.complete

    return [one for one in runs if not any(finished(run, one) for run in saved[one.save_dir])]


def gpus():
    """The names of the visible GPUs, for CUDA_VISIBLE_DEVICES."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(count)] if named is None else named.split(",")[:count]


def train(runs, submit, stopped):
    """Trains these combinations; yields the outcome of each and a remark, until stopped is set.

    submit: takes the words of a command and returns a future of its exit code and last line. A run
    that another process is training is submitted again once its lock is free. Raises CancelledError
    if the connection to the Dask scheduler is lost.
    """
    pending = [(submit(run.words), run) for run in runs]
    elsewhere, due = {}, 0
    while (pending or elsewhere) and not stopped.wait(TICK):
        ended = [(future, run) for future, run in pending if future.done()]
        pending = [(future, run) for future, run in pending if not future.done()]
        for future, run in ended:
            try:
                code, said = future.result()
            except CancelledError:  # by Dask, when its scheduler is gone
                raise
            except Exception as error:  # of a Dask worker
                code, said = None, str(error)
            if code == BUSY:
                report(f"another process is training this run: {shlex.join(run.words)}")
                elsewhere[said] = run
            elif stopped.is_set():
                yield "stopped", ""
            elif code == 0:
                yield "finished" if said.startswith(FINISHED) else "trained", ""
            else:
                reason = said if code is None else f"exit code {code}: {said}"
                yield "failed", f"{shlex.join(run.words)}\n    {reason}"
        if time.monotonic() >= due:
            for lock in [lock for lock in elsewhere if is_free(Path(lock))]:
                run = elsewhere.pop(lock)
                pending.append((submit(run.words), run))
            due = time.monotonic() + POLL


def parse(argv):
    """The sweep's parser and arguments, the lists {flag: words}, and the words after --."""
    parser = Parser("python3 -m Training.sweep", __doc__)
    parser.usage = (
        "%(prog)s [-h] [--jobs N | --scheduler ADDRESS | --commands]\n"
        "           SCRIPT --FLAG VALUE ... [-- ARGUMENT ...]"
    )
    flag = parser.add_argument
    flag("script", type=task_script, metavar="SCRIPT", help="sMNIST_task.py, PTB_task.py")
    where = parser.add_mutually_exclusive_group().add_argument
    where(
        "--jobs",
        type=positive_int,
        metavar="N",
        help="runs at a time (default: one per GPU, or without GPUs one per processor)",
    )
    where("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://host:8786")
    where(
        "--commands",
        action="store_true",
        help="print the commands of the unfinished runs instead of training them",
    )
    end = argv.index("--") if "--" in argv else len(argv)
    lists, own = {}, []
    for word in argv[:end]:
        if word.startswith("--") and word != "--help":
            if word in lists:
                parser.error(f"argument {word}: given twice")
            lists[word] = []
        else:
            (lists[next(reversed(lists))] if lists else own).append(word)
    for word in OWN:
        if word in lists:
            own += [word, *lists.pop(word)]
    args = parser.parse_args(own)
    for word, values in lists.items():
        if not values:
            parser.error(f"argument {word}: has no values; flags for all runs go after --")
    check_mode(parser, [*lists, *argv[end + 1 :]])
    return parser, args, lists, argv[end + 1 :]


def place(parser, args, runs, cuda, stopped):
    """The context manager of `Training.workers` that the flags ask for."""
    if args.scheduler is None:
        devices = gpus() if cuda else []
        jobs = args.jobs or len(devices) or joblib.cpu_count()
        return workers.processes(jobs, devices, stopped.is_set)
    folders = {run.save_dir.absolute() / LOCKS for run in runs}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    needed = [str(workers.REPOSITORY), os.getcwd(), *map(str, folders)]
    return workers.cluster(args.scheduler, needed)


@entry_point
def main(argv=None):
    parser, args, lists, common = parse(sys.argv[1:] if argv is None else argv)
    runs, cuda = combinations(args.script, lists, common)
    left = unfinished(runs, args.script)
    if args.commands:
        for run in left:
            say(shlex.join(["python3", "-m", "Training.once", *run.words]))
        return 0
    stopped, signum = threading.Event(), []

    def stop(number, frame):
        signum.append(number)
        stopped.set()

    count, failures = dict.fromkeys(OUTCOMES, 0), []
    count["finished"] = len(runs) - len(left)
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, stop))
        try:
            submit = stack.enter_context(place(parser, args, left, cuda, stopped))
        except ModuleNotFoundError:
            parser.error("argument --scheduler: requires distributed: pip install distributed")
        except (OSError, ValueError) as error:
            parser.error(f"argument --scheduler: {error}")
        bar = stack.enter_context(tqdm(total=len(runs), initial=count["finished"], desc="runs"))
        try:
            for outcome, remark in train(left, submit, stopped):
                count[outcome] += 1
                if outcome == "failed":
                    failures.append(f"failed: {remark}")
                    report(failures[-1])
                bar.update(outcome != "stopped")
        except CancelledError:
            failures.append("lost the connection to the scheduler; its runs save and exit")
    count["stopped"] = len(runs) - sum(count[o] for o in OUTCOMES if o != "stopped")
    said = ", ".join(f"{number} {OUTCOMES[outcome]}" for outcome, number in count.items() if number)
    say("\n".join([f"{len(runs)} runs: {said}", *failures]))
    if signum:
        return 128 + signum[0]
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
