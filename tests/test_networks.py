"""The recurrent layers against loops written from their equations in plain Python."""

import math
import re

import pytest
import torch

from NetworkCreation import initialization
from NetworkCreation.gamma_function import gamma
from NetworkCreation.layers import NONLINEARITIES
from NetworkCreation.Networks import ANRU, GRU, LSTM, NETWORKS, RNN

T, B, I, H, M = 5, 3, 2, 4, 6  # noqa: E741 — all differ, so that no axis passes for another

NAMES = ["gamma", "gamma2", "ReLU", "tanh", "sigmoid", "modrelu", "none"]
LAYERS = {f"RNN-{name}": (RNN, {"nonlin": name}) for name in NAMES}
LAYERS |= {
    f"RNN-{name}-fixed": (RNN, {"nonlin": name, "learn_params": False})
    for name in ("gamma", "gamma2")
}
LAYERS |= {"ANRU": (ANRU, {"supervisor_size": M}), "LSTM": (LSTM, {}), "GRU": (GRU, {})}
every_layer = pytest.mark.parametrize("key", LAYERS)
every_drive = pytest.mark.parametrize("drive_shape", [None, (T,), (T, B)], ids=str)
with_or_without_state = pytest.mark.parametrize("given", [False, True], ids=["zeros", "state"])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def new(key, inputs=I, units=H, seed=0, dtype=torch.float64, **more):
    """A layer as it starts."""
    kind, options = LAYERS[key]
    return kind(inputs, units, generator=seeded(seed), dtype=dtype, **(options | more))


def build(key, seed=0, dtype=torch.float64):
    """A layer with every number random, biases too; n of both signs and away from 0."""
    layer = new(key, seed=seed, dtype=dtype)
    with torch.no_grad():
        for i, (name, tensor) in enumerate(sorted(layer.state_dict().items())):
            tensor.copy_(0.5 * randn(*tensor.shape, seed=100 * seed + i, dtype=dtype))
            if name == "n":
                signs = torch.tensor([1.0, -1.0] * H, dtype=dtype)[: len(tensor)]
                tensor.copy_(signs * (0.5 + tensor.abs()))
            elif name == "Wgn.bias":
                tensor.fill_(-2.5 if seed % 2 else 3.0)
            elif name.startswith("Wgs"):
                tensor.mul_(2)
    return layer


def state_shapes(key, batch=B):
    return {"ANRU": [(batch, H), (batch, H, M)], "LSTM": [(batch, H)] * 2}.get(key, [(batch, H)])


def random_state(key, batch=B, dtype=torch.float64):
    parts = tuple(
        0.7 * randn(*shape, seed=50 + i, dtype=dtype)
        for i, shape in enumerate(state_shapes(key, batch))
    )
    return parts if len(parts) > 1 else parts[0]


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def parts_of(state):
    return state if isinstance(state, tuple) else (state,)


def arguments_for(key, given, drive_shape, dtype=torch.float64):
    """x, state, drive."""
    x = randn(T, B, I, seed=11, dtype=dtype)
    state = random_state(key, dtype=dtype) if given else None
    drive = None if drive_shape is None else randn(*drive_shape, seed=12, dtype=dtype)
    return x, state, drive


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


PLAIN = {RNN: plain_rnn, ANRU: plain_anru, LSTM: plain_lstm, GRU: plain_gru}


def drive_at(drive, t, sample):
    if drive is None:
        return 0.0
    return drive[t].item() if drive.ndim == 1 else drive[t, sample].item()


def plain_run(key, layer, x, state, drive):
    """outputs, the parts of the last state and {name: (T, B, ...)} of the plain loop."""
    kind, options = LAYERS[key]
    more = {"nonlin": options["nonlin"]} if kind is RNN else {}
    weights = {name: tensor.tolist() for name, tensor in layer.state_dict().items()}
    if state is None:
        state = tuple(torch.zeros(shape) for shape in state_shapes(key))
    last, found = [], []
    for sample in range(B):
        current, steps = tuple(part[sample].tolist() for part in parts_of(state)), []
        for t in range(T):
            current, quantities = PLAIN[kind](
                weights, x[t, sample].tolist(), current, drive_at(drive, t, sample), **more
            )
            steps.append(quantities)
        last.append(current)
        found.append(steps)
    traced = {
        name: float64([[found[b][t][name] for b in range(B)] for t in range(T)])
        for name in found[0][0]
    }
    return traced["h"], last, traced


