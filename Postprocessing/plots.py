"""Style of the figures (colours, names, order), and functions that draw data on axes.

Every draw function takes data and `ax` and returns `ax`. Widths are those of a printed page.
Colours: Okabe & Ito, https://jfly.uni-koeln.de/color, safe for colour-blind readers.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from NetworkCreation.gamma_function import gamma, gamma_prime

FIGURES = Path(__file__).resolve().parent / "figures"
COLUMN, PAGE = 3.5, 7.2  # inches
COLOURS = {
    "static": "#000000",
    "homogeneous": "#56B4E9",
    "heterogeneous": "#D55E00",
    "gamma2-RNN": "#D55E00",  # the heterogeneous network, by another name
    "ANRU": "#0072B2",
    "ReLU-RNN": "#009E73",
    "LSTM": "#CC79A7",
    "GRU": "#E69F00",
}
MARKERS = {"ANRU": "o", "gamma2-RNN": "s", "ReLU-RNN": "^", "LSTM": "D", "GRU": "v"}
SCALE = "viridis"  # colour map of accuracies, bits and nats
GAIN, SATURATION = "gain $n$", "saturation $s$"


def use_style():
    """Sets matplotlib's defaults for all figures."""
    plt.rcParams.update(
        {
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "legend.fontsize": 7,
            "lines.linewidth": 1.2,
            "figure.constrained_layout.use": True,
            "figure.dpi": 120,
            "savefig.dpi": 250,
            "pdf.fonttype": 42,
        }
    )


def panels(rows, columns, width=PAGE, height=2.5, caption="", **options):
    """A figure and its axes, labelled a, b, c, … from left to right and top to bottom.

    caption: a line below the axes, such as the number of runs and of missing cells.
    """
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, rows * height), squeeze=False, **options
    )
    for letter, ax in zip("abcdefghij", axes.flat, strict=False):
        ax.set_title(letter, fontweight="bold")
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=6, color="0.3")
    return figure, axes


def save(figure, name, folder=FIGURES):
    """Saves a figure as PNG and PDF; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        stamp = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
        figure.savefig(path, metadata=stamp)  # reproducible: the same figure, the same file
    return paths


def draw_family(x, pairs, ax, derivative=False):
    """γ(x; n, s), or its derivative, for pairs (n, s), from light to dark. x: (N,)."""
    function = gamma_prime if derivative else gamma
    shades = plt.get_cmap("viridis_r")(np.linspace(0.15, 1, len(pairs)))
    x = torch.as_tensor(x)
    for (n, s), shade in zip(pairs, shades, strict=True):
        ax.plot(x, function(x, n, s), color=shade, label=f"$n={n:g}$, $s={s:g}$")
    ax.set_xlabel("pre-activation $x$")
    ax.set_ylabel(r"$\partial\gamma/\partial x$" if derivative else r"$\gamma(x; n, s)$")
    ax.legend(handlelength=1)
    return ax


def draw_plane(n, s, values, ax, label, levels=10):
    """Filled contours of values (S, N) over n (N,) and s (S,), with a colour bar; NaN is blank.

    Dots mark the measured points. A grid with fewer than two n or s has no area, and is drawn as
    points; so are values that are all equal.
    """
    n_at, s_at = np.meshgrid(n, s)
    there = np.isfinite(values)
    if min(values.shape) > 1 and np.ptp(values[there]) > 0:
        shown = ax.contourf(n, s, np.ma.masked_invalid(values), levels, cmap=SCALE)
        ax.plot(n_at[there], s_at[there], ".", color="white", markersize=1.5, clip_on=False)
    else:
        shown = ax.scatter(n_at[there], s_at[there], c=values[there], cmap=SCALE)
    ax.figure.colorbar(shown, ax=ax, label=label)
    return _name_plane(ax)


def draw_trajectories(paths, scores, ax, label):
    """Trajectories (epochs, 2) of (n, s) during learning; end points coloured by scores (R,)."""
    for path in paths:
        ax.plot(*path.T, color="0.6", linewidth=0.6, zorder=2)
        ax.plot(*path[0], ".", color="0.6", markersize=2, zorder=2)
    ends = np.array([path[-1] for path in paths])
    shown = ax.scatter(
        *ends.T, c=scores, cmap=SCALE, s=12, edgecolor="0.2", linewidth=0.3, zorder=3
    )
    ax.figure.colorbar(shown, ax=ax, label=label)
    return _name_plane(ax)


def draw_cloud(n, s, start, ax, colour=COLOURS["heterogeneous"]):
    """The n and s (units,) of a heterogeneous network, with their start and centre."""
    ax.scatter(n, s, s=8, color=colour, alpha=0.6, linewidth=0, label="units")
    ax.plot(*start, "k+", markersize=8, label="start")
    ax.plot(np.mean(n), np.mean(s), "kx", markersize=6, label="centre")
    beside = {"loc": "lower right", "bbox_to_anchor": (1, 0.98), "ncols": 3, "fontsize": 6}
    ax.legend(**beside, handlelength=1, handletextpad=0.2, columnspacing=0.5)
    return _name_plane(ax)


def draw_quartiles(x, values, ax, name):
    """Median and interquartile range over runs; values (R, len(x)), NaN is ignored."""
    low, middle, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=0)
    ax.plot(x, middle, color=COLOURS[name], label=f"{name} ({len(values)})")
    ax.fill_between(x, low, high, color=COLOURS[name], alpha=0.12, linewidth=0)
    ax.plot(x, np.stack([low, high], axis=1), color=COLOURS[name], linewidth=0.5)
    return ax


def draw_histogram(values, bins, ax, name):
    """Histogram of values (R,) over runs, with the median as a dotted line."""
    ax.hist(values, bins, histtype="stepfilled", color=COLOURS[name], alpha=0.15)
    ax.hist(values, bins, histtype="step", color=COLOURS[name], label=name)
    ax.axvline(np.median(values), color=COLOURS[name], linestyle=":", linewidth=1)
    return ax


def draw_robustness(amplitudes, scores, ax, name):
    """Scores (R, A) against amplitudes (A,): mean and, if R > 1, range over runs."""
    at = np.arange(len(amplitudes))  # evenly spaced: amplitudes span two orders of magnitude
    ax.plot(at, scores.mean(axis=0), color=COLOURS[name], marker=MARKERS[name], ms=3, label=name)
    ax.fill_between(at, scores.min(axis=0), scores.max(axis=0), color=COLOURS[name], alpha=0.15)
    ax.set_xticks(at, [f"{a:g}" for a in amplitudes])
    return ax


def draw_response(without, driven, window, ax, label):
    """A quantity (T, units) without and with a step drive: thin driven units, thick means.

    window: the steps (first, end) of the drive, shaded.
    """
    steps = np.arange(len(driven))
    ax.axvspan(*window, color="0.9", linewidth=0)
    ax.plot(steps, driven, color=COLOURS["ANRU"], linewidth=0.4, alpha=0.5)
    ax.plot(steps, driven.mean(axis=1), color=COLOURS["ANRU"], linewidth=1.5, label="drive, mean")
    ax.plot(steps, without.mean(axis=1), color="k", linewidth=1, linestyle="--", label="none, mean")
    ax.set_xlabel("step $t$")
    ax.set_ylabel(label)
    return ax


def _name_plane(ax):
    ax.set_xlabel(GAIN)
    ax.set_ylabel(SATURATION)
    return ax
