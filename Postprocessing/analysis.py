"""Common code of the analysis commands, `python3 -m Postprocessing.<name> RUN...`.

A command does a slow computation once per run and saves the arrays, with the settings used, as
analysis/<name>.npz in the run's directory. The notebooks only load and draw.
"""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from NetworkCreation.checkpoints import CheckpointError
from Postprocessing.load_runs import select_runs
from Training.datasets import DataError
from Training.flags import Parser
from Training.run_directory import Run, RunError, plain


def make_parser(name, description):
    """A parser with the flags common to all analysis commands."""
    parser = Parser(f"python3 -m Postprocessing.{name}", description)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run directory, or a folder to search for runs",
    )
    parser.add_argument("--recompute", action="store_true", help="overwrite existing results")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of the data sets (default: the run's)"
    )
    parser.add_argument("--device", type=torch.device, default="cpu", help="such as cpu or cuda")
    return parser


class Unsuitable(Exception):
    """An analysis does not apply to a run; the message says why."""


def main(name, parser, compute, argv=None):
    """Computes analysis/<name>.npz for every requested run; returns the exit code.

    name: a string, or a function of args if some settings have a file of their own. compute:
    function of (run, args) that returns {name: array} or raises Unsuitable. Runs that already have
    the file are skipped. Runs that cannot be analysed, or whose file has other settings, are
    reported on stderr, and the exit code is 1.
    """
    torch.set_flush_denormal(True)  # as the scripts do, for the same results
    args = parser.parse_args(argv)
    name = name(args) if callable(name) else name
    aside = ("runs", "recompute", "data", "device")
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
                    raise Unsuitable(f"{path} was computed with {saved}; use --recompute")
                continue
            arrays = compute(run, args)
            data = io.BytesIO()
            np.savez(data, settings=np.array(json.dumps(settings)), **arrays)
            run.write(f"analysis/{name}.npz", data.getbuffer())
        except (Unsuitable, CheckpointError, DataError, RunError) as error:
            code = 1
            tqdm.write(f"skipped: {run.path}: {error}", file=sys.stderr)
    return code


def load(run, name):
    """The arrays in analysis/<name>.npz of a run, {name: array}.

    Raises RunError if the file is missing (with the command that creates it) or cannot be read.
    """
    path = run.path / "analysis" / f"{name}.npz"
    if not path.is_file():
        raise RunError(f"{path}: missing; run python3 -m Postprocessing.{name} {run.path}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: cannot be read ({error}); use --recompute") from error


def _asked_for(paths):
    """The runs at or below these paths, without duplicates."""
    found = {}
    for path in paths:
        here = [Run(path)] if (path / "config.json").is_file() else select_runs(path)
        if not here:
            raise RunError(f"{path}: no runs found")
        found |= {run.path.resolve(): run for run in here}
    return list(found.values())
