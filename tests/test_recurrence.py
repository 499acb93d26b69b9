"""The fast recurrences against the plain loop of steps: values, gradients, memory, many users."""

import copy
import gc
import math
import pickle
import threading
import weakref

import pytest
import torch
from torch.func import jvp, vmap

from NetworkCreation import recurrence
from NetworkCreation.gamma_function import (
    gamma,
    gamma_derivatives_into,
    gamma_into,
    gamma_terms_into,
)
from NetworkCreation.layers import NONLINEARITIES
from NetworkCreation.Networks import ANRU, GRU, LSTM, RNN

B, I, H, M = 3, 2, 5, 4  # noqa: E741, the letters of the sizes


def make(name, size=H, inputs=I, sign=1, dtype=torch.float64, **options):
    """A layer whose every parameter is off its special values (biases of 0, one n for all)."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    like = {"generator": generator, "dtype": dtype}
    if name == "ANRU":
        layer = ANRU(inputs, size, M, **like)
    elif name in NONLINEARITIES:
        layer = RNN(inputs, size, name, n=3.0 * sign, s=0.3, **like, **options)
    else:
        layer = {"LSTM": LSTM, "GRU": GRU}[name](inputs, size, **like)
    with torch.no_grad():
        for parameter in layer.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=dtype)
            parameter += 0.1 * noise
        if name == "ANRU":
            layer.Wgn.bias.mul_(sign)
    return layer


LAYERS = [*NONLINEARITIES, "ANRU", "LSTM", "GRU"]


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def inputs_of(layer, steps, batch=B, drive=None, state=True, dtype=torch.float64):
    """x, state and drive that require gradients; drive: its number of axes or None."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    x = draw(steps, batch, layer.input_size)
    before = tuple(draw(*shape) for shape in layer.state_shapes(batch)) if state else None
    if state and len(before) == 1:
        before = before[0]
    return x, before, None if drive is None else draw(*(steps, batch)[:drive])


def results(run, layer, x, state, drive, into=("outputs", "state")):
    """Outputs, final state and every gradient of a loss that looks at what `into` names."""
    outputs, last = run(x, state, drive)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2)).to(outputs)
    loss = (outputs * weights).sum() if "outputs" in into else 0
    if "state" in into:
        loss = loss + sum((part**3).sum() + part.sum() for part in parts(last))
    wanted = [x, *layer.parameters()]
    wanted += [] if state is None else parts(state)
    wanted += [] if drive is None else [drive]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return [outputs, *parts(last), *gradients]


def assert_equal(layer, x, state, drive, tolerance=1e-10, **options):
    fast = results(layer, layer, x, state, drive, **options)
    slow = results(layer.loop, layer, x, state, drive, **options)
    for ours, expected in zip(fast, slow, strict=True):
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


def test_every_nonlinearity_has_a_kernel():
    assert recurrence.ACTIVATIONS.keys() == NONLINEARITIES.keys()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("drive", [None, 1, 2])
@pytest.mark.parametrize("state", [True, False])
def test_equals_the_loop(name, drive, state):
    layer = make(name)
    assert_equal(layer, *inputs_of(layer, 9, drive=drive, state=state))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("into", [("outputs",), ("state",)])
def test_gradients_into_outputs_or_the_state_alone(name, into):
    layer = make(name)
    assert_equal(layer, *inputs_of(layer, 9, drive=2), into=into)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, B), (2, 1), (40, 1)])
def test_single_steps_and_samples(name, steps, batch):
    layer = make(name)
    assert_equal(layer, *inputs_of(layer, steps, batch, drive=1))


@pytest.mark.parametrize("name", LAYERS)
def test_one_input(name):
    layer = make(name, inputs=1)
    assert_equal(layer, *inputs_of(layer, 9, drive=2))


@pytest.mark.parametrize("name", ["gamma", "gamma2", "ANRU"])
def test_negative_gain(name):
    layer = make(name, sign=-1)
    assert_equal(layer, *inputs_of(layer, 9))


