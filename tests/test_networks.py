"""The layers against their equations in plain Python, and their use."""

import copy
import math
import pickle
import re

import pytest
import torch
from torch.nn.utils import parametrize

from NetworkCreation import initialization
from NetworkCreation.gamma_function import gamma
from NetworkCreation.initialization import ROTATIONS
from NetworkCreation.layer import NONLINEARITIES, OptionError, parts
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
    assert_same_run,
    build,
    by_steps,
    joined,
    new,
    randn,
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
    return {
        "ReLU": max(a, 0.0),
        "tanh": math.tanh(a),
        "sigmoid": sigma(a),
        "none": a,
    }[nonlin]


def plain_rnn(weights, x, state, drive, nonlin):
    (h,) = state
    u, v = affine(weights, "U", x), affine(weights, "V", h)
    a = [u[i] + v[i] + drive for i in range(H)]
    h = [plain_activation(nonlin, weights, a[i], i) for i in range(H)]
    found = {"a": a, "h": h}
    if nonlin in ("gamma", "gamma2"):
        found |= {
            name: [weights[name][i if nonlin == "gamma2" else 0] for i in range(H)]
            for name in ("n", "s")
        }
    return (h,), found


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


def plain_run(key, layer, x, state, drive):
    """Outputs, last state and {name: (T, B, ...)} of the plain loop."""
    net_type, options = LAYERS[key]
    more = {"nonlin": options["nonlin"]} if net_type == "RNN" else {}
    weights = {name: tensor.tolist() for name, tensor in layer.state_dict().items()}
    state = parts(layer.initial_state(B) if state is None else state)
    drive = torch.zeros(T) if drive is None else drive
    drive = drive if drive.ndim == 2 else drive.unsqueeze(1).expand(T, B)
    last, found = [], []
    for sample in range(B):
        current, steps = tuple(part[sample].tolist() for part in state), []
        for t in range(T):
            current, quantities = PLAIN[net_type](
                weights, x[t, sample].tolist(), current, drive[t, sample].item(), **more
            )
            steps.append(quantities)
        last.append(current)
        found.append(steps)
    traced = {
        name: float64([[found[b][t][name] for b in range(B)] for t in range(T)])
        for name in found[0][0]
    }
    return traced["h"], joined([float64(part) for part in zip(*last, strict=True)]), traced


@pytest.mark.parametrize("key", [key for key in LAYERS if key not in ORTHOGONAL])
@pytest.mark.parametrize(("drive", "state"), [(None, False), (1, True), (2, False)])
@pytest.mark.parametrize("seed", [0, 1])
def test_matches_the_equations(key, drive, state, seed):
    layer = build(key, seed)
    arguments = arguments_for(layer, drive=drive, state=state)
    *expected, quantities = plain_run(key, layer, *arguments)
    tolerance = {"rtol": 1e-9, "atol": 1e-10}
    *traced, found = layer.trace(*arguments)
    for run in (layer(*arguments), layer.loop(*arguments), by_steps(layer, *arguments), traced):
        assert run[0].shape == (T, B, H)
        assert_same_run(run, expected, **tolerance)
    assert set(found) == set(quantities)
    for name, values in found.items():
        assert values.shape == ((T, B, H, M) if name == "g" else (T, B, H))
        torch.testing.assert_close(values, quantities[name], **tolerance)


@pytest.mark.parametrize("key", ["RNN-gamma", "RNN-gamma2", "RNN-gamma2-fixed", "ANRU"])
def test_trace_contains_the_arguments_of_gamma(key):
    layer = build(key)
    _, _, traced = layer.trace(*arguments_for(layer, drive=1))
    torch.testing.assert_close(traced["h"], gamma(traced["a"], traced["n"], traced["s"]))


@each_loop
def test_trace_keeps_only_what_is_requested(key):
    layer, x = build(key), randn(T, B, I, seed=11)
    *run, everything = layer.trace(x)
    assert_same_run(run, layer(x))
    assert torch.equal(everything["h"], run[0])
    *run, some = layer.trace(x, keep=["a"])
    assert set(some) == {"a"}
    assert torch.equal(some["a"], everything["a"])
    assert_same_run(run, layer(x))
    with pytest.raises(ValueError, match="charge"):
        layer.trace(x, keep=["a", "charge"])


