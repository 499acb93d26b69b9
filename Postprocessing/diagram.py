"""Draws ANRU as a diagram, and the family of γ: python3 -m Postprocessing.diagram

Writes figures/overview.png and .pdf: a network, one of its units with the supervisor that sets its
n_t and s_t, and γ for several n and s.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon

from NetworkCreation.gamma_function import gamma
from Postprocessing import plots
from Postprocessing.plots import tint

HEIGHT = 2.7  # in inches, like all lengths of the diagram
LEFT = 4.75  # width of the diagram; the rest of the page is for the curves
GAIN, SATURATION = plots.COLOURS["heterogeneous"], plots.COLOURS["ReLU"]
SUPERVISOR, UNIT, FAINT = plots.COLOURS["ANRU"], "0.15", "0.7"


def arrow(ax, start, end, colour=UNIT, bend=0.0, width=1.0):
    """An arrow between two points."""
    style = {"arrowstyle": "-|>,head_length=3,head_width=1.6", "shrinkA": 0, "shrinkB": 0}
    style |= {"connectionstyle": f"arc3,rad={bend}", "color": colour, "linewidth": width}
    ax.add_patch(FancyArrowPatch(start, end, **style))


def box(ax, x, y, width, height, edge, face):
    """A box with round corners; x, y: its lower left corner."""
    style = {"boxstyle": "round,pad=0,rounding_size=0.08", "linewidth": 0.8}
    ax.add_patch(FancyBboxPatch((x, y), width, height, edgecolor=edge, facecolor=face, **style))


def circle(ax, centre, size, edge, face="white", **style):
    """A circle on top of the lines."""
    ax.add_patch(Circle(centre, size, edgecolor=edge, facecolor=face, **{"zorder": 3} | style))


def draw_network(ax, centre, radius, size):
    """Units in a ring and their connections; returns the centre of the unit drawn enlarged."""
    angles = 2 * np.pi * np.arange(7) / 7
    units = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for i, j in ((0, 2), (2, 4), (4, 1), (1, 6), (6, 3), (3, 0), (5, 2), (1, 5), (3, 5), (4, 6)):
        way = (units[j] - units[i]) / np.linalg.norm(units[j] - units[i])
        arrow(ax, units[i] + size * way, units[j] - size * way, FAINT, bend=0.12, width=0.7)
    circle(ax, units[0], size, SUPERVISOR, tint(SUPERVISOR, 0.25))
    for unit in units[1:]:
        circle(ax, unit, size, UNIT)
    return units[0]


def draw_unit(ax, x, y, width, height):
    """Unit i: a_t → γ → h_t, and the supervisor that reads a_t and sets n_t and s_t."""
    box(ax, x, y, width, height, FAINT, "0.97")
    middle, base, size = x + width / 2, y + 0.72, 0.33
    a, h = (x + 0.3, base), (x + width - 0.28, base)
    curve = np.linspace(-1, 1, 50)
    values = gamma(torch.tensor(4 * curve), 1.5, 0.55).numpy()
    circle(ax, (middle, base), size, UNIT, zorder=2)
    ax.plot(middle + 0.22 * curve, base - 0.17 + 0.13 * values, color=UNIT, zorder=3)
    arrow(ax, (a[0] + 0.17, base), (middle - size, base))
    arrow(ax, (middle + size, base), (h[0] - 0.16, base))
    named = {"ha": "center", "va": "center", "fontsize": 9}
    ax.text(*a, "$a_t^i$", **named)
    ax.text(*h, "$h_t^i$", **named)
    ax.text(middle, y + 0.2, r"$h_t^i = \gamma(a_t^i;\; n_t^i,\, s_t^i)$", **named)

    low, left, wide, high = y + 1.5, middle - 0.66, 1.32, 0.5
    box(ax, left, low, wide, high, SUPERVISOR, tint(SUPERVISOR, 0.15))
    for centre in left + wide * (np.arange(5) + 0.5) / 5:
        circle(ax, (centre, low + 0.17), 0.08, SUPERVISOR)
    ax.text(middle, low + 0.385, "supervisor $g_t^i$", **named | {"fontsize": 8}, color=SUPERVISOR)
    ax.plot([a[0], a[0]], [base + 0.14, low + high / 2], color=UNIT, linewidth=1)
    arrow(ax, (a[0], low + high / 2), (left, low + high / 2))
    right = left + wide
    arrow(ax, (right, low + 0.37), (right, low + 0.13), SUPERVISOR, bend=-2.2)
    for shift, name, colour in ((-0.14, "$n_t^i$", GAIN), (0.14, "$s_t^i$", SATURATION)):
        end = base + np.sqrt(size**2 - shift**2)
        arrow(ax, (middle + shift, low), (middle + shift, end), colour, width=1.6)
        side = {"ha": "right" if shift < 0 else "left", "va": "center", "fontsize": 9}
        ax.text(middle + 1.5 * shift, (low + end) / 2 + 0.02, name, **side, color=colour)


def draw():
    """The figure."""
    figure = plt.figure(figsize=(plots.PAGE, HEIGHT), layout="none")
    ax = figure.add_axes((0, 0, LEFT / plots.PAGE, 1), xlim=(0, LEFT), ylim=(0, HEIGHT))
    ax.set_axis_off()
    x, y, width, height = 2.2, 0.12, 2.5, HEIGHT - 0.24
    centre = np.array([1.0, 1.3])
    unit = draw_network(ax, centre, 0.55, 0.12)
    corners = [(x, y), (x, y + height)]
    ax.add_patch(Polygon([unit, *corners], facecolor="0.97", edgecolor="none", zorder=0))
    for corner in corners:
        ax.plot(*zip(unit, corner, strict=True), color=FAINT, linewidth=0.6, zorder=0)
    draw_unit(ax, x, y, width, height)
    text = {"va": "center", "fontsize": 9}
    ax.text(0.08, 1.3, "$x_t$", **text)
    arrow(ax, (0.25, 1.3), (0.42, 1.3))
    arrow(ax, (1.0, 0.62), (1.0, 0.45))
    ax.text(1.0, 0.34, "read-out", ha="center", **text | {"fontsize": 8})
    top = HEIGHT - 0.25
    ax.text(0.08, top, "a", fontweight="bold", **text)
    ax.text(0.25, top, "recurrent network", **text | {"fontsize": 8})
    ax.text(x + 0.08, top, "b", fontweight="bold", **text)
    ax.text(x + 0.25, top, "a unit and its supervisor", **text | {"fontsize": 8})

    families = {
        "c": ("gain $n$, at $s = 0$", [(n, 0) for n in (1, 2, 5, 20)], GAIN),
        "d": ("saturation $s$, at $n = 4$", [(4, s) for s in (0, 0.33, 0.67, 1)], SATURATION),
    }
    for row, (letter, (title, pairs, colour)) in enumerate(families.items()):
        place = (LEFT + 0.45, 1.63 - 1.18 * row, plots.PAGE - LEFT - 0.55, 0.8)
        page = np.array([plots.PAGE, HEIGHT, plots.PAGE, HEIGHT])
        ax = figure.add_axes(tuple(place / page), xlim=(-2, 2), ylim=(-0.05, 2.25))
        shades = [tint(colour, amount) for amount in np.linspace(0.3, 1, len(pairs))]
        name = f"{{{row}:g}}"  # n, then s
        plots.draw_family(torch.linspace(-2, 2, 401), pairs, ax, shades=shades, name=name)
        ax.legend(loc="upper left", handlelength=1, labelspacing=0.15, borderaxespad=0)
        ax.set(xticks=(-2, 0, 2), yticks=(0, 1, 2), xlabel="", ylabel="activity $h$ (a.u.)")
        ax.set_title(letter, fontweight="bold", fontsize=9, x=-0.13)
        ax.set_title(title, loc="center", x=0, ha="left", color=colour)
        ax.tick_params(labelbottom=row == 1)
    ax.set_xlabel("pre-activation $a$ (a.u.)")
    return figure


def main():
    plots.use_style()
    plt.rcParams["figure.constrained_layout.use"] = False  # positions are given
    for path in plots.save(draw(), "overview"):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
