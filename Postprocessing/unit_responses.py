"""Responses of ANRU's units to a step of current, and their fractional order.

Every unit i has an input of its own, and a step of size ξ drives the network for a while:
    a_t = u ∘ (x + ε_t) + b_xh + W h_{t−1} + b_hh + ξ_t,   u = Uxh[:, 0],   h_0 = g_0 = 0
then g, n, s and h as in ANRU. connected: W = Whh. isolated: W = diag(Whh), with all biases.
x ~ N(0.8, 0.1²) for each unit and trial, the same for all ξ; ε_t ~ N(0, σ²) at each step. The draws
are seeded with the run's seed, and are the same for connected and isolated units.

There are two `PROTOCOLS`, short and long. The fractional order α of a response h is that of the
D^α h nearest the step. There are two `FITS` of α: `paper` and `free`.

Saved: xi (X,), and, with H units and L steps, under names that begin with
<protocol>_<connectivity>_
    response (X, L)               h, averaged over trials and units
    units (H, L)                  h of every unit at the largest ξ, averaged over trials
    alpha_<fit> ()                α of the response, all ξ > 0 together
    alpha_xi_<fit> (X − 1,)       α of the response to each ξ > 0
    alpha_units_<fit> (H,)        α of each unit at the largest ξ
    index (H,)                    adaptive index of each unit (short protocol only)

Source: Geadah et al., PLOS Computational Biology 2024. `paper` is the fit of its scripts: without a
free gain, so that a pure step of gain 2 has α = 0.188, and to a step that is not aligned with the
drive. `free` adds a gain and aligns the step. Both use the paper's base of the steps: 0 for the
response, 0.8 for units. A negative gain fits the inverted integral of a unit that rises throughout
the step; its α near −1 means little.
"""

import copy
import functools
from collections import namedtuple

import numpy as np
import torch
from torch import nn

from Postprocessing.networks import NotApplicable, trained_anru

XI = (0.0, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0)
TRIALS = 5
RESPONSE_ORDERS = np.linspace(0, 1, 100)
UNIT_ORDERS = np.linspace(-1, 1, 100)
INPUT = 0.8  # mean of x, and base of the units' steps
REFERENCE = 25  # D^α h is taken from its value at this step
CONNECTIVITY = ("connected", "isolated")
# L, the driven steps, σ of ε, the raised steps of the paper's target, and the fitted steps.
Protocol = namedtuple("Protocol", ("steps", "driven", "noise", "raised", "window"))
PROTOCOLS = {
    "short": Protocol(150, slice(51, 101), 0.1, slice(51, 100), slice(40, 110)),  # |t − 75| < 25
    "long": Protocol(300, slice(102, 202), 5.0, slice(101, 200), slice(80, 220)),  # |t − 150| < 50
}
FITS = {"paper": False, "free": True}  # whether a fit has a free gain


def with_weights(layer, Uxh, Whh=None):
    """A copy of an ANRU with new input weights (H, I') and, if given, recurrent weights (H, H)."""
    changed = copy.deepcopy(layer)
    changed.input_size = Uxh.shape[1]
    changed.Uxh.weight = nn.Parameter(Uxh, requires_grad=False)
    if Whh is not None:
        changed.Whh.weight = nn.Parameter(Whh, requires_grad=False)
    return changed


def unit_layer(layer, isolated=False):
    """An ANRU of one input as one of H inputs, one per unit; isolated: with diagonal Whh."""
    Whh = layer.Whh.weight.diag().diag() if isolated else None
    return with_weights(layer, layer.Uxh.weight[:, 0].diag(), Whh)


@torch.no_grad()
def responses(units, protocol, xi=XI, trials=TRIALS, generator=None):
    """h of `unit_layer` under a step of each ξ, (trials, X, H, L); generator: of x and ε."""
    like, size = units.Whh.weight, units.hidden_size
    normal = functools.partial(torch.randn, generator=generator, dtype=like.dtype)
    x = INPUT + 0.1 * normal(trials, 1, size)
    inputs = x + protocol.noise * normal(protocol.steps, trials, len(xi), size)
    drive = torch.zeros(protocol.steps, trials, len(xi), dtype=like.dtype)
    drive[protocol.driven] = torch.tensor(xi, dtype=like.dtype)
    h, _ = units(inputs.flatten(1, 2).to(like.device), drive=drive.flatten(1))  # (L, trials X, H)
    return h.unflatten(1, (trials, len(xi))).permute(1, 2, 3, 0).cpu().numpy()


