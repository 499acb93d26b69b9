"""The layers against their equations in numpy, and their fast loops against the steps."""

import copy
import inspect
import math
import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import default_collate

from NetworkCreation import anru, initialization, time_loop
from NetworkCreation.errors import OptionError, UserError
from NetworkCreation.layer import NONLINEARITIES, Activation, map_state, parts
from NetworkCreation.Networks import ANRU, NETWORKS, RNN
from tests.layers import (
    EACH_LOOP,
    GATED,
    LAYERS,
    ORTHOGONAL,
    RNNS,
    B,
    H,
    I,
    T,
    arguments_for,
    assert_close,
    assert_same_run,
    build,
    by_steps,
    joined,
    new,
    randn,
    results,
    seeded,
)

every_layer = pytest.mark.parametrize("key", LAYERS)
each_loop = pytest.mark.parametrize("key", EACH_LOOP)


# The equations of a step, on arrays. p: the parameters by name, and the activation.


def sigma(z):
    return 1 / (1 + np.exp(-z))


def plain_gamma(a, n, s):
    return (1 - s) * np.log(1 + np.exp(n * a)) / n + s * sigma(n * a)


ACTIVATIONS = {"gamma": plain_gamma, "gamma2": plain_gamma, "tanh": np.tanh, "sigmoid": sigma}
ACTIVATIONS |= {"none": lambda a: a, "ReLU": lambda a: np.maximum(a, 0)}
ACTIVATIONS["modrelu"] = lambda a, b: a / abs(a) * np.maximum(abs(a) + b, 0)


def affine(p, name, v):
    return v @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def plain_rnn(p, x, drive, h):
    a = affine(p, "U", x) + affine(p, "V", h) + drive
    gains = {name: p[name] + 0 * a for name in ("n", "s") if name in p}
    return gains | {"a": a, "h": p["activation"](a)}


def plain_eurnn(p, x, drive, re, im):
    a = affine(p, "Ure", x) + 1j * affine(p, "Uim", x) + affine(p, "V", re + 1j * im) + drive
    h = p["activation"](a)
    return {"a": a.real, "a_im": a.imag, "h": h.real, "h_im": h.imag}


def plain_anru(p, x, drive, h, g):
    a = affine(p, "Uxh", x) + affine(p, "Whh", h) + drive
    g = np.tanh(affine(p, "Uag", a[..., None]) + affine(p, "Wgg", g))
    n, s = affine(p, "Wgn", g)[..., 0], affine(p, "Wgs", g)[..., 0]
    return {"a": a, "n": n, "s": s, "h": plain_gamma(a, n, s), "g": g}


def plain_lstm(p, x, drive, h, c):
    f, i, o, g = (affine(p, f"W{gate}", np.hstack([h, x])) for gate in "fiog")
    a = o + drive
    c = sigma(f) * c + sigma(i) * np.tanh(g)
    return {"a": a, "c": c, "h": sigma(a) * np.tanh(c)}


def plain_gru(p, x, drive, h):
    r, z = (sigma(affine(p, f"Wi{gate}", x) + affine(p, f"Wh{gate}", h)) for gate in "rz")
    a = affine(p, "Win", x) + r * affine(p, "Whn", h) + drive
    return {"a": a, "h": (1 - z) * np.tanh(a) + z * h}


PLAIN = {"ANRU": plain_anru, "LSTM": plain_lstm, "GRU": plain_gru, "EURNN": plain_eurnn}
PLAIN |= dict.fromkeys(("RNN", "expRNN", "nnRNN"), plain_rnn)


def plain_run(key, layer, x, state, drive):
    """Last state and {name: (T, B, ...)} of the equations."""
    net_type, options = LAYERS[key]
    p = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    if key not in GATED:
        p["Whh.weight" if key == "ANRU" else "V.weight"] = layer.recurrent_matrix().numpy()
    own = {name: p[name] for name in ("n", "s", "b") if name in p}
    p["activation"] = partial(ACTIVATIONS[options.get("nonlin", "modrelu")], **own)
    state = [part.numpy() for part in parts(layer.initial_state(B) if state is None else state)]
    drive = torch.zeros(T) if drive is None else drive
    steps = []
    for x_t, drive_t in zip(x.numpy(), drive.unsqueeze(-1).numpy(), strict=True):
        steps.append(PLAIN[net_type](p, x_t, drive_t, *state))
        state = [steps[-1][name] for name in ("h", "g", "c", "h_im") if name in steps[-1]]
    return tuple(map(torch.from_numpy, state)), default_collate(steps)


