"""Trained layers as maps from state to state: common code of the analyses of the dynamics.

Letters: T time, B batch, I input, H main units, D size of a state, k directions.
"""

import functools
import math
import warnings

import torch
from torch.func import jvp, vmap

from NetworkCreation.gamma_function import derivatives
from NetworkCreation.layer import parts
from NetworkCreation.Networks import ANRU, EURNN
from NetworkCreation.rnn import ElmanLayer

# Forward mode loads a module of torch that still uses torch.jit.script.
warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)


def flatten(state):
    """A layer's state as one tensor (B, D), h first."""
    return torch.cat([part.flatten(1) for part in parts(state)], dim=1)


def flat_step(layer):
    """`layer.step` as a function (x_t (B, I), state (B, D), drive_t=None) → state (B, D)."""

    def step(x_t, flat, drive_t=None):
        shapes = layer.state_shapes(len(flat))
        sizes = [math.prod(shape[1:]) for shape in shapes]
        state = [p.view(s) for p, s in zip(flat.split(sizes, dim=1), shapes, strict=True)]
        return flatten(layer.step(x_t, tuple(state) if len(state) > 1 else state[0], drive_t))

    return step


def push(step, state, tangents):
    """step(state), and its Jacobian times tangents to the state, by forward-mode differentiation.

    step: state (B, D) → (B, D'), independent across the batch. tangents: (B, D, k). Returns
    (B, D') and (B, D', k). Nothing is differentiated twice: the second derivative of the modulus
    of a complex number, which EURNN takes, is NaN at 0.
    """
    after = step(state)
    along = vmap(lambda tangent: jvp(step, (state,), (tangent,))[1], in_dims=-1, out_dims=-1)
    return after, along(tangents)


def tangent_step(layer):
    """`push` along `layer.step`: (x_t, state (B, D), tangents (B, D, k)) → both after the step.

    Uses the closed form, which is faster, for ElmanLayer and ANRU.
    """
    for kind, closed_form in ((ElmanLayer, push_elman), (ANRU, push_anru)):
        if isinstance(layer, kind):
            return functools.partial(closed_form, layer)
    step = flat_step(layer)
    return lambda x_t, state, tangents: push(lambda s: step(x_t, s), state, tangents)


def push_elman(layer, x_t, h, tangents):
    """As `tangent_step(layer)` of an ElmanLayer."""
    a = layer.preactivation(x_t, h)  # (B, H)
    phi, parameters = layer.activation
    h = phi.value(a, *parameters)
    slope = phi.slope(a if phi.from_a else h, *parameters)
    return h, slope.unsqueeze(-1) * (layer.V.weight @ tangents)


def push_anru(layer, x_t, state, tangents, drive_t=None):
    """As `tangent_step(layer)` of an ANRU, with a drive () or (B,)."""
    size, shape = layer.hidden_size, (layer.hidden_size, layer.supervisor_size)
    h, g = state[:, :size], state[:, size:].unflatten(1, shape)
    tangents = tangents.mT  # (B, k, D): makes the products below several times faster
    dh, dg = tangents[..., :size], tangents[..., size:].unflatten(2, shape)
    a = layer.preactivation(x_t, h, drive_t)
    h, g = layer.step(x_t, (h, g), drive_t)
    into_a, into_n, into_s = derivatives(a, layer.gain(g), layer.saturation(g))
    into_g = into_n.unsqueeze(-1) * layer.Wgn.weight + into_s.unsqueeze(-1) * layer.Wgs.weight
    da = dh @ layer.Whh.weight.t()  # (B, k, H)
    dg = da.unsqueeze(-1) * layer.Uag.weight[:, 0] + dg @ layer.Wgg.weight.t()
    dg *= (1 - g * g).unsqueeze(1)  # (B, k, H, M)
    dh = into_a.unsqueeze(1) * da + (into_g.unsqueeze(1) * dg).sum(-1)
    return flatten((h, g)), torch.cat([dh, dg.flatten(2)], dim=2).mT


def step_jacobian(layer, x_t, state):
    """∂h_t/∂h_{t−1} of one step, (B, H, H), with the rest of the state (g, c) held fixed.

    x_t: (B, I). state: (B, D), as returned by `flatten`. If h_{t−1} enters only through a_t, this
    is diag(∂h_t/∂a_t) V: diag(γ′(a_t)) V for the RNN; for ANRU V is Whh, and ∂h_t/∂a_t includes the
    dependence of n_t and s_t on a_t. EURNN: the Jacobian of real and imaginary parts, (B, 2H, 2H).
    """
    size = layer.hidden_size
    if isinstance(layer, ANRU):
        step = flat_step(layer)
        drive = state.new_zeros(len(state), 1)  # added to a_t of every unit
        ones = torch.ones_like(drive).unsqueeze(-1)
        slope = push(lambda d: step(x_t, state, d.squeeze(1)), drive, ones)[1]
        return slope[:, :size] * layer.Whh.weight
    size *= 2 if isinstance(layer, EURNN) else 1
    basis = torch.eye(state.shape[1], size).to(state).expand(len(state), -1, -1)
    return tangent_step(layer)(x_t, state, basis)[1][:, :size]
