"""Draws a run on one page: python3 -m Postprocessing.report RUN... [--output FILE]

Training and validation curves, gradient norm and learning rate; n and s during training; λ₁ and
the Jacobian's norm at the kept checkpoints; the spectrum of the recurrent matrix; robustness; and,
for ANRU, the response of n_t, s_t and h_t to steps of several sizes. Panels that do not apply are
left out; before its first kept checkpoint after epoch 0, a run has only curves.

The page is saved as report.png and report.pdf in the run's directory. Several runs share one page,
one colour each, saved in the working directory. Missing analyses are computed first, as by
`python3 -m Postprocessing.<name> RUN`, and saved with the run.
"""

import argparse
import math
import string
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, SymmetricalLogLocator
from tqdm import tqdm

from NetworkCreation.checkpoints import CheckpointError
from NetworkCreation.Networks import ANRU
from Postprocessing import analysis, grid, jacobian_norm, load_runs, lyapunov, plots, robustness
from Postprocessing.adaptation import learned
from Postprocessing.load_runs import layer_input, load_run, network_name, task_of
from Postprocessing.runs import in_short, varied, varied_within
from Postprocessing.spectra import recurrent_matrix
from Training.datasets import DataError
from Training.flags import Parser, entry_point
from Training.output import say
from Training.run_directory import Run, RunError, find_runs
from Training.transforms import step_drive, step_window

ANALYSES = {"lyapunov": lyapunov, "jacobian_norm": jacobian_norm, "robustness": robustness}
SIZES = (1.0, 5.0, 20.0)  # of the step drives of ANRU
SEQUENCES = 16  # test sequences over which the n_t, s_t and h_t of ANRU are averaged
HEIGHT, WIDTH = 1.75, 3  # of a row: inches, and maximum number of panels
KEY = {
    "validation": {},
    "training": {"linestyle": "--", "linewidth": 0.8},
    "test": {"marker": "o", "linestyle": "", "markersize": 3, "markerfacecolor": "white"},
}
PALETTE = list(dict.fromkeys(reversed(plots.COLOURS.values())))


class Pictured(NamedTuple):
    """A run and its data, {name of a panel: arrays}, without panels that do not apply."""

    run: Run
    found: dict


# The data


def runs_at(paths, newest=False):
    """The runs at or below these paths, or only the newest of each.

    Raises RunError if there are none, or they are of several tasks.
    """
    found = load_runs.runs_at(paths, lambda root: find_runs(root)[: 1 if newest else None])
    if len(tasks := sorted(set(map(task_of, found)))) > 1:
        raise RunError(f"a page has runs of one task, got {', '.join(tasks)}")
    return found


def compute(runs, data=None, device="cpu"):
    """Computes the `ANALYSES` that trained runs lack; data: the data folder or None."""
    options = ["--device", str(device), *([] if data is None else ["--data", str(data)])]
    bar = tqdm([(r, k) for r in runs if is_trained(r) for k in ANALYSES], leave=False, disable=None)
    for run, name in bar:
        bar.set_description(name)
        if not analysis.file_of(run, name).is_file():
            tqdm.write(f"computing {name} of {run.path}", file=sys.stderr)
        ANALYSES[name].main([str(run.path), *options])


def is_trained(run):
    """Whether a run has a kept checkpoint after epoch 0."""
    return max(run.kept, default=0) > 0


