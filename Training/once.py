"""Trains one run: skips it if it is finished, resumes it if it was interrupted.

    python3 -m Training.once sMNIST_task.py --dataset digits --seed 1

The run is recognised by its saved arguments, so the same command can be repeated until the run is
finished, on any machine that shares the folder of runs. If another process is training the run, the
exit code is 75 and the last line names the lock that the process holds.
"""

import Training.machine  # isort: skip  # noqa: F401 — settings that torch reads when it loads

import argparse
import hashlib
import json
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

from Training.flags import Parser, entry_point
from Training.output import say
from Training.run_directory import HOW, LAST, LOCK, MODE, fcntl, find_runs, plain

BUSY = os.EX_TEMPFAIL
FINISHED = "already finished"
LOCKS = ".sweep"  # folder of the locks of runs that do not exist yet, in the folder of runs
# Arguments that say where and how a run is trained, not what.
ASIDE = {"save_dir", *HOW, *MODE}


def identity(args):
    """The arguments by which a run is recognised, as plain values."""
    return plain({name: value for name, value in vars(args).items() if name not in ASIDE})


def take(path):
    """Locks a path: an open file that holds the lock, or None if another process holds it.

    Closing the file or the end of the process frees the lock. Where the file system has no locks,
    it is always free.
    """
    file = path.open("a")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # not supported, of which the run itself warns
        pass
    return file


def is_free(path):
    """Whether no process holds the lock of this path; True if it cannot be opened."""
    try:
        file = take(path)
    except OSError:  # the run itself reports it
        return True
    if file is not None:
        file.close()
    return file is not None


def task_script(typed):
    """The path of a task script."""
    path = Path(typed)
    if path.name not in ("sMNIST_task.py", "PTB_task.py") or not path.is_file():
        raise argparse.ArgumentTypeError(f"{typed} is not a task script")
    return path


def check_mode(parser, words):
    """An error if the words ask for something other than training."""
    if mode := {f"--{name}" for name in MODE} & {word.split("=")[0] for word in words}:
        parser.error(f"argument {mode.pop()}: does not train a new run")


@entry_point
def main(argv=None):
    parser = Parser("python3 -m Training.once", __doc__)
    flag = parser.add_argument
    flag("--attended", action="store_true", help="save and exit when standard input closes")
    flag("script", type=task_script, metavar="SCRIPT", help="sMNIST_task.py, PTB_task.py")
    flag("words", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="of the script")
    args = parser.parse_args(argv)
    check_mode(parser, args.words)
    if args.attended:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    script = runpy.run_path(str(args.script))
    task_parser, wanted, _ = script["parse"](args.words)

    # Two processes could both find no run and both create one, so each holds this lock from before
    # it looks until it ends.
    key = json.dumps([args.script.name, identity(wanted)], sort_keys=True)
    path = wanted.save_dir / LOCKS / hashlib.sha256(key.encode()).hexdigest()[:16]
    with task_parser.blame("save_dir", OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = take(path)
    if lock is None:
        return _busy(path)
    with lock:
        runs = find_runs(wanted.save_dir, args.script.name, **identity(wanted))
        for run in runs:
            if run.complete:
                say(f"{FINISHED}: {run.path}")
                return 0
        for run in runs:
            if not is_free(run.path / LOCK):
                return _busy(run.path / LOCK)
        begun = [run for run in runs if (run.path / LAST).exists()]
        if not begun:
            return script["main"](args.words)
        resume = ["--resume", str(begun[0].path)]
        for name in sorted(task_parser.typed & {*HOW}):
            resume += task_parser.words(name, wanted)
        return script["main"](resume)


def _busy(lock):
    say(f"another process is training this run; it holds the lock\n{lock}")
    return BUSY


def _end_with_stdin():
    """Sends SIGTERM to this process when its standard input is closed."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