@pytest.mark.parametrize("name", LAYERS)
def test_several_passes_blocks_and_chunks(name, monkeypatch):
    """Sizes at which every loop inside runs more than once, with a shorter last round."""
    monkeypatch.setattr(recurrence, "PASS", 4 * 7 * 19)
    monkeypatch.setattr(recurrence, "CHUNK", 3 * 19)
    monkeypatch.setattr(recurrence, "BLOCK", 5)
    layer = make(name, size=19)
    x, state, drive = inputs_of(layer, 23, batch=7, drive=1)
    assert len(recurrence._passes(23, 7, 19)) == 6
    assert [part.stop - part.start for part in recurrence._chunks(7, 19)] == [3, 3, 1]
    assert_equal(layer, x, state, drive)


@pytest.mark.parametrize("name", ["gamma2", "ANRU", "LSTM", "GRU"])
def test_inputs_that_are_not_contiguous(name):
    layer = make(name)
    generator = torch.Generator().manual_seed(3)
    like = {"generator": generator, "dtype": torch.float64, "requires_grad": True}
    x = torch.randn(B, 9, I, **like).transpose(0, 1)
    drive = torch.randn(B, 9, **like).t()
    state = tuple(
        torch.randn(*reversed(shape), **like).permute(*reversed(range(len(shape))))
        for shape in layer.state_shapes(B)
    )
    assert_equal(layer, x, state if len(state) > 1 else state[0], drive)
    one = torch.randn(9, 1, 1, **like).expand(9, B, I)
    assert_equal(layer, one, None, None)


@pytest.mark.parametrize("name", LAYERS)
def test_only_what_is_asked_for_gets_a_gradient(name):
    layer = make(name)
    x, _, _ = inputs_of(layer, 6, state=False)
    full = results(layer, layer, x, None, None)
    for index, (parameter_name, parameter) in enumerate(layer.named_parameters()):
        layer.requires_grad_(False)
        parameter.requires_grad_()
        layer.zero_grad()
        outputs, last = layer(x.detach())
        expected = full[len(full) - len(list(layer.parameters())) + index]
        weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
        loss = (outputs * weights.to(outputs)).sum()
        (loss + sum((part**3).sum() + part.sum() for part in parts(last))).backward()
        assert torch.allclose(parameter.grad, expected, rtol=1e-10, atol=1e-12), parameter_name


@pytest.mark.parametrize("name", ["gamma", "gamma2"])
def test_fixed_gain_and_saturation(name):
    layer = make(name, learn_params=False)
    assert not layer.n.requires_grad
    assert_equal(layer, *inputs_of(layer, 9))


packing = pytest.mark.skipif(
    not recurrence._packing_pays(torch.zeros(4000, 4000), 100, 100),
    reason="matrices are packed on processors with AVX-512 alone",
)


def packed_sizes(monkeypatch):
    """The shapes of the matrices that are packed from now on, whatever their size; a live list."""
    shapes, pack = [], recurrence._packed
    monkeypatch.setattr(recurrence, "PACKED_WORK", 0)
    monkeypatch.setattr(recurrence, "_packed", lambda W: shapes.append(tuple(W.shape)) or pack(W))
    return shapes


@packing
@pytest.mark.parametrize("name", ["gamma2", "ReLU", "ANRU", "LSTM", "GRU"])
@pytest.mark.parametrize("batch", [1, B])
def test_packed_matrices(name, batch, monkeypatch):
    layer = make(name, size=19, dtype=torch.float32)
    x, state, drive = inputs_of(layer, 40, batch, drive=1, dtype=torch.float32)
    expected = results(layer, layer, x, state, drive)
    shapes = packed_sizes(monkeypatch)
    found = results(layer, layer, x, state, drive)
    rows = {"LSTM": {(76, 19), (19, 76)}, "GRU": {(38, 19), (19, 19), (19, 57)}}
    assert set(shapes) == rows.get(name, {(19, 19)})
    for ours, right in zip(found, expected, strict=True):
        assert (ours - right).abs().max() <= 1e-4 * right.abs().max()


@packing
def test_packed_matrices_keep_nan_and_infinity(monkeypatch):
    layer = make("ReLU", size=19, dtype=torch.float32)
    x, state, _ = inputs_of(layer, 40, dtype=torch.float32)
    with torch.no_grad():
        x[3, 0], x[5, 1] = math.nan, math.inf
    assert not packed_sizes(monkeypatch)
    outputs, _ = layer(x, state)
    assert outputs[4:, 0].isnan().all()
    assert not outputs[6:, 1].isfinite().any()
    assert outputs[:, 2].isfinite().all()


