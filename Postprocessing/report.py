"""Draws runs on one page: python3 -m Postprocessing.report RUN... [--where EXPRESSION]

Learning curves, gradient norm, learning rate, n and s; λ₁ and the Jacobian's norm at the kept
checkpoints; robustness; for ANRU, the response of n_t, s_t and h_t to steps; and the eigenvalues of
the recurrent matrix. Panels that do not apply, and those of a constant, are left out.

The page is saved as report.png and report.pdf in the run's directory. Several runs of one task
share a page, one colour each, saved in the working directory. The page shows the analyses that are
saved, and the command that computes the others is printed.
"""

import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from NetworkCreation.checkpoints import newest_checkpoint, read_checkpoint
from Postprocessing import analyse, plots, runs, selection
from Training.config import RunError
from Training.console import entry_point
from Training.parser import Parser
from Training.run_directory import TABLES, Run

SIZES = (1.0, 5.0, 20.0)  # of the steps of ANRU
CHANGES = {"sin": "amplitude of the sine", "step": "size of the step (a.u.)"}  # of the input
HEIGHT = 1.85  # of a row, in inches
# A run on the page: its row of the table of runs, {panel: data}, and its colour.
Entry = namedtuple("Entry", ("run", "panels", "colour"))
STYLES = {
    "validation": {},
    "training": {"linestyle": "--", "linewidth": 0.8},
    "test": {"marker": "o", "linestyle": "", "markersize": 3, "markerfacecolor": "white"},
}


def gather(run):
    """The data of a run, a row of the table of runs, {panel: data}, from its files.

    Raises RunError if it has no epoch yet, or an analysis is damaged or stale.
    """
    path = Path(run["path"])
    metrics, tests = (runs.read_csv(path / name) for name in TABLES)
    if metrics.empty:
        raise RunError(f"{path}: has no epoch yet")
    tests = tests[tests["condition"] == "as_is"] if len(tests) else tests
    panels, epochs, score = {}, metrics["epoch"], run["score"]
    for name in {score} if score == "bits_per_character" else {"loss", score}:  # bits are a loss
        if f"validation_{name}" in metrics:
            panels[name] = {"validation": (epochs, metrics[f"validation_{name}"])}
            if f"train_{name}" in metrics:
                panels[name]["training"] = epochs, metrics[f"train_{name}"]
            if name in tests:
                panels[name]["test"] = tests["epoch"], tests[name]
    for name in ("gradient_norm", "lr"):
        if metrics[name].nunique() > 1:
            panels[name] = epochs, metrics[name]
    saved = {name: analyse.load(path, name) or {} for name in analyse.NOTEBOOKS["report"]}
    panels |= gains(run, metrics, saved["step_response"])
    if arrays := saved["lyapunov"]:
        leading = arrays["leading"].reshape(len(arrays["epochs"]), -1)
        panels["lyapunov"] = arrays["epochs"], leading.mean(1), leading.min(1), leading.max(1)
    if arrays := saved["jacobian"]:
        low, middle, high = np.quantile(arrays["spectral"], (0.25, 0.5, 0.75), axis=(1, 2))
        panels["norm"] = arrays["epochs"], middle, low, high
        panels |= {"spectrum": arrays["matrix"]} if "matrix" in arrays else {}
    arrays = saved["robustness"]
    panels |= {name: (arrays["amplitudes"], arrays[name]) for name in CHANGES if name in arrays}
    if arrays := saved["step_response"]:
        for name in ("n", "s", "h"):
            lines = dict(zip(arrays["xi"], arrays[name], strict=True))
            panels[f"{name}_t"] = lines, arrays["window"]
    return panels


def gains(run, metrics, response):
    """n and s, if they change: {name: (epochs, mean, standard deviation, units at the end)}.

    Units: of a heterogeneous RNN, or of ANRU, from the arrays of `step_response`; else None.
    """
    panels, saved = {}, {}
    if run["setting"] == "heterogeneous" and Run(run["path"]).kept:
        saved = read_checkpoint(newest_checkpoint(Path(run["path"])))["state_dict"]
    for name in ("n", "s"):
        epochs, mean, spread = metrics[["epoch", f"{name}_mean", f"{name}_std"]].to_numpy().T
        if pd.notna(run[name]):
            epochs, mean, spread = np.insert([epochs, mean, spread], 0, (0, run[name], 0), axis=1)
        units = response[f"{name}_end"] if response else saved.get(f"rnn.{name}")
        if np.ptp(mean) > 0:
            panels[name] = epochs, mean, spread, units
    return panels


# The panels: each draws the data called `name` of the runs that have it, a list of Entry


def draw_curve(ax, entries, name):
    """Validation, training and test against the epoch, in the styles of `STYLES`."""
    for entry in entries:
        for part, line in entry.panels[name].items():
            ax.plot(*line, color=entry.colour, **STYLES[part])
    if name != "loss":
        plots.draw_reference(entries[0].run["chance"], ax, "chance")
    return by_epoch(ax)