def gather(run, data=None):
    """The data of a run, from its files, saved analyses and checkpoints: a Pictured.

    data: the data folder, None for that of the run. Raises RunError if the run has no epoch yet,
    a file is damaged, or an analysis is stale.
    """
    found = learning(run)
    if is_trained(run):
        saved = [name for name in ANALYSES if analysis.file_of(run, name).is_file()]
        arrays = {name: analysis.load(run, name) for name in saved}
        found |= gains(run, data) | responses(run, data) | {"spectrum": spectra(run)}
        if exponents := arrays.get("lyapunov"):
            leading = exponents["leading"]  # (E, chains, draws)
            low, high = leading.min(axis=(1, 2)), leading.max(axis=(1, 2))
            found["lyapunov"] = exponents["epochs"], exponents["leading_mean"], low, high
        if norms := arrays.get("jacobian_norm"):
            low, middle, high = np.quantile(norms["spectral"], (0.25, 0.5, 0.75), axis=(1, 2))
            found["jacobian_norm"] = norms["epochs"], middle, low, high
        tested = arrays.get("robustness", {})
        found |= {k: (tested["amplitudes"], tested[k]) for k in tested.keys() & {"sin", "step"}}
    return Pictured(run, found)


def learning(run):
    """Curves of metrics.csv, {name: (epochs, training, validation) or (epochs, values)}."""
    metrics = load_runs.metrics_of(run)
    if not metrics:
        raise RunError(f"{run.path}: has no epoch yet")
    names = ("bits_per_character",) if grid.is_text(run) else ("loss", "accuracy")
    epochs = metrics["epoch"]
    found = {n: (epochs, metrics.get(f"train_{n}"), metrics[f"validation_{n}"]) for n in names}
    return found | {name: (epochs, metrics[name]) for name in ("gradient_norm", "lr")}


@torch.no_grad()
def spectra(run):
    """The eigenvalues of the recurrent matrix at the first and the last checkpoint, two (H,)."""
    ends = min(run.kept), max(run.kept)
    matrices = [recurrent_matrix(load_run(run.path, epoch).model.rnn) for epoch in ends]
    return tuple(torch.linalg.eigvals(matrix).numpy() for matrix in matrices)


@torch.no_grad()
def gains(run, data=None):
    """n and s at the kept checkpoints, {'n': (epochs (E,), values (E, 1 or H)), 's': …}.

    ANRU: the means of n_t and s_t over the steps of test sequences. {} for other networks.
    """
    if not isinstance(load_run(run.path).model.rnn, ANRU):
        found = learned(run)
        return {name: (found["epochs"], found[name]) for name in "ns" if name in found}
    values = {"n": [], "s": []}
    for epoch in run.kept:
        model = load_run(run.path, epoch).model
        x = layer_input(run, model, SEQUENCES, data)
        for name, traced in model.rnn.trace(x, keep=("n", "s"))[2].items():
            values[name].append(traced.mean(dim=(0, 1)).numpy())
    return {name: (np.array(list(run.kept)), np.stack(values[name])) for name in values}


@torch.no_grad()
def responses(run, data=None):
    """Means of n_t, s_t and h_t of ANRU over units and test sequences, {'n_t': {size: (T,)}, …}.

    size: of a step drive in the window of the test; 0: no drive. {} for other networks.
    """
    model = load_run(run.path).model
    if not isinstance(model.rnn, ANRU):
        return {}
    x, found = layer_input(run, model, SEQUENCES, data), {"n_t": {}, "s_t": {}, "h_t": {}}
    for size in (0.0, *SIZES):
        drive = step_drive(len(x), size, *step_window(len(x)))
        for name, traced in model.rnn.trace(x, drive=drive, keep=("n", "s", "h"))[2].items():
            found[f"{name}_t"][size] = traced.mean(dim=(1, 2)).numpy()
    return found


# The panels: each draws the data called `name` of shown, [(Pictured, colour)]


def draw_curve(shown, ax, name, label):
    """Validation, training and test against the epoch, in the styles of `KEY`."""
    for (run, found), colour in shown:
        epochs, training, validation = found[name]
        tests = load_runs.tests_of(run)
        tested = tests.get("epoch", ()), tests.get(name, ())
        lines = (epochs, validation), (epochs, training), tested
        for line, style in zip(lines, KEY.values(), strict=True):
            ax.plot(*line, color=colour, **style)
    by_epoch(ax, label)
    if name == "accuracy":
        ax.set_ylim(0, 1)
    else:
        ax.legend([Line2D([], [], color="0.3", **line) for line in KEY.values()], KEY)
    return ax if name == "loss" else draw_chance(shown, ax)


