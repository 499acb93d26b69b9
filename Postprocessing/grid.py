"""The runs behind the figures: three settings of γ over a grid of initial n and s.

static: n and s are fixed. homogeneous: one learned pair for the layer. heterogeneous: a learned
pair for each unit. Source: Geadah et al., arXiv 2006.12253.
"""

import numpy as np

from Postprocessing.load_runs import metrics_of, select_runs
from Training.run_directory import RunError

SETTINGS = {
    "static": {"nonlin": "gamma", "learn_params": False},
    "homogeneous": {"nonlin": "gamma", "learn_params": True},
    "heterogeneous": {"nonlin": "gamma2", "learn_params": True},
}
# The networks compared, with the arguments that select their runs.
COMPARED = {
    "ANRU": {"net_type": "ANRU"},
    "gamma2-RNN": {"net_type": "RNN", "nonlin": "gamma2"},
    "ReLU-RNN": {"net_type": "RNN", "nonlin": "ReLU"},
    "LSTM": {"net_type": "LSTM"},
    "GRU": {"net_type": "GRU"},
}

TEXTS = ("PTB", "pydoc", "corpus")  # tasks of PTB_task.py


class NoRuns(RunError):
    """A figure has no runs; the message contains the command that creates them."""

    def _render_traceback_(self):  # a notebook shows only the message
        return [f"{type(self).__name__}: {self}"]


def initial(run):
    """The initial n and s of an RNN's γ."""
    return tuple(float(run.config["arguments"][name]) for name in ("n", "s"))


def is_text(run):
    """Whether a run is scored in bits per character rather than accuracy."""
    return run.config["model"]["task"] == "characters"


def score(run):
    """The last score on the unmodified test set: accuracy in [0, 1], or bits per character."""
    name = "bits_per_character" if is_text(run) else "accuracy"
    rows = [row for row in run.rows("test_results.csv") if row["condition"] in ("as_is", "best")]
    return float(rows[-1][name])


def validation(run):
    """The validation curve, (epochs,): accuracy in [0, 1], or bits per character."""
    name = "bits_per_character" if is_text(run) else "accuracy"
    return metrics_of(run)[f"validation_{name}"]


def trajectory(run):
    """The mean n and s of a run at the start and after each epoch, (epochs + 1, 2)."""
    metrics = metrics_of(run)
    learned = np.stack([metrics["n_mean"], metrics["s_mean"]], axis=1)
    return np.concatenate([[initial(run)], learned])


def load_grid(root, task, **arguments):
    """The complete runs of a task over the grid, {setting: {(n, s): [Run of each seed]}}.

    Of several runs with the same setting, n, s and seed, only the newest is used. Raises NoRuns
    if a setting has no runs.
    """
    found = {}
    for setting, own in SETTINGS.items():
        cells = {}
        for run in _complete(root, task, net_type="RNN", **own, **arguments):
            seeds = cells.setdefault(initial(run), {})
            seeds.setdefault(run.config["arguments"]["seed"], run)  # the newest comes first
        if not cells:
            raise NoRuns(
                f"no complete {setting} runs of {task} below {root}; create them with:\n"
                f"{_command(task, own)}"
            )
        found[setting] = {key: list(cells[key].values()) for key in sorted(cells)}
    return found


def load_networks(root, task, **arguments):
    """The complete runs of the networks compared, {name: [Run of each seed]}.

    For the gamma2-RNN, only the runs whose `initial` n and s are nearest (5, 0).
    Raises NoRuns if a network has no runs.
    """
    found = {}
    for name, own in COMPARED.items():
        runs = _complete(root, task, **own, **arguments)
        if not runs:
            raise NoRuns(
                f"no complete {name} runs of {task} below {root}; create one with:\n"
                f"{_command(task, own, grid=False)}"
            )
        if name == "gamma2-RNN":
            nearest = min(map(initial, runs), key=lambda at: abs(at[0] - 5) + abs(at[1]))
            runs = [run for run in runs if initial(run) == nearest]
        seeds = {}
        for run in runs:
            seeds.setdefault(run.config["arguments"]["seed"], run)
        found[name] = list(seeds.values())
    return found


def plane(cells, value):
    """The mean of value(run) over seeds, on the grid: n (N,), s (S,), means (S, N).

    cells: those of one setting. Cells without runs are NaN.
    """
    n = np.array(sorted({key[0] for key in cells}))
    s = np.array(sorted({key[1] for key in cells}))
    values = np.full((len(s), len(n)), np.nan)
    for (n_0, s_0), runs in cells.items():
        at = np.searchsorted(s, s_0), np.searchsorted(n, n_0)
        values[at] = np.mean([value(run) for run in runs])
    return n, s, values


def count(grid):
    """A sentence with the number of runs and of missing grid cells of each setting.

    The grid consists of all n and s that occur.
    """
    n = {key[0] for cells in grid.values() for key in cells}
    s = {key[1] for cells in grid.values() for key in cells}
    said = []
    for setting, cells in grid.items():
        missing = len(n) * len(s) - len(cells)
        said.append(f"{setting} {sum(map(len, cells.values()))} runs, {missing} cells missing")
    return f"Grid of {len(n)} n × {len(s)} s: " + "; ".join(said) + "."


def runs_of(cells):
    """All runs of a setting, in grid order."""
    return [run for runs in cells.values() for run in runs]


def _complete(root, task, **arguments):
    folder = root / task
    if not folder.is_dir():
        return []
    try:
        return [run for run in select_runs(folder, **arguments) if run.complete]
    except RunError:  # no run there has such an argument
        return []


def _command(task, own, grid=True):
    """The command that creates runs of a task with these arguments."""
    text = task in TEXTS
    script = "PTB_task.py" if text else "sMNIST_task.py"
    flags = ["--dataset pydoc"] if task == "pydoc" else []
    flags += ["--dataset digits"] if task.endswith("Digits") else []
    flags += ["-p"] if task.startswith("ps") else []
    for name, value in own.items():
        flag = name.replace("net_type", "net-type")
        is_switch = isinstance(value, bool)
        flags.append(
            (f"--{flag}" if value else f"--no-{flag}") if is_switch else f"--{flag} {value}"
        )
    if not grid:
        return f"python3 {script} {' '.join(flags)}"
    return f"python3 -m Training.sweep {script} --n 1 5 20 --s 0 0.5 1 -- {' '.join(flags)}"