@every_layer
@pytest.mark.parametrize(("drive", "state"), [(None, False), (1, True), (2, False)])
@pytest.mark.parametrize("seed", [0, 1])
def test_matches_the_equations(key, drive, state, seed):
    layer = build(key, seed)
    arguments = arguments_for(layer, drive=drive, state=state)
    *traced, quantities = layer.trace(*arguments)
    for run in (layer(*arguments), layer.loop(*arguments), by_steps(layer, *arguments)):
        assert run[0].shape == (T, B, H)
        assert_same_run(run, traced, rtol=1e-9, atol=1e-10)
    assert torch.equal(quantities["h"], traced[0])
    last, expected = plain_run(key, layer, *arguments)
    torch.testing.assert_close(quantities, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(parts(traced[1]), last, rtol=1e-9, atol=1e-10)
    *run, part = layer.trace(*arguments, keep=iter(["a"]))
    assert part.keys() == {"a"} and torch.equal(part["a"], quantities["a"])
    assert_same_run(run, traced)
    with pytest.raises(ValueError, match="charge"):
        layer.trace(*arguments, keep=["a", "charge"])


def linear(names):
    """The parameters of linear maps."""
    return {f"{name}.{kind}" for name in names.split() for kind in ("weight", "bias")}


SKEW = "V.parametrizations.weight"
# The names of parameters and buffers in a checkpoint.
STATES = {key: linear("U V") | ({"n", "s"} if "gamma" in key else set()) for key in RNNS}
STATES["RNN-modrelu"] |= {"b"}
STATES |= {"ANRU": linear("Uxh Whh Uag Wgg Wgn Wgs"), "LSTM": linear("Wf Wi Wo Wg")}
STATES["GRU"] = linear("Wir Wiz Win Whr Whz Whn")
STATES["expRNN"] = {"b", "U.weight", f"{SKEW}.original", f"{SKEW}.0.base"}
STATES["nnRNN"] = STATES["expRNN"] | {f"{SKEW}.2.{name}" for name in ("T", "alpha", "theta")}
STATES["EURNN"] = {"theta", "phi", "omega", "b", "Ure.weight", "Uim.weight"}


@pytest.mark.parametrize("key", STATES)
def test_the_names_of_parameters_and_buffers(key):
    layer = new(key)
    assert layer.state_dict().keys() == STATES[key]
    fixed = {"n", "s"} if key.endswith("fixed") else {f"{SKEW}.0.base"}
    assert {name for name, _ in layer.named_parameters()} == STATES[key] - fixed
    gains = [gain.shape for gain in layer.gains().values()] if "RNN-gamma" in key else []
    assert {*gains} <= {(H,) if "gamma2" in key else (1,)}


@each_loop
def test_layers_keep_no_state_and_overwrite_nothing(key):
    layer = build(key)
    arguments = arguments_for(layer, drive=2)
    x, state, drive = arguments
    tensors = [x, *parts(state), drive, *layer.state_dict().values()]
    copies = [tensor.clone() for tensor in tensors]
    first = layer(*arguments)
    layer(2 * x)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            again = layer(*arguments)
        assert_same_run(again, first)
        assert again[0].requires_grad == (context is torch.enable_grad)
    layer.step(x[0], state, drive[0])
    layer.trace(*arguments)
    assert all(map(torch.equal, tensors, copies))


def test_positional_and_default_arguments():
    layer = RNN(I, H, "gamma", -2.0, 0.5, False, "xavier", "normal", generator=seeded(0))
    assert (layer.n.tolist(), layer.s.tolist()) == ([-2.0], [0.5])
    rnn = RNN(I, H, "gamma2", 5.0, 0.0, True, "henaff", "kaiming", generator=seeded(0))
    anru = ANRU(I, H, 50, "henaff", "kaiming", generator=seeded(0))
    for spelt in (rnn, anru):
        for name, parameter in type(spelt)(I, H, generator=seeded(0)).named_parameters():
            assert torch.equal(parameter, spelt.get_parameter(name))
            assert parameter.dtype == torch.float32


def rejects(*fragments):
    """Expects a ValueError whose message contains all of these."""
    return pytest.raises(ValueError, match="".join(f"(?=.*{re.escape(f)})" for f in fragments))


@pytest.mark.parametrize("net_type", NETWORKS)
def test_an_invalid_input_is_named(net_type):
    layer, x = new(net_type), randn(T, B, I)
    state = parts(layer.initial_state(B))
    wrong = [((x.float(),), "input is torch.float32", "layer is torch.float64")]
    for shape in ((T, I), (T, B, I + 1), (T, B, I, 1), (0, B, I)):
        wrong.append(((torch.zeros(shape).double(),), f"(T, B, {I})", str(shape)))
    for shape in ((), (T + 1,), (T, B + 1), (B, T), (T, B, 1)):
        wrong.append(((x, None, torch.zeros(shape).double()), str((T, B)), str(shape)))
    for i, part in enumerate(state):
        before, after = state[:i], state[i + 1 :]
        for other in (part[:-1], part[..., :-1], part.unsqueeze(0)):  # the last as in torch.nn
            shapes = str(tuple(part.shape)), str(tuple(other.shape))
            wrong.append(((x, joined([*before, other, *after])), *shapes))
        wrong.append(((x, joined([*before, part.float(), *after])), "state is torch.float32"))
    for count in {1, 2, 3} - {len(state)}:
        wrong.append(((x, joined((state * 3)[:count])), str((B, H))))
    for run in (layer, layer.loop, layer.trace):
        for arguments, *fragments in wrong:
            with rejects(*fragments):
                run(*arguments)
        assert torch.equal(run(x.bfloat16())[0], run(x.bfloat16().double())[0])
        assert torch.equal(run(x, list(state))[0], run(x)[0])
    other = new(net_type, batch_first=True)
    with rejects(f"(B, T, {I})", str((B, 0, I))):
        other(randn(B, 0, I))
    with rejects(f"({T},) or {(B, T)}", str((T, B))):
        other(x.transpose(0, 1), None, randn(T, B))


COMMON = {"input_size", "hidden_size", "batch_first", "generator", "device", "dtype"}
OPTIONS = {"ANRU": {"supervisor_size", "rinit", "iinit"}, "EURNN": {"capacity", "nonlin", "iinit"}}
OPTIONS |= {"RNN": {"nonlin", "n", "s", "learn_params", "rinit", "iinit"}}
OPTIONS |= dict.fromkeys(("expRNN", "nnRNN"), OPTIONS["RNN"] | {"ostep_method"})
ELMAN, ROTATED = ("RNN", "expRNN", "nnRNN"), ("expRNN", "nnRNN")
# Networks, an argument of theirs, an invalid value, and the allowed values that the error names.
WRONG = [
    *((NETWORKS, name, -2, ["at least 1"]) for name in ("input_size", "hidden_size")),
    (["ANRU"], "supervisor_size", 0, ["at least 1"]),
    (["EURNN"], "capacity", 0, ["at least 1"]),
    *((ELMAN, "n", value, ["not 0"]) for value in (0, 0.0, math.inf, math.nan)),
    (ELMAN, "nonlin", "relu", NONLINEARITIES),
    (["EURNN"], "nonlin", "gamma", ["modrelu, none"]),
    ([*ELMAN, "ANRU", "EURNN"], "iinit", "henaff", initialization.INPUT),
    (["RNN", "ANRU"], "rinit", None, initialization.RECURRENT),
    (ROTATED, "rinit", "xavier", initialization.ROTATIONS),
    (ROTATED, "ostep_method", "householder", ["exp, cayley"]),
    (["nnRNN"], "hidden_size", 7, ["even"]),
]


@pytest.mark.parametrize(("net_type", "network"), NETWORKS.items())
def test_constructors_have_these_arguments_and_name_an_invalid_one(net_type, network):
    assert inspect.signature(network).parameters.keys() == COMMON | OPTIONS.get(net_type, set())
    for name, value, allowed in (row for networks, *row in WRONG if net_type in networks):
        options = {"input_size": I, "hidden_size": H, name: value}
        options |= {"nonlin": "gamma2", "learn_params": False} if name == "n" else {}
        with rejects(name, repr(value), *allowed) as caught:
            network(**options)
        assert isinstance(caught.value, OptionError) and isinstance(caught.value, UserError)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.name, str(again)) == (caught.value.name, str(caught.value))
        assert caught.value.name == name


