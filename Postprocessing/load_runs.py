"""Finds saved runs by their arguments, and loads config, metrics and model.

runs = select_runs("SavedModels", nonlin="gamma", learn_params=False)
config, metrics, model = load_run(runs[0].path)
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from NetworkCreation.checkpoints import load_model
from Training import run_directory
from Training.datasets import columns, load_pixels, load_text
from Training.run_directory import Run, RunError


class FigureError(RunError):
    """The runs or the analyses of a figure are missing, or do not belong together."""

    def _render_traceback_(self):  # a notebook shows only the message
        return [f"{type(self).__name__}: {self}"]


class LoadedRun(NamedTuple):
    """config: from config.json. metrics: {column: (epochs,) float64}, NaN for missing values.
    model: from a checkpoint, in eval mode on the CPU."""

    config: dict
    metrics: dict
    model: nn.Module


def select_runs(root, script=None, **arguments):
    """The runs below root with these saved arguments, newest first: a list of Run.

    script: file name of the task script, None for either. Directories without a readable config or
    without a checkpoint are reported on stderr and skipped.
    Raises RunError if root is not a directory, or no run below it has an argument of that name.
    """
    found = _readable(root, script)
    for name in arguments:
        if found and not any(name in run.config["arguments"] for run in found):
            raise RunError(f"no run below {root} has an argument {name}")
    return [run for run in found if run_directory.has_arguments(run, arguments)]


def select_run(root, script=None, **arguments):
    """The only run below root with these saved arguments.

    Raises RunError, with a list of candidates, if there is none or more than one.
    """
    found = select_runs(root, script, **arguments)
    if len(found) == 1:
        return found[0]
    asked = ", ".join(f"{name}={value!r}" for name, value in arguments.items()) or "any arguments"
    number, shown = (len(found), found) if found else ("no", _readable(root, script))
    shown = _listed(shown) or "  none"
    raise RunError(f"{number} runs below {root} with {asked}, expected one; candidates:\n{shown}")


def differing(found):
    """The names of the arguments in which the runs differ, in their saved order.

    An argument that a run does not have, because it is of an earlier version, counts as None.
    """
    saved = [run.config["arguments"] for run in found]
    names = dict.fromkeys(name for arguments in saved for name in arguments)
    return [k for k in names if any(one.get(k) != saved[0].get(k) for one in saved)]


def duration(seconds):
    """A time in words, as in "about 2.5 minutes"."""
    for unit, length in (("h", 3600), ("minutes", 60)):
        if seconds > 1.5 * length:
            return f"about {seconds / length:.1f} {unit}"
    return f"about {seconds:.0f} s"


def load_run(path, epoch=None):
    """Loads a run's config, metrics and model, from its newest checkpoint or that of an epoch.

    Returns a LoadedRun. Raises RunError if path is not a run or has no such checkpoint, and
    CheckpointError if the checkpoint cannot be read.
    """
    run = Run(path)
    model, config = load_model(checkpoint_of(run, epoch))
    return LoadedRun(config, metrics_of(run), model)


def checkpoint_of(run, epoch=None):
    """The path of the newest checkpoint or that of an epoch; raises RunError if it is missing."""
    if epoch is None:
        return run.newest_checkpoint()
    if epoch not in run.kept:
        kept = ", ".join(map(str, run.kept)) or "none"
        raise RunError(f"{run.path}: has no checkpoint of epoch {epoch}; kept epochs: {kept}")
    return run.kept[epoch]


def metrics_of(run):
    """The columns of metrics.csv, {name: (epochs,) float64}, NaN for empty fields."""
    rows = run.rows("metrics.csv")
    names = rows[0] if rows else ()
    return {k: np.array([float(row[k]) if row[k] else np.nan for row in rows]) for k in names}


def data_set(run, data=None):
    """The data set of a run: PixelData or TextData.

    data: the data folder, None for that of the run. Raises DataError if the data cannot be loaded,
    RunError if they are not the data of the run.
    """
    saved = run.config["arguments"]
    root = saved["data"] if data is None else data
    if run.config["model"]["task"] == "pixels":
        found = load_pixels(saved["dataset"], root, saved["seed"], saved["permute"])
    else:
        found = load_text(saved["dataset"], root, saved["any_corpus"])
    run.check_data(found.checksums)
    return found


def test_set(run, data=None):
    """The test set of a run: a PixelSet, or the stream (N,) of a text; as for `data_set`."""
    return data_set(run, data).test


@torch.no_grad()
def layer_input(run, model, count, data=None):
    """The input of the recurrent layer for the first B = `count` test sequences, x (T, B, I).

    For text, the first --bptt steps of B columns. data and errors: as for `test_set`.
    """
    found = test_set(run, data)
    if run.config["model"]["task"] == "pixels":
        return found.batch(slice(0, count))[0]
    symbols = columns(found, count)[: run.config["arguments"]["bptt"]]
    return model.encoder(symbols)


def _readable(root, script):
    """All runs below root that have a checkpoint."""
    if not Path(root).is_dir():
        raise RunError(f"{root}: no such directory")
    found = []
    for run in run_directory.find_runs(root, script):
        try:
            run.newest_checkpoint()
        except RunError as error:
            print(f"skipped: {error}", file=sys.stderr)
        else:
            found.append(run)
    return found


def _listed(found):
    names = differing(found)
    lines = []
    for run in found:
        saved = run.config["arguments"]
        said = " ".join(f"{name}={saved[name]!r}" for name in names if name in saved)
        lines.append(f"  {run.path} {said}".rstrip())
    return "\n".join(lines)
