"""Computes the analyses of trained runs: python3 -m Postprocessing.analyse NAME... RUN...

NAME is a notebook or the page, for all analyses that it needs, or one analysis. RUN is a run's
directory, or a folder of runs.

    python3 -m Postprocessing.analyse dynamics SavedModels/psDigits
    python3 -m Postprocessing.analyse report SavedModels --where "network == 'ANRU' and seed == 400"

An analysis is saved as analysis/<name>.npz in the run's directory: the arrays that the module
Postprocessing.<name> lists, its settings, and the checkpoints that it was computed from. It is
computed again if these have changed. Runs that an analysis does not apply to, runs of a script that
makes its data, and runs without a kept checkpoint are only counted. A run whose analysis fails is
reported; the exit code is then 1.
"""

import argparse
import contextlib
import hashlib
import importlib
import inspect
import io
import itertools
import json
import os
import shlex
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from NetworkCreation.errors import UserError
from Postprocessing import runs
from Postprocessing.networks import Diverged, NotApplicable, Unsuitable
from Training.config import RunError
from Training.console import Progress, entry_point
from Training.machine import REPOSITORY, allow_tf32
from Training.parser import Parser, finite, positive_int
from Training.run_directory import Run, write_whole, writing

NAMES = ("lyapunov", "jacobian", "mutual_information", "robustness", "step_response")
NAMES += ("supervisor", "unit_responses", "regularization")
ANALYSES = {name: importlib.import_module(f"Postprocessing.{name}") for name in NAMES}
NOTEBOOKS = {
    "dynamics": ("lyapunov", "jacobian", "mutual_information"),
    "robustness": ("robustness", "step_response"),
    "adaptation": ("step_response", "supervisor", "unit_responses"),
    "regularization": ("regularization", "jacobian"),
    "report": ("lyapunov", "jacobian", "robustness", "step_response"),
}
# The names that the command knows; robustness and regularization are the notebooks.
GROUPS = NOTEBOOKS | {name: NOTEBOOKS.get(name, (name,)) for name in NAMES}
FAILURES = (Unsuitable, UserError, np.linalg.LinAlgError, torch.linalg.LinAlgError)


class FigureError(RunError):
    """The runs or analyses of a figure are missing or inconsistent."""

    def _render_traceback_(self):  # notebooks show only the message
        return [f"{type(self).__name__}: {self}"]


def compute(run, name, settings, data=None, device="cpu", recompute=False):
    """Computes and saves an analysis of a Run, unless it is up to date; returns whether it did.

    settings: those that are not the defaults, {name: value}. Raises Unsuitable if it cannot be
    computed, or a result is not finite. Of a network that diverges, the reason is saved.
    """
    identity = {"settings": json.dumps(defaults(name) | settings)}
    identity["source"] = json.dumps(source(run))
    path = file_of(run.path, name)
    if not recompute and path.exists():
        with contextlib.suppress(RunError):  # a damaged file is computed again
            saved = read(path)
            if all(str(saved[key]) == value for key, value in identity.items()):
                return False
    try:
        arrays = ANALYSES[name].compute(run, data, device, **settings)
    except Diverged as error:
        identity["diverged"], arrays = str(error), {}
    for key, values in arrays.items():
        if not np.isfinite(values).all():
            raise Unsuitable(f"{name}: {key} is not finite")
    file = io.BytesIO()
    np.savez(file, **{key: np.array(value) for key, value in identity.items()}, **arrays)
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
    write_whole(path, file.getbuffer())
    if "diverged" in identity:
        raise NotApplicable(identity["diverged"])
    return True