def by_steps(key, layer, x, state=None, drive=None):
    """The layer as the loop of its steps."""
    if state is None:
        parts = tuple(torch.zeros(shape).to(x) for shape in state_shapes(key, x.shape[1]))
        state = parts if len(parts) > 1 else parts[0]
    outputs = []
    for t in range(len(x)):
        state = layer.step(x[t], state, None if drive is None else drive[t])
        outputs.append(parts_of(state)[0])
    return torch.stack(outputs), state


def assert_same_run(found, expected, **tolerance):
    """Two pairs (outputs, state) are equal; a state is a tensor or a tuple in both."""
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    assert isinstance(found[1], tuple) == isinstance(expected[1], tuple)
    torch.testing.assert_close(parts_of(found[1]), parts_of(expected[1]), **tolerance)


@every_layer
@every_drive
@with_or_without_state
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_equations(key, drive_shape, given, seed):
    layer, arguments = build(key, seed), arguments_for(key, given, drive_shape)
    expected_outputs, expected_last, _ = plain_run(key, layer, *arguments)
    tolerance = {"rtol": 1e-9, "atol": 1e-10}
    for found_outputs, found_last in (
        layer(*arguments),
        by_steps(key, layer, *arguments),
    ):
        assert found_outputs.shape == (T, B, H)
        torch.testing.assert_close(found_outputs, expected_outputs, **tolerance)
        for i, part in enumerate(parts_of(found_last)):
            expected = float64([sample[i] for sample in expected_last])
            torch.testing.assert_close(part, expected, **tolerance)


