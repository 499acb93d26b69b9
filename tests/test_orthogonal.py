"""expRNN, nnRNN and EURNN: their matrices, their way through time, long memory, and the scripts."""

import copy
import json
import math
import re

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from NetworkCreation import initialization
from NetworkCreation.initialization import ROTATIONS
from NetworkCreation.layers import NONLINEARITIES
from NetworkCreation.models import build_model, load_model, parameter_groups
from NetworkCreation.Networks import NETWORKS
from NetworkCreation.orthogonal import ORTHOGONAL_MAPS, complex_modrelu
from tests.conftest import TOY
from tests.test_scripts import checkpoint, equal, metrics
from Training.runs import TrainingState

T, B, I, H = 9, 3, 2, 6  # noqa: E741
NAMES = ["expRNN", "nnRNN", "EURNN"]
SKEW = ["expRNN", "nnRNN"]  # those made of a skew-symmetric matrix
LAYERS = {
    f"{name}-{nonlin}": (name, {"nonlin": nonlin}) for name in SKEW for nonlin in NONLINEARITIES
}
LAYERS |= {
    "expRNN-cayley": ("expRNN", {"ostep_method": "cayley", "rinit": "random"}),
    "nnRNN-cayley": ("nnRNN", {"ostep_method": "cayley", "rinit": "cayley"}),
    "expRNN-fixed": ("expRNN", {"nonlin": "gamma", "learn_params": False}),
    "EURNN": ("EURNN", {}),
    "EURNN-1": ("EURNN", {"capacity": 1}),
    "EURNN-none-3": ("EURNN", {"capacity": 3, "nonlin": "none"}),
}
every_layer = pytest.mark.parametrize("key", LAYERS)
every_drive = pytest.mark.parametrize("drive_shape", [None, (T,), (T, B)], ids=str)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def new(key, units=H, inputs=I, seed=0, dtype=torch.float64, **more):
    """A layer as it starts."""
    name, options = LAYERS.get(key, (key, {}))
    return NETWORKS[name](inputs, units, generator=seeded(seed), dtype=dtype, **options | more)


def build(key, seed=0, dtype=torch.float64, **more):
    """A layer whose parameters are all away from where they start."""
    layer = new(key, seed=seed, dtype=dtype, **more)
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.add_(randn(*parameter.shape, seed=100 + i, dtype=dtype), alpha=0.3)
    return layer


def random_state(layer, batch=B, dtype=torch.float64):
    shapes = layer.state_shapes(batch)
    parts = tuple(0.7 * randn(*shape, seed=50 + i, dtype=dtype) for i, shape in enumerate(shapes))
    return parts if len(parts) > 1 else parts[0]


def parts_of(state):
    return state if isinstance(state, tuple) else (state,)


def joined(parts):
    return tuple(parts) if len(parts) > 1 else parts[0]


def by_steps(layer, x, state=None, drive=None):
    """The layer as a plain loop of its steps, its matrix made anew in every one."""
    state = layer.initial_state(x.shape[1]) if state is None else state
    outputs = []
    for t in range(len(x)):
        state = layer.step(x[t], state, None if drive is None else drive[t])
        outputs.append(parts_of(state)[0])
    return torch.stack(outputs), state


def matrix(layer):
    """The matrix that takes h to the next pre-activation."""
    if hasattr(layer, "V"):
        return layer.V.weight
    return layer.rotate(torch.eye(layer.hidden_size, dtype=layer.theta.dtype) + 0j).t()


def departure(M):
    """The largest element of |Mᴴ M − 1|."""
    return (M.mH @ M - torch.eye(len(M), dtype=M.dtype)).abs().max().item()


# The recurrent matrix


@pytest.mark.parametrize("units", [6, 7])
@pytest.mark.parametrize("ostep_method", ORTHOGONAL_MAPS)
@pytest.mark.parametrize("rinit", ROTATIONS)
def test_exprnn_starts_with_the_matrix_that_rinit_draws(rinit, ostep_method, units):
    generator = seeded(3)
    initialization.kaiming(torch.empty(units, I, dtype=torch.float64), generator)  # U comes first
    expected = initialization.RECURRENT[rinit](
        torch.empty(units, units, dtype=torch.float64), generator
    )
    found = new("expRNN", units, seed=3, rinit=rinit, ostep_method=ostep_method)
    torch.testing.assert_close(found.V.weight, expected, rtol=0, atol=1e-14)
    assert torch.equal(found.P, found.V.weight)
    assert torch.linalg.det(found.P).item() == pytest.approx(1)