@packing
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_what_is_not_packed():
    W = torch.zeros(400, 400)
    assert recurrence._packing_pays(W, 784, 100)
    assert not recurrence._packing_pays(W, 784, 10)
    assert not recurrence._packing_pays(W, 5, 100)
    assert not recurrence._packing_pays(W.double(), 784, 100)
    assert not recurrence._packing_pays(W.to("meta"), 784, 100)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not recurrence._packing_pays(W, 784, 100)


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_a_torch_without_packed_products(error, monkeypatch):
    def missing(*arguments):
        raise error("no such function")

    monkeypatch.setattr(recurrence, "_packed_product", missing)
    monkeypatch.setattr(recurrence, "PACKED_WORK", 0)
    recurrence._packing_works.cache_clear()
    try:
        layer = make("gamma2", dtype=torch.float32)
        x, state, _ = inputs_of(layer, 40, dtype=torch.float32)
        outputs, _ = layer(x, state)
        assert torch.allclose(outputs, layer.loop(x, state)[0], atol=1e-4)
    finally:
        recurrence._packing_works.cache_clear()


@pytest.mark.parametrize("name", LAYERS)
def test_float32_over_a_whole_image(name):
    layer = make(name, size=24, inputs=1, dtype=torch.float32)
    with torch.no_grad():  # a contraction, so that rounding is not amplified over 784 steps
        for parameter_name, parameter in layer.named_parameters():
            if parameter.ndim == 2:
                parameter *= 0.5
            if parameter_name == "Uag.weight":
                parameter *= 0.1
    x, state, _ = inputs_of(layer, 784, batch=4, dtype=torch.float32)
    assert_equal(layer, x.detach().requires_grad_(), state, None, tolerance=1e-4)


def untouched(name, dtype):
    """A layer of the experiments' size, H = 400, with its default initialisation."""
    kind = {"gamma2": RNN, "ANRU": ANRU, "LSTM": LSTM, "GRU": GRU}[name]
    return kind(1, 400, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("name", ["gamma2", "ANRU", "LSTM", "GRU"])
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=packing)])
def test_float32_at_the_size_of_the_experiments(name, packed, monkeypatch):
    monkeypatch.setattr(recurrence, "PACKED_WORK", 0 if packed else math.inf)
    layer = untouched(name, torch.float32)
    exact = copy.deepcopy(layer).double()
    x, _, _ = inputs_of(layer, 784, batch=1, state=False, dtype=torch.float32)
    ours = results(layer, layer, x, None, None)
    right = results(exact.loop, exact, x.detach().double().requires_grad_(), None, None)
    for found, expected in zip(ours, right, strict=True):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["gamma2", "ANRU", "LSTM", "GRU"])
def test_two_threads_give_what_one_gives(name):
    layer = untouched(name, torch.float64)
    x, _, _ = inputs_of(layer, 5, batch=100, state=False)  # enough elements a step to be shared out
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(results(layer, layer, x, None, None))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert (one - two).abs().max() <= 1e-12 * one.abs().max()


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name):
    layer = make(name, size=3)
    x, state, drive = inputs_of(layer, 3, batch=2, drive=2)
    number = len(parts(state))

    def run(x, drive, *tensors):
        state = tensors[:number] if number > 1 else tensors[0]
        outputs, last = layer(x, state, drive)
        return outputs, *parts(last)

    tensors = (x, drive, *parts(state), *layer.parameters())
    assert torch.autograd.gradcheck(lambda *t: run(*t[: 2 + number]), tensors)


def loss_of(layer, x):
    outputs, last = layer(x)
    return (outputs**2).sum() + sum(part.sum() for part in parts(last))


FOUR = ["gamma2", "ReLU", "ANRU", "LSTM", "GRU"]