@every_layer
@every_drive
@with_or_without_state
def test_trace_equals_the_equations_and_the_layer(key, drive_shape, given):
    layer, arguments = build(key), arguments_for(key, given, drive_shape)
    outputs, state, traced = layer.trace(*arguments)
    assert_same_run((outputs, state), layer(*arguments))
    _, _, expected = plain_run(key, layer, *arguments)
    assert set(traced) == set(expected)
    for name, values in traced.items():
        assert values.shape == ((T, B, H, M) if name == "g" else (T, B, H))
        torch.testing.assert_close(values, expected[name], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(traced["h"], outputs)


@pytest.mark.parametrize("key", ["RNN-gamma", "RNN-gamma2", "RNN-gamma2-fixed", "ANRU"])
def test_trace_holds_the_arguments_of_gamma(key):
    _, _, traced = build(key).trace(*arguments_for(key, True, (T,)))
    expected = gamma(traced["a"], traced["n"], traced["s"])
    torch.testing.assert_close(traced["h"], expected)


@every_layer
def test_trace_keeps_what_is_asked_for(key):
    layer, (x, *_) = build(key), arguments_for(key, False, None)
    _, _, everything = layer.trace(x)
    outputs, state, some = layer.trace(x, keep=["a"])
    assert set(some) == {"a"}
    assert torch.equal(some["a"], everything["a"])
    assert_same_run((outputs, state), layer(x))
    with pytest.raises(ValueError, match="charge"):
        layer.trace(x, keep=["a", "charge"])


@every_layer
@every_drive
@with_or_without_state
def test_gradient_equals_that_of_the_steps(key, drive_shape, given):
    layer, arguments = build(key), arguments_for(key, given, drive_shape)
    gradients = []
    for run in (layer, lambda *some: by_steps(key, layer, *some)):
        x, state, drive = arguments
        leaves = [x.clone(), *(() if state is None else parts_of(state))]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        if state is not None:
            state = tuple(leaves[1:]) if isinstance(state, tuple) else leaves[1]
        if drive is not None:
            drive = drive.clone().requires_grad_()
            leaves.append(drive)
        outputs, last = run(leaves[0], state, drive)
        loss = (outputs * randn(*outputs.shape, seed=21)).sum()
        for i, part in enumerate(parts_of(last)):
            loss = loss + (part * randn(*part.shape, seed=22 + i)).sum()
        gradients.append(torch.autograd.grad(loss, [*leaves, *layer.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-9)


@every_layer
def test_every_parameter_takes_part_and_learns(key):
    layer, x = build(key), randn(T, B, I, seed=11)
    target = randn(T, B, H, seed=13)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(10):
        optimiser.zero_grad()
        loss = (layer(x)[0] - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in layer.named_parameters():
        assert not torch.allclose(parameter, before[name], rtol=0, atol=1e-7), name


def train(layer, steps=20):
    x, target = randn(T, B, I, seed=11), randn(T, B, H, seed=13)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        (layer(x)[0] - target).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("key, count", [("RNN-gamma", 1), ("RNN-gamma2", H)])
def test_gain_and_saturation_learn(key, count):
    layer = new(key, n=2.0, s=0.3)
    train(layer)
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
def test_checkpoint_gives_the_layer_back(key):
    source, target = build(key, seed=2), build(key, seed=3)
    arguments = arguments_for(key, True, (T,))
    assert not torch.allclose(source(*arguments)[0], target(*arguments)[0])
    target.load_state_dict(source.state_dict())
    assert_same_run(target(*arguments), source(*arguments))


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


STATE_DICTS = {key: linear_shapes(U=(H, I), V=(H, H)) for key in LAYERS if key.startswith("RNN")}
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


@every_layer
def test_names_and_shapes(key):
    layer = new(key)
    found = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    assert found == STATE_DICTS[key]
    fixed = {"n", "s"} if key.endswith("fixed") else set()
    assert {name for name, _ in layer.named_parameters()} == set(found) - fixed


def test_registries():
    names = ["RNN", "ANRU", "LSTM", "GRU", "expRNN", "nnRNN", "EURNN"]
    assert list(NETWORKS) == names
    assert [NETWORKS[name] for name in names[:4]] == [RNN, ANRU, LSTM, GRU]
    assert set(NONLINEARITIES) == set(NAMES)


# Against torch's own layers


def torch_twin(key, layer):
    if key == "GRU":
        twin = torch.nn.GRU(I, H, dtype=torch.float64)
        maps = [[getattr(layer, f"W{source}{gate}") for gate in "rzn"] for source in "ih"]
        values = {
            name: torch.cat([getattr(linear, kind) for linear in gates])
            for gates, source in zip(maps, ("ih", "hh"), strict=True)
            for name, kind in ((f"weight_{source}_l0", "weight"), (f"bias_{source}_l0", "bias"))
        }
    else:
        twin = torch.nn.LSTM(I, H, dtype=torch.float64)
        gates = [layer.Wi, layer.Wf, layer.Wg, layer.Wo]
        weight = torch.cat([gate.weight for gate in gates])
        bias = torch.cat([gate.bias for gate in gates])
        values = {"weight_hh_l0": weight[:, :H], "weight_ih_l0": weight[:, H:]}
        values |= {"bias_hh_l0": torch.zeros_like(bias), "bias_ih_l0": bias}
    twin.load_state_dict(values)
    return twin


@pytest.mark.parametrize("key", ["LSTM", "GRU"])
@with_or_without_state
def test_equals_torch(key, given):
    layer = build(key)
    twin = torch_twin(key, layer)
    x, state, _ = arguments_for(key, given, None)
    inner = None
    if given:
        inner = tuple(part.unsqueeze(0) for part in parts_of(state))
        inner = inner if key == "LSTM" else inner[0]
    gradients = []
    for run, start in ((layer, state), (twin, inner)):
        leaf = x.clone().requires_grad_()
        outputs, last = run(leaf, start)
        gradients.append(torch.autograd.grad(outputs.square().sum(), leaf)[0])
        last = tuple(part.reshape(B, H) for part in parts_of(last))
        if run is layer:
            expected = outputs, last
    torch.testing.assert_close(outputs, expected[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(last, expected[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


# How a sequence goes through a layer


@every_layer
@every_drive
def test_two_halves_make_the_whole(key, drive_shape):
    layer, (x, _, drive) = build(key), arguments_for(key, False, drive_shape)
    x.requires_grad_()
    whole = layer(x, None, drive)
    first, second = (None, None) if drive is None else (drive[:2], drive[2:])
    early, state = layer(x[:2], None, first)
    late, state = layer(x[2:], state, second)
    outputs = torch.cat([early, late])
    assert_same_run((outputs, state), whole)
    gradients = [torch.autograd.grad(h[-1].sum(), x)[0] for h in (whole[0], outputs)]
    torch.testing.assert_close(*gradients)


@every_layer
def test_nothing_stays_on_the_layer_and_nothing_is_overwritten(key):
    layer, arguments = build(key), arguments_for(key, True, (T, B))
    x, state, drive = arguments
    copies = [tensor.clone() for tensor in (x, *parts_of(state), drive)]
    weights = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    first = layer(*arguments)
    layer(2 * x)
    assert_same_run(layer(*arguments), first)
    layer.step(x[0], state, drive[0])
    layer.trace(*arguments)
    for tensor, copy in zip((x, *parts_of(state), drive), copies, strict=True):
        assert torch.equal(tensor, copy)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, weights[name])


@every_layer
def test_samples_of_a_batch_are_independent(key):
    layer, (x, state, drive) = build(key), arguments_for(key, True, (T, B))
    outputs, _ = layer(x, state, drive)
    for sample in range(B):
        one = slice(sample, sample + 1)
        parts = tuple(part[one] for part in parts_of(state))
        alone = layer(x[:, one], parts if len(parts) > 1 else parts[0], drive[:, one])
        torch.testing.assert_close(alone[0], outputs[:, one])


@every_layer
def test_strides_do_not_matter(key):
    layer, arguments = build(key), arguments_for(key, True, (T, B))
    x, state, drive = arguments
    parts = tuple(part.transpose(0, 1).contiguous().transpose(0, 1) for part in parts_of(state))
    strided = (
        x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        parts if len(parts) > 1 else parts[0],
        drive.T.contiguous().T,
    )
    assert not strided[0].is_contiguous()
    assert_same_run(layer(*strided), layer(*arguments))


@every_layer
def test_without_gradients(key):
    layer, arguments = build(key), arguments_for(key, True, (T,))
    expected = layer(*arguments)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = layer(*arguments)
        assert not found[0].requires_grad
        assert_same_run(found, expected)
    assert expected[0].requires_grad


@every_layer
def test_one_step_of_one_sample(key):
    layer = build(key)
    x, state = randn(1, 1, I), random_state(key, batch=1)
    drive = torch.tensor([0.3], dtype=torch.float64)
    for drive_t in (drive[0], drive):
        expected = layer.step(x[0], state, drive_t)
        assert_same_run(layer(x, state, drive), (parts_of(expected)[0].unsqueeze(0), expected))


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtype(key, dtype):
    layer, arguments = build(key, dtype=dtype), arguments_for(key, False, (T,), dtype)
    assert {tensor.dtype for tensor in layer.state_dict().values()} == {dtype}
    outputs, state = layer(*arguments)
    assert {tensor.dtype for tensor in (outputs, *parts_of(state))} == {dtype}
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert_same_run(
        (outputs, state), by_steps(key, layer, *arguments), rtol=tolerance, atol=tolerance
    )
    double = layer.double()
    x, _, drive = (a if a is None else a.double() for a in arguments)
    exact = double(x, None, drive)
    torch.testing.assert_close(outputs.double(), exact[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", NETWORKS.values())
def test_default_dtype_and_device(kind):
    layer = kind(I, H, device="cpu")
    assert {tensor.dtype for tensor in layer.state_dict().values()} == {torch.float32}
    outputs, state = layer(torch.zeros(T, B, I))
    assert outputs.dtype == torch.float32
    assert all(part.shape[:2] == (B, H) for part in parts_of(state))


# How a layer starts


def test_rnn_by_position_and_by_default():
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
    """The angles where a matrix is block-diagonal, of 2 × 2 rotations; empty where it is not."""
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


def test_normal_touches_its_own_matrix_only():
    one = RNN(I, H, "gamma2", rinit="normal", generator=seeded(0))
    other = RNN(I, H, "gamma2", rinit="kaiming", generator=seeded(0))
    assert not torch.equal(one.V.weight, other.V.weight)
    for name in ("U.weight", "U.bias", "V.bias", "n", "s"):
        assert torch.equal(one.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize("key", ["RNN-gamma", "RNN-gamma2", "RNN-gamma-fixed", "RNN-gamma2-fixed"])
def test_gain_and_saturation_start_where_told(key):
    layer = new(key, n=-3.5, s=0.25)
    assert torch.equal(layer.n, torch.full_like(layer.n, -3.5))
    assert torch.equal(layer.s, torch.full_like(layer.s, 0.25))


def test_anru_readouts():
    layers = [ANRU(I, 2, generator=seeded(seed)) for seed in range(60)]
    gain_biases = torch.cat([layer.Wgn.bias.detach() for layer in layers])
    assert gain_biases.min() >= 5
    assert gain_biases.max() <= 7
    assert gain_biases.mean().item() == pytest.approx(6, abs=4 * 2 / math.sqrt(12 * 60))
    assert gain_biases.std().item() == pytest.approx(2 / math.sqrt(12), rel=0.2)
    for name, scale in (("Wgn", 0.1), ("Wgs", 0.01)):
        weights = torch.stack([layer.get_submodule(name).weight.detach() for layer in layers])
        expected = scale * math.sqrt(2 / 51)
        assert weights.std().item() == pytest.approx(expected, rel=0.06)
        assert abs(weights.mean().item()) < 4 * expected / math.sqrt(weights.numel())


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
def test_without_generator_the_global_seed_decides(kind):
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(torch.nn.utils.parameters_to_vector(kind(I, H).parameters()))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# What a layer refuses


def refuses(*fragments):
    """A ValueError whose message holds all of these."""
    return pytest.raises(ValueError, match="".join(f"(?=.*{re.escape(f)})" for f in fragments))


@every_layer
@pytest.mark.parametrize("shape", [(T, I), (T, B, I + 1), (T, B, I, 1), (0, B, I)], ids=str)
@pytest.mark.parametrize("method", ["forward", "trace"])
def test_refuses_input(key, shape, method):
    with refuses(str(shape)):
        getattr(new(key), method)(torch.zeros(shape).double())


@every_layer
@pytest.mark.parametrize("shape", [(), (T + 1,), (T, B + 1), (B, T), (T, B, 1)], ids=str)
@pytest.mark.parametrize("method", ["forward", "trace"])
def test_refuses_drive(key, shape, method):
    with refuses(str(shape)):
        getattr(new(key), method)(randn(T, B, I), None, torch.zeros(shape).double())


@every_layer
@pytest.mark.parametrize("method", ["forward", "trace"])
def test_refuses_state(key, method):
    run, x = getattr(new(key), method), randn(T, B, I)
    right = parts_of(random_state(key))
    for i, part in enumerate(right):
        for wrong in (part[:-1], part[..., :-1], part.unsqueeze(0)):
            state = (*right[:i], wrong, *right[i + 1 :])
            with refuses(str(tuple(wrong.shape))):
                run(x, state if len(state) > 1 else wrong)
    for count in {1, 2, 3} - {len(right)}:
        with refuses(str((B, H))):
            run(x, right[0] if count == 1 else (right * 3)[:count])


@pytest.mark.parametrize("kind", NETWORKS.values())
@pytest.mark.parametrize("value", [0, -2])
def test_refuses_sizes(kind, value):
    with refuses("input_size", str(value)):
        kind(value, H)
    with refuses("hidden_size", str(value)):
        kind(I, value)


@pytest.mark.parametrize("value", [0, -2])
def test_refuses_supervisor_size(value):
    with refuses("supervisor_size", str(value)):
        ANRU(I, H, value)


@pytest.mark.parametrize("name", ["relu", "gamma3", "", None])
def test_refuses_nonlinearity(name):
    with refuses("nonlin", repr(name), *NAMES):
        RNN(I, H, name)


@pytest.mark.parametrize("kind", [RNN, ANRU])
@pytest.mark.parametrize(
    "option, name, allowed",
    [
        ("rinit", "orthogonal", initialization.RECURRENT),
        ("rinit", None, initialization.RECURRENT),
        ("iinit", "henaff", initialization.INPUT),
    ],
)
def test_refuses_initialisation(kind, option, name, allowed):
    with refuses(option, repr(name), *allowed):
        kind(I, H, **{option: name})


@pytest.mark.parametrize("n", [0, 0.0, math.inf, math.nan])
@pytest.mark.parametrize("nonlin", ["gamma", "gamma2"])
@pytest.mark.parametrize("learn_params", [True, False])
def test_refuses_gain_without_value(nonlin, n, learn_params):
    with refuses(f"gain n is {n}"):
        RNN(I, H, nonlin, n=n, learn_params=learn_params)


@pytest.mark.parametrize(("key", "parts"), [("RNN-gamma2", 1), ("LSTM", 2)])
def test_a_state_may_be_a_tuple_or_a_list_of_its_parts(key, parts):
    layer, x = build(key), randn(T, B, I)
    state = random_state(key)
    expected, _ = layer(x, state)
    outputs, _ = layer(x, list(parts_of(state)))
    assert torch.equal(outputs, expected)
    with pytest.raises(ValueError, match="state"):
        layer(x, [*parts_of(state), parts_of(state)[0]])
