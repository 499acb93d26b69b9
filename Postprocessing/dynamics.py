"""A trained layer as a map from state to state: what the analyses of the dynamics share.

Letters: T time, B batch, I input, H main units, D numbers in a state, k directions.
"""

import warnings

import torch
from torch.func import jvp, vmap
from torch.nn.utils import parametrize

from NetworkCreation.layers import ElmanLayer
from NetworkCreation.Networks import ANRU, EURNN
from Postprocessing.analysis import Unsuitable
from Postprocessing.load_runs import layer_input, load_run

# torch's first jvp calls what torch has deprecated (seen with 2.14).
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)


def trained_layers(run, sequences, data=None):
    """Yields (epoch, layer, x) of every kept checkpoint of a run.

    The layer is frozen and in float64, and so is x (T, B, I), what it sees of the first B =
    `sequences` test sequences. data, and what is raised: as for `layer_input`; Unsuitable for a
    run without a kept checkpoint.
    """
    if not run.kept:
        raise Unsuitable("keeps no checkpoint")
    for epoch in run.kept:
        model = load_run(run.path, epoch).model
        yield epoch, freeze(model.rnn), layer_input(run, model, sequences, data).double()


def freeze(layer):
    """The layer, changed in place: in float64, nothing learns, and a matrix is made only once."""
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
    """The state after a step, and what the step's Jacobian makes of tangents to the one before.

    step: (x_t, state (B, D)) → state (B, D), that treats the samples of the batch apart.
    tangents: (B, D, k). Returns (B, D) and (B, D, k).
    """

    def along(tangent):
        return jvp(lambda before: step(x_t, before), (state,), (tangent,))

    return vmap(along, in_dims=-1, out_dims=(None, -1))(tangents)


def step_jacobian(layer, x_t, state):
    """∂h_t/∂h_{t−1} of one step, (B, H, H), with the rest of the state (g, c) held fixed.

    x_t: (B, I). state: (B, D), as `flatten` gives it. Where h_{t−1} acts through a_t alone, unit
    by unit, this is diag(∂h_t/∂a_t) V: γ′(a_t) V for the RNN, and ∂h_t/∂a_t through n_t and s_t
    for ANRU, V = Whh. EURNN: of the real and imaginary parts together, (B, 2H, 2H).
    """
    step, size = flat_step(layer), layer.hidden_size
    if isinstance(layer, (ElmanLayer, ANRU)):
        V = (layer.Whh if isinstance(layer, ANRU) else layer.V).weight
        still = state.new_zeros(len(state))  # a drive is added to a_t of every unit
        slope = jvp(lambda d: step(x_t, state, d), (still,), (torch.ones_like(still),))[1]
        return slope[:, :size, None] * V
    size *= 2 if isinstance(layer, EURNN) else 1
    basis = torch.eye(state.shape[1], size).to(state).expand(len(state), -1, -1)
    return push(step, x_t, state, basis)[1][:, :size]
