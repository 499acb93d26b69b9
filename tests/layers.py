"""The layers under test, with random parameters, inputs and states; shared by several tests."""

import torch

from NetworkCreation.layer import NONLINEARITIES, parts
from NetworkCreation.Networks import NETWORKS

T, B, I, H, M = 5, 3, 2, 4, 6  # noqa: E741 — all differ, so that swapped axes fail

RNNS = {f"RNN-{name}": ("RNN", {"nonlin": name}) for name in NONLINEARITIES}
for _name in ("gamma", "gamma2"):
    RNNS[f"RNN-{_name}-fixed"] = ("RNN", {"nonlin": _name, "learn_params": False})
GATED = {"LSTM": ("LSTM", {}), "GRU": ("GRU", {})}
# With a recurrent matrix that is orthogonal or built from an orthogonal one.
ORTHOGONAL = {
    "expRNN": ("expRNN", {}),
    "expRNN-cayley-tanh": ("expRNN", {"ostep_method": "cayley", "nonlin": "tanh"}),
    "expRNN-fixed": ("expRNN", {"nonlin": "gamma", "n": 1.0, "s": 0.5, "learn_params": False}),
    "nnRNN": ("nnRNN", {}),
    "nnRNN-cayley-gamma2": ("nnRNN", {"ostep_method": "cayley", "nonlin": "gamma2"}),
    "EURNN": ("EURNN", {}),
    "EURNN-1": ("EURNN", {"capacity": 1}),
    "EURNN-none-3": ("EURNN", {"capacity": 3, "nonlin": "none"}),
}
LAYERS = RNNS | {"ANRU": ("ANRU", {"supervisor_size": M})} | GATED | ORTHOGONAL

# Every loop, with every kind of activation.
EACH_LOOP = [
    *("RNN-gamma", "RNN-gamma2", "RNN-gamma2-fixed", "RNN-ReLU", "RNN-modrelu"),
    *("ANRU", "LSTM", "GRU", "nnRNN", "EURNN"),
]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def new(key, inputs=I, units=H, seed=0, dtype=torch.float64, **more):
    """A newly initialised layer; key: of `LAYERS` or `NETWORKS`."""
    name, options = LAYERS.get(key, (key, {}))
    return NETWORKS[name](inputs, units, generator=seeded(seed), dtype=dtype, **options | more)


@torch.no_grad()
def build(key, seed=0, scale=0.3, **more):
    """A layer with every parameter perturbed; n has both signs, and a modReLU dead units."""
    layer = new(key, seed=seed, **more)
    fixed = {name: gain for name, gain in layer.named_buffers() if name in ("n", "s")}
    tensors = dict(layer.named_parameters()) | fixed
    for i, (name, tensor) in enumerate(tensors.items()):
        tensor += scale * randn(*tensor.shape, seed=100 * seed + i, dtype=tensor.dtype)
        if name == "n":
            tensor[::2] *= -1
        elif name == "b":
            tensor[0] -= 1.4
        elif name == "Wgn.bias" and seed % 2:
            tensor *= -1
    return layer


def joined(state):
    """The inverse of `parts`."""
    return tuple(state) if len(state) > 1 else state[0]


def random_state(layer, batch=B, dtype=torch.float64):
    shapes = enumerate(layer.state_shapes(batch))
    return joined([0.7 * randn(*shape, seed=50 + i, dtype=dtype) for i, shape in shapes])


def arguments_for(layer, steps=T, batch=B, drive=None, state=True, dtype=torch.float64):
    """x, state and drive; drive: its number of axes, or None."""
    x = randn(steps, batch, layer.input_size, seed=11, dtype=dtype)
    before = random_state(layer, batch, dtype) if state else None
    return x, before, drive and randn(*(steps, batch)[:drive], seed=12, dtype=dtype)


def by_steps(layer, x, state=None, drive=None):
    """Runs the layer as a plain loop of steps, each of which rebuilds a parametrised matrix."""
    state = layer.initial_state(x.shape[1]) if state is None else state
    outputs = []
    for t in range(len(x)):
        state = layer.step(x[t], state, None if drive is None else drive[t])
        outputs.append(parts(state)[0])
    return torch.stack(outputs), state


def results(run, layer, x, state=None, drive=None, into=("outputs", "state")):
    """Outputs, last state and all gradients of a loss on what `into` names."""
    x = x.detach().requires_grad_()
    before = [] if state is None else [part.detach().requires_grad_() for part in parts(state)]
    drive = None if drive is None else drive.detach().requires_grad_()
    outputs, last = run(x, joined(before) if before else None, drive)
    loss = (outputs * randn(*outputs.shape, seed=21)).sum() if "outputs" in into else 0
    if "state" in into:
        loss = loss + sum((part**3).sum() + part.sum() for part in parts(last))
    wanted = [x, *before, *layer.parameters(), *([] if drive is None else [drive])]
    gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
    return [outputs, *parts(last), *gradients]


def assert_close(tensors, expected, tolerance=1e-10):
    """The error is at most this fraction of the largest element."""
    for tensor, right in zip(tensors, expected, strict=True):
        assert tensor.shape == right.shape
        assert (tensor - right).abs().max() <= tolerance * right.abs().max()


def assert_same_run(run, expected, **tolerance):
    """Two pairs (outputs, state) are equal, and their states have the same type."""
    assert isinstance(run[1], tuple) == isinstance(expected[1], tuple)
    for tensors, right in zip(run, expected, strict=True):
        torch.testing.assert_close(parts(tensors), parts(right), **tolerance)
