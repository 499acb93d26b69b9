"""Computes the analyses of trained runs: python3 -m Postprocessing.analyse NAME... RUN...

NAME is a notebook, for all analyses that it needs, or one analysis. RUN is a run's directory, or a
folder of runs.

    python3 -m Postprocessing.analyse dynamics SavedModels/psDigits
    python3 -m Postprocessing.analyse report SavedModels --where "network == 'ANRU' and seed == 400"

notebook or page    analyses
    dynamics        lyapunov, jacobian, mutual_information
    robustness      robustness, step_response
    adaptation      step_response, supervisor, unit_responses
    regularization  regularization, jacobian
    report          lyapunov, jacobian, robustness, step_response

An analysis is saved as analysis/<name>.npz in the run's directory: the arrays that the module
Postprocessing.<name> lists, its settings, and the checkpoints that it was computed from. It is
computed again if the settings or the checkpoints have changed. Runs that an analysis does not apply
to (a supervisor, in a network without one), and runs without a kept checkpoint, are only counted.
A run whose analysis fails is reported; the exit code is then 1.
"""

import argparse
import hashlib
import inspect
import io
import json
import math
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
from Postprocessing import (
    jacobian,
    lyapunov,
    mutual_information,
    regularization,
    robustness,
    runs,
    step_response,
    supervisor,
    unit_responses,
)
from Postprocessing.networks import NotApplicable, Unsuitable
from Training.config import RunError
from Training.console import Progress, entry_point
from Training.machine import REPOSITORY, allow_tf32
from Training.parser import Parser
from Training.run_directory import Run

ANALYSES = {
    "lyapunov": lyapunov,
    "jacobian": jacobian,
    "mutual_information": mutual_information,
    "robustness": robustness,
    "step_response": step_response,
    "supervisor": supervisor,
    "unit_responses": unit_responses,
    "regularization": regularization,
}
NOTEBOOKS = {
    "dynamics": ("lyapunov", "jacobian", "mutual_information"),
    "robustness": ("robustness", "step_response"),
    "adaptation": ("step_response", "supervisor", "unit_responses"),
    "regularization": ("regularization", "jacobian"),
    "report": ("lyapunov", "jacobian", "robustness", "step_response"),
}
# Analysis, its sizes, and its arrays whose first axis is that of the sizes.
BY_SIZE = (
    ("robustness", "amplitudes", {"sin", "step"}),
    ("supervisor", "xi", {"n", "s"}),
    ("regularization", "sizes", {"adaptive", "frozen"}),
)
FAILURES = (Unsuitable, UserError, np.linalg.LinAlgError, torch.linalg.LinAlgError)


class FigureError(RunError):
    """The runs or analyses of a figure are missing or inconsistent."""

    def _render_traceback_(self):  # notebooks show only the message
        return [f"{type(self).__name__}: {self}"]


# Computing and saving


def compute(run, name, settings, data=None, device="cpu", recompute=False):
    """Computes and saves an analysis of a Run, unless it is up to date; returns whether it did.

    settings: those that are not the defaults, {name: value}. Raises Unsuitable if it cannot be
    computed, or a result is not finite.
    """
    function = ANALYSES[name].compute
    identity = {"settings": defaults(name) | settings, "source": source(run)}
    identity = {key: json.dumps(value) for key, value in identity.items()}
    path = file_of(run.path, name)
    if not recompute and path.exists():
        try:
            saved = read(path)
        except RunError as error:
            tqdm.write(f"computed again: {error}", file=sys.stderr)
        else:
            if all(str(saved[key]) == value for key, value in identity.items()):
                return False
    arrays = function(run, data, device, **settings)
    for key, values in arrays.items():
        if not np.isfinite(values).all():
            raise Unsuitable(f"{name}: {key} is not finite")
    file = io.BytesIO()
    np.savez(file, **{key: np.array(value) for key, value in identity.items()}, **arrays)
    run.write(f"analysis/{name}.npz", file.getbuffer())
    return True