def test_parameter_groups():
    gains, skew = {"gains": ["n", "s"]}, {"orthogonal": [f"{SKEW}.original"]}
    expected = {key: {} for key in ("RNN-gamma2-fixed", "RNN-ReLU", "LSTM")}
    expected |= {"RNN-gamma2": gains, "ANRU": {"gains": ["Wgn.bias", "Wgs.bias"]}, "expRNN": skew}
    expected |= {"EURNN": {"orthogonal": ["theta", "phi", "omega"]}}
    expected |= {"nnRNN": skew | {"T": [f"{SKEW}.2.T"]}}
    expected |= {"nnRNN-cayley-gamma2": gains | expected["nnRNN"]}
    for key, groups in expected.items():
        layer = new(key)
        names = {parameter: name for name, parameter in layer.named_parameters()}
        of_layer = layer.parameter_groups().items()
        assert {group: [names[p] for p in given] for group, given in of_layer} == groups
    flags = {key: layer.training_flags for key, layer in NETWORKS.items() if layer.training_flags}
    expected = {"nnRNN": ("lr_orth", "alam", "Tdecay"), "expRNN": ("lr_orth",)}
    assert flags == expected | {"EURNN": ("lr_orth",)}
    assert [name for name in NETWORKS if new(name).penalty() is not None] == ["nnRNN"]


