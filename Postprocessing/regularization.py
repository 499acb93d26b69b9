"""λ₁ of ANRU under a step of current, adaptive and frozen.

    python3 -m Postprocessing.regularization RUN...

Writes analysis/regularization.npz to each run, for its newest checkpoint, X currents ξ, R draws of
the first directions, S streams of concatenated test sequences, P periods:
    sizes (X,), onset, steps                 ξ is on from step `onset` to the end, for `steps` steps
    adaptive, frozen (X, R, S, K)            K leading exponents over these steps, nats per step
    since (P + 1,)                           edges of the periods, in steps since the onset
    adaptive_since, frozen_since (P, X, R, all S sequences)      λ₁ over each period
    adaptive_h, frozen_h (onset + steps, X)  root mean square of h_t over units and streams
    ..._mean, ..._std                        of λ₁, the largest of the K, over all but P and X

Adaptive: the state is (h, g). Frozen: the state is h; up to the onset n_t and s_t are those of the
adaptive network, and from then on keep their last values, for each unit and sequence. Inputs and ξ
are the same, and so is h_t up to the onset; then each network follows its own trajectory. The
directions align in the steps before the onset.

The onset is that of the test's step drive, 200 of 784 steps. The periods are four quarters of its
window, from 0, 50, 100 and 150 of 784 steps after the onset; all in proportion for other lengths T
(digits, T = 64: onset 16, periods of 4 steps). λ₁ over a period is the growth of one direction.

Source: Geadah et al., PLOS Computational Biology 2024. Its figure scripts draw saved exponents; the
program that computed them is not published. Here there are several directions, draws and streams,
and the spread is saved: differences within it are not meaningful. A frozen network with λ₁ > 0
may diverge, which shows in the root mean square of h_t. An ANRU of 64 units on the digits takes
about two minutes on one core.
"""

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from NetworkCreation.gamma_function import gamma
from Postprocessing import analysis
from Postprocessing.dynamics import flat_step, flatten
from Postprocessing.load_runs import layer_input
from Postprocessing.lyapunov import lyapunov_exponents
from Postprocessing.unit_responses import trained_anru
from Training.flags import finite, positive_int
from Training.transforms import step_window

SIZES = (0.0, 1.0, 2.5, 5.0, 10.0, 30.0)
SINCE = (0, 50, 100, 150, 200)  # of 784 steps
COLOURS = {"adaptive": "#0072B2", "frozen": "#D55E00"}


class System(NamedTuple):
    """A driven map: step(input, state (B, D)) → state, the initial state, and the inputs."""

    step: Callable
    state: torch.Tensor
    inputs: list


def systems(layer, x, sizes, onset):
    """The adaptive and the frozen network under step currents, {name: System}.

    x: (T, B, I). sizes: X currents, on from step `onset` ≥ 1 to the end. The batch of the systems
    is (X, B), flattened.
    """
    drive = x.new_zeros(len(x), len(sizes), x.shape[1])
    drive[onset:] = x.new_tensor(sizes)[:, None]
    drive = drive.flatten(1)  # (T, X B)
    x = x.repeat(1, len(sizes), 1)
    with torch.no_grad():
        _, _, before = layer.trace(x[:onset], keep=("n", "s"))
    n, s = ([*values, *[values[-1]] * (len(x) - onset)] for values in before.values())
    adaptive, start = flat_step(layer), layer.initial_state(x.shape[1])

    def with_drive(now, state):
        x_t, drive_t = now
        return adaptive(x_t, state, drive_t)

    return {
        "adaptive": System(with_drive, flatten(start), list(zip(x, drive, strict=True))),
        "frozen": System(frozen_step(layer), start[0], list(zip(x, drive, n, s, strict=True))),
    }


def frozen_step(layer):
    """((x_t, drive_t, n, s), h) → γ(a_t; n, s), with Jacobian diag(γ′(a_t; n, s)) Whh."""

    def step(now, h):
        x_t, drive_t, n, s = now
        return gamma(layer.preactivation(x_t, h, drive_t), n, s)

    return step


def in_a_row(x, streams):
    """Streams (R T, S, I) of R consecutive sequences of x (T, S R, I)."""
    return x.unflatten(1, (streams, -1)).permute(2, 0, 1, 3).flatten(0, 1)


def amplitude(system, units):
    """The root mean square of h_t of each sample, (T, B); h is the first `units` of the state."""
    state, found = system.state, []
    with torch.no_grad():
        for now in system.inputs:
            state = system.step(now, state)
            found.append(state[:, :units].square().mean(1).sqrt())
    return torch.stack(found)


def leading_exponents(system, first, last, k, draws, desc=""):
    """The k leading exponents over the inputs first … last − 1, (R, B, k), of R draws."""
    step, state, inputs = system
    found = []
    for draw in range(draws):
        bar = tqdm(inputs[:last], desc=desc, leave=False, delay=2, disable=None)
        generator = torch.Generator().manual_seed(draw)
        found.append(lyapunov_exponents(step, state, bar, k, first, generator).cpu())
    return torch.stack(found)