def defaults(name):
    """The settings of an analysis with their default values: the keywords of its `compute`."""
    parameters = inspect.signature(ANALYSES[name].compute).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def source(run):
    """The identity of the checkpoints that an analysis may use, as plain values.

    The epochs of the kept checkpoints and, for text, the digest of the best model, which training
    overwrites.
    """
    best = run.config["arguments"].get("save")
    path = run.path / (best or "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else None
    return {"epochs": list(run.kept), "best": digest}


def file_of(path, name):
    """The file of an analysis of the run at a path."""
    return Path(path) / "analysis" / f"{name}.npz"


# Loading


def read(path):
    """The arrays of a file, with its `settings` and `source`; RunError if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error
    if not {"settings", "source"} <= arrays.keys():
        raise RunError(f"{path}: not an analysis")
    return arrays


def load(path, name):
    """The saved arrays of an analysis of the run at a path; None if it was not computed.

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
    computes what is missing or stale, or if runs were analysed with different settings.
    """
    loaded, problems, lacking = {name: {} for name in wanted}, [], []
    for name, table in wanted.items():
        reasons, settings = [], {}
        for path in table["path"]:
            try:
                arrays = load(path, name)
            except RunError as error:
                reasons.append(str(error))
                arrays = None
            if arrays is None:
                lacking.append(path)
            else:
                loaded[name][path] = arrays
                settings.setdefault(str(arrays["settings"]), []).append(path)
        if missing := len(table) - len(loaded[name]):
            reason = f", such as {reasons[0]}" if reasons else ""
            problems.append(f"{name}: missing or stale for {missing} of {len(table)} runs{reason}")
        elif len(settings) > 1:
            counts = "".join(f"\n  {len(paths)} runs: {key}" for key, paths in settings.items())
            problems.append(f"{name}: computed with different settings:{counts}")
            lacking += min(settings.values(), key=len)
    if problems:
        text = command([notebook], sorted(set(lacking)))
        raise FigureError("\n".join([*problems, "compute them with:", text]))
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
        for name in NOTEBOOKS[notebook]:
            applies = name != "step_response" or run["network"] == "ANRU"
            if applies and run["epochs_done"] and not file_of(run["path"], name).exists():
                return command([notebook], table["path"])
    return None


def scalars(paths):
    """The scalars of the saved analyses of runs, a DataFrame indexed by their paths.

    Each is the mean over what is not named: λ₁ and the norm at the first and the last checkpoint,
    scores by size, n and s by noise, α, λ₁ by current.
    """
    table = {}
    for path in paths:
        saved = {name: load(path, name) or {} for name in ANALYSES}
        row = table[path] = {}
        for label, name, key in (
            ("lambda", "lyapunov", "leading"),
            ("norm", "jacobian", "spectral"),
        ):
            if key in saved[name]:
                means = saved[name][key].mean(axis=(1, 2))
                row |= {f"{label}_first": means[0], f"{label}_last": means[-1]}
        for key in ("information", "gaussian_estimate", "gaussian_truth"):
            if key in saved["mutual_information"]:
                row[key] = saved["mutual_information"][key].mean()
        for name, sizes, keys in BY_SIZE:
            for key in sorted(keys & saved[name].keys()):
                values = saved[name][key].reshape(len(saved[name][sizes]), -1).mean(axis=1)
                row |= {f"{key} {x:g}": v for x, v in zip(saved[name][sizes], values, strict=True)}
        row |= {
            k: v.item() for k, v in saved["unit_responses"].items() if v.ndim == 0 and "alpha" in k
        }
    return pd.DataFrame.from_dict(table, orient="index")


# The command


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
    name, _, rest = typed.partition(".")
    key, _, text = rest.partition("=")
    if key not in (known := defaults(name) if name in ANALYSES else {}):
        choices = [f"{k}.{s}" for k in ANALYSES for s in defaults(k)]
        raise argparse.ArgumentTypeError(f"{typed}: must begin with one of {', '.join(choices)}")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(known[key], tuple):
        valid = isinstance(value, list) and value and all(map(_is_finite, value))
    else:
        valid = isinstance(value, int) and value > 0
    if not valid:
        kind = "a list of numbers" if isinstance(known[key], tuple) else "a positive integer"
        raise argparse.ArgumentTypeError(f"{typed}: {key} must be {kind}, such as {known[key]}")
    return name, key, value


def _is_finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def make_parser():
    parser = Parser("python3 -m Postprocessing.analyse", __doc__)
    flag = parser.add_argument
    flag("words", nargs="+", metavar="NAME RUN", help="names, then run directories or folders")
    flag("--where", metavar="EXPRESSION", help="select runs, as in Postprocessing.runs")
    setting_help = "settings other than the defaults, such as lyapunov.chains=2"
    flag("--set", type=setting, nargs="+", default=[], metavar="S", help=setting_help)
    flag("--recompute", action="store_true", help="compute again what is up to date")
    add_place_flags(parser)
    return parser


def add_place_flags(parser):
    """Adds --data and --device."""
    flag = parser.add_argument
    flag("--data", type=Path, metavar="DIR", help="folder of the data sets (default: the run's)")
    flag("--device", type=device, default="cpu", help="such as cpu or cuda")


def names_and_paths(words, parser):
    """The names of the requested analyses, and the paths, from the words of the command."""
    names, paths = {}, []
    for word in words:
        if not paths and word in NOTEBOOKS | ANALYSES:
            names |= dict.fromkeys(NOTEBOOKS.get(word, (word,)))
        else:
            paths.append(Path(word))
    known = ", ".join(NOTEBOOKS | ANALYSES)
    if not names:
        parser.error(f"argument NAME: must be one of {known}, got {words[0]}")
    if not paths:
        parser.error("argument RUN: no run or folder is given")
    return list(names), paths


def table_of(paths, where, parser):
    """The runs at or below the paths, without duplicates; ends the program if there are none."""
    parts = []
    for path in paths:
        part = runs.load(path)
        if part.empty:
            parser.error(f"argument RUN: no runs at or below {path}")
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table = table[~table["path"].map(os.path.realpath).duplicated()]
    return table if where is None else runs.select(table, where, parser)


@entry_point
def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    names, paths = names_and_paths(args.words, parser)
    opened = [Run(path) for path in table_of(paths, args.where, parser)["path"]]
    failed = False
    for name in names:
        settings = {key: value for module, key, value in args.set if module == name}
        counts = dict.fromkeys(("computed", "up to date", "not applicable", "failed"), 0)
        for run in Progress(opened, desc=name, leave=False):
            try:
                if max(run.kept, default=0) == 0:
                    raise NotApplicable("has no kept checkpoint")
                new = compute(run, name, settings, args.data, args.device, args.recompute)
                counts["computed" if new else "up to date"] += 1
            except NotApplicable:
                counts["not applicable"] += 1
            except FAILURES as error:
                counts["failed"] += 1
                tqdm.write(f"failed: {name} of {run.path}: {error}", file=sys.stderr)
        said = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
        print(f"{name}: {said or 'no runs'}")
        failed = failed or counts["failed"] > 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
