"""Selects and summarises the runs of a figure: three settings of γ over initial n and s, networks.

static: n and s are fixed. homogeneous: one learned pair for the layer. heterogeneous: a learned
pair for each unit. Source: Geadah et al., arXiv 2006.12253.

The runs of a figure agree in every argument that it does not vary. Unfinished runs and dry runs
(--limit-batches) are ignored.
"""

import math
import os
import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap
from scipy.stats import t as student

from Postprocessing.load_runs import (
    FigureError,
    differing,
    duration,
    metrics_of,
    network_name,
    select_runs,
    tests_of,
)
from Training import once
from Training.run_directory import find_runs

REPOSITORY = Path(__file__).resolve().parent.parent
SETTINGS = {
    "static": {"net_type": "RNN", "nonlin": "gamma", "learn_params": False},
    "homogeneous": {"net_type": "RNN", "nonlin": "gamma", "learn_params": True},
    "heterogeneous": {"net_type": "RNN", "nonlin": "gamma2", "learn_params": True},
}
# Settings whose runs are compared in pairs of the same n, s and seed.
PAIRS = (("heterogeneous", "static"), ("homogeneous", "static"), ("heterogeneous", "homogeneous"))
# The networks compared, with the arguments that select their runs.
COMPARED = {
    "ANRU": {"net_type": "ANRU"},
    "gamma2-RNN": SETTINGS["heterogeneous"],
    "static γ": SETTINGS["static"],
    "ReLU-RNN": {"net_type": "RNN", "nonlin": "ReLU"},
    "LSTM": {"net_type": "LSTM"},
    "GRU": {"net_type": "GRU"},
}
SMALL = ((1, 5, 20), (0, 0.5, 1), (400,))  # n, s and seeds of a small grid
PREFERRED = (5, 0)  # n and s of the RNNs with γ among the networks compared

# Arguments that do not change what is trained.
ASIDE = once.ASIDE | {"save_freq", "save_epochs", "save", "transform", "log_interval"}
GRID = {"net_type", "nonlin", "learn_params", "random", "n", "s", "seed"}  # varied by a grid
NETWORK = {*GRID, "rinit", "iinit", "lr"}  # varied between the networks compared

CAPTION = 150  # characters of a line below a figure
TEXTS = ("PTB", "pydoc", "corpus")  # tasks of PTB_task.py


# Folders and tasks


def folders():
    """The folder of the runs and that of the figures.

    Environment variables RUNS and FIGURES, relative to the repository; by default SavedModels, and
    the folder figures in that of the runs.
    """
    root = REPOSITORY / os.environ.get("RUNS", "SavedModels")
    return root, REPOSITORY / os.environ.get("FIGURES", root / "figures")


def find_task(root):
    """The task of a figure: environment variable TASK, or else the only task below root.

    Raises FigureError, with the tasks found, if there are none or several.
    """
    found = tasks(root)
    if (task := os.environ.get("TASK")) or len(found) == 1:
        return task or next(iter(found))
    raise FigureError(f"set TASK to the task of the figure; {_tasks_in_words(root)}")


def tasks(root):
    """The number of runs of every task below root, {task: number}."""
    paths = sorted(path for path in root.glob("*") if path.is_dir())
    return {path.name: number for path in paths if (number := len(find_runs(path)))}


def _tasks_in_words(root):
    said = ", ".join(f"{task} ({_runs(number)})" for task, number in tasks(root).items())
    return f"found below {root}: {said or 'no runs'}"


# Selecting runs


def load_grid(root, task, **arguments):
    """The finished runs of a task over the grid, {setting: {(n, s): [Run of each seed]}}.

    arguments: further saved arguments of the runs. Of several equal runs, the newest is used; runs
    with a random n (--random) are ignored. Prints what is missing, with the command that trains it.
    Raises FigureError if a setting has no runs, or the runs differ in an argument that the grid
    does not vary.
    """
    runs = [run for run in _finished(root, task, arguments) if not _drawn(run)]
    chosen = {name: _with(runs, own) for name, own in SETTINGS.items()}
    _check_agreement(runs_of(chosen), GRID)
    found = {}
    for name, group in chosen.items():
        at = sorted(set(map(initial, group)))
        found[name] = {key: _newest(run for run in group if initial(run) == key) for key in at}
    runs = [run for cells in found.values() for run in runs_of(cells)]
    axes = [sorted(set(v)) for v in zip(*((*initial(r), seed(r)) for r in runs), strict=True)]
    total = math.prod(map(len, axes)) if axes else 0
    missing = {name: total - len(runs_of(cells)) for name, cells in found.items()}
    lists = dict(zip(("--n", "--s", "--seed"), axes or SMALL, strict=True))
    _report(root, task, runs, missing, lists, GRID, [k for k, cells in found.items() if not cells])
    return found


