"""Style of the figures, and functions that draw data on axes.

Every draw function takes data and `ax`, and returns `ax`. Widths are those of a printed page.
Colours: Okabe & Ito, https://jfly.uni-koeln.de/color, and Paul Tol's muted scheme for differences;
both are safe for colour-blind readers. A colour means one thing in all figures.
"""

import string
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Circle

from Postprocessing import comparison

FIGURES = Path(__file__).resolve().parent / "figures"
PAGE = 7.2  # width in inches
COLOURS = {
    "static": "#000000",
    "homogeneous": "#56B4E9",
    "heterogeneous": "#D55E00",
    "heterogeneous − static": "#882255",
    "homogeneous − static": "#44AA99",
    "heterogeneous − homogeneous": "#999933",
    "ANRU": "#0072B2",
    "ReLU": "#009E73",
    "LSTM": "#CC79A7",
    "GRU": "#E69F00",
}
PALETTE = ["#332288", "#661100", *COLOURS.values()]  # of networks without a colour of their own
SCALE = "viridis"  # colour map
XI = plt.cm.ScalarMappable(LogNorm(np.exp(-2), 30), "plasma_r")  # of currents ξ
GAIN, SATURATION = "gain $n$ (1/a.u.)", "saturation $s$"
EXPONENT, NORM = r"$\lambda_1$ (nats/step)", r"$\|\partial h_t / \partial h_{t-1}\|_2$"


def use_style():
    """Sets matplotlib's defaults for all figures."""
    plt.style.use(FIGURES.parent / "figures.mplstyle")


def panels(titles, columns, height=2.4, caption="", **options):
    """A figure and its axes (rows, columns); titles: one a panel, after a, b, c, …"""
    rows = -(-len(titles) // columns)
    size = (PAGE, rows * height)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    for letter, title, ax in zip(string.ascii_letters, titles, axes.flat, strict=False):
        ax.set_title(rf"$\mathbf{{{letter}}}$  {title}")
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=7, color="0.3")
    return figure, axes


def add_legend(figure, axes=None, **options):
    """Adds one legend above all panels, with each label of the axes (None: all) once."""
    pairs = [ax.get_legend_handles_labels() for ax in (figure.axes if axes is None else axes)]
    labelled = {label: handle for pair in pairs for handle, label in zip(*pair, strict=True)}
    style = {"ncols": min(len(labelled), 6), "handlelength": 1.5, "columnspacing": 1.2}
    style |= {"loc": "outside upper left"} | options
    return figure.legend(labelled.values(), labelled, **style)


def save(figure, name, folder=FIGURES):
    """Saves a figure as PNG and PDF; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        stamp = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
        figure.savefig(path, metadata=stamp)  # equal figures make equal files
    return paths


def limits_of(*values):
    """The minimum and maximum over several arrays, ignoring NaN: one scale for several panels."""
    values = np.concatenate([np.ravel(part) for part in values])
    return np.nanmin(values), np.nanmax(values)


def draw_plane(plane, ax, limits):
    """Squares of a plane, a DataFrame of s (rows) by n (columns); NaN is blank, with a cross."""
    values, norm = np.ma.masked_invalid(plane.to_numpy()), plt.Normalize(*limits)
    ax.pcolormesh(values, cmap=SCALE, norm=norm, edgecolor="white", linewidth=0.5)
    row, column = np.nonzero(np.ma.getmaskarray(values))
    ax.plot(column + 0.5, row + 0.5, "x", color="0.8", markersize=4)
    ax.set_xticks(np.arange(plane.shape[1]) + 0.5, [f"{n:g}" for n in plane.columns])
    ax.set_yticks(np.arange(plane.shape[0]) + 0.5, [f"{s:g}" for s in plane.index])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel=GAIN, ylabel=SATURATION, aspect="equal")
    return ax


def add_bar(figure, axes, limits, label):
    """Adds the colour bar of the values on these axes, in their limits."""
    scale = plt.cm.ScalarMappable(plt.Normalize(*limits), SCALE)
    return figure.colorbar(scale, ax=axes, label=label, shrink=0.9)


def draw_band(x, middle, low, high, ax, colour, alpha=0.2, style="-", **line):
    """A curve with a band, each (len(x),); the caption says what the band is."""
    ax.plot(x, middle, style, color=colour, **line)
    ax.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)
    return ax


def draw_median(values, ax, name):
    """Median and quartiles over runs of values, a DataFrame of runs by epochs."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    return draw_band(values.columns, middle, low, high, ax, COLOURS[name], 0.15, label=name)


