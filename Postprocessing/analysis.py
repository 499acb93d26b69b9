"""Common code of the analysis commands, `python3 -m Postprocessing.<name> RUN...`.

A command does a slow computation once per run and saves analysis/<name>.npz in the run's directory:
the arrays, the settings, the checkpoints they come from, and the seconds it took. Stale files are
recomputed. The notebooks only load and draw.
"""

import argparse
import hashlib
import io
import json
import os
import shlex
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from NetworkCreation.checkpoints import CheckpointError
from Postprocessing.load_runs import FigureError, duration, runs_at
from Training.datasets import DataError
from Training.flags import Parser, entry_point
from Training.machine import allow_tf32
from Training.run_directory import LAST, RunError, plain

ASIDE = ("runs", "recompute", "data", "device")  # flags that do not change the result
STALE = {"settings": "with other settings", "source": "from other checkpoints"}


def make_parser(name, description):
    """A parser with the flags common to all analysis commands."""
    parser = Parser(f"python3 -m Postprocessing.{name}", description)
    flag = parser.add_argument
    flag("runs", type=Path, nargs="+", metavar="RUN", help="run directory, or a folder of runs")
    flag("--recompute", action="store_true", help="overwrite existing results")
    add_place_flags(parser)
    return parser


def add_place_flags(parser):
    """Adds --data and --device."""
    flag = parser.add_argument
    flag("--data", type=Path, metavar="DIR", help="folder of the data sets (default: the run's)")
    flag("--device", type=_device, default="cpu", help="such as cpu or cuda")


def _device(typed):
    allow_tf32(False)  # before the first use of a GPU
    try:
        return torch.zeros(1, device=typed).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot compute on {typed}: {reason}") from None


class Unsuitable(Exception):
    """An analysis does not apply to a run; the message says why."""


@entry_point
def main(name, parser, compute, argv=None):
    """Computes analysis/<name>.npz for every requested run; returns the exit code.

    name: a string, or a function of args if some settings have a file of their own. compute:
    function of (run, args) that returns {name: array} or raises Unsuitable. Runs whose file has
    these settings and comes from their present checkpoints are skipped. Files that are recomputed,
    and runs that cannot be analysed, are reported on stderr; the latter set the exit code to 1.
    """
    args = parser.parse_args(argv)
    name = name(args) if callable(name) else name
    settings = plain({k: v for k, v in vars(args).items() if k not in ASIDE})
    try:
        found = runs_at(args.runs)
    except RunError as error:
        parser.error(f"argument RUN: {error}")
    code = 0
    for run in tqdm(found, desc=name, disable=None if len(found) > 1 else True):
        path = file_of(run, name)
        try:
            about = {"settings": settings, "source": source(run)}
            if path.exists() and not args.recompute:
                try:
                    _read(path, **about)
                    continue
                except RunError as error:
                    tqdm.write(f"recomputed: {error}", file=sys.stderr)
            begun = time.perf_counter()
            arrays = compute(run, args)
            data = io.BytesIO()
            texts = {key: np.array(json.dumps(value)) for key, value in about.items()}
            np.savez(data, **texts, seconds=np.array(time.perf_counter() - begun), **arrays)
            run.write(f"analysis/{name}.npz", data.getbuffer())
        except (Unsuitable, CheckpointError, DataError, RunError) as error:
            code = 1
            tqdm.write(f"skipped: {run.path}: {error}", file=sys.stderr)
    return code


def source(run):
    """The identity of the checkpoints that an analysis of a run may use, as plain values.

    The epochs of the kept checkpoints, and the digests of the checkpoints that training overwrites:
    the best model of a text, and the last state of a run that has kept none.
    """
    replaced = {run.config["arguments"].get("save")} | (set() if any(run.kept) else {LAST})
    paths = {name: run.path / name for name in sorted(replaced - {None})}
    found = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    digests = {name: hashlib.sha256(data).hexdigest()[:12] for name, data in found.items()}
    return {"epochs": list(run.kept), **digests}


def load(run, name):
    """The arrays of an analysis; RunError, with its command, if it is missing, damaged or stale."""
    try:
        return _read(file_of(run, name), source=source(run))
    except RunError as error:
        raise RunError(f"{error}; run {_command(name, run.path)}") from error


def load_all(wanted):
    """The arrays of all analyses of a figure, {name: {path of the run: arrays}}.

    wanted: {name of the analysis: [Run]}. Raises FigureError, with one command for all of them, if
    analyses are missing, damaged or stale, or the runs were analysed with different settings.
    """
    found, problems, commands = {}, [], []
    for name, runs in wanted.items():
        arrays, errors, settings = {}, {}, {}
        for run in runs:
            try:
                arrays[run.path] = _read(file_of(run, name), source=source(run))
                settings.setdefault(str(arrays[run.path]["settings"]), []).append(run.path)
            except RunError as error:
                errors[run.path] = error
        if errors:
            took = [one["seconds"] for one in arrays.values()]
            time = f" ({duration(np.mean(took) * len(errors))})" if took else ""
            said = f"missing or stale for {len(errors)} of {len(runs)} runs{time}, such as "
            said += str(next(iter(errors.values())))
        elif len(settings) > 1:
            counts = [f"\n  {len(paths)} runs: {key}" for key, paths in settings.items()]
            said = f"computed with different settings:{''.join(counts)}"
        if errors or len(settings) > 1:
            problems.append(f"{name}: {said}")
            commands.append(_command(name, os.path.commonpath(errors or arrays)))
        found[name] = arrays
    if problems:
        raise FigureError("\n".join([*problems, "compute them with:", " && \\\n".join(commands)]))
    return found


def file_of(run, name):
    """The path of analysis/<name>.npz of a run."""
    return run.path / "analysis" / f"{name}.npz"


def _command(name, path):
    name = {"lyapunov_autonomous": "lyapunov --autonomous"}.get(name, name)
    return f"python3 -m Postprocessing.{name} {shlex.quote(str(path))}"


def _read(path, **expected):
    """The arrays of a file; raises RunError unless it holds these values, {name: plain value}."""
    if not path.is_file():
        raise RunError(f"{path}: missing")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        saved = {name: json.loads(str(arrays[name])) for name in STALE}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error
    except KeyError as error:
        raise RunError(f"{path}: of an earlier version, without {error}") from error
    for name, now in expected.items():
        was = saved[name]
        changed = [key for key in {**was, **now} if was.get(key) != now.get(key)]
        if changed:
            said = ", ".join(f"{key} {was.get(key)}, now {now.get(key)}" for key in changed)
            raise RunError(f"{path}: stale, computed {STALE[name]} ({said})")
    return arrays
