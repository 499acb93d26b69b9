"""The layers against their equations in plain Python, and their use."""

import inspect
import math
import re

import pytest
import torch

from NetworkCreation import initialization
from NetworkCreation.errors import OptionError, UserError
from NetworkCreation.initialization import ROTATIONS
from NetworkCreation.layer import (
    NONLINEARITIES,
    Activation,
    RecurrentLayer,
    parts,
    unsqueeze_drive,
)
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

NAMES = ["gamma", "gamma2", "ReLU", "tanh", "sigmoid", "modrelu", "none"]
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


def linear_shapes(**shapes):
    return {f"{name}.weight": shape for name, shape in shapes.items()} | {
        f"{name}.bias": shape[:1] for name, shape in shapes.items()
    }


STATE_DICTS = {key: linear_shapes(U=(H, I), V=(H, H)) for key in RNNS}
for _key in STATE_DICTS:
    if "gamma" in _key:
        STATE_DICTS[_key] |= dict.fromkeys(("n", "s"), (H,) if "gamma2" in _key else (1,))
STATE_DICTS["RNN-modrelu"]["b"] = (H,)
STATE_DICTS["ANRU"] = linear_shapes(
    Uxh=(H, I), Whh=(H, H), Uag=(M, 1), Wgg=(M, M), Wgn=(1, M), Wgs=(1, M)
)
STATE_DICTS["LSTM"] = linear_shapes(**{f"W{gate}": (H, H + I) for gate in "fiog"})
STATE_DICTS["GRU"] = linear_shapes(
    **{f"Wi{gate}": (H, I) for gate in "rzn"}, **{f"Wh{gate}": (H, H) for gate in "rzn"}
)
STATE_DICTS["expRNN"] = {"b": (H,), "U.weight": (H, I)} | {
    f"V.parametrizations.weight.{name}": (H, H) for name in ("original", "0.base")
}
STATE_DICTS["nnRNN"] = STATE_DICTS["expRNN"] | {"V.parametrizations.weight.2.T": (H, H)}
for _name in ("alpha", "theta"):
    STATE_DICTS["nnRNN"][f"V.parametrizations.weight.2.{_name}"] = (H // 2,)
STATE_DICTS["EURNN"] = {"theta": (H - 1,), "phi": (H - 1,), "omega": (H,), "b": (H,)}
STATE_DICTS["EURNN"] |= {"Ure.weight": (H, I), "Uim.weight": (H, I)}


@pytest.mark.parametrize("key", STATE_DICTS)
def test_names_and_shapes(key):
    layer = new(key)
    shapes = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    assert shapes == STATE_DICTS[key]
    fixed = {"n", "s"} if key.endswith("fixed") else {"V.parametrizations.weight.0.base"}
    assert {name for name, _ in layer.named_parameters()} == set(shapes) - fixed


def test_registries():
    assert list(NETWORKS) == ["RNN", "ANRU", "LSTM", "GRU", "expRNN", "nnRNN", "EURNN"]
    assert list(NONLINEARITIES) == NAMES


# Running sequences


@each_loop
@pytest.mark.parametrize("drive", [None, 1, 2])
def test_two_halves_equal_the_whole(key, drive):
    layer = build(key)
    x, state, drive = arguments_for(layer, drive=drive)
    x.requires_grad_()
    whole = layer(x, state, drive)
    first, second = (None, None) if drive is None else (drive[:2], drive[2:])
    early, middle = layer(x[:2], state, first)
    late, end = layer(x[2:], middle, second)
    outputs = torch.cat([early, late])
    assert_same_run((outputs, end), whole)
    gradients = [torch.autograd.grad(h[-1].sum(), x)[0] for h in (whole[0], outputs)]
    torch.testing.assert_close(*gradients)


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


# Initialisation


def test_positional_and_default_arguments():
    layer = RNN(I, H, "gamma", -2.0, 0.5, False, "xavier", "normal", generator=seeded(0))
    assert (layer.n.tolist(), layer.s.tolist()) == ([-2.0], [0.5])
    assert not isinstance(layer.n, torch.nn.Parameter)
    default = RNN(I, H, generator=seeded(0))
    assert default.n.tolist() == [5.0] * H and default.s.tolist() == [0.0] * H
    assert default.n.dtype == torch.float32
    rnn = RNN(I, H, "gamma2", 5.0, 0.0, True, "henaff", "kaiming", generator=seeded(0))
    anru = ANRU(I, H, 50, "henaff", "kaiming", generator=seeded(0))
    for spelt, layer in ((rnn, default), (anru, ANRU(I, H, generator=seeded(0)))):
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, spelt.get_parameter(name))