def load_networks(root, task, names=(), **arguments):
    """The finished runs of the networks compared, {name: [Run of each seed]}.

    names: networks that the figure needs; by default those of `COMPARED` that have runs. arguments:
    further saved arguments, of all runs or of a network, as in {"nhid": 64, "ANRU": {"lr": 5e-4}}.
    Of the networks with γ, the runs with the initial n and s that they share, and that are nearest
    to `PREFERRED`, are used. Prints which networks are missing, with the command that trains them.
    Raises FigureError if there are none, or one of `names` is missing; if runs of one network
    differ in anything but the seed, or two networks in an argument that is not the network's own;
    if networks with γ share no initial n and s.
    """
    own = {name: arguments.pop(name) for name in COMPARED if name in arguments}
    runs = _finished(root, task, arguments)
    found, wanted = {}, names or COMPARED
    groups = {name: _with(runs, COMPARED[name] | own.get(name, {})) for name in wanted}
    starts = {name: {initial(r) for r in group if not _drawn(r)} for name, group in groups.items()}
    starts = {name: places for name, places in starts.items() if places - {None}}
    if starts:
        if not (shared := set.intersection(*starts.values())):
            said = "; ".join(f"{name} from {sorted(places)}" for name, places in starts.items())
            raise FigureError(f"the networks share no initial (n, s) of {task}: {said}")
        nearest = min(shared, key=lambda at: math.dist(at, PREFERRED))
        groups |= {name: [r for r in groups[name] if initial(r) == nearest] for name in starts}
    for name, group in groups.items():
        _check_agreement(group, {"seed", *(("n",) if any(map(_drawn, group)) else ())}, name)
        if group:
            found[name] = _newest(group)
    runs = runs_of(found)
    _check_agreement(runs, NETWORK)
    seeds = sorted(set(map(seed, runs))) or [400]
    missing = {name: len(seeds) - len(found.get(name, ())) for name in wanted}
    absent = [name for name in names if name not in found] or ([] if runs else ["network"])
    _report(root, task, runs, missing, {"--seed": seeds}, NETWORK, absent)
    return found


def _finished(root, task, arguments):
    """The finished runs of a task, without dry runs, newest first."""
    found = select_runs(root / task, **arguments) if (root / task).is_dir() else []
    return [run for run in _with(found, {"limit_batches": None}) if run.complete]


def _with(runs, arguments):
    """The runs with these arguments; None also matches a run without the argument."""
    saved = [(run, run.config["arguments"]) for run in runs]
    return [run for run, has in saved if all(has.get(k) == v for k, v in arguments.items())]


def _newest(runs):
    """The first run of each seed, ordered by seed; runs are newest first."""
    found = {}
    for run in runs:
        found.setdefault(seed(run), run)
    return [found[key] for key in sorted(found)]


def _check_agreement(runs, varied, network=None):
    """Raises FigureError if the runs (of `network`) differ in an argument that is not varied."""
    names = [name for name in differing(runs) if name not in varied | ASIDE]
    if not names:
        return
    rows = [[run.config["arguments"].get(name) for name in names] for run in runs]
    lines = []
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        different = [value for i, value in enumerate(values) if value not in values[:i]]
        counts = [f"{value!r} ({_runs(values.count(value))})" for value in different]
        lines.append(f"  {name}: {', '.join(counts)}")
    choice = dict(zip(names, max(rows, key=rows.count), strict=True))
    which, choice = ("", choice) if network is None else (f" of {network}", {network: choice})
    raise FigureError(
        f"the runs{which} differ in arguments that the figure does not vary:\n"
        + "\n".join(lines)
        + f"\nselect some, as in arguments = {choice}"
    )


# Missing runs


def _report(root, task, runs, missing, lists, varied, absent):
    """Prints which runs of a figure are missing, with one command that trains them.

    runs: those found. missing: {setting or network: number of missing runs}. lists: {flag: values}
    of the sweep. varied: arguments that the figure varies. absent: settings or networks without
    which the figure cannot be drawn; FigureError if there are any.
    """
    said, commands = [], []
    for name, number in missing.items():
        if number == 0 and runs:
            continue
        own, values = (SETTINGS | COMPARED)[name], dict(lists)
        same = _with(runs, own)
        alike = same or (runs if name in SETTINGS else [])  # take as long
        took = [metrics_of(run)["seconds"].sum() for run in alike]
        time = f", {duration(np.mean(took) * number)} in one process" if took else ""
        said.append(f"{name}: {f'{number} missing' if runs else 'no runs'}{time}")
        if own.get("nonlin") in ("gamma", "gamma2") and "--n" not in lists:
            at = initial(same[0]) if same else PREFERRED
            values |= {"--n": at[:1], "--s": at[1:]}
        commands.append(_sweep(root, task, values, own, (same or runs or [None])[-1], varied))
    text = "\n".join([*said, "train them with:", " && \\\n".join(commands)]) if said else ""
    if absent:
        absent = " and ".join(absent)
        raise FigureError(f"no finished {absent} runs of {task}; {_tasks_in_words(root)}\n{text}")
    if text:
        print(text)