def train(layer, steps=10, lr=0.02):
    """Fits random outputs; returns the losses."""
    x, target = randn(T, B, I, seed=11), randn(T, B, H, seed=13)
    optimiser = torch.optim.SGD(layer.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        losses.append((layer(x)[0] - target).square().mean())
        losses[-1].backward()
        optimiser.step()
    return losses


@every_layer
def test_every_parameter_learns(key):
    layer = build(key)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    losses = train(layer)
    assert losses[-1] < losses[0]
    for name, parameter in layer.named_parameters():
        assert not torch.allclose(parameter, before[name], rtol=0, atol=1e-7), name


@pytest.mark.parametrize("key, count", [("RNN-gamma", 1), ("RNN-gamma2", H)])
def test_gain_and_saturation_learn(key, count):
    layer = new(key, n=2.0, s=0.3)
    train(layer, steps=20, lr=0.1)
    for values, start in ((layer.n, 2.0), (layer.s, 0.3)):
        assert values.shape == (count,)
        assert ((values - start).abs() > 1e-4).all()
        assert values.sort().values.diff().gt(1e-5).all()  # each unit has its own


@pytest.mark.parametrize("key, count", [("RNN-gamma", 1), ("RNN-gamma2", H)])
def test_fixed_gain_and_saturation_stay(key, count):
    layer = new(key, n=-2.0, s=0.3, learn_params=False)
    assert {"n", "s"}.isdisjoint(dict(layer.named_parameters()))
    assert {"n", "s"} <= set(dict(layer.named_buffers()))
    weight = layer.U.weight.detach().clone()
    train(layer)
    assert not torch.equal(layer.U.weight, weight)
    state = layer.state_dict()
    assert torch.equal(state["n"], torch.full((count,), -2.0, dtype=torch.float64))
    assert torch.equal(state["s"], torch.full((count,), 0.3, dtype=torch.float64))


@every_layer
def test_state_dict_restores_the_layer(key):
    source, target = build(key, seed=2), build(key, seed=3)
    arguments = arguments_for(source, drive=1)
    assert not torch.allclose(source(*arguments)[0], target(*arguments)[0])
    target.load_state_dict(source.state_dict())
    assert_same_run(target(*arguments), source(*arguments))
    assert_same_run(copy.deepcopy(source)(*arguments), source(*arguments))
    if not hasattr(source, "V") or not parametrize.is_parametrized(source.V):  # not picklable
        assert_same_run(pickle.loads(pickle.dumps(source))(*arguments), source(*arguments))


@pytest.mark.parametrize("name", ["gamma", "gamma2"])
def test_learnt_values_load_into_a_fixed_layer(name):
    source, target = build(f"RNN-{name}", seed=2), build(f"RNN-{name}-fixed", seed=3)
    target.load_state_dict(source.state_dict())
    x = randn(T, B, I)
    assert_same_run(target(x), source(x))


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
STATE_DICTS["LSTM"] = linear_shapes(**dict.fromkeys(("Wf", "Wi", "Wo", "Wg"), (H, H + I)))
STATE_DICTS["GRU"] = linear_shapes(
    **dict.fromkeys(("Wir", "Wiz", "Win"), (H, I)), **dict.fromkeys(("Whr", "Whz", "Whn"), (H, H))
)
STATE_DICTS["expRNN"] = {"b": (H,), "U.weight": (H, I)} | {
    f"V.parametrizations.weight.{name}": (H, H) for name in ("original", "0.base")
}
STATE_DICTS["nnRNN"] = STATE_DICTS["expRNN"] | {
    f"V.parametrizations.weight.2.{name}": shape
    for name, shape in {"alpha": (H // 2,), "theta": (H // 2,), "T": (H, H)}.items()
}
STATE_DICTS["EURNN"] = {"theta": (H - 1,), "phi": (H - 1,), "omega": (H,), "b": (H,)}
STATE_DICTS["EURNN"] |= {"Ure.weight": (H, I), "Uim.weight": (H, I)}


@pytest.mark.parametrize("key", STATE_DICTS)
def test_names_and_shapes(key):
    layer = new(key)
    found = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    assert found == STATE_DICTS[key]
    fixed = {"n", "s"} if key.endswith("fixed") else {"V.parametrizations.weight.0.base"}
    assert {name for name, _ in layer.named_parameters()} == set(found) - fixed


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
    copies = [tensor.clone() for tensor in (x, *parts(state), drive)]
    weights = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    first = layer(*arguments)
    layer(2 * x)
    assert_same_run(layer(*arguments), first)
    layer.step(x[0], state, drive[0])
    layer.trace(*arguments)
    for tensor, copied in zip((x, *parts(state), drive), copies, strict=True):
        assert torch.equal(tensor, copied)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, weights[name])


@each_loop
def test_samples_of_a_batch_are_independent(key):
    layer = build(key)
    x, state, drive = arguments_for(layer, drive=2)
    outputs, _ = layer(x, state, drive)
    for sample in range(B):
        one = slice(sample, sample + 1)
        alone = layer(x[:, one], joined([part[one] for part in parts(state)]), drive[:, one])
        torch.testing.assert_close(alone[0], outputs[:, one])


@each_loop
def test_without_gradients(key):
    layer = build(key)
    arguments = arguments_for(layer, drive=1)
    expected = layer(*arguments)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = layer(*arguments)
        assert not found[0].requires_grad
        assert_same_run(found, expected)
    assert expected[0].requires_grad


@each_loop
def test_one_step_of_one_sample(key):
    layer = build(key)
    x, state, drive = arguments_for(layer, 1, 1, drive=1)
    for drive_t in (drive[0], drive):
        expected = layer.step(x[0], state, drive_t)
        assert_same_run(layer(x, state, drive), (parts(expected)[0].unsqueeze(0), expected))


@every_layer
def test_float32(key):
    layer = build(key, dtype=torch.float32)
    assert {tensor.dtype for tensor in layer.state_dict().values()} == {torch.float32}
    x, state, drive = arguments_for(layer, drive=1, dtype=torch.float32)
    found = layer(x, state, drive)
    assert {tensor.dtype for tensor in (found[0], *parts(found[1]))} == {torch.float32}
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    assert_same_run(found, by_steps(layer, x, state, drive), **tolerance)
    exact, _ = layer.double()(x.double(), joined([p.double() for p in parts(state)]), drive)
    torch.testing.assert_close(found[0].double(), exact, **tolerance)


@pytest.mark.parametrize("kind", NETWORKS.values())
def test_default_dtype_and_device(kind):
    layer = kind(I, H, device="cpu")
    assert {tensor.dtype for tensor in layer.state_dict().values()} == {torch.float32}
    outputs, state = layer(torch.zeros(T, B, I))
    assert outputs.dtype == torch.float32
    assert all(part.shape[:2] == (B, H) for part in parts(state))


# Initialisation


def test_positional_and_default_arguments():
    layer = RNN(I, H, "gamma", -2.0, 0.5, False, "xavier", "normal", generator=seeded(0))
    assert layer.n.tolist() == [-2.0]
    assert layer.s.tolist() == [0.5]
    assert not isinstance(layer.n, torch.nn.Parameter)
    default = RNN(I, H, generator=seeded(0))
    spelt = RNN(I, H, "gamma2", 5.0, 0.0, True, "henaff", "kaiming", generator=seeded(0))
    assert torch.equal(default.n, torch.full((H,), 5.0))
    assert torch.equal(default.s, torch.zeros(H))
    for name, parameter in default.named_parameters():
        assert torch.equal(parameter, spelt.get_parameter(name))
    supervisor = ANRU(I, H, generator=seeded(0))
    assert supervisor.supervisor_size == 50
    spelt = ANRU(I, H, 50, "henaff", "kaiming", generator=seeded(0))
    for name, parameter in supervisor.named_parameters():
        assert torch.equal(parameter, spelt.get_parameter(name))


def block_angles(matrix):
    """The angles of a block-diagonal matrix of 2 × 2 rotations; empty for other matrices."""
    first = torch.arange(0, len(matrix), 2)
    angles = torch.atan2(matrix[first, first + 1], matrix[first, first])
    blocks = torch.stack([angles.cos(), angles.sin(), -angles.sin(), angles.cos()], dim=1)
    built = torch.block_diag(*blocks.reshape(-1, 2, 2))
    return angles if torch.allclose(matrix, built) else angles[:0]


def is_drawn_by(name, matrix):
    size = len(matrix)
    deviation = matrix.std().item() * math.sqrt(size)
    rotates = torch.allclose(matrix @ matrix.T, torch.eye(size).to(matrix), atol=1e-5)
    if name in ("xavier", "kaiming", "normal"):
        expected = math.sqrt(2) if name == "kaiming" else 1.0
        return not rotates and deviation == pytest.approx(expected, rel=0.05)
    angles = block_angles(matrix).tolist()
    if name == "random":
        return rotates and not angles and torch.linalg.det(matrix) > 0
    lowest = {"henaff": (-math.pi, -2), "cayley": (-1, -0.7)}[name]
    return bool(angles) and lowest[0] <= min(angles) <= lowest[1] and max(angles) <= 0


@pytest.mark.parametrize("rinit", initialization.RECURRENT)
def test_recurrent_initialisation(rinit):
    layer = RNN(3, 60, rinit=rinit, generator=seeded(0), dtype=torch.float64)
    assert is_drawn_by(rinit, layer.V.weight.detach())
    layer = ANRU(3, 60, 50, rinit=rinit, generator=seeded(0), dtype=torch.float64)
    assert is_drawn_by(rinit, layer.Whh.weight.detach())
    assert is_drawn_by(rinit, layer.Wgg.weight.detach())


@pytest.mark.parametrize("rinit", initialization.RECURRENT)
def test_odd_sizes(rinit):
    assert RNN(2, 7, rinit=rinit)(torch.zeros(2, 1, 2))[0].shape == (2, 1, 7)
    assert ANRU(2, 7, 3, rinit=rinit)(torch.zeros(2, 1, 2))[0].shape == (2, 1, 7)


INPUT_DEVIATIONS = {
    "xavier": lambda rows, columns: math.sqrt(2 / (rows + columns)),
    "kaiming": lambda rows, columns: math.sqrt(2 / columns),
    "normal": lambda rows, columns: rows**-0.5,
}


@pytest.mark.parametrize("iinit", initialization.INPUT)
def test_input_initialisation(iinit):
    rnn = RNN(30, 200, iinit=iinit, generator=seeded(0))
    anru = ANRU(30, 200, 2000, rinit="normal", iinit=iinit, generator=seeded(0))
    for weight in (rnn.U.weight, anru.Uxh.weight, anru.Uag.weight):
        expected = INPUT_DEVIATIONS[iinit](*weight.shape)
        assert weight.std().item() == pytest.approx(expected, rel=0.05)
        assert abs(weight.mean().item()) < 4 * expected / math.sqrt(weight.numel())


def test_rinit_affects_only_the_recurrent_matrix():
    one = RNN(I, H, "gamma2", rinit="normal", generator=seeded(0))
    other = RNN(I, H, "gamma2", rinit="kaiming", generator=seeded(0))
    assert not torch.equal(one.V.weight, other.V.weight)
    for name in ("U.weight", "U.bias", "V.bias", "n", "s"):
        assert torch.equal(one.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize("key", ["RNN-gamma", "RNN-gamma2", "RNN-gamma-fixed", "RNN-gamma2-fixed"])
def test_gain_and_saturation_start_at_the_given_values(key):
    layer = new(key, n=-3.5, s=0.25)
    assert torch.equal(layer.n, torch.full_like(layer.n, -3.5))
    assert torch.equal(layer.s, torch.full_like(layer.s, 0.25))


def test_the_bias_of_the_gain_starts_between_5_and_7():
    layers = [ANRU(I, 2, generator=seeded(seed)) for seed in range(60)]
    gain_biases = torch.cat([layer.Wgn.bias.detach() for layer in layers])
    assert gain_biases.min() >= 5
    assert gain_biases.max() <= 7
    assert gain_biases.mean().item() == pytest.approx(6, abs=4 * 2 / math.sqrt(12 * 60))
    assert gain_biases.std().item() == pytest.approx(2 / math.sqrt(12), rel=0.2)


@every_layer
def test_seeds(key):
    torch.manual_seed(1)
    first = new(key, seed=4, dtype=torch.float32).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = new(key, seed=4, dtype=torch.float32).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    other = new(key, seed=5, dtype=torch.float32).state_dict()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    drawn = [name for name in first if name.endswith("weight") or name in ("b", "Wgn.bias")]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("kind", NETWORKS.values())
def test_without_a_generator_the_global_one_is_used(kind):
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(torch.nn.utils.parameters_to_vector(kind(I, H).parameters()))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# Invalid arguments


def rejects(*fragments):
    """Expects a ValueError whose message contains all of these."""
    return pytest.raises(ValueError, match="".join(f"(?=.*{re.escape(f)})" for f in fragments))


METHODS = ("forward", "loop", "trace")


@pytest.mark.parametrize("net_type", NETWORKS)
@pytest.mark.parametrize("shape", [(T, I), (T, B, I + 1), (T, B, I, 1), (0, B, I)], ids=str)
def test_invalid_input(net_type, shape):
    for method in METHODS:
        with rejects(f"(T, B, {I})", str(shape)):
            getattr(new(net_type), method)(torch.zeros(shape).double())


@pytest.mark.parametrize("net_type", NETWORKS)
@pytest.mark.parametrize("shape", [(), (T + 1,), (T, B + 1), (B, T), (T, B, 1)], ids=str)
def test_invalid_drive(net_type, shape):
    for method in METHODS:
        with rejects(str((T, B)), str(shape)):
            getattr(new(net_type), method)(randn(T, B, I), None, torch.zeros(shape).double())


@pytest.mark.parametrize("net_type", NETWORKS)
def test_invalid_state(net_type):
    layer, x = new(net_type), randn(T, B, I)
    right = parts(layer.initial_state(B))
    for run in (getattr(layer, method) for method in METHODS):
        for i, part in enumerate(right):
            for wrong in (part[:-1], part[..., :-1], part.unsqueeze(0)):
                with rejects(str(tuple(wrong.shape))):
                    run(x, joined([*right[:i], wrong, *right[i + 1 :]]))
        for count in {1, 2, 3} - {len(right)}:
            with rejects(str((B, H))):
                run(x, joined((right * 3)[:count]))


@pytest.mark.parametrize("key", ["RNN-gamma2", "LSTM"])
def test_a_state_may_be_a_tuple_or_a_list_of_its_parts(key):
    layer = build(key)
    x, state, _ = arguments_for(layer)
    for given in (list(parts(state)), parts(state)):
        assert_same_run(layer(x, given), layer(x, state))


# net_type, argument, invalid value, and the allowed values that the error names
WRONG = [
    *((net_type, name, value, ["at least 1"]) for net_type in NETWORKS for value in (0, -2)
      for name in ("input_size", "hidden_size")),
    *(("ANRU", "supervisor_size", value, ["at least 1"]) for value in (0, -2)),
    *(("EURNN", "capacity", value, ["at least 1"]) for value in (0, -2)),
    *((net_type, "nonlin", value, NAMES) for net_type in ("RNN", "expRNN", "nnRNN")
      for value in ("relu", "gamma3", "", None)),
    *(("EURNN", "nonlin", value, ["modrelu, none"]) for value in ("gamma", "tanh", "ReLU")),
    *((net_type, "rinit", value, initialization.RECURRENT) for net_type in ("RNN", "ANRU")
      for value in ("orthogonal", None)),
    *((net_type, "rinit", value, ROTATIONS) for net_type in ("expRNN", "nnRNN")
      for value in ("xavier", "kaiming", "normal", None)),
    *((net_type, "iinit", "henaff", initialization.INPUT) for net_type in NETWORKS
      if net_type not in GATED),
    *((net_type, "ostep_method", "householder", ["exp, cayley"])
      for net_type in ("expRNN", "nnRNN")),
    *((net_type, "n", value, ["not 0"]) for net_type in ("RNN", "expRNN", "nnRNN")
      for value in (0, 0.0, math.inf, math.nan)),
    ("nnRNN", "hidden_size", 7, ["even"]),
]  # fmt: skip


@pytest.mark.parametrize(("net_type", "name", "value", "allowed"), WRONG)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_invalid_argument_is_named(net_type, name, value, allowed, device):
    options = {"input_size": I, "hidden_size": H, "device": device, name: value}
    options |= {"nonlin": "gamma2", "learn_params": False} if name == "n" else {}
    with rejects(name, repr(value), *allowed) as caught:
        NETWORKS[net_type](**options)
    assert isinstance(caught.value, OptionError) and caught.value.name == name