def draw_difference(paired, ax, name):
    """Mean and 95 % bootstrap interval over cells of paired differences, by epoch.

    paired: a DataFrame of (n, s, seed) by epochs. With one or two seeds: a line for each.
    """
    mean, low, high = comparison.cell_interval(paired)
    if np.isfinite(low).all():
        return draw_band(paired.columns, mean, low, high, ax, COLOURS[name], label=name)
    seeds = comparison.over_cells(paired).to_numpy()
    ax.plot(paired.columns, seeds.T, ".-", color=COLOURS[name], linewidth=0.8, label=name)
    return ax


def draw_bars(values, ax, name, shift=0):
    """Mean ± standard deviation over runs of values, a DataFrame of runs by epochs.

    shift: to the right, so that the bars of several names stand side by side on a `log_axis`. With
    one or two runs: their points.
    """
    at = (1 + np.array(values.columns)) * 1.07**shift - 1
    style = {"color": COLOURS[name], "label": name}
    if len(values) < comparison.LEAST:
        ax.plot(at, values.to_numpy().T, "o", markersize=2.5, **style)
    else:
        style |= {"elinewidth": 0.8, "capsize": 1.5, "fmt": ".", "markersize": 4}
        ax.errorbar(at, values.mean(), values.std(ddof=0), **style)
    return ax


def draw_reference(value, ax, label=None, vertical=False):
    """A thin line at a value, such as 0 or the score of a guess; none if there is no value."""
    if np.isfinite(value):
        line = ax.axvline if vertical else ax.axhline
        style = {"color": "0.5", "linestyle": ":" if label else "-", "linewidth": 0.8, "zorder": 1}
        line(value, label=label, **style)
    return ax


def leave_empty(ax, reason):
    """Replaces a panel by the reason why it has no data."""
    ax.text(0.5, 0.5, reason, ha="center", transform=ax.transAxes)
    ax.set_axis_off()
    return ax


def log_axis(ax, values):
    """Makes the x axis that of log(1 + x), with ticks at the values ≥ 0 whose labels fit."""
    values = np.unique(values)
    ax.set_xscale("function", functions=(np.log1p, np.expm1))
    places, ticks = np.log1p(values), list(values[:1])
    for value, place in zip(values[1:], places[1:], strict=True):
        if place - np.log1p(ticks[-1]) >= np.ptp(places) / 8:
            ticks.append(value)
    ax.set_xticks(ticks, [f"{value:g}" for value in ticks])
    ax.set_xticks(values, minor=True)
    margin = 0.05 * np.ptp(places) or 0.1
    ax.set_xlim(np.expm1([places[0] - margin, places[-1] + margin]))
    return ax


def draw_eigenvalues(values, ax, **style):
    """Eigenvalues in the complex plane, an array of any shape, and the unit circle."""
    if not ax.patches:
        ax.add_patch(Circle((0, 0), 1, fill=False, edgecolor="0.4", linewidth=0.6))
    ax.scatter(values.real, values.imag, **{"s": 5, "linewidth": 0} | style)
    ax.set(aspect="equal", xlabel="real part", ylabel="imaginary part")
    return ax


def colour_of(xi):
    """The colour of a current ξ; grey for 0."""
    return XI.to_rgba(xi) if xi > 0 else "0.6"


def add_scale(figure, axes, **place):
    """Adds the colour bar of the currents beside the axes."""
    place = {"aspect": 40, "pad": 0.01} | place
    bar = figure.colorbar(XI, ax=axes, label=r"current $\xi$ (a.u.)", **place)
    return bar.set_ticks([0.2, 1, 2.5, 5, 10, 30], labels=["0.2", "1", "2.5", "5", "10", "30"])


def share_y(axes):
    """Gives axes the same limits of y, those that cover all of them."""
    limits = [limit for ax in axes for limit in ax.get_ylim()]
    for ax in axes:
        ax.set_ylim(min(limits), max(limits))


def share_limits(axes):
    """Gives axes of the complex plane the same symmetric limits, at least ±1.1."""
    far = max([1.1, *(abs(limit) for ax in axes for limit in (*ax.get_xlim(), *ax.get_ylim()))])
    for ax in axes:
        ax.set(xlim=(-far, far), ylim=(-far, far))