def draw_log(shown, ax, name, label):
    """A quantity, on a logarithmic axis, against the epoch."""
    for (_, found), colour in shown:
        ax.plot(*found[name], color=colour)
    return by_epoch(in_decades(ax), label)


def by_epoch(ax, label):
    """Labels axes whose x is the epoch."""
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.set(xlabel="epoch", ylabel=label)
    return ax


def in_decades(ax):
    """Makes the y axis logarithmic, at least one decade long, with plain numbers."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if (wider := 10 * low / high) > 1:
        low, high = ax.set_ylim(low / wider**0.5, high * wider**0.5)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    return ax


def draw_gain(shown, ax, name, label):
    """n or s against the epoch, units (thin) and mean (thick), and a histogram at the end."""
    low, high = cover(ax, [found[name][1] for (_, found), _ in shown])
    halves = ax.get_subplotspec().subgridspec(1, 2, width_ratios=(4, 1))
    ax.set_subplotspec(halves[0])
    beside = ax.figure.add_subplot(halves[1], sharey=ax)
    for (_, found), colour in shown:
        epochs, values = found[name]
        mean, end = values.mean(axis=1), {"ms": 4, "clip_on": False, "zorder": 3}
        ax.plot(epochs, values, color=colour, linewidth=0.4, alpha=0.4)
        ax.plot(epochs, mean, color=colour)
        ax.plot(epochs[0], mean[0], "o", color=colour, mfc="white", **end)
        ax.plot(epochs[-1], mean[-1], "o", color=colour, **end)
        bins = np.linspace(low, high, 31)
        beside.hist(values[-1], bins, orientation="horizontal", color=colour, alpha=0.5)
    beside.tick_params(labelleft=False)
    beside.xaxis.set_major_locator(MaxNLocator(1, integer=True, prune="lower"))
    beside.set_xlabel("units")
    return by_checkpoint(ax, label)


def cover(ax, values):
    """Makes the y axis cover 0 to 1 and a list of arrays; returns its ends without the margin."""
    low = min(0, *(value.min() for value in values))
    high = max(1, *(value.max() for value in values))
    margin = 0.05 * (high - low)
    ax.set_ylim(low - margin, high + margin)
    return low, high


def draw_checkpoints(shown, ax, name, label):
    """A quantity with its band, at the kept checkpoints."""
    for (_, found), colour in shown:
        plots.draw_band(*found[name], ax, colour, style=".-")
    norm = name == "jacobian_norm"
    ax.axhline(int(norm), color="0.5", linewidth=0.6)
    return by_checkpoint(in_decades(ax) if norm else ax, label)


def by_checkpoint(ax, label):
    """Labels axes whose x is the epoch of a kept checkpoint: logarithmic from 1 on."""
    ax.set(xlabel="epoch", ylabel=label)
    return from_zero(ax)


def from_zero(ax):
    """Makes the x axis linear from 0 to 1, then logarithmic with ticks at 1, 2 and 5 · 10^k."""
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    return ax


def draw_spectrum(shown, ax, name, label):
    """Initial (grey) and final eigenvalues, and the unit circle."""
    ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.5", linewidth=0.6))
    for (_, found), colour in shown:
        start, end = found[name]
        ax.plot(start.real, start.imag, "o", color="0.6", ms=3, mew=0.6, markerfacecolor="none")
        ax.plot(end.real, end.imag, "o", color=colour, ms=2.5, mew=0)
    ax.set(xlabel=f"Re {label}", ylabel=f"Im {label}", aspect="equal", adjustable="datalim")
    return ax


def draw_score(shown, ax, name, label):
    """The test score on changed inputs, against the size of the change."""
    for (_, found), colour in shown:
        ax.plot(*found[name], ".-", color=colour)
    run = shown[0][0].run
    ax.set(xlabel=label, ylabel=grid.score_name(run))
    ax.set_ylim((0, None) if grid.is_text(run) else (0, 1))
    return draw_chance(shown, from_zero(ax), left=True)


def draw_chance(shown, ax, left=False):
    """The score of a random guess, labelled at the left or the right end."""
    chance = grid.chance(shown[0][0].run)
    ax.axhline(chance, color="0.4", linestyle=":", linewidth=0.8)
    place = {"x": 0.02, "ha": "left"} if left else {"x": 1, "ha": "right"}
    style = {"va": "bottom", "fontsize": 6, "color": "0.4"}
    ax.text(y=chance, s="chance", transform=ax.get_yaxis_transform(), **place, **style)
    return ax


def draw_steps(shown, ax, name, label):
    """A mean over the units of ANRU around step drives: larger is darker; grey: no drive."""
    start, length = step_window(len(shown[0][0].found[name][0.0]))
    ax.axvspan(start, start + length, color="0.92", linewidth=0)
    for (_, found), colour in shown:
        for size, amount in zip(SIZES, (0.35, 0.65, 1.0), strict=True):
            ax.plot(found[name][size], color=plots.tint(colour, amount), label=f"{size:g}")
        ax.plot(found[name][0.0], "--", color="0.4", linewidth=0.7)
    ax.set(xlabel="step $t$", ylabel=label)
    if name == "h_t":
        ax.set_yscale("symlog", linthresh=1)
        ax.yaxis.set_major_formatter("{x:g}")
    else:
        cover(ax, [values for (_, found), _ in shown for values in found[name].values()])
    if name == "n_t":
        ax.legend(*(each[: len(SIZES)] for each in ax.get_legend_handles_labels()), ncols=3)
    return ax


# name: function that draws it, label of its axis, note in the caption
CURVES = "solid: validation, dashed: training, points: test"
PATHS = (
    "thin: units (ANRU: means over steps and test sequences), thick: their mean, initial (open) "
    "to final (filled), bars: final values of the units"
)
EIGENVALUES = (
    "eigenvalues of the recurrent matrix (LSTM, GRU: of the candidate), initial (grey) and final"
)
RANGE = "mean and range over chains of test sequences and initial directions"
QUARTILES = "median and quartiles over steps and test sequences"
CHANGED = "test set with changed inputs; dotted: chance"
AROUND = (
    f"ANRU with a step drive of {', '.join(f'{size:g}' for size in SIZES)} (light to dark, in the "
    f"grey window) and without (dashed); means over units and {SEQUENCES} test sequences"
)
PANELS = {
    "loss": (draw_curve, "loss (nats)", CURVES),
    "accuracy": (draw_curve, "accuracy", CURVES),
    "bits_per_character": (draw_curve, "bits per character", CURVES),
    "gradient_norm": (draw_log, "gradient norm", "mean over batches, before clipping"),
    "lr": (draw_log, "learning rate", ""),
    "n": (draw_gain, plots.GAIN, PATHS),
    "s": (draw_gain, plots.SATURATION, PATHS),
    "lyapunov": (draw_checkpoints, r"$\lambda_1$ (nats/step)", RANGE),
    "jacobian_norm": (draw_checkpoints, r"$\|\partial h_t / \partial h_{t-1}\|_2$", QUARTILES),
    "spectrum": (draw_spectrum, r"$\lambda$", EIGENVALUES),
    "sin": (draw_score, "amplitude of the sine transform", CHANGED),
    "step": (draw_score, "size of the step drive", CHANGED),
    "n_t": (draw_steps, "mean gain $n_t$", AROUND),
    "s_t": (draw_steps, "mean saturation $s_t$", AROUND),
    "h_t": (draw_steps, "mean activity $h_t$", AROUND),
}


# The page


def draw(pictured):
    """The page of what `gather` returns, a figure. Raises RunError for more runs than colours."""
    runs = [one.run for one in pictured]
    shown = list(zip(pictured, colours(runs), strict=True))
    sections = [[], [], []]  # the spectra of several runs and the steps have rows of their own
    for name in PANELS:
        having = [one for one in shown if name in one[0].found]
        if name == "spectrum" and len(having) > 1:
            sections[1] += [(name, [one]) for one in having]
        elif having:
            sections[2 if name in ("n_t", "s_t", "h_t") else 0].append((name, having))
    rows = [row for section in sections if section for row in in_rows(section)]

    figure = plt.figure(figsize=(plots.PAGE, HEIGHT * len(rows) + 0.7))
    letters, notes = iter(string.ascii_lowercase), {}
    cells = figure.add_gridspec(len(rows), math.lcm(*range(1, WIDTH + 1)))
    for index, row in enumerate(rows):
        span = cells.ncols // len(row)
        for column, (name, having) in enumerate(row):
            ax = figure.add_subplot(cells[index, column * span : (column + 1) * span])
            function, label, note = PANELS[name]
            function(having, ax, name, label)
            letter = next(letters)
            ax.set_title(letter, fontweight="bold")
            notes.setdefault(note, []).append(letter)
    keys = [Line2D([], [], color=colour, linewidth=3) for _, colour in shown]
    names, labelled = varied(runs), {"seed", *varied_within(runs)}
    told = labels(runs, [name for name in names if name in labelled])
    columns = max(1, min(3, 132 // (max(map(len, told)) + 7)))  # 132 letters fit side by side
    figure.legend(keys, told, loc="outside upper left", ncols=columns, handlelength=1)
    said = [f"{', '.join(panels)}: {note}." for note, panels in notes.items() if note]
    if others := [name for name in names if name not in labelled]:
        said.insert(0, f"The networks also differ in {', '.join(others)}.")
    plots.add_caption(figure, grid.caption(task_of(runs[0]), runs, *said))
    return figure


def in_rows(panels):
    """Panels in rows of at most `WIDTH`, as even as possible."""
    rows = math.ceil(len(panels) / WIDTH)
    return [[panels[i] for i in row] for row in np.array_split(np.arange(len(panels)), rows)]


def colours(runs):
    """A colour for each run, its network's or a spare one; RunError if there are too few."""
    if len(runs) > len(PALETTE):
        raise RunError(f"at most {len(PALETTE)} runs fit on a page, got {len(runs)}")
    names = [network_name(run) for run in runs]
    own = {name: plots.COLOURS[name] for name in names if name in plots.COLOURS}
    spare = iter([colour for colour in PALETTE if colour not in own.values()])
    return [own.pop(name, None) or next(spare) for name in names]