def test_rinit_affects_only_the_recurrent_matrix():
    layers = [RNN(I, 7, rinit=rinit, generator=seeded(0)) for rinit in ("normal", "kaiming")]
    normal, kaiming = (layer.state_dict() for layer in layers)
    assert [name for name in normal if not torch.equal(normal[name], kaiming[name])] == ["V.weight"]


# Invalid arguments


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


# net_type, argument, invalid value, and the allowed values that the error names
WRONG = [
    *((net_type, name, -2, ["at least 1"]) for net_type in NETWORKS
      for name in ("input_size", "hidden_size")),
    ("ANRU", "supervisor_size", 0, ["at least 1"]),
    ("EURNN", "capacity", 0, ["at least 1"]),
    *((net_type, "nonlin", "relu", NAMES) for net_type in ("RNN", "expRNN", "nnRNN")),
    ("EURNN", "nonlin", "gamma", ["modrelu, none"]),
    *((net_type, "rinit", None, initialization.RECURRENT) for net_type in ("RNN", "ANRU")),
    *((net_type, "rinit", "xavier", ROTATIONS) for net_type in ("expRNN", "nnRNN")),
    *((net_type, "iinit", "henaff", initialization.INPUT) for net_type in NETWORKS
      if net_type not in GATED),
    *((net_type, "ostep_method", "householder", ["exp, cayley"])
      for net_type in ("expRNN", "nnRNN")),
    *((net_type, "n", value, ["not 0"]) for net_type in ("RNN", "expRNN", "nnRNN")
      for value in (0, 0.0, math.inf, math.nan)),
    ("nnRNN", "hidden_size", 7, ["even"]),
]  # fmt: skip


@pytest.mark.parametrize(("net_type", "name", "value", "allowed"), WRONG)
def test_an_invalid_argument_is_named(net_type, name, value, allowed):
    options = {"input_size": I, "hidden_size": H, name: value}
    options |= {"nonlin": "gamma2", "learn_params": False} if name == "n" else {}
    with rejects(name, repr(value), *allowed) as caught:
        NETWORKS[net_type](**options)
    assert isinstance(caught.value, OptionError) and isinstance(caught.value, UserError)
    assert caught.value.name == name


OPTIONS = {"ANRU": {"supervisor_size", "rinit", "iinit"}, "EURNN": {"capacity", "nonlin", "iinit"}}
OPTIONS |= {"RNN": {"nonlin", "n", "s", "learn_params", "rinit", "iinit"}}
OPTIONS |= dict.fromkeys(("expRNN", "nnRNN"), OPTIONS["RNN"] | {"ostep_method"})
OPTIONS |= {"LSTM": set(), "GRU": set()}


@pytest.mark.parametrize(("net_type", "network"), NETWORKS.items())
def test_constructors_name_their_arguments(net_type, network):
    common = {"input_size", "hidden_size", "batch_first", "generator", "device", "dtype"}
    assert inspect.signature(network).parameters.keys() == common | OPTIONS[net_type]
    with pytest.raises(TypeError, match=r"unexpected.*'num_layers'"):
        network(I, H, num_layers=2)


# What training and analyses ask of a layer


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
    assert flags["nnRNN"] == ("lr_orth", "alam", "Tdecay")
    assert flags["expRNN"] == flags["EURNN"] == ("lr_orth",)
    assert not any(flags[name] for name in ("RNN", "ANRU", "LSTM", "GRU"))
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


class Leaky(RecurrentLayer):
    def __init__(self, size):
        super().__init__(size, size)
        self.bias = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def step(self, x_t, h, drive_t=None):
        return h / 2 + torch.tanh(x_t + self.bias + unsqueeze_drive(drive_t))


def test_a_network_needs_only_a_step():
    layer, x = Leaky(I), randn(T, B, I)
    outputs, state, traced = layer.trace(x, None, randn(T))
    assert_same_run(layer(x, None, randn(T)), (outputs, state))
    assert torch.equal(traced["h"], outputs)
    assert (layer.gains(x), layer.penalty(), layer.parameter_groups()) == ({}, None, {})


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