@pytest.mark.parametrize("ostep_method", ORTHOGONAL_MAPS)
def test_exprnn_is_its_start_times_the_map_of_a_skew_symmetric_matrix(ostep_method):
    layer = new("expRNN", ostep_method=ostep_method)
    start, parameter = layer.P.detach().clone(), layer.parameters_apart()["orthogonal"][0]
    with torch.no_grad():
        parameter.copy_(randn(H, H))
    lower = randn(H, H).tril(-1)
    A, one = lower - lower.t(), torch.eye(H, dtype=torch.float64)
    turned = {"exp": torch.matrix_exp(A), "cayley": (one + A / 2) @ (one - A / 2).inverse()}
    torch.testing.assert_close(layer.P, start @ turned[ostep_method])


@pytest.mark.parametrize("ostep_method", ORTHOGONAL_MAPS)
def test_nnrnn_starts_orthogonal(ostep_method):
    layer = new("nnRNN", 32, ostep_method=ostep_method, dtype=torch.float32)
    assert departure(layer.V.weight) < 1e-5
    assert layer.schur.alpha.tolist() == [1.0] * 16 and not layer.schur.T.any()
    assert layer.schur.theta.min() >= 0 and 4 < layer.schur.theta.max() <= 2 * math.pi


def test_nnrnn_is_its_schur_form():
    layer = build("nnRNN")
    with torch.no_grad():
        layer.schur.T.copy_(randn(H, H))
    alpha, theta, P = layer.schur.alpha, layer.schur.theta, layer.P
    expected = torch.zeros(H, H, dtype=torch.float64)
    for row in range(H):
        for column in range(row // 2 * 2 + 2, H):
            expected[row, column] = layer.schur.T[row, column]
    for j in range(H // 2):
        c, s = alpha[j] * theta[j].cos(), alpha[j] * theta[j].sin()
        block = slice(2 * j, 2 * j + 2)
        expected[block, block] = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    torch.testing.assert_close(P.t() @ layer.V.weight @ P, expected)
    assert departure(P) < 1e-12 and departure(layer.V.weight) > 0.1
    sizes = torch.linalg.eigvals(layer.V.weight).abs().sort().values
    torch.testing.assert_close(sizes, alpha.abs().repeat_interleave(2).sort().values)
    assert layer.penalty().item() == pytest.approx(sum((a - 1) ** 2 for a in alpha.tolist()))


@pytest.mark.parametrize("units", [1, 2, 6, 7])
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_eurnn_is_a_product_of_rotations(units, capacity):
    layer = new("EURNN", units, capacity=capacity)
    W, used = torch.eye(units, dtype=torch.complex128), 0
    for number in range(capacity):
        F = torch.eye(units, dtype=torch.complex128)
        for first in range(number % 2, units - 1, 2):
            theta, turn = layer.theta[used], torch.exp(1j * layer.phi[used])
            F[first, first : first + 2] = torch.stack([turn * theta.cos(), -turn * theta.sin()])
            F[first + 1, first : first + 2] = torch.stack([theta.sin(), theta.cos()]) + 0j
            used += 1
        W = F @ W
    assert used == len(layer.theta) == len(layer.phi)
    torch.testing.assert_close(matrix(layer), torch.exp(1j * layer.omega).diag() @ W)
    assert departure(matrix(layer)) < 1e-12


@pytest.mark.parametrize("ostep_method", ORTHOGONAL_MAPS)
def test_a_large_matrix_is_orthogonal_in_float32(ostep_method):
    layer = new("expRNN", 400, rinit="random", ostep_method=ostep_method, dtype=torch.float32)
    with torch.no_grad():  # as far as a thousand updates at 2e-5 can take each of its numbers
        layer.V.parametrizations.weight.original.add_(randn(400, 400).float(), alpha=0.02)
    assert departure(layer.P) < 2e-6


def train(layer, updates, lr_orth):
    """Updates that fit random outputs, as both scripts make their groups; returns the losses."""
    x, target = randn(5, 4, I, dtype=torch.float32), randn(5, 4, layer.hidden_size).float()
    model = torch.nn.ModuleDict({"rnn": layer})
    options = {"orthogonal": {"lr": lr_orth}, "T": {"weight_decay": 1e-5}}
    optimiser = torch.optim.Adam(parameter_groups(model, options), lr=1e-3)
    state = TrainingState(model, optimiser, None, {})
    return [state.update((layer(x)[0] - target).square().mean())[0] for _ in range(updates)]


@pytest.mark.parametrize(
    ("key", "units"),
    [
        ("expRNN-modrelu", 33),
        ("expRNN-gamma2", 24),
        ("expRNN-cayley", 33),
        ("nnRNN-modrelu", 32),
        ("nnRNN-cayley", 32),
        ("EURNN", 33),
        ("EURNN-1", 32),
    ],
)
def test_orthogonal_after_a_thousand_updates(key, units):
    layer = new(key, units, dtype=torch.float32)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    losses = train(layer, 1000, lr_orth=1e-2)
    orthogonal = matrix(layer) if key.startswith("EURNN") else layer.P
    assert departure(orthogonal) < 1e-5
    if not orthogonal.is_complex():
        assert torch.linalg.det(orthogonal).item() == pytest.approx(1, abs=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    for parameter, start in zip(layer.parameters(), before, strict=True):
        assert not torch.equal(parameter, start)


# The way through time


@every_layer
@every_drive
@pytest.mark.parametrize("start", ["zeros", "state"])
def test_value_and_gradient_equal_those_of_a_plain_loop(key, drive_shape, start):
    layer, results = build(key), []
    leaves = [randn(T, B, I, seed=11)]
    leaves[0][:, 0] = 0  # without a state and a drive, this sample's z is that of the biases
    if start == "state":
        leaves += parts_of(random_state(layer))
    if drive_shape is not None:
        leaves.append(randn(*drive_shape, seed=12))
    leaves = [leaf.requires_grad_() for leaf in leaves]
    drive = None if drive_shape is None else leaves[-1]
    parts = leaves[1 : 1 + len(layer.state_shapes(B))]
    state = joined(parts) if start == "state" else None
    for run in (layer, layer.loop, lambda *some: by_steps(layer, *some)):
        outputs, last = run(leaves[0], state, drive)
        loss = (outputs * randn(T, B, H, seed=21)).sum()
        for i, part in enumerate(parts_of(last)):
            loss = loss + (part * randn(B, H, seed=22 + i)).sum()
        wanted = [*leaves, *(p for p in layer.parameters() if p.requires_grad)]
        results.append((outputs, *parts_of(last), *torch.autograd.grad(loss, wanted)))
    for result in results[:2]:
        torch.testing.assert_close(result, results[2], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", SKEW)
def test_a_step_is_the_equation(name):
    layer = build(f"{name}-tanh")
    x, h = randn(B, I), randn(B, H, seed=1)
    expected = x @ layer.U.weight.T + layer.U.bias + h @ layer.V.weight.T + 0.5
    found = layer.step(x, h, torch.tensor(0.5).double())
    torch.testing.assert_close(found, expected.tanh())


def test_a_step_of_eurnn_is_the_equation():
    layer = build("EURNN")
    torch.nn.init.constant_(layer.b[:3].detach(), -1.0)
    x, (re, im) = randn(B, I), random_state(layer)
    bias = torch.complex(torch.full((H,), 0.5).double(), torch.zeros(H).double())
    U = torch.complex(layer.Ure.weight, layer.Uim.weight)
    z = (x + 0j) @ U.T + bias + torch.complex(re, im) @ matrix(layer).T
    size = (z.abs() + layer.b).clamp(min=0)
    assert (size == 0).any() and (size > 0).any()
    expected = torch.polar(size, z.angle())
    found = layer.step(x, (re, im), torch.tensor(0.5).double())
    torch.testing.assert_close(torch.complex(*found), expected)
    outputs, state, traced = layer.trace(x.unsqueeze(0), (re, im), torch.full((1,), 0.5).double())
    torch.testing.assert_close(torch.complex(*state), expected)
    assert torch.equal(outputs[0], state[0]) and set(traced) == {"a", "a_im", "h", "h_im"}
    torch.testing.assert_close(torch.complex(traced["a"], traced["a_im"])[0], z)


def test_where_nothing_comes_in_eurnn_stays_at_zero_with_gradients():
    layer = new("EURNN")
    x = torch.zeros(T, B, I, dtype=torch.float64).requires_grad_()
    outputs, _ = layer(x)
    assert not outputs.any()
    outputs.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    z = torch.zeros(1, dtype=torch.complex128).requires_grad_()
    value = complex_modrelu(z, torch.ones(1, dtype=torch.float64))
    assert value.item() == 0 and torch.autograd.grad(value.real, z)[0].item() == 0


@pytest.mark.parametrize("name", ["expRNN", "EURNN"])
@pytest.mark.parametrize("units", [H, H + 1])
def test_the_norm_is_kept_over_a_thousand_steps(name, units):
    layer = new(name, units, nonlin="none", dtype=torch.float32)
    train(layer, 20, lr_orth=1e-2)
    for bias in (p for n, p in layer.named_parameters() if n.endswith("bias")):
        torch.nn.init.zeros_(bias)
    state = random_state(layer, dtype=torch.float32)
    outputs, last = layer(torch.zeros(1000, B, I), state)
    norms = [torch.cat(parts_of(s), dim=1).norm(dim=1) for s in (state, last)]
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-4, atol=0)
    assert not torch.allclose(outputs[-1], outputs[-2])


@every_layer
def test_two_halves_make_the_whole_and_samples_are_independent(key):
    layer, x = build(key), randn(T, B, I, seed=11)
    state, drive = random_state(layer), randn(T, B, seed=12)
    outputs, last = layer(x, state, drive)
    early, middle = layer(x[:4], state, drive[:4])
    late, end = layer(x[4:], middle, drive[4:])
    torch.testing.assert_close(torch.cat([early, late]), outputs)
    torch.testing.assert_close(parts_of(end), parts_of(last))
    alone, _ = layer(x[:, 1:2], joined([p[1:2] for p in parts_of(state)]), drive[:, 1:2])
    torch.testing.assert_close(alone, outputs[:, 1:2])
    strided = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    torch.testing.assert_close(layer(strided, state, drive)[0], outputs)


@every_layer
def test_the_trace_and_a_run_without_gradients_equal_the_layer(key):
    layer, x = build(key), randn(T, B, I, seed=11)
    outputs, last = layer(x)
    traced_outputs, traced_last, traced = layer.trace(x)
    torch.testing.assert_close(traced_outputs, outputs)
    torch.testing.assert_close(traced["h"], outputs)
    torch.testing.assert_close(parts_of(traced_last), parts_of(last))
    assert {values.shape for values in traced.values()} == {(T, B, H)}
    with torch.inference_mode():
        found, state = layer(x)
    torch.testing.assert_close(found, outputs)
    torch.testing.assert_close(parts_of(state), parts_of(last))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x)[0], outputs)


@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize("steps", [1, 300])
def test_float32_and_more_than_one_pass_over_the_steps(key, steps):
    layer = new(key, units=64, dtype=torch.float32)
    x = randn(steps, 20, I, seed=3, dtype=torch.float32)
    outputs, _ = layer(x)
    exact = layer.double()(x.double())[0]
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs[:20].double(), exact[:20], rtol=1e-3, atol=1e-3)
    gradients = []
    for run in (layer, layer.loop):
        loss = run(x.double())[0].square().mean()
        gradients.append(torch.autograd.grad(loss, list(layer.parameters())))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SKEW)