@pytest.mark.parametrize("key", GATED)
def test_gated_layers_have_no_single_recurrent_matrix(key):
    with pytest.raises(NotImplementedError, match=rf"{key} has no single recurrent matrix"):
        new(key).recurrent_matrix()


@pytest.mark.parametrize("name", ["RNN", "expRNN"])
def test_an_activation_needs_only_its_function(name, monkeypatch):
    """Swish with a learned slope, tanh with a learned bias, an exponential, a linear function."""
    swish = Activation(lambda a, beta: a * torch.sigmoid(beta * a), parameters=("beta",))

    def terms(a, beta):  # one tensor for both derivatives
        slope = 1 - torch.tanh(a + beta) ** 2
        return slope, (slope,)

    biased = Activation(lambda a, beta: torch.tanh(a + beta), terms=terms, parameters=("beta",))
    itself = Activation(lambda a: a.exp() / 9, slope=lambda h: h, from_a=False)  # not a copy
    for activation in (swish, biased, itself, Activation(lambda a: a)):
        monkeypatch.setitem(NONLINEARITIES, "new", activation)
        layer = new(name, nonlin="new")
        layer.beta = torch.nn.Parameter(randn(H))
        arguments = arguments_for(layer, drive=1)
        assert_close(results(layer, layer, *arguments), results(layer.loop, layer, *arguments))