def draw_quantity(ax, entries, name):
    """A positive quantity against the epoch, on a logarithmic axis if it spans a factor of 5."""
    for entry in entries:
        ax.plot(*entry.panels[name], color=entry.colour)
    low, high = plots.limits_of(*(entry.panels[name][1] for entry in entries))
    if high > 5 * low > 0:
        ax.set_yscale("log")
    return by_epoch(ax)


def by_epoch(ax):
    """Labels an x axis of whole epochs."""
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel("epoch")
    return ax


def draw_gain(ax, entries, name):
    """n or s: mean and standard deviation over units; beside it, the units at the end."""
    if any(entry.panels[name][3] is not None for entry in entries):
        halves = ax.get_subplotspec().subgridspec(1, 2, width_ratios=(4, 1))
        ax.set_subplotspec(halves[0])
        beside = ax.figure.add_subplot(halves[1], sharey=ax)
        beside.tick_params(labelleft=False)
        beside.xaxis.set_major_locator(MaxNLocator(1, integer=True, prune="lower"))
        beside.set_xlabel("units")
    for entry in entries:
        epochs, mean, spread, units = entry.panels[name]
        plots.draw_band(epochs, mean, mean - spread, mean + spread, ax, entry.colour, 0.15)
        if units is not None:
            style = {"orientation": "horizontal", "color": entry.colour, "alpha": 0.5}
            beside.hist(np.asarray(units), 20, **style)
    ax.ticklabel_format(useOffset=False)
    return by_epoch(mark_unit_range(ax) if name == "s" else ax)


def mark_unit_range(ax):
    """Marks 0 and 1 on the y axis with dotted lines, as far as they are in its limits."""
    limits = ax.get_ylim()
    ax.hlines((0, 1), *ax.get_xlim(), color="0.4", linestyle=":", linewidth=0.8, zorder=1)
    ax.set_ylim(limits)
    return ax


def draw_points(ax, entries, name):
    """A quantity, with its band, on the axis of log(1 + epoch) or log(1 + size)."""
    for entry in entries:
        x, middle, *band = entry.panels[name]
        plots.draw_band(x, middle, *(band or (middle, middle)), ax, entry.colour, style=".-")
    chance = entries[0].run["chance"]
    value, label = {"lyapunov": (0, None), "norm": (1, None)}.get(name, (chance, "chance"))
    plots.draw_reference(value, ax, label)
    ax.set_xlabel(CHANGES.get(name, "epoch"))
    return plots.log_axis(ax, np.concatenate([entry.panels[name][0] for entry in entries]))


def draw_steps(ax, entries, name):
    """A mean over the units of ANRU around steps: larger is darker; dashed: no step."""
    for entry in entries:
        lines, window = entry.panels[name]
        ax.axvspan(*window, color="0.93", linewidth=0)
        for size, amount in zip(SIZES, (0.35, 0.65, 1.0), strict=True):
            if size in lines:
                ax.plot(lines[size], color=entry.colour, alpha=amount, linewidth=1)
        if 0.0 in lines:
            ax.plot(lines[0.0], "--", color="0.4", linewidth=0.7)
    if name == "h_t" and ax.dataLim.ymax > 100:  # h has no bound
        ax.set_yscale("symlog", linthresh=1)
        ax.yaxis.get_major_locator().set_params(numticks=7)
    ax.set_xlabel("step $t$")
    return mark_unit_range(ax) if name == "s_t" else ax


def draw_spectrum(ax, entries, name):
    """Initial (grey) and final eigenvalues, and the unit circle."""
    for entry in entries:
        plots.draw_eigenvalues(entry.panels[name][0], ax, color="0.7", s=12)
        plots.draw_eigenvalues(entry.panels[name][-1], ax, color=entry.colour, s=5)
    return ax


PANELS = {  # panel: title, label of the y axis, function that draws it
    "loss": ("loss", "loss (nats)", draw_curve),
    "gradient_norm": ("gradient norm", "norm", draw_quantity),
    "lr": ("learning rate", "learning rate", draw_quantity),
    "n": ("gain", plots.GAIN, draw_gain),
    "s": ("saturation", plots.SATURATION, draw_gain),
    "lyapunov": ("Lyapunov exponent", plots.EXPONENT, draw_points),
    "norm": ("norm of the Jacobian", plots.NORM, draw_points),
    "sin": ("oscillating brightness", "test accuracy", draw_points),
    "step": (),  # named after the score, as is a panel of its own after the loss
    "n_t": ("gain under steps", "mean gain $n_t$", draw_steps),
    "s_t": ("saturation under steps", "mean saturation $s_t$", draw_steps),
    "h_t": ("output under steps", "mean $h_t$ (a.u.)", draw_steps),
    "spectrum": ("recurrent matrix", "imaginary part", draw_spectrum),
}
NOTES = {
    "n": "n, s: mean ± s.d. over units (in ANRU also over time and images), and units at the end; "
    "dotted: s = 0, s = 1.",
    "lyapunov": "λ₁: mean and range over sequences and directions. Jacobian: median and quartiles.",
    "n_t": "Steps of size 1, 5, 20 (light to dark), none (dashed).",
    "spectrum": "Eigenvalues: initial (grey) and final.",
}