def compute(run, args):
    """The arrays of one run, listed in the module docstring."""
    model, layer = trained_anru(run, args.device)
    length = len(layer_input(run, model, 1, args.data))
    (onset, _), last = step_window(length), args.steps
    count = args.streams * math.ceil((onset + last) / length)
    x = layer_input(run, model, count, args.data).double().to(args.device)
    if (got := x.shape[1]) < count:
        raise analysis.Unsuitable(f"{args.streams} streams need {count} test sequences, got {got}")
    row = in_a_row(x, args.streams)[: onset + last]
    since = [round(t * length / 784) for t in SINCE]
    arrays = {"sizes": np.array(args.sizes), "onset": onset, "steps": last, "since": since}

    def exponents(system, first, last, k, desc):
        found = leading_exponents(system, onset + first, onset + last, k, args.draws, desc)
        return found.unflatten(1, (len(args.sizes), -1)).transpose(0, 1).numpy()  # (X, R, B, k)

    try:
        for name, system in systems(layer, row, args.sizes, onset).items():
            arrays[name] = exponents(system, 0, last, args.directions, name)
            h = amplitude(system, layer.hidden_size).unflatten(1, (len(args.sizes), -1))
            arrays[f"{name}_h"] = h.square().mean(2).sqrt().cpu().numpy()
        for name, system in systems(layer, x, args.sizes, onset).items():
            periods = [exponents(system, *period, 1, name) for period in pairwise(since)]
            arrays[f"{name}_since"] = np.stack(periods)[..., 0]
    except ValueError as error:
        raise analysis.Unsuitable(str(error)) from error
    for key in [*COLOURS, *(f"{name}_since" for name in COLOURS)]:
        leading = arrays[key] if key.endswith("since") else arrays[key].max(axis=-1)
        arrays[f"{key}_mean"] = leading.mean(axis=(-2, -1))
        arrays[f"{key}_std"] = leading.std(axis=(-2, -1))
    return arrays


def draw_sizes(runs, ax):
    """λ₁ against ξ: mean and standard deviation over all draws, streams and runs.

    runs: the arrays of analysis/regularization.npz of each run.
    """
    at = np.arange(len(runs[0]["sizes"]))  # evenly spaced
    for name, colour in COLOURS.items():
        values = np.stack([arrays[name].max(axis=-1) for arrays in runs])  # (runs, X, R, S)
        mean, spread = values.mean((0, 2, 3)), values.std((0, 2, 3))
        ax.errorbar(at, mean, spread, color=colour, marker="o", ms=2.5, capsize=1.5, label=name)
    ax.axhline(0, color="0.5", linewidth=0.6)
    ax.set_xticks(at, [f"{size:g}" for size in runs[0]["sizes"]])
    ax.set(xlabel=r"current $\xi$", ylabel=r"$\lambda_1$ (nats/step)")
    ax.set_ymargin(0.25)  # room for the legend
    ax.autoscale()
    ax.legend(loc="upper center", ncols=2, fontsize=6, columnspacing=1, handlelength=1)
    return ax


def draw_since(runs, name, ax):
    """λ₁ of a period against its first step since the onset, one colour for each ξ.

    name: adaptive or frozen. Mean over draws, sequences and runs; bars are two standard errors,
    over runs if there are three or more, or else over all sequences.
    """
    begin = runs[0]["since"][:-1]
    values = [arrays[f"{name}_since"].mean(2) for arrays in runs]  # (P, X, sequences) each
    if len(runs) > 2:
        values = np.stack([value.mean(-1) for value in values], axis=-1)
    else:
        values = np.concatenate(values, axis=-1)
    mean, error = values.mean(-1), values.std(-1, ddof=1) / math.sqrt(values.shape[-1])  # (P, X)
    for i, (size, shade) in enumerate(_shades(runs)):
        ax.errorbar(begin, mean[:, i], 2 * error[:, i], color=shade, label=f"{size:g}")
    ax.axhline(0, color="0.5", linewidth=0.6)
    ax.set_xticks(begin)
    ax.set(xlabel="steps since the onset", ylabel=r"$\lambda_1$ (nats/step)")
    return ax


def draw_amplitude(runs, ax):
    """The RMS of h_t, one colour for each ξ, up to four step windows after the onset."""
    onset, window = runs[0]["onset"], runs[0]["since"][-1]
    for name, line in zip(COLOURS, ("-", ":"), strict=True):
        h = np.sqrt(np.mean([arrays[f"{name}_h"] ** 2 for arrays in runs], axis=0))
        h = h[: onset + 4 * window]
        for i, (_, shade) in enumerate(_shades(runs)):
            ax.plot(np.arange(len(h)) - onset, h[:, i], line, color=shade)
        ax.plot([], [], line, color="k", label=name)
    ax.set_yscale("log")
    ax.set(xlabel="steps since the onset", ylabel="RMS of $h_t$")
    ax.legend(loc="lower right", fontsize=6, labelspacing=0.2)
    return ax


def _shades(runs):
    sizes = runs[0]["sizes"]
    return zip(sizes, plt.get_cmap("viridis_r")(np.linspace(0.1, 1, len(sizes))), strict=True)


def main(argv=None):
    parser = analysis.make_parser("regularization", __doc__)
    flag = parser.add_argument
    flag("--sizes", type=finite, nargs="+", default=SIZES, metavar="ξ", help="step currents")
    flag("--steps", type=positive_int, default=1000, help="number of steps after the onset")
    flag("--streams", type=positive_int, default=3, metavar="S", help="number of streams")
    flag("--draws", type=positive_int, default=2, metavar="R", help="draws of the directions")
    flag("--directions", type=positive_int, default=8, metavar="K", help="number of exponents")
    return analysis.main("regularization", parser, compute, argv)


if __name__ == "__main__":
    sys.exit(main())