@pytest.mark.parametrize("name", FOUR)
def test_double_backward_is_refused(name):
    layer = make(name)
    x, _, _ = inputs_of(layer, 4, state=False)
    (gradient,) = torch.autograd.grad(loss_of(layer, x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", FOUR)
def test_a_changed_weight_is_noticed(name):
    layer = make(name)
    x, _, _ = inputs_of(layer, 4, state=False)
    if name in ("LSTM", "GRU"):  # whose weights are joined, so that the graph has its own copy
        expected = torch.autograd.grad(loss_of(layer, x), x)[0]
        loss = loss_of(layer, x)
        with torch.no_grad():
            next(layer.parameters()).add_(1)
        assert torch.equal(torch.autograd.grad(loss, x)[0], expected)
        return
    loss = loss_of(layer, x)
    with torch.no_grad():
        getattr(layer, "V" if name != "ANRU" else "Whh").weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", FOUR)
def test_steps_can_be_transformed(name):
    """torch.func sees the definition, which is made of plain operations."""
    layer = make(name)
    x, state, _ = inputs_of(layer, 1)
    x_t, state = x[0].detach(), tuple(part.detach() for part in parts(state))

    def h_after(h):
        before = (h, *state[1:]) if len(state) > 1 else h
        return parts(layer.step(x_t, before))[0]

    h = state[0]
    directions = torch.eye(h.numel(), dtype=h.dtype).view(-1, *h.shape)
    forward = vmap(lambda v: jvp(h_after, (h,), (v,))[1])(directions).flatten(1).t()
    reverse = torch.autograd.functional.jacobian(h_after, h).reshape(h.numel(), -1)
    assert torch.allclose(forward, reverse, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0.3, 5.0, -2.0, 300.0])
@pytest.mark.parametrize("s", [0.0, 0.3, 1.0])
def test_kernels_of_gamma(n, s, dtype):
    """On both sides of 0 and far out in the tails, against γ in float64."""
    x = torch.cat([torch.linspace(-40, 40, 161), torch.linspace(-0.1, 0.1, 41)]).to(dtype)
    n, s = torch.tensor([n], dtype=dtype), torch.tensor([s], dtype=dtype)
    value, dx, dn, ds, slope, *work = torch.empty(7, len(x), dtype=dtype)
    gamma_into(x, n, s, value, work)
    gamma_derivatives_into(x, n, s, dx, dn, ds, work)
    gamma_terms_into(x, n, s, slope, (), work)
    exact = [t.double().expand(len(x)).clone().requires_grad_() for t in (x, n, s)]
    expected = gamma(*exact)
    derivatives = torch.autograd.grad(expected.sum(), exact)
    precision = torch.finfo(dtype).eps
    for ours, right in zip((dx, dn, ds, slope), (*derivatives, derivatives[0]), strict=True):
        assert (ours - right).abs().max() <= 4 * precision * right.abs().max()
    visible = expected.abs() > 1e-30  # e^x of a rounded x is off by |x| units in the last place
    relative = ((value - expected).abs() / expected.abs())[visible]
    spread = 4 + 2 * (n * x).abs().clamp(max=80)[visible]
    assert s != 0 or (relative <= precision * spread).all()
    assert (value - expected).abs().max() <= 4 * precision * expected.abs().max()


# The workspace: large enough tensors that blocks are lent and come back.

LARGE = {"size": 64, "inputs": 3, "dtype": torch.float32}
STEPS, BATCH = 48, 100  # (T, B, H) is more than a MiB


def large(name):
    layer = make(name, **LARGE)
    x = torch.randn(STEPS, BATCH, 3, generator=torch.Generator().manual_seed(4))
    return layer, x


def gradients(layer, x):
    return torch.autograd.grad(loss_of(layer, x), list(layer.parameters()))


@pytest.mark.parametrize("name", FOUR)
def test_blocks_come_back_and_are_used_again(name):
    layer, x = large(name)
    with torch.no_grad():
        outputs, _ = layer(x)
        size = outputs.untyped_storage().nbytes()
        address = outputs.data_ptr()
        assert layer(x)[0].data_ptr() != address, "an output that is still held was overwritten"
        free = layer._workspace._free[size]
        assert len(free) == 1
        del outputs
        assert len(free) == 2
        again, _ = layer(x)
        assert len(free) == 1
    assert not again.requires_grad


@pytest.mark.parametrize("name", FOUR)
def test_graphs_that_are_alive_together(name):
    layer, x = large(name)
    expected, other = gradients(layer, x), gradients(layer, 2 * x)
    weights = list(layer.parameters())
    first, second = loss_of(layer, x), loss_of(layer, 2 * x)
    with torch.no_grad():
        layer(3 * x)
    pairs = [(torch.autograd.grad(first, weights, retain_graph=True), expected)]
    pairs += [(torch.autograd.grad(second, weights), other)]
    layer(3 * x)
    pairs += [(torch.autograd.grad(first, weights), expected)]
    for ours, theirs in pairs:
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", FOUR)
def test_a_view_keeps_its_block(name):
    layer, x = large(name)
    with torch.no_grad():
        last = layer(x)[0][-1]
        expected = last.clone()
        for _ in range(3):
            layer(2 * x)
    assert torch.equal(last, expected)


def test_memory_goes_with_the_layer():
    layer, x = large("gamma2")
    kept, _ = layer(x)
    layer(x)
    blocks = [block for free in layer._workspace._free.values() for block in free]
    assert blocks
    watched = [weakref.ref(block) for block in blocks]
    workspace = weakref.ref(layer._workspace)
    expected = kept.detach().clone()
    del layer, blocks
    gc.collect()
    assert workspace() is None
    assert all(reference() is None for reference in watched)
    assert torch.equal(kept, expected)  # what is still held outlives the layer


def test_another_size_drops_the_blocks_that_no_longer_fit():
    layer, x = large("gamma2")
    loss_of(layer, x).backward()
    workspace = layer._workspace
    before = set(workspace._free)
    with torch.no_grad():
        layer(x.repeat(1, 2, 1))
    assert before
    assert not before & set(workspace._free)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_share_no_memory(duplicate):
    layer, x = large("gamma2")
    expected = gradients(layer, x)
    other = duplicate(layer)
    assert other._workspace is not layer._workspace
    assert other.state_dict().keys() == layer.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(gradients(other, x), expected, strict=True))


