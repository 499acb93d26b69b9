"""Style of the figures, and functions that draw data on axes.

Every draw function takes data and `ax`, and returns `ax`. Widths are those of a printed page.
Colours: Okabe & Ito, https://jfly.uni-koeln.de/color, safe for colour-blind readers.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator

from NetworkCreation.gamma_function import gamma, gamma_prime

FIGURES = Path(__file__).resolve().parent / "figures"
PAGE = 7.2  # width in inches
COLOURS = {
    "static": "#000000",
    "homogeneous": "#56B4E9",
    "heterogeneous": "#D55E00",
    "heterogeneous − static": "#D55E00",
    "homogeneous − static": "#56B4E9",
    "heterogeneous − homogeneous": "#8C6BB1",
    "gamma2-RNN": "#D55E00",  # the heterogeneous network, by another name
    "static γ": "#000000",
    "ANRU": "#0072B2",
    "ReLU-RNN": "#009E73",
    "LSTM": "#CC79A7",
    "GRU": "#E69F00",
}
MARKERS = {
    "ANRU": "o",
    "gamma2-RNN": "s",
    "static γ": "x",
    "ReLU-RNN": "^",
    "LSTM": "D",
    "GRU": "v",
}
SCALE = "viridis"  # colour map
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


def tint(colour, amount):
    """A colour mixed with white: amount 1 is the colour, 0 white."""
    return tuple(1 - amount * (1 - np.array(to_rgb(colour))))


def panels(rows, columns, width=PAGE, height=2.5, caption="", **options):
    """A figure and its axes, labelled a, b, c, … from left to right and top to bottom."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, rows * height), squeeze=False, **options
    )
    for letter, ax in zip("abcdefghij", axes.flat, strict=False):
        ax.set_title(rf"$\mathbf{{{letter}}}$")
    add_caption(figure, caption)
    return figure, axes


def add_caption(figure, text):
    """Adds lines below the axes, such as the number of runs and the meaning of the bands."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=6, color="0.3")


def add_legend(figure):
    """Adds one legend above all panels, with each label once."""
    labelled = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    style = {"ncols": len(labelled), "fontsize": 6, "handlelength": 1, "columnspacing": 1.2}
    figure.legend(labelled.values(), labelled, loc="outside upper left", **style)


def entitle(ax, text):
    """Adds a title after the letter of a panel."""
    ax.set_title(f"{ax.get_title(loc='left')}  {text}", fontsize=7)
    return ax


def save(figure, name, folder=FIGURES):
    """Saves a figure as PNG and PDF; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        stamp = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
        figure.savefig(path, metadata=stamp)  # equal figures make equal files
    return paths


def draw_family(x, pairs, ax, derivative=False, shades=None, name="$n={:g}$, $s={:g}$"):
    """γ(x; n, s) or its derivative for pairs (n, s), light to dark; name: of a pair. x: (N,)."""
    function = gamma_prime if derivative else gamma
    if shades is None:
        shades = plt.get_cmap("viridis_r")(np.linspace(0.15, 1, len(pairs)))
    x = torch.as_tensor(x)
    for (n, s), shade in zip(pairs, shades, strict=True):
        ax.plot(x, function(x, n, s), color=shade, label=name.format(n, s))
    label = r"$\partial\gamma/\partial x$" if derivative else r"$\gamma(x; n, s)$"
    ax.set(xlabel="pre-activation $x$", ylabel=label)
    ax.legend(handlelength=1)
    return ax


def limits_of(*values):
    """The minimum and maximum over several arrays, ignoring NaN: one scale for several panels."""
    values = np.concatenate([np.ravel(part) for part in values])
    return np.nanmin(values), np.nanmax(values)


def draw_plane(n, s, values, ax, label, limits=None):
    """Filled contours of values (S, N) over n (N,) and s (S,); NaN is blank.

    Dots mark the measured points. Grids with fewer than two n or s, and equal values, are drawn as
    points only. label: of the colour bar, None for no bar. limits: of the colours, those of the
    values if None.
    """
    n_at, s_at = np.meshgrid(n, s)
    there = np.isfinite(values)
    edges = _levels(limits or limits_of(values))
    if min(values.shape) > 1 and np.ptp(values[there]) > 0:
        shown = ax.contourf(n, s, np.ma.masked_invalid(values), edges, cmap=SCALE)
        dots = {"markersize": 3, "markeredgecolor": "0.2", "markeredgewidth": 0.3}
        ax.plot(n_at[there], s_at[there], ".", color="white", clip_on=False, **dots)
    else:
        scale = {"cmap": SCALE, "vmin": edges[0], "vmax": edges[-1]}
        shown = ax.scatter(n_at[there], s_at[there], c=values[there], **scale)
    if label is not None:
        ax.figure.colorbar(shown, ax=ax, label=label)
    return _name_plane(ax)