def test_the_matrix_is_made_once_a_sequence_and_differentiated_once(name):
    layer, made, returned = build(name), [], []

    def note(module, inputs, output):
        made.append(output)
        if output.requires_grad:
            output.register_hook(returned.append)

    layer.V.parametrizations.weight[0].register_forward_hook(note)
    for run in (layer, layer.loop, layer.trace):
        made.clear()
        returned.clear()
        run(randn(T, B, I))[0].sum().backward()
        assert len(made) == len(returned) == 1


# Checkpoints and what is refused


@pytest.mark.parametrize("key", NAMES)
def test_a_checkpoint_alone_gives_back_the_matrix(key, tmp_path):
    spec = {"task": "pixels", "net_type": key, "hidden_size": H, "classes": 10, "layer": {}}
    model = build_model(spec, seeded(7))
    with torch.no_grad():
        for parameter in model.rnn.parameters():
            parameter.add_(torch.rand_like(parameter))
    torch.save({"state_dict": model.state_dict(), "config": {"model": spec}}, tmp_path / "e.pt")
    loaded, _ = load_model(tmp_path / "e.pt")
    assert torch.equal(matrix(loaded.rnn), matrix(model.rnn))
    x = torch.rand(5, 2, 1)
    assert torch.equal(loaded(x), model.eval()(x))


