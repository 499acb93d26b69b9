"""Runs a task script once for every combination of lists of values.

    python3 -m Training.sweep sMNIST_task.py --gain 1 2.5 5 --saturation 0 0.5 1 --seed 400 401 \\
        -- --dataset digits --nonlin gamma --no-learn_params

The flags before -- are the script's, each with a list of values; those after it apply to all runs.
Runs are processes that share the processors. Started again, a sweep skips finished runs and resumes
the others; it knows them by their saved arguments. A run that fails does not stop the others.
Ctrl-C and SIGTERM save the runs in progress.

The paper's grid: --gain 1 2.5 5 7.5 10 12.5 15 17.5 20 --saturation 0 0.25 0.5 0.75 1
"""

import itertools
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import joblib
from tqdm import tqdm

from Training.flags import Parser, positive_int
from Training.run_directory import LAST, MODE, find_runs, has_arguments, plain

# Arguments that say where and how a run is made, not what is trained.
ASIDE = {"cuda", "tf32", "data", "save_dir", "snapshot_minutes", "note", "verbose", *MODE}
OUTCOMES = {
    "complete": "already finished",
    "trained": "trained to the end",
    "failed": "failed",
    "stopped": "not trained to the end",
}


class Combination(NamedTuple):
    """A run to make: the words of its command, and its arguments as plain values."""

    typed: list
    arguments: dict


class Sweep:
    """Makes the runs and keeps the processes of those in progress.

    script: path of a task script. saved: its runs so far. threads: of each process.
    """

    def __init__(self, script, saved, threads):
        self.script, self.saved, self.threads = script, saved, threads
        self.signum = None
        self._processes = set()
        self._lock = threading.RLock()  # a signal may come while its own thread holds it

    def make(self, combination):
        """Makes one run, or what is left of it; returns its outcome and a remark."""
        runs = [run for run in self.saved if has_arguments(run, combination.arguments)]
        if any(run.complete for run in runs):
            return "complete", ""
        begun = [run for run in runs if (run.path / LAST).exists()]
        typed = ["--resume", str(begun[0].path)] if begun else combination.typed
        code, said = self._start(typed)
        if self.signum is not None:
            return "stopped", ""
        if code != 0:
            return "failed", f"{shlex.join(typed)}\n    exit code {code}: {said}"
        return "trained", ""

    def _start(self, typed):
        """Runs the script; returns its exit code and the last line that it printed."""
        with self._lock:
            if self.signum is not None:
                return None, ""
            # In a session of its own, so that Ctrl-C reaches the sweep, which passes it on once.
            process = subprocess.Popen(
                [sys.executable, str(self.script), *typed],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                start_new_session=True,
            )
            self._processes.add(process)
            if self.signum is not None:
                self._end_all()
        said, _ = process.communicate()
        with self._lock:
            self._processes.discard(process)
        lines = said.decode(errors="replace").strip().splitlines()
        return process.returncode, lines[-1] if lines else ""

    def stop(self, signum, frame=None):
        """Signal handler: the runs in progress save and end, and no other begins."""
        with self._lock:
            self.signum = signum
            self._end_all()

    def _end_all(self):
        while self._processes:
            self._processes.pop().terminate()


def combinations(parse, lists, common):
    """A Combination for every choice of one word from each list, and the folder of the runs.

    parse: the script's. lists: {flag: words}. common: words for all runs. Exits as the script does
    if it rejects one of them.
    """
    found = []
    for words in itertools.product(*lists.values()):
        typed = [w for pair in zip(lists, words, strict=True) for w in pair] + common
        _, args, _ = parse(typed)
        values = {k: v for k, v in vars(args).items() if k not in ASIDE}
        found.append(Combination(typed, plain(values)))
    return found, args.save_dir


def parse(argv):
    """The sweep's parser and arguments, the lists {flag: words}, and the words after --."""
    parser = Parser("python3 -m Training.sweep", __doc__)
    parser.usage = "%(prog)s [-h] [--jobs N] SCRIPT --FLAG VALUE ... [-- ARGUMENT ...]"
    parser.add_argument("script", type=Path, metavar="SCRIPT", help="sMNIST_task.py, PTB_task.py")
    parser.add_argument(
        "--jobs",
        type=positive_int,
        default=joblib.cpu_count(),
        metavar="N",
        help="runs at a time, which share the processors",
    )
    end = argv.index("--") if "--" in argv else len(argv)
    lists, own = {}, []
    for word in argv[:end]:
        if word.startswith("--") and word != "--help":
            if word in lists:
                parser.error(f"argument {word}: is given twice")
            lists[word] = []
        else:
            (lists[next(reversed(lists))] if lists else own).append(word)
    if "--jobs" in lists:
        own += ["--jobs", *lists.pop("--jobs")]
    args = parser.parse_args(own)
    for flag, words in lists.items():
        if not words:
            parser.error(f"argument {flag}: has no values; what applies to all runs follows --")
    return parser, args, lists, argv[end + 1 :]


def main(argv=None):
    parser, args, lists, common = parse(sys.argv[1:] if argv is None else argv)
    if args.script.name not in ("sMNIST_task.py", "PTB_task.py") or not args.script.is_file():
        parser.error(f"argument SCRIPT: {args.script} is not a task script")
    script = runpy.run_path(str(args.script))
    if mode := {f"--{name}" for name in MODE} & {*lists, *common}:
        parser.error(f"argument {mode.pop()}: is not for a sweep")
    runs, save_dir = combinations(script["parse"], lists, common)
    saved = find_runs(save_dir, args.script.name)
    sweep = Sweep(args.script, saved, threads=max(1, joblib.cpu_count() // args.jobs))
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, sweep.stop) for number in signals]
    count, failures = dict.fromkeys(OUTCOMES, 0), []
    parallel = joblib.Parallel(args.jobs, prefer="threads", return_as="generator_unordered")
    with tqdm(total=len(runs), desc="runs") as bar:
        for outcome, remark in parallel(joblib.delayed(sweep.make)(run) for run in runs):
            count[outcome] += 1
            if outcome == "failed":
                failures.append(f"failed: {args.script.name} {remark}")
                tqdm.write(failures[-1])
            bar.update(outcome != "stopped")
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)
    said = ", ".join(f"{number} {OUTCOMES[outcome]}" for outcome, number in count.items() if number)
    print("\n".join([f"{len(runs)} runs: {said}", *failures]))
    if sweep.signum is not None:
        return 128 + sweep.signum
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