def assert_fast_equals_slow(layer, *arguments, tolerance=1e-10, **options):
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        fast = results(layer, layer, *arguments, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    slow = results(lambda *given: by_steps(layer, *given), layer, *arguments, **options)
    assert_close(fast, slow, tolerance)


@every_layer
def test_equals_the_loop_of_steps(key):
    """Values and gradients, also of a loss on the outputs or the last state alone."""
    layer = build(key)
    both = ("outputs", "state")
    cases = [(None, False, both), (1, True, both), (2, False, both[:1]), (2, True, both[1:])]
    for drive, state, into in cases:
        arguments = arguments_for(layer, 9, drive=drive, state=state)
        assert_fast_equals_slow(layer, *arguments, into=into)
    layer = build(key, inputs=1)  # which has a product of its own
    for steps, batch in ((1, 1), (2, 3), (40, 1)):
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
    half, autocast = arguments[0].bfloat16(), torch.autocast("cpu", torch.bfloat16)
    for run in (layer.forward, layer.loop):
        expected = results(run, layer, *arguments)
        assert_close(results(autocast(run), layer, *arguments), expected, 1e-6)
        assert torch.equal(autocast(run)(half)[0], run(half.float())[0])
    with autocast:  # backward too
        results(layer, layer, *arguments)


@each_loop
def test_batch_first_and_inputs_that_are_not_contiguous(key):
    layer, other = build(key), build(key, batch_first=True)
    x, state, drive = arguments_for(layer, 9, drive=2)
    expected = results(layer, layer, x, state, drive)

    def batch_first(x, state, drive):
        outputs, last = other(x.transpose(0, 1), state, drive.t())
        return outputs.transpose(0, 1), last

    def strided(tensor):
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    arguments = strided(x), map_state(strided, state), strided(drive)
    assert not arguments[0].is_contiguous()
    assert_close(results(layer, layer, *arguments), expected)
    assert_close(results(batch_first, other, x, state, drive), expected)
    for current in (drive, drive[:, 0]):
        traced = other.trace(x.transpose(0, 1), state, current.t())[2]
        for name, values in layer.trace(x, state, current)[2].items():
            assert torch.equal(traced[name].transpose(0, 1), values)
    assert_fast_equals_slow(layer, randn(9, 1, 1).expand(9, 3, layer.input_size))


@each_loop
def test_float32_over_many_steps(key):
    layer = build(key, inputs=1, units=24, scale=0.0, dtype=torch.float32)
    if key not in ORTHOGONAL:  # a contraction, so that rounding is not amplified
        for parameter in layer.parameters():
            parameter.data *= 0.5 if parameter.ndim == 2 else 1
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
    expected = torch.autograd.grad(loss_of(layer.loop, x), [*layer.parameters()])
    for parameter, right in zip(layer.parameters(), expected, strict=True):
        layer.requires_grad_(False)
        parameter.requires_grad_()
        assert_close(torch.autograd.grad(loss_of(layer, x), [parameter]), [right])


@every_layer
def test_second_derivatives_are_those_of_the_loop_or_an_error(key):
    layer, x = build(key), randn(4, 3, 2).requires_grad_()

    def penalised(run):
        """The gradients of a loss with a penalty on its own gradient."""
        loss = run(x)[0].square().sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        loss = loss + gradient.square().sum()
        return torch.autograd.grad(loss, [*layer.parameters()], materialize_grads=True)

    expected = penalised(layer.loop)
    if key in GATED:  # torch's own recurrence
        assert_close(penalised(layer), expected)
    else:
        with pytest.raises(RuntimeError, match=r"once.*layer\.loop"):
            penalised(layer)


@each_loop
def test_several_graphs_at_once_and_a_modified_weight(key):
    layer, x = build(key), randn(9, 3, 2)
    weights = [*layer.parameters()]
    alone = [torch.autograd.grad(loss_of(layer, k * x), weights) for k in (1, 2)]
    losses = [loss_of(layer, k * x) for k in (1, 2)]
    with torch.no_grad():
        layer(3 * x)
    for k in (0, 1, 0):
        gradients = torch.autograd.grad(losses[k], weights, retain_graph=True)
        assert all(map(torch.equal, gradients, alone[k]))
    weight = {"ANRU": "Whh.weight", "RNN-gamma2": "V.weight", "RNN-ReLU": "V.weight"}.get(key)
    if weight is not None:
        layer.get_parameter(weight).detach().add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            losses[0].backward()


def test_a_compiled_layer_has_the_same_gradients():
    layer = build("RNN-gamma2")
    compiled = torch.compile(layer, backend="aot_eager")
    arguments = arguments_for(layer, 3, state=False)
    assert_close(results(compiled, layer, *arguments), results(layer, layer, *arguments))


class Allocations(TorchDispatchMode):
    """Records the sizes of the tensors allocated by `torch.empty` and the like."""

    sizes = ()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if "empty" in function.__name__:
            self.sizes += (result.numel(),)
        return result


@pytest.mark.parametrize("key", ["RNN-gamma2", "RNN-ReLU", "ANRU"])
def test_evaluation_keeps_only_the_outputs(key):
    layer, x = build(key, units=16), randn(200, 5, 2)
    with torch.no_grad(), Allocations() as allocated:
        outputs, _ = layer(x)
    assert outputs.grad_fn is None and torch.equal(layer(x)[0], outputs)
    assert max(allocated.sizes) == outputs.numel()
    assert sum(allocated.sizes) < 1.25 * outputs.numel()


@pytest.mark.parametrize("net_type", NETWORKS)
def test_a_state_does_not_keep_the_sequence_alive(net_type):
    for part in parts(new(net_type)(randn(50, 3, 2))[1]):
        assert part.untyped_storage().nbytes() < 10 * part.nbytes


def test_vanished_gradients_become_zero_not_denormal():
    layer = new("RNN-sigmoid", inputs=1, units=8, dtype=torch.float32)
    x = randn(300, 4, 1, seed=1, dtype=torch.float32).requires_grad_()
    layer(x)[1].sum().backward()
    gradient = x.grad.abs()
    assert gradient[-1].max() > 1e-4 and gradient[0].max() == 0
    assert gradient[gradient > 0].min() > 1e-35


# One layer for each autograd function of this project.
@pytest.mark.parametrize("key", ["RNN-gamma2", "RNN-ReLU", "ANRU", "EURNN"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_propagate(key, bad):
    layer, x = build(key), randn(4, 3, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[0][-1].sum() * bad, x)
    assert not gradient[0].isfinite().all()
