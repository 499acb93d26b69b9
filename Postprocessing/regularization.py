"""λ₁ of ANRU under a step of current, adaptive and frozen, in nats per step.

Saved, for the newest checkpoint, X currents ξ, R draws of the first direction, S streams of
concatenated test sequences, P periods:
    sizes (X,), onset, steps                 ξ is on from step `onset` to the end, for `steps` steps
    adaptive, frozen (X, R, S)               λ₁ over these steps
    since (P + 1,)                           edges of the periods, in steps since the onset
    adaptive_since, frozen_since (P, X, R, all S sequences)      λ₁ over each period
    adaptive_h, frozen_h (onset + steps, X)  root mean square of h_t over units and streams

Adaptive: the state is (h, g). Frozen: the state is h; from the onset on n_t and s_t keep the last
values that the adaptive network gave them, for each unit and sequence. Inputs and ξ are the same;
each network follows its own trajectory. The directions align in the steps before the onset.

The onset is that of the test's step drive, 200 of 784 steps; the periods are four quarters of its
window; all in proportion for other lengths (digits, T = 64: onset 16, periods of 4 steps).

Source: Geadah et al., PLOS Computational Biology 2024; its program is not published. Differences
within the spread over draws and streams are not meaningful. A frozen network may diverge: the
analysis then does not apply, which is saved in its place.
"""

import functools
import math
from collections import namedtuple
from itertools import pairwise

import numpy as np
import torch

from NetworkCreation.gamma_function import gamma, gamma_prime
from Postprocessing.dynamics import flatten, push_anru
from Postprocessing.lyapunov import lyapunov_exponents
from Postprocessing.networks import Diverged, Unsuitable, layer_input, trained_anru
from Training.console import Progress
from Training.transforms import step_window

SIZES = (0.0, 1.0, 2.5, 5.0, 10.0, 30.0)
SINCE = (0, 50, 100, 150, 200)  # of 784 steps
KINDS = ("adaptive", "frozen")
# A driven map: `advance` as for `lyapunov_exponents`, the initial state, and a list of inputs.
System = namedtuple("System", ("advance", "state", "inputs"))


def systems(layer, x, sizes, onset):
    """The adaptive and the frozen network, {name: System}, of batch (X, B), flattened.

    x: (T, B, I). sizes: X currents, on from step `onset` ≥ 1 to the end.
    """
    drive = x.new_zeros(len(x), len(sizes), x.shape[1])
    drive[onset:] = x.new_tensor(sizes)[:, None]
    drive = drive.flatten(1)  # (T, X B)
    x = x.repeat(1, len(sizes), 1)
    with torch.no_grad():
        _, _, before = layer.trace(x[:onset], keep=("n", "s"))
    still = len(x) - onset  # steps with the last n and s
    n, s = (torch.cat([v, v[-1:].expand(still, -1, -1)]) for v in (before["n"], before["s"]))
    start = layer.initial_state(x.shape[1])
    inputs = list(zip(x, drive, n, s, strict=True))
    return {
        "adaptive": System(
            lambda now, *rest: push_anru(layer, now[0], *rest, now[1]), flatten(start), inputs
        ),
        "frozen": System(functools.partial(frozen_step, layer), start[0], inputs),
    }


def frozen_step(layer, now, h, tangents):
    """h = γ(a_t; n, s) with the input (x_t, drive_t, n, s); the Jacobian is diag(γ′(a_t)) Whh."""
    x_t, drive_t, n, s = now
    a = layer.preactivation(x_t, h, drive_t)
    return gamma(a, n, s), gamma_prime(a, n, s).unsqueeze(-1) * (layer.Whh.weight @ tangents)


def concatenated(x, streams):
    """Streams (R T, S, I) of R consecutive sequences of x (T, S R, I)."""
    return x.unflatten(1, (streams, -1)).permute(2, 0, 1, 3).flatten(0, 1)


def amplitude(system, units):
    """The root mean square of h_t of each sample, (T, B); h is the first `units` of the state."""
    state, amplitudes = system.state, []
    nothing = state.new_zeros(*state.shape, 0)  # no tangents
    with torch.no_grad():
        for now in system.inputs:
            state, _ = system.advance(now, state, nothing)
            amplitudes.append(root_mean_square(state[:, :units]))
    return torch.stack(amplitudes)


def root_mean_square(h):
    """The root mean square over the last axis, also where the squares overflow."""
    scale = h.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
    return (h / scale).square().mean(-1).sqrt() * scale.squeeze(-1)


def leading_exponents(system, first, last, draws, desc=""):
    """λ₁ over the inputs first … last − 1, (R, B), of R draws of the first direction."""
    advance, state, inputs = system
    exponents = []
    for draw in range(draws):
        bar = Progress(inputs[:last], desc=desc, leave=False, delay=2)
        generator = torch.Generator().manual_seed(draw)
        leading = lyapunov_exponents(advance, state, bar, 1, first, generator)
        exponents.append(leading[:, 0].cpu())
    return torch.stack(exponents)


def compute(run, data, device, *, sizes=SIZES, steps=1000, streams=3, draws=2):
    """The arrays listed in the module docstring; raises Diverged if a state is not finite."""
    model, layer = trained_anru(run, device)
    length = len(layer_input(run, model, 1, data))
    since = [round(t * length / 784) for t in SINCE]
    if len({*since}) < len(since):
        raise Unsuitable(f"sequences of {length} steps are too short for the periods")
    onset, _ = step_window(length)
    count = streams * math.ceil((onset + steps) / length)
    x = layer_input(run, model, count, data).to(device, torch.float64)
    if x.shape[1] < count:
        raise Unsuitable(f"{streams} streams need {count} test sequences, got {x.shape[1]}")
    row = concatenated(x, streams)[: onset + steps]
    arrays = {"sizes": np.array(sizes), "onset": onset, "steps": steps, "since": since}

    def exponents(system, first, last, desc):
        leading = leading_exponents(system, onset + first, onset + last, draws, desc)
        return leading.unflatten(1, (len(sizes), -1)).transpose(0, 1).numpy()  # (X, R, B)

    try:
        for name, system in systems(layer, row, sizes, onset).items():
            arrays[name] = exponents(system, 0, steps, name)
            h = amplitude(system, layer.hidden_size).unflatten(1, (len(sizes), -1))
            arrays[f"{name}_h"] = root_mean_square(h).cpu().numpy()
        for name, system in systems(layer, x, sizes, onset).items():
            periods = [exponents(system, *period, name) for period in pairwise(since)]
            arrays[f"{name}_since"] = np.stack(periods)
    except ValueError as error:
        raise Diverged(f"{error}; regularization.steps may be fewer") from error
    return arrays
