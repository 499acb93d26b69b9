"""λ₁ of ANRU under a step of current, adaptive and frozen, in nats per step.

Saved, for the newest checkpoint, X currents ξ, R draws of the first direction, S streams of
concatenated test sequences, P periods:
    sizes (X,), onset, steps                 ξ is on from step `onset` to the end, for `steps` steps
    adaptive, frozen (X, R, S)               λ₁ over these steps
    since (P + 1,)                           edges of the periods, in steps since the onset
    adaptive_since, frozen_since (P, X, R, all S sequences)      λ₁ over each period
    adaptive_h, frozen_h (onset + steps, X)  root mean square of h_t over units and streams

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
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from NetworkCreation.gamma_function import gamma, gamma_prime
from Postprocessing.dynamics import flat_step, flatten, push_anru
from Postprocessing.lyapunov import lyapunov_exponents
from Postprocessing.networks import Unsuitable, layer_input, trained_anru
from Training.console import Progress
from Training.transforms import step_window

SIZES = (0.0, 1.0, 2.5, 5.0, 10.0, 30.0)
SINCE = (0, 50, 100, 150, 200)  # of 784 steps
KINDS = ("adaptive", "frozen")


class System(NamedTuple):
    """A driven map: step(input, state (B, D)) → state, its `advance` with tangents, as for
    `lyapunov_exponents`, the initial state, and the inputs."""

    step: Callable
    advance: Callable
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
    n, s = (_continued(before[name], len(x)) for name in ("n", "s"))
    start = layer.initial_state(x.shape[1])
    return {
        "adaptive": System(*adaptive_step(layer), flatten(start), list(zip(x, drive, strict=True))),
        "frozen": System(*frozen_step(layer), start[0], list(zip(x, drive, n, s, strict=True))),
    }


def _continued(values, steps):
    """values (t, B, H), continued to (steps, B, H) with the last of them."""
    return torch.cat([values, values[-1:].expand(steps - len(values), -1, -1)])


def adaptive_step(layer):
    """((x_t, drive_t), state (B, D)) → state of an ANRU, and the same with tangents."""
    step = flat_step(layer)

    def advance(now, state, tangents):
        x_t, drive_t = now
        return push_anru(layer, x_t, state, tangents, drive_t)

    return lambda now, state: step(now[0], state, now[1]), advance


def frozen_step(layer):
    """((x_t, drive_t, n, s), h) → γ(a_t; n, s), and the same with tangents.

    The Jacobian is diag(γ′(a_t; n, s)) Whh.
    """

    def step(now, h):
        x_t, drive_t, n, s = now
        return gamma(layer.preactivation(x_t, h, drive_t), n, s)

    def advance(now, h, tangents):
        x_t, drive_t, n, s = now
        slope = gamma_prime(layer.preactivation(x_t, h, drive_t), n, s)
        return step(now, h), slope.unsqueeze(-1) * (layer.Whh.weight @ tangents)

    return step, advance


def concatenated(x, streams):
    """Streams (R T, S, I) of R consecutive sequences of x (T, S R, I)."""
    return x.unflatten(1, (streams, -1)).permute(2, 0, 1, 3).flatten(0, 1)


def amplitude(system, units):
    """The root mean square of h_t of each sample, (T, B); h is the first `units` of the state."""
    state, amplitudes = system.state, []
    with torch.no_grad():
        for now in system.inputs:
            state = system.step(now, state)
            amplitudes.append(root_mean_square(state[:, :units]))
    return torch.stack(amplitudes)


def root_mean_square(h):
    """The root mean square over the last axis, also where the squares overflow."""
    scale = h.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
    return (h / scale).square().mean(-1).sqrt() * scale.squeeze(-1)


def leading_exponents(system, first, last, draws, desc=""):
    """λ₁ over the inputs first … last − 1, (R, B), of R draws of the first direction."""
    step, advance, state, inputs = system
    exponents = []
    for draw in range(draws):
        bar = Progress(inputs[:last], desc=desc, leave=False, delay=2)
        generator = torch.Generator().manual_seed(draw)
        found = lyapunov_exponents(step, state, bar, 1, first, generator, advance)
        exponents.append(found[:, 0].cpu())
    return torch.stack(exponents)


def compute(run, data, device, *, sizes=SIZES, steps=1000, streams=3, draws=2):
    """The arrays listed in the module docstring."""
    model, layer = trained_anru(run, device)
    length = len(layer_input(run, model, 1, data))
    onset, _ = step_window(length)
    count = streams * math.ceil((onset + steps) / length)
    x = layer_input(run, model, count, data).to(device, torch.float64)
    if x.shape[1] < count:
        raise Unsuitable(f"{streams} streams need {count} test sequences, got {x.shape[1]}")
    row = concatenated(x, streams)[: onset + steps]
    since = [round(t * length / 784) for t in SINCE]
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
        raise Unsuitable(f"{error}: set fewer regularization.steps") from error
    return arrays