def refuses(*fragments):
    return pytest.raises(ValueError, match="".join(f"(?=.*{re.escape(f)})" for f in fragments))


def test_refuses_what_cannot_be():
    with refuses("hidden_size is 7", "nnRNN", "even"):
        new("nnRNN", 7)
    for name in SKEW:
        for rinit in ("xavier", "kaiming", "normal", None):
            with refuses("rinit", repr(rinit), *ROTATIONS):
                new(name, rinit=rinit)
        with refuses("ostep_method", "householder", *ORTHOGONAL_MAPS):
            new(name, ostep_method="householder")
        with refuses("nonlin", "relu", *NONLINEARITIES):
            new(name, nonlin="relu")
    for nonlin in ("gamma", "tanh", "ReLU"):
        with refuses("nonlin", nonlin, "EURNN", "modrelu"):
            new("EURNN", nonlin=nonlin)
    with refuses("capacity is 0"):
        new("EURNN", capacity=0)
    with refuses("iinit", "henaff", "kaiming"):
        new("EURNN", iinit="henaff")


# Long memory


def copy_memory(batch, generator, delay=100):
    """x (T, B, 10) and targets (T, B): repeat ten symbols after a delay, when the tenth is shown.

    Source: Hochreiter & Schmidhuber 1997, as in Arjovsky et al., arXiv 1511.06464.
    """
    symbols = torch.randint(1, 9, (10, batch), generator=generator)
    x, targets = torch.zeros(2, delay + 20, batch, dtype=torch.long).unbind()
    x[:10], x[delay + 9], targets[-10:] = symbols, 9, symbols
    return one_hot(x, 10).float(), targets.flatten()