def defaults(name):
    """The settings of an analysis with their default values: the keywords of its `compute`."""
    parameters = inspect.signature(ANALYSES[name].compute).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def source(run):
    """The identity of a run's checkpoints: epochs and, for text, the digest of the best model."""
    best = run.config["arguments"].get("save")
    path = run.path / (best or "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else None
    return {"epochs": list(run.kept), "best": digest}


def file_of(path, name):
    """The file of an analysis of the run at a path."""
    return Path(path) / "analysis" / f"{name}.npz"


def read(path):
    """The arrays of a file, with its `settings` and `source`; RunError if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error


def load(path, name):
    """The saved arrays of an analysis of the run at a path; None if it was not computed.

    The only array is `diverged`, the reason, if it does not apply because a network diverges.
    Raises RunError, with the command to run, if the file is damaged or stale.
    """
    file = file_of(path, name)
    if not file.exists():
        return None
    arrays, now = read(file), json.dumps(source(Run(path)))
    if str(arrays["source"]) != now:
        raise RunError(
            f"{file}: stale, computed from other checkpoints ({arrays['source']}, now {now}); "
            f"run {command([name], [path])}"
        )
    return arrays


def load_all(wanted, notebook):
    """The arrays of all analyses of a figure, {name: {path of the run: arrays}}.

    wanted: {name: DataFrame of runs}. notebook: its name. Raises FigureError, with one command that
    computes what is missing or stale, or if runs were analysed with different settings. Runs that
    diverge are left out and printed; FigureError if an analysis has no others.
    """
    loaded, problems, lacking, left_out = {}, [], set(), []
    for name, table in wanted.items():
        loaded[name], absent, reason = {}, [], ""
        for path in table["path"]:
            try:
                arrays = load(path, name)
            except RunError as error:
                arrays, reason = None, f", such as {error}"
            if arrays is None:
                absent.append(path)
            elif "diverged" in arrays:
                left_out.append(f"{name} leaves out {path}: {arrays['diverged']}")
            else:
                loaded[name][path] = arrays
        if absent:
            number = f"{len(absent)} of {len(table)} runs"
            problems.append(f"{name}: missing or stale for {number}{reason}")
            lacking.update(absent)
            continue
        if len(table) and not loaded[name]:
            raise FigureError("\n".join(["every run diverges:", *left_out]))
        settings = pd.Series({p: str(arrays["settings"]) for p, arrays in loaded[name].items()})
        if (counts := settings.value_counts()).size > 1:
            problems.append(f"{name}: computed with different settings:\n{counts.to_string()}")
            lacking.update(settings.index[settings != json.dumps(defaults(name))])
    if problems:
        text = command([notebook], sorted(lacking))
        raise FigureError("\n".join([*problems, "compute them with:", text]))
    print(*left_out, sep="\n", end="\n" * bool(left_out))
    return loaded


def command(names, paths):
    """The command that computes analyses of runs; works in every directory."""
    paths = [os.path.abspath(path) for path in paths]
    if len(paths) > 3:
        paths = [os.path.commonpath(paths)]
    words = ["python3", "-m", "Postprocessing.analyse", *names, *paths]
    return f"cd {shlex.quote(str(REPOSITORY))} && {shlex.join(words)}"


def missing(table, notebook):
    """The command for the analyses of a notebook that trained runs lack; None if there are all."""
    for _, run in table.iterrows():
        path, names = run["path"], NOTEBOOKS[notebook]
        names = [name for name in names if name != "step_response" or run["network"] == "ANRU"]
        applies = run["epochs_done"] and any(Run(path).kept) and pd.notna(run.get("dataset"))
        with contextlib.suppress(RunError):  # stale
            if not applies or all(load(path, name) is not None for name in names):
                continue
        return command([notebook], table["path"])
    return None


def scalars(paths):
    """The saved analyses of runs as scalars, a DataFrame indexed by their paths.

    Columns "<analysis> <array> <i>": means over all but the first axis, such as that of the
    checkpoints or sizes, of arrays whose first axis has at most 16 entries.
    """
    table = {}
    for path in paths:
        row = table[path] = {}
        for name in ANALYSES:
            for key, values in (load(path, name) or {}).items():
                if values.dtype.kind in "fi" and len(values := np.atleast_1d(values)) <= 16:
                    means = values.reshape(len(values), -1).mean(axis=1)
                    row |= {f"{name} {key} {i}": mean for i, mean in enumerate(means)}
    return pd.DataFrame.from_dict(table, orient="index")


def device(typed):
    """A torch device, for argparse."""
    allow_tf32(False)  # before the first use of a GPU
    try:
        return torch.zeros(1, device=typed).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot compute on {typed}: {reason}") from None


def setting(typed):
    """(analysis, setting, value) of a typed ANALYSIS.SETTING=VALUE, for argparse."""
    target, _, text = typed.partition("=")
    known = {f"{name}.{key}": v for name in ANALYSES for key, v in defaults(name).items()}
    if target not in known:
        raise argparse.ArgumentTypeError(f"{typed}: must begin with one of {', '.join(known)}")
    many = isinstance(known[target], tuple)
    value = list(map(finite, text.strip("[]").split(","))) if many else positive_int(text)
    return *target.split("."), value


def table_of(paths, where, parser):
    """The runs at or below the paths, without duplicates; ends the program if a path has none."""
    parts = {path: runs.load(path) for path in paths}
    if empty := [str(path) for path, part in parts.items() if part.empty]:
        parser.error(f"argument RUN: no runs at or below {', '.join(empty)}")
    table = pd.concat(parts.values(), ignore_index=True)
    table = table[~table["path"].map(os.path.realpath).duplicated()]
    return table if where is None else runs.select(table, where, parser)


@entry_point
def main(argv=None):
    parser = Parser("python3 -m Postprocessing.analyse", __doc__)
    flag = parser.add_argument
    names = ", ".join(GROUPS)
    flag("words", nargs="+", metavar="NAME RUN", help=f"{names}; then runs or folders of runs")
    flag("--where", metavar="EXPRESSION", help="select runs, as in Postprocessing.runs")
    flag("--set", type=setting, nargs="+", default=[], metavar="S", help="as lyapunov.chains=2")
    flag("--recompute", action="store_true", help="compute again what is up to date")
    flag("--data", type=Path, metavar="DIR", help="folder of the data sets (default: the run's)")
    flag("--device", type=device, default="cpu", help="such as cpu or cuda")
    args = parser.parse_args(argv)
    known = list(itertools.takewhile(GROUPS.__contains__, args.words))
    paths = [Path(word) for word in args.words[len(known) :]]
    if not known:
        parser.error(f"argument NAME: must be one of {names}, got {paths[0]}")
    if not paths:
        parser.error("argument RUN: no run or folder is given")
    opened = [Run(path) for path in table_of(paths, args.where, parser)["path"]]
    failed = False
    for name in dict.fromkeys(itertools.chain.from_iterable(map(GROUPS.get, known))):
        settings = {key: value for module, key, value in args.set if module == name}
        counts = dict.fromkeys(("computed", "up to date", "not applicable", "failed"), 0)
        for run in Progress(opened, desc=name, leave=False):
            try:
                if max(run.kept, default=0) == 0 or "dataset" not in run.config["arguments"]:
                    raise NotApplicable("has no kept checkpoint, or its script makes the data")
                new = compute(run, name, settings, args.data, args.device, args.recompute)
                counts["computed" if new else "up to date"] += 1
            except NotApplicable:
                counts["not applicable"] += 1
            except FAILURES as error:
                counts["failed"] += 1
                tqdm.write(f"failed: {name} of {run.path}: {error}", file=sys.stderr)
        summary = [f"{number} {kind}" for kind, number in counts.items() if number]
        print(f"{name}:", ", ".join(summary))
        failed |= counts["failed"] > 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