def _sweep(root, task, lists, own, like, varied):
    """The command of a sweep that trains runs of a task below root.

    lists: {flag: values}. own: arguments of a setting or network. The other arguments, except those
    varied, are those of the run `like`, or the defaults if it is None.
    """
    words = ["python3", "-m", "Training.sweep"]
    words.append("PTB_task.py" if task in TEXTS else "sMNIST_task.py")
    for flag, values in lists.items():
        words += [flag, *(f"{value:.12g}" for value in values)]
    words.append("--")
    if like is None:
        words += ["--dataset", "pydoc"] if task == "pydoc" else []
        words += ["--dataset", "digits"] if task.endswith("Digits") else []
        words += ["-p"] if task.startswith("ps") else []
    else:
        words += _typed(like, varied)
    for name, value in own.items():
        flag = name.replace("net_type", "net-type")
        words += [f"--{flag}", value] if isinstance(value, str) else []
        words += [f"--no-{flag}"] if value is False else []
    return shlex.join([*words, "--save-dir", str(root)])


def _typed(run, varied):
    """The words of a run's command, without the arguments that are varied."""
    dropped = {"gain", "saturation", "lp", "no-learn_params", "no-random", "net-type", "save-dir"}
    dropped |= {"epochs", *varied} - {"lr"}
    kept, keep = [], True
    for word in shlex.split(run.config["command"])[2:]:
        if re.match(r"--?[a-zA-Z]", word):
            keep = word.lstrip("-").split("=")[0] not in dropped
        kept += [word] if keep else []
    return [*kept, "--epochs", str(run.config["arguments"]["epochs"])]  # a resumed run has more


# Properties of a run


def seed(run):
    """The seed of a run."""
    return run.config["arguments"]["seed"]


def _drawn(run):
    """Whether the initial n of a run is random."""
    return run.config["arguments"].get("random") is True


def initial(run):
    """The initial n and s of an RNN's γ, None for another network."""
    n, s = (run.config["arguments"].get(name) for name in ("n", "s"))
    return None if n is None else (float(n), float(s))


def is_text(run):
    """Whether a run is scored in bits per character rather than accuracy."""
    return run.config["model"]["task"] == "characters"


def metric(run):
    """The column of a run's score in its tables."""
    return "bits_per_character" if is_text(run) else "accuracy"


def score_name(run):
    """The name of `score` on an axis; with "validation" for "test", that of `validation`."""
    return f"test {metric(run).replace('_', ' ')}"


def chance(run):
    """The score of a random guess: accuracy 1/classes, or log₂ of the number of symbols in bits."""
    spec = run.config["model"]
    return math.log2(len(spec["vocabulary"])) if is_text(run) else 1 / spec["classes"]


def score(run):
    """The last score on the unmodified test set: accuracy in [0, 1], or bits per character."""
    return float(tests_of(run)[metric(run)][-1])


def validation(run):
    """The validation curve, (epochs,): accuracy in [0, 1], or bits per character."""
    return metrics_of(run)[f"validation_{metric(run)}"]


def trajectory(run):
    """The mean n and s of a run, initially and after each epoch, (epochs + 1, 2)."""
    metrics = metrics_of(run)
    learned = np.stack([metrics["n_mean"], metrics["s_mean"]], axis=1)
    return np.concatenate([[initial(run)], learned])


# Statistics over runs


def runs_of(groups):
    """All runs of {key: [Run]}, in order: of the cells of a setting, or of the networks."""
    return [run for runs in groups.values() for run in runs]


def plane(cells, value):
    """The mean of value(run) over seeds, NaN without runs: n (N,), s (S,), means (S, N)."""
    n, s = (np.unique(values) for values in zip(*cells, strict=True))
    values = np.full((len(s), len(n)), np.nan)
    for (n_0, s_0), runs in cells.items():
        at = np.searchsorted(s, s_0), np.searchsorted(n, n_0)
        values[at] = np.mean([value(run) for run in runs])
    return n, s, values


def paired(cells, others, value, by=initial):
    """Differences value(run) − value(other) between the runs of two settings with the same n, s
    and seed, averaged over the seeds of each cell, (cells, ...), or, with by=seed, over the cells
    of each seed, (seeds, ...)."""
    partners = {(initial(run), seed(run)): run for run in runs_of(others)}
    found = {}
    for run in runs_of(cells):
        if other := partners.get((initial(run), seed(run))):
            found.setdefault(by(run), []).append(value(run) - value(other))
    return np.array([np.mean(found[key], axis=0) for key in sorted(found)])