@pytest.mark.parametrize("name", FOUR)
def test_threads_share_a_layer(name):
    layer, x = large(name)
    factors = [1.0, 1.5, 2.0, 2.5]
    expected = [gradients(layer, factor * x) for factor in factors]
    wrong = []

    def work(factor, right):
        for _ in range(4):
            ours = gradients(layer, factor * x)
            if not all(torch.equal(a, b) for a, b in zip(ours, right, strict=True)):
                wrong.append(factor)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(factors, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class RunsLayer(torch.utils.data.Dataset):
    """Items that a layer computes in the worker process."""

    def __init__(self, layer, x):
        self.layer, self.x = layer, x

    def __len__(self):
        return 6

    def __getitem__(self, index):
        with torch.no_grad():
            return self.layer((index + 1) * self.x)[0]


@pytest.mark.skipif(
    "fork" not in torch.multiprocessing.get_all_start_methods(), reason="needs fork"
)
def test_workers_that_were_forked():
    layer, x = large("ReLU")
    dataset = RunsLayer(layer, x)
    expected = [dataset[index] for index in range(len(dataset))]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    loss = loss_of(layer, x)  # a graph of this process, alive while the workers run
    found = list(loader)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    ours = torch.autograd.grad(loss, list(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours, gradients(layer, x), strict=True))


class CountingWorkspace(recurrence.Workspace):
    """Counts the elements that are asked for."""

    elements = 0

    def empty(self, shape, like):
        tensor = super().empty(shape, like)
        self.elements += tensor.numel()
        return tensor


@pytest.mark.parametrize("name", LAYERS)
def test_evaluation_keeps_the_outputs_alone(name, monkeypatch):
    monkeypatch.setattr(recurrence, "PASS", BATCH * LARGE["size"])
    layer, x = large(name)
    layer._workspace = CountingWorkspace()
    with torch.no_grad():
        outputs, state = layer(x)
    assert outputs.grad_fn is None
    a_step = BATCH * LARGE["size"] * 8
    assert layer._workspace.elements <= outputs.numel() + a_step
    for part in parts(state):  # it does not hold the whole sequence alive
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()
    trained, _ = layer(x)
    assert torch.equal(trained, outputs)


def test_vanished_gradients_become_zero_not_denormal():
    layer = RNN(1, 8, "sigmoid", generator=torch.Generator().manual_seed(0))
    x = torch.randn(300, 4, 1, generator=torch.Generator().manual_seed(1)).requires_grad_()
    layer(x)[1].sum().backward()
    gradient = x.grad.abs()
    assert gradient[-1].max() > 1e-4
    assert gradient[0].max() == 0
    assert gradient[gradient > 0].min() > 1e-35


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_kept(bad):
    layer = make("tanh")
    x, _, _ = inputs_of(layer, 4, state=False)
    outputs, _ = layer(x)
    (gradient,) = torch.autograd.grad(outputs[-1, 0, 0] * bad, x)
    assert not gradient[0].isfinite().all()
