"""What the analysis commands share: `python3 -m Postprocessing.<name> RUN...`.

A command computes slow numbers of a run once, and leaves them beside it as analysis/<name>.npz:
arrays, and the settings that they were computed with. The notebooks only load and draw.
"""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from NetworkCreation.models import CheckpointError
from Postprocessing.load_runs import find_runs
from Training.arguments import Parser
from Training.datasets import DataError
from Training.runs import Run, RunError, plain


def make_parser(name, description):
    """A parser with the flags of every analysis command."""
    parser = Parser(f"python3 -m Postprocessing.{name}", description)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="directory of a run, or one below which all runs are meant",
    )
    parser.add_argument(
        "--recompute", action="store_true", help="also what has been computed before"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of the data sets (default: the run's own)"
    )
    return parser


class Unsuitable(Exception):
    """An analysis has nothing to say about a run; the message says why."""


def main(name, parser, compute, argv=None):
    """Computes analysis/<name>.npz of every run asked for; returns the exit code.

    compute: a function of (run, args) that returns {name: array}, or raises Unsuitable. A run
    whose file is there is passed over. What cannot be computed, or is there with other settings,
    is named, and makes the exit code 1.
    """
    torch.set_flush_denormal(True)  # as the scripts do: the network as it ran
    args = parser.parse_args(argv)
    aside = ("runs", "recompute", "data")
    settings = plain({k: v for k, v in vars(args).items() if k not in aside})
    try:
        found = _asked_for(args.runs)
    except RunError as error:
        parser.error(f"argument RUN: {error}")
    code = 0
    for run in tqdm(found, desc=name, disable=None if len(found) > 1 else True):
        path = run.path / "analysis" / f"{name}.npz"
        try:
            if path.exists() and not args.recompute:
                if (saved := json.loads(str(load(run, name)["settings"]))) != settings:
                    raise Unsuitable(f"{path} was computed with {saved}; see --recompute")
                continue
            arrays = compute(run, args)
            data = io.BytesIO()
            np.savez(data, settings=np.array(json.dumps(settings)), **arrays)
            run.write(f"analysis/{name}.npz", data.getbuffer())
        except (Unsuitable, CheckpointError, DataError, RunError) as error:
            code = 1
            tqdm.write(f"passed over: {run.path}: {error}", file=sys.stderr)
    return code


def load(run, name):
    """The arrays of analysis/<name>.npz of a run, a dictionary.

    Raises RunError with the command that makes it where there is none.
    """
    path = run.path / "analysis" / f"{name}.npz"
    if not path.is_file():
        raise RunError(f"{path}: not there; python3 -m Postprocessing.{name} {run.path} makes it")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: cannot be read ({error}); see --recompute") from error


def _asked_for(paths):
    """The runs in these directories and below them, each once."""
    found = {}
    for path in paths:
        here = [Run(path)] if (path / "config.json").is_file() else find_runs(path)
        if not here:
            raise RunError(f"{path}: there is no run")
        found |= {run.path.resolve(): run for run in here}
    return list(found.values())