def draw_trajectories(paths, scores, ax, label, limits=None):
    """Paths (epochs, 2) of (n, s), ends coloured by scores (R,); limits: as for `draw_plane`."""
    for path in paths:
        ax.plot(*path.T, color="0.6", linewidth=0.6, zorder=2)
        ax.plot(*path[0], ".", color="0.6", markersize=2, zorder=2)
    ends = np.array([path[-1] for path in paths])
    edges = _levels(limits or limits_of(scores))
    scale = {"c": scores, "cmap": SCALE, "vmin": edges[0], "vmax": edges[-1]}
    shown = ax.scatter(*ends.T, **scale, s=12, edgecolor="0.2", linewidth=0.3, zorder=3)
    ax.figure.colorbar(shown, ax=ax, label=label)
    return _name_plane(ax)


def draw_cloud(n, s, start, ax):
    """The n and s (units,) of a network, initial value and mean, on axes of at least 2 by 0.1."""
    ax.scatter(n, s, s=8, color=COLOURS["heterogeneous"], alpha=0.6, linewidth=0, label="units")
    ax.plot(*start, "k+", markersize=8, label="start")
    ax.plot(np.mean(n), np.mean(s), "kx", markersize=6, label="centre")
    for limits, least in ((ax.set_xlim, 2.0), (ax.set_ylim, 0.1)):
        low, high = limits()
        margin = max(0, least - (high - low)) / 2
        limits(low - margin, high + margin)
    return _name_plane(ax)


def draw_band(x, middle, low, high, ax, colour, alpha=0.2, style="-", **line):
    """A curve with a band, each (len(x),); the caption says what the band is."""
    ax.plot(x, middle, style, color=colour, **line)
    ax.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)
    return ax


def draw_bars(x, middle, spread, ax, name):
    """A curve with error bars of ± spread, each (len(x),), where bands would overlap."""
    style = {"color": COLOURS[name], "elinewidth": 0.6, "capsize": 1.5}
    ax.errorbar(x, middle, spread, label=name, **style)
    return ax


def draw_ecdf(values, ax, name):
    """The fraction of values (R,) at or below each value."""
    ax.ecdf(values, color=COLOURS[name], label=name)
    ax.set_ylabel("cumulative fraction")
    return ax


def draw_histogram(values, bins, ax, name):
    """Outline of the histogram of values (R,) over runs, with the median as a dotted line."""
    ax.hist(values, bins, histtype="step", color=COLOURS[name])
    ax.axvline(np.median(values), color=COLOURS[name], linestyle=":", linewidth=1)
    return ax


def draw_reference(value, ax, label=None, vertical=False):
    """A thin line at a value, such as 0 or the score of a guess."""
    line = ax.axvline if vertical else ax.axhline
    line(value, color="0.5", linestyle=":" if label else "-", linewidth=0.8, label=label, zorder=1)
    return ax


def leave_empty(ax, reason):
    """Replaces a panel by the reason why it has no data."""
    ax.text(0.5, 0.5, reason, ha="center", transform=ax.transAxes)
    ax.set_axis_off()
    return ax


def true_scale(ax, values):
    """A symlog x axis with ticks at values (A,), linear up to the smallest positive value."""
    values = np.unique(values)
    positive = np.abs(values[values != 0])
    if len(positive):
        ax.set_xscale("symlog", linthresh=positive.min(), linscale=0.5)
    scale = ax.xaxis.get_transform()
    at = scale.transform(values.astype(float))
    shown, apart = [], np.ptp(at) / 7  # labels that do not touch
    for value, place in zip(values[::-1], at[::-1], strict=True):
        if not shown or shown[-1][1] - place >= apart:
            shown.append((value, place))
    ax.set_xticks([value for value, _ in shown], [f"{value:g}" for value, _ in shown])
    ax.set_xticks(values, minor=True)
    ax.xaxis.set_minor_formatter("")
    if apart > 0:
        margin = 0.05 * np.ptp(at)
        ax.set_xlim(scale.inverted().transform([at[0] - margin, at[-1] + margin]))
    return ax


def draw_robustness(amplitudes, scores, ax, name):
    """Scores (R, A) against amplitudes (A,): mean and, if R > 1, range over runs."""
    curves = scores.mean(axis=0), scores.min(axis=0), scores.max(axis=0)
    style = {"marker": MARKERS[name], "markersize": 3, "label": f"{name} ({len(scores)})"}
    draw_band(amplitudes, *curves, ax, COLOURS[name], alpha=0.15, **style)
    return true_scale(ax, amplitudes)


def draw_response(driven, means, window, ax, label):
    """A quantity of ANRU with a step drive: single units (thin), and the mean over all (thick).

    driven: (T, units). means: without and with the drive, two (T,). window: the first driven step
    and the first after it, shaded.
    """
    still, moved = means
    ax.axvspan(*window, color="0.9", linewidth=0)
    ax.plot(driven, color=COLOURS["ANRU"], linewidth=0.4, alpha=0.4)
    ax.plot(moved, color=COLOURS["ANRU"], linewidth=1.5, label="drive, mean")
    ax.plot(still, color="k", linewidth=1, linestyle="--", label="no drive, mean")
    ax.set(xlabel="step $t$", ylabel=label)
    return ax


def _levels(limits):
    """About ten round levels that cover the limits."""
    return MaxNLocator(10).tick_values(*limits)


def _name_plane(ax):
    ax.set(xlabel=GAIN, ylabel=SATURATION)
    return ax
