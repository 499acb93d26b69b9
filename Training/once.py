"""Trains one run: skips it if it is finished, resumes it if it was interrupted.

    python3 -m Training.once sMNIST_task.py --dataset digits --seed 1

The run is recognised by its arguments and data, so the same command can be repeated until the run
is finished, on any machine that shares the folder of runs. If another process is training the run,
the exit code is 75.
"""

import Training.machine  # isort: skip  # noqa: F401 — settings that torch reads when it loads

import argparse
import hashlib
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

from NetworkCreation.errors import UserError
from Training.config import HOW, identity, plain
from Training.console import entry_point
from Training.datasets import checksums_of
from Training.parser import Parser
from Training.run_directory import find_runs, take_lock

LOCKS = ".sweep"  # folder of the locks of runs that do not exist yet, in the folder of runs


def load_script(typed):
    """The functions of a task script and its `path`, {name: value}."""
    is_python = Path(typed).is_file() and typed.endswith(".py")
    functions = runpy.run_path(typed) if is_python else {}
    if not functions.keys() >= {"make_parser", "parse", "main"}:
        raise argparse.ArgumentTypeError(
            f"{typed} is not a task script with make_parser, parse and main"
        )
    return {"path": typed} | functions


def identity_of(args):
    """The `identity` of the new run that these arguments of a script train."""
    if args.test or args.resume is not None:
        raise UserError("--test and --resume do not train a new run")
    data = checksums_of(args)
    return identity({"script": args.script, "arguments": plain(vars(args)), "data": data})


@entry_point
def main(argv=None):
    parser = Parser("python3 -m Training.once", __doc__)
    flag = parser.add_argument
    flag("--attended", action="store_true", help="save and exit when standard input closes")
    flag("script", type=load_script, metavar="SCRIPT", help="such as sMNIST_task.py")
    flag("words", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="of the script")
    own = parser.parse_args(argv)
    args, given = own.script["parse"](own.words)
    if own.attended:
        threading.Thread(target=_end_with_stdin, daemon=True).start()

    # Two processes could both find no run and both create one, so each holds this lock from before
    # it looks until it ends.
    key = identity_of(args)
    folder = args.save_dir / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(folder / hashlib.sha256(key.encode()).hexdigest()[:16])  # noqa: F841
    runs = [run for run in find_runs(args.save_dir) if run.identity == key]
    if not runs:
        return own.script["main"](own.words)
    if runs[0].complete:
        print(f"already finished: {runs[0].path}")
        return 0
    how = {name: getattr(args, name) for name in HOW if name in given and name != "save_dir"}
    changed = own.script["make_parser"]().words(how)
    return own.script["main"]([f"--resume={runs[0].path}", *changed])


def _end_with_stdin():
    """Sends SIGTERM to this process when its standard input is closed."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