def loss_of_copying(key, lr, updates, **options):
    """The cross-entropy on sequences not seen, after so many updates."""
    generator = seeded(0)
    layer = NETWORKS[key](10, 64, generator=generator, **options)
    read_out = torch.nn.Linear(64, 9)
    torch.nn.init.xavier_normal_(read_out.weight, generator=generator)
    torch.nn.init.zeros_(read_out.bias)
    model = torch.nn.ModuleDict({"rnn": layer, "lin": read_out})
    groups = parameter_groups(model, {"orthogonal": {"lr": lr / 10}})
    state = TrainingState(model, torch.optim.Adam(groups, lr=lr), None, {})

    def loss(batch):
        x, targets = copy_memory(batch, generator)
        return cross_entropy(read_out(layer(x)[0]).flatten(0, 1), targets)

    for _ in range(updates):
        state.update(loss(32))
    with torch.no_grad():
        return loss(500).item()


def test_exprnn_remembers_what_a_tanh_rnn_does_not():
    memoryless = 10 * math.log(8) / 120
    assert loss_of_copying("expRNN", 5e-3, 300) < memoryless / 2
    for lr in (1e-3, 5e-3):
        assert loss_of_copying("RNN", lr, 300, nonlin="tanh") > memoryless


# Both scripts

RUNS = [
    ("sMNIST_task.py", ["--net-type", "expRNN", "--nonlin", "gamma2", "--clip", "0.5"]),
    ("sMNIST_task.py", ["--net-type", "nnRNN", "--ostep_method", "cayley", "--alam", "0.5"]),
    ("sMNIST_task.py", ["--net-type", "EURNN", "--capacity", "3", "--betas", "0.5", "0.9"]),
    ("PTB_task.py", ["--net-type", "expRNN", "--rinit", "random", "--weight_decay", "1e-3"]),
    ("PTB_task.py", ["--net-type", "nnRNN", "--Tdecay", "0.1", "--betas", "0", "0.9"]),
    ("PTB_task.py", ["--net-type", "EURNN", "--lr_orth", "1e-3", "--no-adam"]),
]


