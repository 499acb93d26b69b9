"""Selects the runs of a figure from the table of runs: the (n, s) grid, or the networks compared.

static: n and s are fixed. homogeneous: one learned pair for the layer. heterogeneous: a learned
pair for each unit. Source: Geadah et al., arXiv 2006.12253.

The runs of a figure agree in every argument that it does not vary. Unfinished runs and dry runs
(--limit-batches) are ignored, and counted.
"""

import os
import textwrap

import numpy as np
import pandas as pd

from Postprocessing import runs
from Postprocessing.analyse import REPOSITORY, FigureError

NETWORKS = ("ANRU", "heterogeneous", "static", "ReLU", "LSTM", "GRU")  # those compared
PREFERRED = (5, 0)  # n and s of the RNNs with γ among the networks compared
GRID = {"net_type", "nonlin", "learn_params", "random", "n", "s", "seed"}  # varied by a grid
OWN = GRID | {"rinit", "iinit", "lr", "ostep_method", "capacity"}  # varied between networks
CAPTION = 132  # characters of a line below a figure


def folders(root=None, figures=None):
    """The folder of the runs and that of the figures, relative to the repository.

    None: the environment variables RUNS and FIGURES, or SavedModels and the folder figures in that
    of the runs.
    """
    root = REPOSITORY / (root or os.environ.get("RUNS", "SavedModels"))
    return root, REPOSITORY / (figures or os.environ.get("FIGURES", root / "figures"))


def load(root, task=None):
    """The table of the runs of a task below a folder.

    task: None for the environment variable TASK, or else the only task. Raises FigureError, with
    the tasks that have runs, if there is no such task, or none is given and there are several.
    """
    table = runs.load(root)
    counts = ", ".join(f"{k} ({in_runs(v)})" for k, v in table["task"].value_counts().items())
    present = f"found below {root}: {counts or 'no runs'}"
    task = task or os.environ.get("TASK")
    if task is None:
        if table["task"].nunique() != 1:
            raise FigureError(f"set TASK to the task of the figure; {present}")
        task = table["task"].iloc[0]
    if not (table["task"] == task).any():
        raise FigureError(f"no runs of {task}; {present}")
    return table[table["task"] == task]


def finished(table):
    """The finished runs that are not dry runs; prints how many are ignored."""
    kinds = pd.Series([runs.state(run) for _, run in table.iterrows()], table.index, dtype=str)
    for kind, group in table[kinds != "finished"].groupby(kinds):
        networks = ", ".join(sorted(group["network"].unique()))
        print(f"ignored: {in_runs(len(group))} ({kind}: {networks})")
    return table[kinds == "finished"]


def matching(table, arguments):
    """The runs with these arguments, {name: value, or list of values}; FigureError if unknown."""
    for name, value in arguments.items():
        if name not in table:
            raise FigureError(f"no run has an argument {name}")
        values = value if isinstance(value, (list, tuple)) else [value]
        table = table[table[name].isin(values) | (table[name].isna() & (None in values))]
    return table


def grid(table, **arguments):
    """The runs of the three settings over initial n and s: the newest of each cell and seed.

    arguments: of the runs, a value or a list, as in n=[1, 5, 20], s=[0, 0.5, 1], nhid=64. Runs with
    a random n are left out. The column `shared` is true where all settings have a run of this n, s
    and seed; only these are compared. Prints what is missing. Raises FigureError if a setting has
    no runs, or the runs differ in an argument that the grid does not vary.
    """
    chosen = finished(table[table["setting"].notna()])
    chosen = matching(chosen[chosen["random"].ne(True)], arguments)
    absent = [name for name in runs.SETTINGS if name not in set(chosen["setting"])]
    if absent:
        raise FigureError(f"no finished runs for: {', '.join(absent)}; run their sweep")
    check_agreement(chosen, GRID)
    keys = ["setting", "n", "s", "seed"]
    chosen = chosen.drop_duplicates(keys, keep="last").sort_values(keys)
    settings = chosen.groupby(["n", "s", "seed"])["setting"].transform("nunique")
    chosen = chosen.assign(shared=settings == len(runs.SETTINGS))
    print(missing(chosen))
    if not chosen["shared"].any():
        raise FigureError("no n, s and seed is common to all settings")
    return chosen


def plane(chosen, setting, column):
    """The mean of a column over seeds, s by n, of a setting; NaN where it has no run.

    The axes are n and s of all settings.
    """
    means = chosen[chosen["setting"] == setting].pivot_table(column, "s", "n")
    return means.reindex(np.unique(chosen["s"])).reindex(columns=np.unique(chosen["n"]))


