"""Panels of adaptation.ipynb: ANRU under currents ξ.

Every draw function takes data and `ax`, and returns `ax`. All panels share one colour scale of the
currents, `XI`; ξ = 0 is grey. R runs, X currents ξ, T steps.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm

from NetworkCreation.gamma_function import gamma_prime
from Postprocessing.plots import COLOURS, GAIN, SATURATION, draw_band
from Postprocessing.statistics import LEAST, t_interval
from Postprocessing.step_response import ends
from Postprocessing.supervisor import fit

XI = ScalarMappable(
    LogNorm(np.exp(-2), 30), ListedColormap(plt.get_cmap("plasma_r")(np.linspace(0.1, 1, 256)))
)

UNITS = {"connected": COLOURS["ANRU"], "isolated": "0.45"}
UNIT_SLOPE = (0.9, 1.1, 1.5, 2.0, 3.0, 5.0, 30.0)  # the x* of the contours γ′(x*; n, s) = 1


def colour(xi):
    """The colour of a current."""
    return XI.to_rgba(xi) if xi > 0 else "0.6"


def add_scale(figure, axes):
    """Adds the colour bar of the currents beside the axes."""
    bar = figure.colorbar(XI, ax=axes, label=r"current $\xi$ (a.u.)", aspect=40, pad=0.01)
    bar.set_ticks([0.2, 1, 2.5, 5, 10, 30], labels=["0.2", "1", "2.5", "5", "10", "30"])
    return bar


def draw_drives(xi, values, ax, driven, label):
    """Values (X, T) under each current ξ (X,). driven: its first step and the first after it."""
    ax.axvspan(*driven, color="0.93", linewidth=0)
    for size, line in zip(xi, values, strict=True):
        ax.plot(line, color=colour(size), linewidth=1)
    ax.set(xlabel="step $t$", ylabel=label)
    return ax


def draw_shape_plane(xi, n, s, window, ax):
    """Paths of (n_t, s_t), each (X, T), during the step, over the contours γ′(x*; n, s) = 1.

    Triangle: onset. Square: mean of the last quarter of the step. Dashed: the contours.
    """
    first, end = window
    for size, *path in zip(xi, n, s, strict=True):
        if size > 0:
            path = np.array(path)
            onset, settled = ends(path, window)
            ax.plot(*path[:, first:end], color=colour(size), linewidth=0.8)
            style = {"color": colour(size), "markeredgecolor": "k", "markeredgewidth": 0.5}
            ax.plot(*onset, "^", markersize=5, **style)
            ax.plot(*settled, "s", markersize=4.5, **style)
    ax.margins(0.08)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    low, high = min(low, -0.01), max(high, 0.01)  # most of the contours are near s = 0
    grid = np.meshgrid(np.linspace(left, right, 300), np.linspace(low, high, 300))
    for x in UNIT_SLOPE:
        slope = gamma_prime(torch.tensor(x).double(), *map(torch.from_numpy, grid)).numpy()
        if slope.min() < 1 < slope.max():
            ax.contour(*grid, slope, [1.0], colors=[colour(x)], linestyles="--", linewidths=0.8)
    ax.set(xlabel=GAIN, ylabel=SATURATION, xlim=(left, right), ylim=(low, high))
    return ax


def holds(parameters, errors):
    """Whether a fit (a, b, c) holds: a and b are larger than two of their standard errors."""
    return (np.abs(parameters[:2]) > 2 * errors[:2]).all()


def draw_scaling(xi, values, curve, ax, label):
    """Values (R, X) against ξ: runs, mean and 95 % interval; dashed: the fit, if it holds."""
    mean, half = t_interval(values)
    ax.plot(xi, values.T, color=COLOURS["ANRU"], linewidth=0.5, alpha=0.5)
    bars = half if np.isfinite(half).all() else None
    style = {"fmt": "o", "color": COLOURS["ANRU"], "markersize": 3, "linewidth": 0.8}
    ax.errorbar(xi, mean, bars, **style)
    parameters, errors = fit(curve, xi, mean)
    if holds(parameters, errors):
        x = np.geomspace(min(xi), max(xi), 200)
        ax.plot(x, curve(x, *parameters), "k--", linewidth=1, zorder=3)
    ax.set(xlabel=r"standard deviation $\xi$ (a.u.)", ylabel=label)
    return ax


def draw_supervisor(xi, path, explained, ax, onset):
    """Projections (X, T, 2) of g_t, circles at the end; explained: fractions of variance (2,)."""
    for size, line in zip(xi, path, strict=True):
        ax.plot(*line[onset - 1 :].T, color=colour(size), linewidth=0.8)
        ax.plot(*line[-1], "o", color=colour(size), markeredgecolor="k", markersize=4.5)
    first, second = (f"PC{i} of $g_t$ ({share:.0%})" for i, share in enumerate(explained, 1))
    ax.set(xlabel=first, ylabel=second)
    return ax


def draw_orders(xi, alphas, ax, connectivity, fit_name):
    """α (R, X) against ξ: mean and 95 % interval, or one or two runs. Dashed: the free fit."""
    style = {"paper": "-o", "free": "--s"}[fit_name]
    label = f"{connectivity}, {'free gain' if fit_name == 'free' else 'paper’s fit'}"
    look = {"markersize": 3, "linewidth": 1, "label": label}
    mean, half = t_interval(alphas)
    if len(alphas) < LEAST:
        ax.plot(xi, mean, style, color=UNITS[connectivity], **look)
        ax.plot(xi, alphas.T, color=UNITS[connectivity], linewidth=0.5, alpha=0.5)
    else:
        band = (mean - half, mean + half, ax, UNITS[connectivity])
        draw_band(xi, mean, *band, alpha=0.12, style=style, **look)
    ax.set(xlabel=r"current $\xi$ (a.u.)", ylabel=r"fractional order $\alpha$")
    ax.set(ylim=(-0.03, 1.03), yticks=[0, 0.25, 0.5, 0.75, 1])
    return ax


def draw_density(values, ax, connectivity, filled=True):
    """Density of values in [−1, 1] over units, in 20 bins."""
    style = {"histtype": "step", "linestyle": "--"}
    style = {"histtype": "stepfilled", "alpha": 0.35} if filled else style
    ax.hist(values, np.linspace(-1, 1, 21), density=True, color=UNITS[connectivity], **style)
    ax.set(xlim=(-1, 1), ylabel="density of units")
    return ax


def draw_groups(units, alphas, ax, connectivity, driven):
    """Mean h of the units with α ≤ 0 (dotted) and α > 0 (solid).

    units: (U, T). alphas: (U,). driven: the first step of the current and the first after it.
    """
    if not ax.lines:
        ax.axvspan(*driven, color="0.93", linewidth=0)
    for chosen, style in ((alphas <= 0, ":"), (alphas > 0, "-")):
        if chosen.any():
            ax.plot(units[chosen].mean(0), style, color=UNITS[connectivity])
    ax.set(xlabel="step $t$", ylabel="mean $h_t$ (a.u.)")
    return ax