# The page


def draw(table):
    """The page of the runs of a table, a figure. Raises RunError for more runs than colours."""
    rows = zip(table.iterrows(), colours_of(table["network"]), strict=True)
    entries = [Entry(run, gather(run), colour) for (_, run), colour in rows]
    score = table["score"].iloc[0]
    label = score.replace("_", " ")
    known = {"loss": PANELS["loss"], score: (label, label, draw_curve)} | PANELS
    known["step"] = ("step drive", f"test {label}", draw_points)
    having = {name: [entry for entry in entries if name in entry.panels] for name in known}
    cells = [(name, group) for name, group in having.items() if group and name != "spectrum"]
    cells += [("spectrum", [entry]) for entry in having["spectrum"]]  # a circle for each run
    titles = [known[name][0] for name, _ in cells]
    if (circles := len(having["spectrum"])) > 1:
        titles[-circles:] = [entry.run["network"] for entry in having["spectrum"]]
    caption = selection.caption(table, *(note for name, note in NOTES.items() if having[name]))
    figure, axes = plots.panels(titles, 3, HEIGHT, caption)
    figure.set_figheight(HEIGHT * len(axes) + 0.9)  # of the legend and the caption
    for ax, (name, group) in zip(axes.flat, cells, strict=False):
        _, label, function = known[name]
        function(ax, group, name).set_ylabel(label)
    for ax in axes.flat[len(cells) :]:
        ax.remove()
    plots.share_limits(axes.flat[len(cells) - circles : len(cells)])
    add_keys(figure, table, entries)
    return figure


def add_keys(figure, table, entries):
    """Adds a legend of the runs, if there are several, and of the line styles, with a title."""
    names, keys = labels(table), {}
    title = f"{table['task'].iloc[0]}: {names[0] if len(names) == 1 else f'{len(names)} runs'}"
    if len(names) > 1:
        for name, entry in zip(names, entries, strict=True):
            keys[name] = Line2D([], [], color=entry.colour, linewidth=3)
    curves = [data for entry in entries for data in entry.panels.values() if isinstance(data, dict)]
    for part, style in STYLES.items():
        if any(part in lines for lines in curves):
            keys[part] = Line2D([], [], color="0.3", **style)
    if table["chance"].notna().any():
        keys["chance"] = Line2D([], [], color="0.5", linestyle=":", linewidth=0.8)
    columns = max(1, min(len(keys), 6, 120 // (max(map(len, keys)) + 7)))
    style = {"loc": "outside upper left", "ncols": columns, "handlelength": 1.5}
    style |= {"alignment": "left", "title_fontsize": 9}
    return figure.legend(keys.values(), keys, title=title, **style)


def colours_of(networks):
    """A colour for each run, its network's or a spare one; RunError if there are too few."""
    if len(networks) > (most := len(plots.PALETTE)):
        raise RunError(f"at most {most} runs fit on a page, got {len(networks)}: use --where")
    own = {name: plots.COLOURS[name] for name in networks if name in plots.COLOURS}
    spare = iter([colour for colour in plots.PALETTE if colour not in own.values()])
    return [own.pop(name, None) or next(spare) for name in networks]


def labels(table):
    """The network of each run, its seed, and the arguments in which runs of a network differ."""
    within = {name for _, group in table.groupby("network") for name in runs.varied(group)}
    names = [name for name in runs.varied(table) if name == "seed" or name in within] or ["seed"]
    names += ["started"] * int(table.duplicated(["network", *names]).any())
    return [
        ", ".join([run["network"], *(f"{k} {run[k]}" for k in names if pd.notna(run[k]))])
        for _, run in table.iterrows()
    ]


@entry_point
def main(argv=None):
    parser = Parser("python3 -m Postprocessing.report", __doc__)
    flag = parser.add_argument
    flag("runs", type=Path, nargs="+", metavar="RUN", help="run directory, or a folder of runs")
    flag("--where", metavar="EXPRESSION", help="select runs, as in Postprocessing.runs")
    flag("--output", type=Path, metavar="FILE", help="saved as .png and .pdf (default: see above)")
    args = parser.parse_args(argv)
    table = analyse.table_of(args.runs, args.where, parser)
    if table["task"].nunique() != 1:
        tasks = ", ".join(sorted(table["task"].unique()))
        parser.error(f"argument RUN: a page has runs of one task, got {tasks}")
    if (command := analyse.missing(table, "report")) is not None:
        print(f"not all analyses are saved; compute them with\n  {command}", file=sys.stderr)
    plots.use_style()
    try:
        figure = draw(table)
    except RunError as error:
        parser.error(f"argument RUN: {error}")
    output = args.output or Path(table["path"].iloc[0] if len(table) == 1 else ".") / "report"
    for path in plots.save(figure, output.stem, output.parent):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
