"""Trained layers as maps from state to state: common code of the analyses of the dynamics.

Letters: T time, B batch, I input, H main units, D size of a state, k directions.
"""

import functools
import math

import torch
from torch.autograd import grad
from torch.nn.utils import parametrize

from NetworkCreation.gamma_function import derivatives
from NetworkCreation.Networks import ANRU, EURNN
from NetworkCreation.rnn import ElmanLayer
from Postprocessing import analysis
from Postprocessing.load_runs import data_set, layer_input, load_run
from Training.datasets import columns


def trained_layers(run, sequences, data=None, device="cpu", least=0, ends=False):
    """Yields (epoch, layer, x) for every kept checkpoint of a run.

    The layer is frozen and in float64, on the device. x (T, B, I) is its input for the first
    B = `sequences` test sequences. least: minimum T; shorter sequences are continued by further
    test sequences, or by the text. ends: only the first and the last checkpoint. data and errors:
    as for `layer_input`; also raises Unsuitable if the run has no kept checkpoint or its test set
    is too small.
    """
    if not run.kept:
        raise analysis.Unsuitable("has no kept checkpoint")
    for epoch in sorted({min(run.kept), max(run.kept)}) if ends else run.kept:
        model = load_run(run.path, epoch).model
        x = layer_input(run, model, sequences, data)
        if len(x) < least:
            x = _long_input(run, model, sequences, data, least, len(x))
        yield epoch, freeze(model.rnn.to(device)), x.to(device, torch.float64)


@torch.no_grad()
def _long_input(run, model, sequences, data, least, length):
    """x (T, B, I), T ≥ least, of B chains of test sequences of this length, or columns of text."""
    if run.config["model"]["task"] == "pixels":
        count = math.ceil(least / length) * sequences
        x = chains(layer_input(run, model, count, data), sequences)
    else:
        x = model.encoder(columns(data_set(run, data).test, sequences)[:least])
    if len(x) < least:
        raise analysis.Unsuitable(
            f"the test set has only {len(x)} steps for each of {sequences} chains, "
            f"{least} are needed"
        )
    return x


def chains(x, count):
    """Sequences x (T, N, I) as chains of N // count sequences each, (T N // count, count, I)."""
    return torch.cat(x[:, : x.shape[1] // count * count].split(count, dim=1))


def freeze(layer):
    """Converts a layer to float64 in place, removes parametrizations and gradients; returns it."""
    layer.double().requires_grad_(False)
    for module in list(layer.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    return layer.requires_grad_(False)


def flatten(state):
    """A layer's state as one tensor (B, D), h first."""
    parts = state if isinstance(state, tuple) else (state,)
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def flat_step(layer):
    """`layer.step` as a function (x_t (B, I), state (B, D), drive_t=None) → state (B, D)."""

    def step(x_t, flat, drive_t=None):
        shapes = layer.state_shapes(len(flat))
        sizes = [torch.Size(shape[1:]).numel() for shape in shapes]
        parts = [p.view(s) for p, s in zip(flat.split(sizes, dim=1), shapes, strict=True)]
        return flatten(layer.step(x_t, tuple(parts) if len(parts) > 1 else parts[0], drive_t))

    return step


def push(step, x_t, state, tangents):
    """The state after a step, and the step's Jacobian times tangents to the state before it.

    step: (x_t, state (B, D)) → state (B, D), twice differentiable in reverse mode and independent
    across the batch. tangents: (B, D, k). Returns (B, D) and (B, D, k).

    The pullback Jᵀ v is linear in v, and its own pullback is J. In torch this is several times
    faster than forward mode.
    """
    with torch.enable_grad():
        before = state.detach().requires_grad_()
        after = step(x_t, before)
        v = torch.zeros_like(after, requires_grad=True)
        (pulled,) = grad(after, before, v, create_graph=True)
        (pushed,) = grad(pulled, v, tangents.movedim(-1, 0), is_grads_batched=True)
    return after.detach(), pushed.movedim(0, -1)


def tangent_step(layer):
    """`push` along `layer.step`: (x_t, state (B, D), tangents (B, D, k)) → both after the step.

    Uses the closed form, which is faster, for ElmanLayer and ANRU.
    """
    if isinstance(layer, ElmanLayer):
        return functools.partial(_push_elman, layer)
    if isinstance(layer, ANRU):
        return functools.partial(_push_anru, layer)
    return functools.partial(push, flat_step(layer))


def _push_elman(layer, x_t, h, tangents):
    a = layer.preactivation(x_t, h)  # (B, H)
    phi, parameters = layer.activation
    h = phi.value(a, *parameters)
    slope = phi.slope(a if phi.from_a else h, *parameters)
    return h, slope.unsqueeze(-1) * (layer.V.weight @ tangents)


def _push_anru(layer, x_t, state, tangents):
    size, shape = layer.hidden_size, (layer.hidden_size, layer.supervisor_size)
    h, g = state[:, :size], state[:, size:].unflatten(1, shape)
    tangents = tangents.mT  # (B, k, D): makes the products below several times faster
    dh, dg = tangents[..., :size], tangents[..., size:].unflatten(2, shape)
    a = layer.preactivation(x_t, h)
    h, g = layer.step(x_t, (h, g))
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
    step, size = flat_step(layer), layer.hidden_size
    if isinstance(layer, (ElmanLayer, ANRU)):
        V = (layer.Whh if isinstance(layer, ANRU) else layer.V).weight
        still = state.new_zeros(len(state), 1)  # a drive, added to a_t of every unit
        ones = torch.ones_like(still).unsqueeze(-1)
        slope = push(lambda x, d: step(x, state, d.squeeze(1)), x_t, still, ones)[1]
        return slope[:, :size] * V
    size *= 2 if isinstance(layer, EURNN) else 1
    basis = torch.eye(state.shape[1], size).to(state).expand(len(state), -1, -1)
    return push(step, x_t, state, basis)[1][:, :size]


def jacobians(layer, state, inputs, times):
    """Yields `step_jacobian` at these times of a trajectory; t counts from 1.

    state: (B, D), before the first input, as returned by `flatten`. inputs: iterable of x_t (B, I).
    Raises ValueError if a state is not finite.
    """
    step = flat_step(layer)
    for t, x_t in enumerate(inputs, start=1):
        before, state = state, step(x_t, state)
        if not state.isfinite().all():
            raise ValueError(f"the state is not finite after {t} steps")
        if t in times:
            yield step_jacobian(layer, x_t, before)