def interval(values):
    """The mean of values (cells, ...) over cells and its 95 % bootstrap interval: mean, low, high.

    Percentile method, resampling the cells. NaN for a single cell.
    """
    mean = values.mean(axis=0)
    if len(values) < 2:
        return mean, mean * np.nan, mean * np.nan
    found = bootstrap(
        (values,), np.mean, n_resamples=2000, batch=100, method="percentile", random_state=0
    )
    return mean, found.confidence_interval.low, found.confidence_interval.high


def t_interval(values):
    """The mean of values (R, ...) over runs or seeds and half its 95 % t interval.

    NaN for fewer than three: the interval of two is 13 standard errors wide to each side.
    """
    mean, number = np.mean(values, axis=0), len(values)
    if number < 3:
        return mean, np.full_like(mean, np.nan)
    return mean, student.ppf(0.975, number - 1) * np.std(values, axis=0, ddof=1) / np.sqrt(number)


def has_learned(run):
    """Whether the paper's learning curves include a run: its last validation score is above 12 %
    accuracy, or below 5 bits per character."""
    last = validation(run)[-1]
    return last < 5 if is_text(run) else last > 0.12


def best_quarter(runs):
    """The quarter of the runs with the best last validation score, at least one; the paper's
    analyses of the dynamics are over these."""
    ordered = sorted(runs, key=lambda run: validation(run)[-1], reverse=not is_text(runs[0]))
    return ordered[: math.ceil(len(runs) / 4)]


# Captions


def caption(task, runs, *more):
    """The lines below a figure: task, networks, units, epochs, runs and seeds, then `more`."""
    saved = [run.config["arguments"] for run in runs]

    def every(values):
        return ", ".join(dict.fromkeys(map(str, values)))

    done = [len(run.rows("metrics.csv")) for run in runs]
    epochs = [a["epochs"] for a in saved]
    epochs = [n if n == of else f"{n} of {of}" for n, of in zip(done, epochs, strict=True)]
    seeds = every(map(seed, runs))
    said = (
        f"{task}: {every(map(network_name, runs))}; {every(a['nhid'] for a in saved)} units; "
        f"{every(epochs)} epochs; {_runs(len(runs))}, seed{'s' * (',' in seeds)} {seeds}."
    )
    return textwrap.fill(" ".join([said, *more]), CAPTION)


def in_detail(networks):
    """The number of runs of each network, its learning rate, and its initial n and s if set."""
    said = []
    for name, group in networks.items():
        own = [f"lr {group[0].config['arguments']['lr']:g}"]
        if initial(group[0]) and not _drawn(group[0]):
            own.append("n {:g}, s {:g}".format(*initial(group[0])))
        said.append(f"{name} {len(group)} ({', '.join(own)})")
    return f"Runs: {', '.join(said)}."


def _runs(number):
    return f"{number} run{'s' * (number != 1)}"


def count(grid):
    """The numbers of runs and missing cells of each setting; the grid is all n and s that occur."""
    n, s = (
        set(values) for values in zip(*(key for one in grid.values() for key in one), strict=True)
    )
    said = []
    for setting, cells in grid.items():
        missing = len(n) * len(s) - len(cells)
        said.append(f"{setting} {len(runs_of(cells))} runs, {missing} cells missing")
    return f"Grid of {len(n)} n × {len(s)} s: " + "; ".join(said) + "."


def comparison(settings, value, unit="", least=0.0):
    """The paired differences of value(run) for each of `PAIRS`, one line per pair.

    A line has the mean, its interval over cells, the mean of each seed and, from three seeds on,
    half the 95 % t interval over seeds. settings: of `load_grid`. least: the spread of one value;
    a mean that is smaller, or any if it is NaN, is said to be below the spread.
    """
    lines = []
    for pair in PAIRS:
        a, b = (settings[name] for name in pair)
        values, seeds = paired(a, b, value), paired(a, b, value, by=seed)
        mean, low, high = map(_signed, interval(values))
        said = f"{mean} [{low}, {high}]{unit} ({len(values)} cells)"
        said += f"; by seed {', '.join(map(_signed, seeds))}"
        if np.isfinite(half := t_interval(seeds)[1]):
            said += f", mean ± {half:.2g}"
        above = abs(values.mean()) >= least
        lines.append(f"{' − '.join(pair)}: {said if above else 'below the spread'}")
    return lines


def _signed(value):
    return f"{np.round(value, 12) + 0.0:+.2g}".replace("-", "−")  # not −0
