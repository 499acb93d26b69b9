"""The fast loops against the plain loop of steps: values, gradients, memory."""

import copy
import math

import pytest
import torch
from torch.func import jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from NetworkCreation import anru, time_loop
from NetworkCreation.layer import map_state, parts
from NetworkCreation.Networks import NETWORKS, RNN
from tests.layers import (
    EACH_LOOP,
    GATED,
    LAYERS,
    ORTHOGONAL,
    arguments_for,
    assert_close,
    build,
    by_steps,
    new,
    randn,
    results,
    seeded,
)

every_layer = pytest.mark.parametrize("key", LAYERS)
each_loop = pytest.mark.parametrize("key", EACH_LOOP)
# One layer for each autograd function of this project.
OURS = pytest.mark.parametrize("key", ["RNN-gamma2", "RNN-ReLU", "ANRU", "EURNN"])


def assert_fast_equals_slow(layer, *arguments, tolerance=1e-10, **options):
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        fast = results(layer, layer, *arguments, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    slow = results(lambda *given: by_steps(layer, *given), layer, *arguments, **options)
    assert_close(fast, slow, tolerance)


@every_layer
@pytest.mark.parametrize(
    ("drive", "state", "into"),
    [
        (None, False, ("outputs", "state")),
        (1, True, ("outputs", "state")),
        (2, False, ("outputs",)),
        (2, True, ("state",)),
    ],
)
def test_equals_the_loop_of_steps(key, drive, state, into):
    """Values and gradients, also of a loss on the outputs or the last state alone."""
    layer = build(key)
    assert_fast_equals_slow(layer, *arguments_for(layer, 9, drive=drive, state=state), into=into)


@every_layer
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (2, 3), (40, 1)])
def test_single_steps_and_samples_of_one_input(key, steps, batch):
    layer = build(key, inputs=1)
    assert_fast_equals_slow(layer, *arguments_for(layer, steps, batch, drive=1))


@every_layer
def test_several_passes_blocks_and_chunks(key, monkeypatch):
    """Sizes at which every inner loop runs more than once, with a shorter last iteration."""
    monkeypatch.setattr(time_loop, "PASS", 4 * 7 * 18)
    monkeypatch.setattr(anru, "CHUNK", 3 * 18)
    monkeypatch.setattr(anru, "BLOCK", 5)
    assert len(time_loop.passes(torch.empty(23, 7, 18))) == 6
    assert [part.stop - part.start for part in anru._chunks(torch.empty(7, 18))] == [3, 3, 1]
    layer = build(key, units=18, scale=0.03)
    # the gradient of torch's matrix exponential of a small matrix is exact only to 1e-9
    assert_fast_equals_slow(layer, *arguments_for(layer, 23, 7, drive=1), tolerance=1e-8)


@every_layer
def test_empty_batch(key):
    layer = build(key)
    x, state, drive = arguments_for(layer, batch=0, drive=2)
    for run in (layer, layer.loop):
        outputs, *others = results(run, layer, x, state, drive)
        assert outputs.shape == (len(x), 0, layer.hidden_size)
        assert parts(run(x)[1])[0].shape == (0, layer.hidden_size)
        assert not any(tensor.any() for tensor in others)


@every_layer
def test_autocast_does_not_change_the_results(key):
    layer = build(key, dtype=torch.float32)
    arguments = arguments_for(layer, drive=1, dtype=torch.float32)
    half = arguments[0].bfloat16()
    for run in (layer, layer.loop):
        expected, of_half = results(run, layer, *arguments), run(half.float())[0]

        def with_autocast(*given, run=run):
            with torch.autocast("cpu", torch.bfloat16):
                return run(*given)

        assert_close(results(with_autocast, layer, *arguments), expected, 1e-6)
        assert torch.equal(with_autocast(half)[0], of_half)
    with torch.autocast("cpu", torch.bfloat16):  # backward too
        results(layer, layer, *arguments)


@each_loop
def test_batch_first_and_inputs_that_are_not_contiguous(key):
    layer, other = build(key), build(key, batch_first=True)
    x, state, drive = arguments_for(layer, 9, drive=2)
    expected = results(layer, layer, x, state, drive)

    def strided(tensor):
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    def batch_first(x, state, drive):
        outputs, last = other(x.transpose(0, 1), state, drive.t())
        return outputs.transpose(0, 1), last

    arguments = strided(x), map_state(strided, state), strided(drive)
    assert not arguments[0].is_contiguous()
    assert_close(results(layer, layer, *arguments), expected)
    assert_close(results(batch_first, other, x, state, drive), expected)
    for current in (drive, drive[:, 0]):
        swapped = current.t() if current.ndim == 2 else current
        traced = other.trace(x.transpose(0, 1), state, swapped)[2]
        for name, values in layer.trace(x, state, current)[2].items():
            assert torch.equal(traced[name].transpose(0, 1), values)
    assert_fast_equals_slow(layer, randn(9, 1, 1).expand(9, 3, layer.input_size))


@each_loop
def test_float32_over_many_steps(key):
    layer = build(key, inputs=1, units=24, scale=0.0, dtype=torch.float32)
    if key not in ORTHOGONAL:
        with torch.no_grad():  # a contraction, so that rounding is not amplified
            for parameter in layer.parameters():
                if parameter.ndim == 2:
                    parameter *= 0.5
    x, _, _ = arguments_for(layer, 200, state=False, dtype=torch.float32)
    exact = copy.deepcopy(layer).double()
    assert {tensor.dtype for tensor in parts(layer(x)[1])} == {torch.float32}
    assert_close(results(layer, layer, x), results(exact.loop, exact, x.double()), 1e-4)