@pytest.mark.parametrize(("script", "flags"), RUNS)
def test_a_resumed_run_ends_bit_for_bit(call, only_run, script, flags):
    assert call(script, *TOY[script], *flags, "--epochs", 2, "--save-dir", "whole")[0] == 0
    assert call(script, *TOY[script], *flags, "--epochs", 1, "--save-dir", "short")[0] == 0
    whole, short = only_run("whole"), only_run("short")
    code, _, err = call(script, "--resume", short, "--epochs", 2)
    assert code == 0, err
    assert metrics(short) == metrics(whole)
    for name in ["last.pth.tar", "e_2.pth.tar"]:
        assert equal(checkpoint(whole, name), checkpoint(short, name)), name
    code, out, err = call(script, "--test", "--checkpoint", short / "e_2.pth.tar")
    assert code == 0 and "test" in out, err
    assert short.parent.name.endswith("gamma2" if "gamma2" in flags else "modrelu")


def test_the_orthogonal_parameters_have_a_rate_that_goes_with_the_main_one(call, only_run):
    flags = ["--net-type", "nnRNN", "--lr_orth", 1e-4, "--Tdecay", 0.25, "--weight_decay", 0.5]
    # the rate is so high that the validation loss rises
    flags = [*TOY["PTB_task.py"], *flags, "--lr", 0.5, "--epochs", 4]
    assert call("PTB_task.py", *flags)[0] == 0
    rates = [float(row["lr"]) for row in metrics(only_run())]
    main, orthogonal, T_group = checkpoint(only_run())["optimizer"]["param_groups"]
    assert main["lr"] == T_group["lr"] < rates[0] == 0.5
    assert orthogonal["lr"] / 1e-4 == main["lr"] / 0.5
    assert [g["weight_decay"] for g in (main, orthogonal, T_group)] == [0.5, 0.0, 0.25]
    model, config = load_model(only_run() / "e_4.pth.tar")
    assert [len(g["params"]) for g in (orthogonal, T_group)] == [1, 1]
    assert len(main["params"]) == len(list(model.parameters())) - 2
    assert config["model"]["layer"] == {
        "nonlin": "modrelu",
        "rinit": "henaff",
        "iinit": "kaiming",
        "ostep_method": "exp",
    }


@pytest.mark.parametrize("script", TOY)
def test_every_flag_acts(call, tmp_path, script):
    """A run that differs in one flag ends with other weights."""
    cases = {
        "expRNN": ["--lr_orth 1e-3", "--ostep_method cayley", "--rinit cayley", "--clip 1e-9"],
        "nnRNN": ["--alam 10", "--Tdecay 1", "--betas 0 0.9"],
        "EURNN": ["--capacity 1", "--lr_orth 1e-3", "--iinit xavier"],
    }
    for net_type, differing in cases.items():
        found = []
        for number, flags in enumerate(["", *differing]):
            folder = f"{net_type}{number}"
            base = [*TOY[script], "--net-type", net_type, "--epochs", 1, "--lr_orth", "1e-2"]
            assert call(script, *base, *flags.split(), "--save-dir", folder)[0] == 0
            (path,) = (tmp_path / folder).rglob("e_1.pth.tar")
            state = torch.load(path, weights_only=True)["state_dict"]
            found.append([v for n, v in state.items() if n.startswith("rnn.")])
        for number, other in enumerate(found[1:]):
            assert not equal(found[0], other), (net_type, differing[number])