def labels(runs, names):
    """The network of each run and its arguments of these names."""
    found = []
    for run in runs:
        values = {name: in_short(run.config["arguments"].get(name)) for name in names}
        said = [f"{name}={value}" for name, value in values.items() if value]
        found.append(" ".join([network_name(run), *said]))
    return found


# The command


@entry_point
def main(argv=None):
    parser = Parser("python3 -m Postprocessing.report", __doc__)
    flag, switch = parser.add_argument, argparse.BooleanOptionalAction
    flag("runs", type=Path, nargs="+", metavar="RUN", help="run directory, or a folder of runs")
    flag("--output", type=Path, metavar="FILE", help="saved as .png and .pdf (default: see above)")
    flag("--compute", action=switch, default=True, help="compute missing analyses")
    analysis.add_place_flags(parser)
    args = parser.parse_args(argv)
    plots.use_style()
    try:
        runs = runs_at(args.runs)
        if args.compute:
            compute(runs, args.data, args.device)
        figure = draw([gather(run, args.data) for run in runs])
        output = args.output or (runs[0].path if len(runs) == 1 else Path()) / "report"
        for path in plots.save(figure, output.stem, output.parent):
            say(str(path))
    except (RunError, CheckpointError, DataError) as error:
        parser.error(f"argument RUN: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
