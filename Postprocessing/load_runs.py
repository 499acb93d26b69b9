"""Finds saved runs by their arguments, and loads their config, metrics, model and data.

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
from Training.datasets import columns, load_pixels, load_text
from Training.run_directory import Run, RunError, find_runs, has_arguments


class FigureError(RunError):
    """The runs or analyses of a figure are missing or inconsistent."""

    def _render_traceback_(self):  # notebooks show only the message
        return [f"{type(self).__name__}: {self}"]


class LoadedRun(NamedTuple):
    """config: of config.json. metrics: as from `metrics_of`. model: in eval mode on the CPU."""

    config: dict
    metrics: dict
    model: nn.Module


def select_runs(root, script=None, **arguments):
    """The runs below root with these saved arguments, newest first: a list of Run.

    script: file name of the task script, None for either. Directories without a readable config or
    without a checkpoint are reported on stderr and skipped.
    Raises FigureError if root is not a directory, or no run below it has an argument of that name.
    """
    if not Path(root).is_dir():
        raise FigureError(f"{root}: no such directory")
    found = []
    for run in find_runs(root, script):
        try:
            run.newest_checkpoint()
        except RunError as error:
            print(f"skipped: {error}", file=sys.stderr)
        else:
            found.append(run)
    for name in arguments:
        if found and not any(name in run.config["arguments"] for run in found):
            raise FigureError(f"no run below {root} has an argument {name}")
    return [run for run in found if has_arguments(run, arguments)]


def runs_at(paths, find=select_runs):
    """The runs at or below these paths, without duplicates: a list of Run.

    find: called with a folder. Raises RunError for a path without runs.
    """
    found = {}
    for path in paths:
        here = [Run(path)] if (path / "config.json").is_file() else find(path)
        if not here:
            raise RunError(f"{path}: no runs found")
        found |= {run.path.resolve(): run for run in here}
    return list(found.values())


def task_of(run):
    """The name of a run's task, that of its first folder: psMNIST, sDigits, PTB, …"""
    return run.path.resolve().parents[2].name


def network_name(run):
    """The network and its activation, such as gamma2-RNN, LSTM or modrelu-EURNN."""
    saved = run.config["arguments"]
    return "-".join(filter(None, (saved["nonlin"], saved["net_type"])))


def differing(found):
    """The names of the arguments in which the runs differ, in their saved order.

    Arguments that runs of an earlier version lack count as None.
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
    """A run's config, metrics and model, of its newest checkpoint or that of an epoch: a LoadedRun.

    Raises RunError if path is not a run or has no such checkpoint, and CheckpointError if the
    checkpoint cannot be read.
    """
    run = Run(path)
    if epoch is not None and epoch not in run.kept:
        kept = ", ".join(map(str, run.kept)) or "none"
        raise RunError(f"{run.path}: has no checkpoint of epoch {epoch}; kept epochs: {kept}")
    model, config = load_model(run.newest_checkpoint() if epoch is None else run.kept[epoch])
    return LoadedRun(config, metrics_of(run), model)


def metrics_of(run):
    """The columns of metrics.csv, {name: (epochs,) float64}, NaN for empty fields."""
    return _columns(run.rows("metrics.csv"))


def tests_of(run):
    """The columns of test_results.csv for the unmodified test set, {name: (tests,) float64}."""
    rows = [r for r in run.rows("test_results.csv") if r.pop("condition") in ("as_is", "best")]
    return _columns(rows)


def _columns(rows):
    names = rows[0] if rows else ()
    return {k: np.array([float(row[k]) if row[k] else np.nan for row in rows]) for k in names}


def data_set(run, data=None):
    """The data set of a run: PixelData or TextData.

    data: the data folder, None for that of the run. Raises DataError if the data cannot be loaded,
    and RunError if the run was trained on other data.
    """
    saved = run.config["arguments"]
    root = saved["data"] if data is None else data
    if run.config["model"]["task"] == "pixels":
        found = load_pixels(saved["dataset"], root, saved["seed"], saved["permute"])
    else:
        found = load_text(saved["dataset"], root, saved["any_corpus"])
    run.check_data(found.checksums)
    return found


@torch.no_grad()
def layer_input(run, model, count, data=None):
    """The input of the recurrent layer for the first B = `count` test sequences, x (T, B, I).

    For text, the first --bptt steps of B columns. data and errors: as for `data_set`.
    """
    found = data_set(run, data).test
    if run.config["model"]["task"] == "pixels":
        return found.batch(slice(0, count))[0]
    symbols = columns(found, count)[: run.config["arguments"]["bptt"]]
    return model.encoder(symbols)