def test_the_penalty_is_descended_and_not_reported():
    layer, x = new("nnRNN"), randn(T, B, I)
    with torch.no_grad():
        layer.schur.alpha.copy_(torch.tensor([0.5, 1.0, 3.0]))
    alone = torch.autograd.grad(layer(x)[0].square().mean(), layer.schur.alpha)[0]
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.0)
    state = TrainingState(layer, optimiser, None, {}, penalty=lambda: 0.25 * layer.penalty())
    loss = layer(x)[0].square().mean()
    assert state.update(loss)[0] == loss.item()
    expected = alone + 0.25 * 2 * torch.tensor([-0.5, 0.0, 2.0])
    torch.testing.assert_close(layer.schur.alpha.grad, expected)


def test_the_gradient_is_clipped_and_its_norm_is_reported_as_it_was():
    weight = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(weight.weight)
    for clip, step in ((None, [3.0, 4.0]), (1.0, [0.6, 0.8]), (10.0, [3.0, 4.0])):
        optimiser = torch.optim.SGD(weight.parameters(), lr=1.0)
        before = weight.weight.detach().clone()
        state = TrainingState(weight, optimiser, None, {}, clip=clip)
        assert state.update(weight(torch.tensor([3.0, 4.0])).sum())[1] == 5.0
        torch.testing.assert_close(before - weight.weight, torch.tensor([step]), atol=1e-5, rtol=0)


FLAGS = {
    "--capacity 3": ["EURNN"],
    "--lr_orth 1e-3": NAMES,
    "--ostep_method exp": SKEW,
    "--alam 0.1": ["nnRNN"],
    "--Tdecay 0.1": ["nnRNN"],
    "--rinit henaff": ["RNN", "ANRU", *SKEW],
    "--iinit kaiming": ["RNN", "ANRU", *NAMES],
    "--nonlin modrelu": ["RNN", *NAMES],
    "--betas 0.9 0.99": list(NETWORKS),
    "--clip 3": list(NETWORKS),
}


@pytest.mark.parametrize("script", TOY)
@pytest.mark.parametrize("flags", FLAGS)
def test_a_flag_of_other_networks_is_an_error_that_names_them(call, script, flags):
    for net_type in NETWORKS:
        code, _, err = call(script, *TOY[script], "--net-type", net_type, *flags.split(), "--test")
        assert code == 2 and err.count("\n") == 1
        if net_type in FLAGS[flags]:
            assert "--test: no run with" in err
        else:
            said = f"argument {flags.split()[0]}: belongs to --net-type "
            assert said in err and f", not to {net_type}\n" in err
            names = err.split(said)[1].split(", not to")[0].split(", ")
            assert set(names) == set(FLAGS[flags])


def test_a_run_from_before_the_flags_goes_on(call, only_run):
    script = "sMNIST_task.py"
    assert call(script, *TOY[script], "--epochs", 2, "--save-dir", "whole")[0] == 0
    assert call(script, *TOY[script], "--epochs", 1)[0] == 0
    path, last = only_run() / "config.json", only_run() / "last.pth.tar"
    config, checkpoint = json.loads(path.read_text()), torch.load(last, weights_only=True)
    for name in ("capacity", "lr_orth", "ostep_method", "alam", "Tdecay", "betas", "clip"):
        del config["arguments"][name], checkpoint["config"]["arguments"][name]
    path.write_text(json.dumps(config))
    torch.save(checkpoint, last)
    code, _, err = call(script, "--resume", only_run(), "--epochs", 2)
    assert code == 0, err
    assert metrics(only_run()) == metrics(only_run("whole"))


@pytest.mark.parametrize("net_type", NAMES)
def test_real_pennchar_is_learnt(call, pennchar_root, only_run, net_type):
    flags = ["--data", pennchar_root, "--net-type", net_type, "--nhid", 64, "--emsize", 32]
    flags += ["--batch_size", 32, "--bptt", 50, "--lr", "3e-3", "--lr_orth", "3e-4"]
    code, _, err = call("PTB_task.py", *flags, "--limit-batches", 40, "--epochs", 2)
    assert code == 0, err
    first, second = (float(row["validation_bits_per_character"]) for row in metrics(only_run()))
    assert second < first < math.log2(50)