def missing(chosen):
    """What the settings of a grid lack, as text: the number of runs, and cells of one setting."""
    n, s, seeds = (chosen[name].nunique() for name in ("n", "s", "seed"))
    total = n * s * seeds
    lines = [f"grid of {n} n × {s} s × {seeds} seeds; {chosen['shared'].sum()} runs are shared"]
    for setting, number in chosen["setting"].value_counts().items():
        if lacks := total - number:
            lines.append(f"{setting}: {lacks} of {total} runs missing; run its sweep again")
    for (n, s), settings in chosen.groupby(["n", "s"])["setting"].unique().items():
        if len(settings) < len(runs.SETTINGS):
            lines.append(f"n = {n:g}, s = {s:g}: only {' and '.join(settings)}")
    return "\n".join(lines)


def networks(table, names=None, **arguments):
    """The finished runs of the networks compared, the newest of each seed.

    names: networks that the figure needs; None: those of `NETWORKS` that have runs. arguments: of
    the runs, or of a network, as in nhid=64, ANRU={"lr": 5e-4}. Of the networks with γ, the runs
    with the initial n and s that they share, and that are nearest to `PREFERRED`, are used. Raises
    FigureError if networks are missing, or runs differ in what is not the network's own.
    """
    own = {name: arguments.pop(name) for name in NETWORKS if name in arguments}
    chosen = matching(finished(table[table["network"].isin(names or NETWORKS)]), arguments)
    for name, values in own.items():
        others = chosen["network"] != name
        chosen = pd.concat([chosen[others], matching(chosen[~others], values)])
    chosen = at_shared_start(chosen)
    absent = [name for name in names or NETWORKS if name not in set(chosen["network"])]
    if (names and absent) or chosen.empty:
        raise FigureError(f"no finished runs for: {', '.join(absent)}")
    for name, group in chosen.groupby("network"):
        drawn = {"n"} if group["random"].eq(True).any() else set()
        check_agreement(group, {"seed", *drawn}, name)
    check_agreement(chosen, OWN)
    chosen = chosen.sort_values("started").drop_duplicates(["network", "seed"], keep="last")
    seeds = chosen["seed"].nunique()
    for name in names or NETWORKS:
        if lacks := seeds - (chosen["network"] == name).sum():
            print(f"{name}: {lacks} of {in_runs(seeds)} missing; run its sweep again")
    rank = chosen["network"].map(NETWORKS.index)
    return chosen.assign(rank=rank).sort_values(["rank", "seed"]).drop(columns="rank")


def at_shared_start(chosen):
    """Without the runs of static and heterogeneous whose initial n and s are not shared."""
    gamma = chosen[chosen["setting"].notna() & chosen["random"].ne(True)]
    if gamma.empty:
        return chosen
    counts = gamma.groupby(["n", "s"])["network"].nunique()
    shared = counts.index[counts == chosen.loc[chosen["setting"].notna(), "network"].nunique()]
    if shared.empty:
        raise FigureError("static and heterogeneous share no initial n and s")
    n, s = min(shared, key=lambda start: np.hypot(*np.subtract(start, PREFERRED)))
    return chosen[chosen["setting"].isna() | ((chosen["n"] == n) & (chosen["s"] == s))]


def check_agreement(chosen, varied, network=None):
    """Raises FigureError if the runs (of a network) differ in an argument that is not varied."""
    lines, choice = [], {}
    for name in chosen.columns.difference([*runs.COLUMNS, *runs.ASIDE, *varied]):
        counts = chosen[name].value_counts(dropna=False)
        if len(counts) > 1:
            texts = (f"{value} ({in_runs(number)})" for value, number in counts.items())
            lines.append(f"  {name}: {', '.join(texts)}")
            choice[name] = None if pd.isna(counts.index[0]) else counts.index.tolist()[0]
    if lines:
        choice = {network: choice} if network else choice
        which = f" of {network}" if network else ""
        head = f"the runs{which} differ in arguments that the figure does not vary:"
        raise FigureError("\n".join([head, *lines, f"select some, as in ARGUMENTS = {choice}"]))


def caption(table, *more):
    """The lines below a figure: task, networks, units, epochs, runs and seeds, then `more`."""
    names = ("task", "network", "nhid", "epochs_done", "seed")
    listed = [", ".join(map(str, table[name].unique())) for name in names]
    text = "{}: {}; {} units; {} epochs; seed {}; {}.".format(*listed, in_runs(len(table)))
    return textwrap.fill(" ".join([text, *more]), CAPTION)


def in_runs(number):
    """A number of runs in words."""
    return f"{number} run{'s' * (number != 1)}"
