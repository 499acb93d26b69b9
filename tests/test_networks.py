"""The layers against their equations in plain Python, and their fast loops against the steps."""

import copy
import inspect
import math
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from NetworkCreation import anru, initialization, time_loop
from NetworkCreation.errors import OptionError, UserError
from NetworkCreation.initialization import ROTATIONS
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
    M,
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


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


# The equations, one unit and one number at a time, on nested lists of Python floats.


def sigma(z):
    return 1 / (1 + math.exp(-z))


def plain_gamma(a, n, s):
    return (1 - s) * math.log(1 + math.exp(n * a)) / n + s * sigma(n * a)


def affine(weights, name, vector):
    """W v + b, a list."""
    return [
        sum(w * v for w, v in zip(row, vector, strict=True)) + bias
        for row, bias in zip(weights[f"{name}.weight"], weights[f"{name}.bias"], strict=True)
    ]


def plain_activation(nonlin, weights, a, unit):
    if nonlin in ("gamma", "gamma2"):
        own = 0 if nonlin == "gamma" else unit
        return plain_gamma(a, weights["n"][own], weights["s"][own])
    if nonlin == "modrelu":
        return math.copysign(max(abs(a) + weights["b"][unit], 0.0), a)
    return {"ReLU": max(a, 0.0), "tanh": math.tanh(a), "sigmoid": sigma(a), "none": a}[nonlin]


def plain_rnn(weights, x, state, drive, nonlin):
    (h,) = state
    u, v = affine(weights, "U", x), affine(weights, "V", h)
    a = [u[i] + v[i] + drive for i in range(H)]
    h = [plain_activation(nonlin, weights, a[i], i) for i in range(H)]
    quantities = {"a": a, "h": h}
    if nonlin in ("gamma", "gamma2"):
        own = range(H) if nonlin == "gamma2" else [0] * H
        quantities |= {name: [weights[name][i] for i in own] for name in ("n", "s")}
    return (h,), quantities


def plain_anru(weights, x, state, drive):
    h, g = state
    u, v = affine(weights, "Uxh", x), affine(weights, "Whh", h)
    a = [u[i] + v[i] + drive for i in range(H)]
    new_h, new_g, n, s = [], [], [], []
    for i in range(H):
        from_a, from_g = affine(weights, "Uag", [a[i]]), affine(weights, "Wgg", g[i])
        new_g.append([math.tanh(from_a[m] + from_g[m]) for m in range(M)])
        n += affine(weights, "Wgn", new_g[i])
        s += affine(weights, "Wgs", new_g[i])
        new_h.append(plain_gamma(a[i], n[i], s[i]))
    return (new_h, new_g), {"a": a, "n": n, "s": s, "h": new_h, "g": new_g}


def plain_lstm(weights, x, state, drive):
    h, c = state
    f, i, o, g = (affine(weights, name, h + x) for name in ("Wf", "Wi", "Wo", "Wg"))
    a = [o[k] + drive for k in range(H)]
    c = [sigma(f[k]) * c[k] + sigma(i[k]) * math.tanh(g[k]) for k in range(H)]
    h = [sigma(a[k]) * math.tanh(c[k]) for k in range(H)]
    return (h, c), {"a": a, "h": h, "c": c}


def plain_gru(weights, x, state, drive):
    (h,) = state
    ir, iz, i_n = (affine(weights, name, x) for name in ("Wir", "Wiz", "Win"))
    hr, hz, hn = (affine(weights, name, h) for name in ("Whr", "Whz", "Whn"))
    a = [i_n[k] + sigma(ir[k] + hr[k]) * hn[k] + drive for k in range(H)]
    z = [sigma(iz[k] + hz[k]) for k in range(H)]
    h = [(1 - z[k]) * math.tanh(a[k]) + z[k] * h[k] for k in range(H)]
    return (h,), {"a": a, "h": h}


PLAIN = {"RNN": plain_rnn, "ANRU": plain_anru, "LSTM": plain_lstm, "GRU": plain_gru}


def plain_run(key, layer, x, state, drive, sample):
    """Last state and {name: (T, ...)} of the plain loop for one sample."""
    net_type, options = LAYERS[key]
    options = {"nonlin": options["nonlin"]} if net_type == "RNN" else {}
    weights = {name: tensor.tolist() for name, tensor in layer.state_dict().items()}
    state = parts(layer.initial_state(B) if state is None else state)
    state = tuple(part[sample].tolist() for part in state)
    drive = torch.zeros(T) if drive is None else drive
    drive = drive if drive.ndim == 1 else drive[:, sample]
    traced = {}
    for x_t, drive_t in zip(x[:, sample].tolist(), drive.tolist(), strict=True):
        state, quantities = PLAIN[net_type](weights, x_t, state, drive_t, **options)
        for name, values in quantities.items():
            traced.setdefault(name, []).append(values)
    return [*map(float64, state)], {name: float64(values) for name, values in traced.items()}


