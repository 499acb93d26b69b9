"""A trained layer as a map from state to state: common code of the analyses of the dynamics.

Letters: T time, B batch, I input, H main units, D size of a state, k directions.
"""

import warnings

import torch
from torch.func import jvp, vmap
from torch.nn.utils import parametrize

from NetworkCreation.Networks import ANRU, EURNN
from NetworkCreation.rnn import ElmanLayer
from Postprocessing.analysis import Unsuitable
from Postprocessing.load_runs import layer_input, load_run

# The first jvp calls a function that torch itself has deprecated (seen with 2.14).
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)


def trained_layers(run, sequences, data=None):
    """Yields (epoch, layer, x) for every kept checkpoint of a run.

    The layer is frozen and in float64. x (T, B, I), float64 too, is its input for the first
    B = `sequences` test sequences. data and errors: as for `layer_input`; also raises Unsuitable
    if the run has no kept checkpoint.
    """
    if not run.kept:
        raise Unsuitable("has no kept checkpoint")
    for epoch in run.kept:
        model = load_run(run.path, epoch).model
        yield epoch, freeze(model.rnn), layer_input(run, model, sequences, data).double()


def freeze(layer):
    """Converts a layer to float64 in place, without gradients and parametrizations; returns it."""
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

    step: (x_t, state (B, D)) → state (B, D), independent across the batch. tangents: (B, D, k).
    Returns (B, D) and (B, D, k).
    """

    def along(tangent):
        return jvp(lambda before: step(x_t, before), (state,), (tangent,))

    return vmap(along, in_dims=-1, out_dims=(None, -1))(tangents)


def step_jacobian(layer, x_t, state):
    """∂h_t/∂h_{t−1} of one step, (B, H, H), with the rest of the state (g, c) held fixed.

    x_t: (B, I). state: (B, D), as returned by `flatten`. If h_{t−1} acts only through a_t, unit by
    unit, this is diag(∂h_t/∂a_t) V: γ′(a_t) V for the RNN; for ANRU V is Whh, and ∂h_t/∂a_t
    includes the dependence of n_t and s_t on a_t. EURNN: the Jacobian of the real and imaginary
    parts together, (B, 2H, 2H).
    """
    step, size = flat_step(layer), layer.hidden_size
    if isinstance(layer, (ElmanLayer, ANRU)):
        V = (layer.Whh if isinstance(layer, ANRU) else layer.V).weight
        still = state.new_zeros(len(state))  # the drive is added to a_t of every unit
        slope = jvp(lambda d: step(x_t, state, d), (still,), (torch.ones_like(still),))[1]
        return slope[:, :size, None] * V
    size *= 2 if isinstance(layer, EURNN) else 1
    basis = torch.eye(state.shape[1], size).to(state).expand(len(state), -1, -1)
    return push(step, x_t, state, basis)[1][:, :size]