def fractional_derivative(h, order):
    """D^α h = Re IDFT[H_k DFT(h)_k] of signals h (..., L), α of either sign.

    H_k = (2πi f_k)^α on the principal branch, f_k = fftfreq(L, 1), H_0 = 0: the mean is lost.
    h is taken as periodic, without padding.
    """
    f = np.fft.fftfreq(h.shape[-1])
    H = np.zeros(len(f), complex)
    H[1:] = (2j * np.pi * f[1:]) ** order
    return np.fft.ifft(H * np.fft.fft(h)).real


def step_target(protocol, xi, base=0.0, aligned=False):
    """The step that D^α h is compared with, (..., L) for ξ (...): base + ξ where it is raised.

    aligned: raised during the drive, rather than where the paper's is.
    """
    xi = np.asarray(xi)
    target = np.full((*xi.shape, protocol.steps), base)
    target[..., protocol.driven if aligned else protocol.raised] += xi[..., None]
    return target


def fit_errors(h, target, window, orders, free=False):
    """Mean squared difference of y = D^α h − D^α h(25) and a target T in the window, (A, ...).

    h, target: (..., L). orders: A values of α. free: y has the least-squares gain ⟨y, T⟩/⟨y, y⟩.
    """
    errors = []
    for order in orders:
        y = fractional_derivative(h, order)
        y, T = (y - y[..., REFERENCE, None])[..., window], target[..., window]
        if free:
            yy = (y * y).sum(-1, keepdims=True)
            y = y * np.divide((y * T).sum(-1, keepdims=True), yy, np.zeros_like(yy), where=yy > 0)
        errors.append(((y - T) ** 2).mean(-1))
    return np.array(errors)


def response_orders(response, xi, protocol, free=False, orders=RESPONSE_ORDERS):
    """α of the mean response (X, L) to all ξ > 0 together, (), and to each, (X − 1,).

    free: a gain for each ξ and an aligned target; otherwise the paper's fit.
    """
    positive = np.asarray(xi) > 0
    target = step_target(protocol, np.asarray(xi)[positive], aligned=free)
    errors = fit_errors(response[positive], target, protocol.window, orders, free)
    return orders[errors.sum(1).argmin()], orders[errors.argmin(0)]


def unit_orders(units, xi, protocol, free=False, orders=UNIT_ORDERS):
    """α of the response of each unit to the step ξ, (H,); units: (H, L), free: as above."""
    target = step_target(protocol, xi, base=INPUT, aligned=free)
    return orders[fit_errors(units, target, protocol.window, orders, free).argmin(0)]


def adaptive_index(h):
    """(r_e − r_l)/(r_e + r_l) of responses h (..., 150) of the short protocol, (...).

    r_e and r_l are the means of h over 100 ≤ t < 115 and 134 ≤ t < 149, the paper's windows, of
    which only step 100 is driven; 0 where their sum is below 1e-10.
    """
    early, late = h[..., 100:115].mean(-1), h[..., 134:149].mean(-1)
    total = early + late
    return np.divide(early - late, total, np.zeros_like(total), where=total >= 1e-10)


def compute(run, data, device):
    """The arrays listed in the module docstring."""
    _, layer = trained_anru(run, device)
    if layer.input_size != 1:
        raise NotApplicable(f"needs a network of one input, got {layer.input_size}")
    arrays = {"xi": np.array(XI)}
    for name, protocol in PROTOCOLS.items():
        for connectivity in CONNECTIVITY:
            key = f"{name}_{connectivity}_"
            generator = torch.Generator().manual_seed(run.config["arguments"]["seed"])
            units = unit_layer(layer, connectivity == "isolated")
            h = responses(units, protocol, generator=generator).mean(0)  # (X, H, L)
            mean = h.mean(1)
            arrays |= {f"{key}response": mean, f"{key}units": h[-1]}
            for fit, free in FITS.items():
                alpha, alpha_xi = response_orders(mean, XI, protocol, free)
                arrays |= {f"{key}alpha_{fit}": alpha, f"{key}alpha_xi_{fit}": alpha_xi}
                arrays[f"{key}alpha_units_{fit}"] = unit_orders(h[-1], XI[-1], protocol, free)
            if name == "short":
                arrays[f"{key}index"] = adaptive_index(h[-1])
    return arrays