def loss_of(run, x):
    outputs, last = run(x)
    return (outputs**2).sum() + sum(part.sum() for part in parts(last))


@each_loop
def test_gradients_of_single_parameters(key):
    layer, x = build(key), randn(4, 3, 2)
    learned = [p for p in layer.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss_of(layer.loop, x), learned)
    assert_close(torch.autograd.grad(loss_of(layer, x), learned), expected)
    for parameter, right in zip(learned, expected, strict=True):
        layer.requires_grad_(False)
        parameter.requires_grad_()
        assert_close(torch.autograd.grad(loss_of(layer, x), [parameter]), [right])


@every_layer
def test_second_derivatives_are_those_of_the_loop_or_an_error(key):
    layer = build(key)
    weights = [p for p in layer.parameters() if p.requires_grad]

    def penalised(run):
        """The gradients of a loss with a penalty on its own gradient."""
        x = randn(4, 3, 2).requires_grad_()
        loss = run(x)[0].square().sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        loss = loss + gradient.square().sum()
        return torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)

    expected = penalised(layer.loop)
    if key in GATED:  # torch's own recurrence
        assert_close(penalised(layer), expected)
    else:
        with pytest.raises(RuntimeError, match=r"once.*layer\.loop"):
            penalised(layer)


@pytest.mark.parametrize(("key", "name"), [("RNN-gamma2", "V"), ("RNN-ReLU", "V"), ("ANRU", "Whh")])
def test_a_modified_weight_is_detected(key, name):
    layer = build(key)
    loss = loss_of(layer, randn(4, 3, 2))
    with torch.no_grad():
        getattr(layer, name).weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("key", ["RNN-gamma2", "RNN-ReLU", "RNN-modrelu", "ANRU", *GATED, "nnRNN"])
def test_steps_support_torch_func(key):
    """torch.func differentiates the definition, which uses only plain operations."""
    layer = build(key)
    x, state, _ = arguments_for(layer, 1)
    h, *others = parts(state)

    def h_after(h):
        return parts(layer.step(x[0], (h, *others) if others else h))[0]

    directions = torch.eye(h.numel(), dtype=h.dtype).view(-1, *h.shape)
    forward = vmap(lambda v: jvp(h_after, (h,), (v,))[1])(directions).flatten(1).t()
    reverse = torch.autograd.functional.jacobian(h_after, h).reshape(h.numel(), -1)
    assert torch.allclose(forward, reverse, rtol=1e-10, atol=1e-13)


@each_loop
def test_several_graphs_at_once(key):
    layer, x = build(key), randn(9, 3, 2)
    weights = [p for p in layer.parameters() if p.requires_grad]
    alone = [torch.autograd.grad(loss_of(layer, k * x), weights) for k in (1, 2)]
    losses = [loss_of(layer, k * x) for k in (1, 2)]
    with torch.no_grad():
        layer(3 * x)
    for k in (0, 1, 0):
        gradients = torch.autograd.grad(losses[k], weights, retain_graph=True)
        assert all(map(torch.equal, gradients, alone[k]))


def test_a_compiled_layer_has_the_same_gradients():
    layer = build("RNN-gamma2")
    compiled = torch.compile(layer, backend="aot_eager")
    arguments = arguments_for(layer, 3, state=False)
    assert_close(results(compiled, layer, *arguments), results(layer, layer, *arguments))


class Allocations(TorchDispatchMode):
    """Records the sizes of the tensors allocated by `torch.empty` and the like."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if "empty" in function.__name__:
            self.sizes.append(result.numel())
        return result


@pytest.mark.parametrize("key", ["RNN-gamma2", "RNN-ReLU", "ANRU"])
def test_evaluation_keeps_only_the_outputs(key):
    layer, x = build(key, units=16), randn(200, 5, 2)
    with torch.no_grad(), Allocations() as allocated:
        outputs, _ = layer(x)
    assert outputs.grad_fn is None
    assert max(allocated.sizes) == outputs.numel()
    assert sum(allocated.sizes) - outputs.numel() < outputs.numel() / 4
    assert torch.equal(layer(x)[0], outputs)


@pytest.mark.parametrize("net_type", NETWORKS)
def test_a_state_does_not_keep_the_sequence_alive(net_type):
    layer = new(net_type)
    for part in parts(layer(randn(50, 3, 2))[1]):
        assert part.untyped_storage().nbytes() < 10 * part.nbytes


def test_vanished_gradients_become_zero_not_denormal():
    layer = RNN(1, 8, "sigmoid", generator=seeded(0))
    x = randn(300, 4, 1, seed=1, dtype=torch.float32).requires_grad_()
    layer(x)[1].sum().backward()
    gradient = x.grad.abs()
    assert gradient[-1].max() > 1e-4
    assert gradient[0].max() == 0
    assert gradient[gradient > 0].min() > 1e-35


@OURS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_propagate(key, bad):
    layer, x = build(key), randn(4, 3, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[0][-1].sum() * bad, x)
    assert not gradient[0].isfinite().all()