@pytest.mark.parametrize("key", [key for key in LAYERS if key not in ORTHOGONAL])
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
    for sample in range(B):
        last, expected = plain_run(key, layer, *arguments, sample)
        values = {name: tensor[:, sample] for name, tensor in quantities.items()}
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-10)
        after = [part[sample] for part in parts(traced[1])]
        torch.testing.assert_close(after, last, rtol=1e-9, atol=1e-10)
    *run, part = layer.trace(*arguments, keep=["a"])
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
    assert rnn.n.tolist() == [5.0] * H and rnn.s.tolist() == [0.0] * H
    anru = ANRU(I, H, 50, "henaff", "kaiming", generator=seeded(0))
    for spelt in (rnn, anru):
        for name, parameter in type(spelt)(I, H, generator=seeded(0)).named_parameters():
            assert torch.equal(parameter, spelt.get_parameter(name))
            assert parameter.dtype == torch.float32
    layers = [RNN(I, H, rinit=rinit, generator=seeded(0)) for rinit in ("normal", "kaiming")]
    normal, kaiming = (layer.state_dict() for layer in layers)
    assert [name for name in normal if not torch.equal(normal[name], kaiming[name])] == ["V.weight"]


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
OPTIONS |= {"LSTM": set(), "GRU": set()}
# Argument, invalid value, and the allowed values that the error names.
WRONG = [
    *((name, -2, ["at least 1"]) for name in ("input_size", "hidden_size")),
    *((name, 0, ["at least 1"]) for name in ("supervisor_size", "capacity")),
    *(("n", value, ["not 0"]) for value in (0, 0.0, math.inf, math.nan)),
    ("ostep_method", "householder", ["exp, cayley"]),
    ("iinit", "henaff", initialization.INPUT),
]
FURTHER = {  # and of single networks
    "EURNN": [("nonlin", "gamma", ["modrelu, none"])],
    "nnRNN": [("hidden_size", 7, ["even"])],
}
FURTHER |= {name: [("rinit", None, initialization.RECURRENT)] for name in ("RNN", "ANRU")}
for _name in ("RNN", "expRNN", "nnRNN"):
    FURTHER.setdefault(_name, []).append(("nonlin", "relu", NONLINEARITIES))
for _name in ("expRNN", "nnRNN"):
    FURTHER[_name].append(("rinit", "xavier", ROTATIONS))


@pytest.mark.parametrize(("net_type", "network"), NETWORKS.items())
def test_constructors_have_these_arguments_and_name_an_invalid_one(net_type, network):
    assert inspect.signature(network).parameters.keys() == COMMON | OPTIONS[net_type]
    wrong = [row for row in WRONG if row[0] in COMMON | OPTIONS[net_type]]
    for name, value, allowed in wrong + FURTHER.get(net_type, []):
        options = {"input_size": I, "hidden_size": H, name: value}
        options |= {"nonlin": "gamma2", "learn_params": False} if name == "n" else {}
        with rejects(name, repr(value), *allowed) as caught:
            network(**options)
        assert isinstance(caught.value, OptionError) and isinstance(caught.value, UserError)
        assert caught.value.name == name


def test_parameter_groups():
    names = {key: {"gains"} for key in ("RNN-gamma2", "ANRU")}
    names |= {key: set() for key in ("RNN-gamma2-fixed", "RNN-ReLU", "LSTM")}
    names |= {key: {"orthogonal"} for key in ("expRNN", "EURNN")}
    names |= {"nnRNN": {"orthogonal", "T"}, "nnRNN-cayley-gamma2": {"gains", "orthogonal", "T"}}
    assert {key: {*new(key).parameter_groups()} for key in names} == names
    layer = new("nnRNN-cayley-gamma2")
    (n, s), (skew,), (upper,) = map(layer.parameter_groups().get, ("gains", "orthogonal", "T"))
    assert n is layer.n and s is layer.s and upper is layer.schur.T
    assert skew is layer.V.parametrizations.weight.original
    layer = new("ANRU")
    n, s = layer.parameter_groups()["gains"]
    assert n is layer.Wgn.bias and s is layer.Wgs.bias
    flags = {name: network.training_flags for name, network in NETWORKS.items()}
    expected = {"nnRNN": ("lr_orth", "alam", "Tdecay"), "expRNN": ("lr_orth",)}
    assert flags == dict.fromkeys(NETWORKS, ()) | expected | {"EURNN": ("lr_orth",)}
    assert [name for name in NETWORKS if new(name).penalty() is not None] == ["nnRNN"]


@every_layer
def test_the_recurrent_matrix_takes_h_to_the_pre_activation(key):
    layer = build(key)
    if key in GATED:
        with pytest.raises(NotImplementedError, match=rf"{key} has no single recurrent matrix"):
            layer.recurrent_matrix()
        return
    matrix = layer.recurrent_matrix()
    x, state, _ = arguments_for(layer, 1)
    h = torch.complex(*state) if matrix.is_complex() else parts(state)[0]
    change = layer.preactivation(x[0], h) - layer.preactivation(x[0], torch.zeros_like(h))
    assert not matrix.requires_grad and matrix.shape == (H, H)
    torch.testing.assert_close(h @ matrix.t(), change)


@pytest.mark.parametrize("name", ["RNN", "expRNN"])
def test_an_activation_needs_only_its_function(name, monkeypatch):
    """Swish with a learned slope, and a linear function."""
    swish = Activation(lambda a, beta: a * torch.sigmoid(beta * a), parameters=("beta",))
    for activation in (swish, Activation(lambda a: a)):
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


@each_loop
def test_several_graphs_at_once_and_a_modified_weight(key):
    layer, x = build(key), randn(9, 3, 2)
    weights = [p for p in layer.parameters() if p.requires_grad]
    alone = [torch.autograd.grad(loss_of(layer, k * x), weights) for k in (1, 2)]
    losses = [loss_of(layer, k * x) for k in (1, 2)]
    with torch.no_grad():
        layer(3 * x)
    for k in (0, 1, 0):
        gradients = torch.autograd.grad(losses[k], weights, retain_graph=True)
        assert all(map(torch.equal, gradients, alone[k]))
    weight = {"ANRU": "Whh", "RNN-gamma2": "V", "RNN-ReLU": "V"}.get(key)
    if weight is not None:
        with torch.no_grad():
            getattr(layer, weight).weight.add_(1)
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
    layer = new(net_type)
    for part in parts(layer(randn(50, 3, 2))[1]):
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
