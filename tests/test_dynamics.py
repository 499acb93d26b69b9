"""Lyapunov exponents, Jacobian norms and the dynamics that they are computed from."""

import math

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

from NetworkCreation.gamma_function import gamma_prime
from NetworkCreation.layer import NONLINEARITIES
from NetworkCreation.Networks import NETWORKS
from Postprocessing import analysis, jacobian_norm, load_runs, lyapunov
from Postprocessing.analysis import Unsuitable
from Postprocessing.dynamics import (
    flat_step,
    flatten,
    freeze,
    push,
    step_jacobian,
    tangent_step,
    trained_layers,
)
from Postprocessing.jacobian_norm import jacobian_norms
from Postprocessing.lyapunov import lyapunov_exponents
from tests.conftest import TOY
from Training.run_directory import Run

T, B, INPUTS, H = 5, 3, 2, 4


def make_layer(name, **options):
    options |= {"supervisor_size": 3} if name == "ANRU" else {}
    layer = freeze(NETWORKS[name](INPUTS, H, generator=generator(), **options))
    for tensor in layer.parameters():  # biases that start at 0 would hide their omission
        tensor += 0.2 * torch.randn(tensor.shape, generator=generator(), dtype=tensor.dtype)
    return layer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def random_state(layer):
    return 0.5 * draw(*flatten(layer.initial_state(B)).shape)


def full_jacobians(layer, x_t, state):
    """The explicit Jacobian of the full state, per sample, (B, D, D)."""
    step = flat_step(layer)
    return torch.stack(
        [
            jacobian(lambda s, x=x: step(x[None], s[None])[0], s)
            for x, s in zip(x_t, state, strict=True)
        ]
    )


def test_a_linear_map_has_the_logarithms_of_its_eigenvalues():
    basis = draw(4, 4)
    values = torch.tensor([1.5, -0.9, 0.5, 0.1], dtype=torch.float64)
    A = basis @ values.diag() @ basis.inverse()
    found = lyapunov_exponents(
        lambda x_t, state: state @ A.t() + x_t, draw(2, 4), draw(200, 1, 1), 4, 100, generator()
    )
    assert found.shape == (2, 4)
    torch.testing.assert_close(found, values.abs().log().expand(2, 4), rtol=0, atol=1e-6)


def test_the_henon_map_has_its_known_exponents():
    def step(_, state):
        x, y = state.unbind(1)
        return torch.stack([1 - 1.4 * x * x + y, 0.3 * x], dim=1)

    start = 0.1 * torch.rand(64, 2, generator=generator(), dtype=torch.float64)
    found = lyapunov_exponents(step, start, range(1000), 2, 100, generator())
    expected = torch.tensor([0.4192, -1.6232], dtype=torch.float64)
    torch.testing.assert_close(found.mean(0), expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.sum(1), torch.full((64,), math.log(0.3)).double())


@pytest.mark.parametrize("name", NETWORKS)
def test_pushed_tangents_match_the_explicit_jacobian(name):
    layer = make_layer(name)
    x_t, state = draw(B, INPUTS), random_state(layer)
    tangents = draw(*state.shape, 3, seed=2)
    expected = full_jacobians(layer, x_t, state) @ tangents
    for after, pushed in (
        push(flat_step(layer), x_t, state, tangents),
        tangent_step(layer)(x_t, state, tangents),
    ):
        torch.testing.assert_close(after, flat_step(layer)(x_t, state))
        torch.testing.assert_close(pushed, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_sum_of_all_exponents_is_the_mean_log_determinant(name):
    layer = make_layer(name)
    if name in ("RNN", "ANRU"):  # if γ is steep, rounding dominates the smallest exponents
        (layer.n if name == "RNN" else layer.Wgn.bias).fill_(1.0)
    if hasattr(layer, "b"):  # a unit below the modReLU threshold has derivative 0
        layer.b.abs_()
    x, state = draw(T, B, INPUTS), random_state(layer)
    found = lyapunov_exponents(flat_step(layer), state, x, state.shape[1], 2, generator())
    logs = []
    for x_t in x:
        logs.append(full_jacobians(layer, x_t, state).det().abs().log())
        state = flat_step(layer)(x_t, state)
    torch.testing.assert_close(found.sum(1), torch.stack(logs[2:]).mean(0))


def test_few_directions_find_the_leading_exponents_of_the_full_spectrum():
    layer = make_layer("ANRU")
    x, state = draw(300, 1, INPUTS), random_state(layer)[:1]
    advance = tangent_step(layer)
    full, few = (
        lyapunov_exponents(None, state, x, k, 100, generator(k), advance)
        for k in (state.shape[1], 3)
    )
    torch.testing.assert_close(few, full[:, :3], rtol=0, atol=1e-3)
    assert few[0, 0] - few[0, 2] > 0.1  # they are not all equal


def test_the_spread_of_the_leading_exponent_shrinks_with_the_number_of_steps():
    layer = make_layer("RNN", nonlin="tanh")
    leading = {
        steps: lyapunov_exponents(
            None, *(draw(16, H), draw(steps, 16, INPUTS)), 2, 20, generator(), tangent_step(layer)
        )[:, 0]
        for steps in (120, 1620)
    }
    short, long = (np.ptp(values.numpy()) for values in leading.values())
    assert 0 < long < short / 2  # 4 in the limit, as the inverse root of the counted steps


def test_the_flat_step_follows_the_trajectory_of_the_layer():
    for name in NETWORKS:
        layer = make_layer(name)
        x, state = draw(T, B, INPUTS), flatten(layer.initial_state(B))
        for x_t in x:
            state = flat_step(layer)(x_t, state)
        torch.testing.assert_close(state, flatten(layer(x)[1]))


def test_a_direction_that_vanishes_has_minus_infinity():
    found = lyapunov_exponents(lambda x_t, state: 0 * state, draw(2, 3), range(4))
    assert (found == -math.inf).all()


@pytest.mark.parametrize(
    ("k", "warm_up", "factor", "message"),
    [
        (3, 0, 1.0, "from 1 to 2 .*, got 3"),
        (0, 0, 1.0, "from 1 to 2 .*, got 0"),
        (1, 4, 1.0, "the warm-up must be shorter than the 4 steps, got 4"),
        (1, 0, 1e200, "the state is not finite after 2 steps"),
    ],
)
def test_exponents_that_cannot_be_computed_are_rejected(k, warm_up, factor, message):
    ones = torch.ones(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        lyapunov_exponents(lambda x_t, state: factor * state, ones, range(4), k, warm_up)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_jacobian_of_a_step_matches_autograd(name):
    layer = make_layer(name)
    x_t, state = draw(B, INPUTS), random_state(layer)
    size = 2 * H if name == "EURNN" else H
    expected = full_jacobians(layer, x_t, state)[:, :size, :size]
    torch.testing.assert_close(step_jacobian(layer, x_t, state), expected)


@pytest.mark.parametrize("nonlin", NONLINEARITIES)
def test_the_jacobian_of_every_activation_matches_autograd(nonlin):
    layer = make_layer("RNN", nonlin=nonlin, n=2.0, s=0.3)
    x_t, state = draw(B, INPUTS), random_state(layer)
    found = step_jacobian(layer, x_t, state)
    expected = full_jacobians(layer, x_t, state)
    torch.testing.assert_close(found, expected)
    tangents = draw(*state.shape, 3, seed=2)
    after, pushed = tangent_step(layer)(x_t, state, tangents)
    torch.testing.assert_close(after, layer.step(x_t, state))
    torch.testing.assert_close(pushed, expected @ tangents)
    if nonlin in ("gamma", "gamma2"):
        slope = gamma_prime(layer.preactivation(x_t, state), layer.n, layer.s)
        torch.testing.assert_close(found, slope.unsqueeze(-1) * layer.V.weight)


def test_the_norms_are_those_of_the_matrices_at_the_requested_times():
    layer = make_layer("GRU")
    x, state = draw(T, B, INPUTS), random_state(layer)
    spectral, infinity = jacobian_norms(layer, state, x, range(2, T + 1, 2))
    assert spectral.shape == infinity.shape == (2, B)
    for t, x_t in enumerate(x, start=1):
        J = full_jacobians(layer, x_t, state).numpy()
        if t % 2 == 0:
            largest = np.linalg.svd(J, compute_uv=False)[:, 0]
            np.testing.assert_allclose(spectral[t // 2 - 1], largest)
            np.testing.assert_allclose(infinity[t // 2 - 1], np.abs(J).sum(2).max(1))
        state = flat_step(layer)(x_t, state)


def test_freezing_keeps_a_parametrised_matrix():
    layer = NETWORKS["nnRNN"](INPUTS, H, generator=generator()).double()
    expected = layer.V.weight.detach().clone()
    assert freeze(layer).V.weight is layer.V.weight
    torch.testing.assert_close(layer.V.weight, expected)
    assert not any(p.requires_grad for p in layer.parameters())


RUNS = {
    "digits": ["sMNIST_task.py", "--net-type", "RNN", "--nonlin", "gamma2"],
    "pydoc": ["PTB_task.py", "--net-type", "LSTM"],
}


@pytest.fixture(params=RUNS)
def toy_run(request, call, only_run):
    script, *arguments = RUNS[request.param]
    assert call(script, *TOY[script], *arguments, "--epochs", 1)[0] == 0
    return Run(only_run())


def test_the_commands_save_their_arrays_once(toy_run, capsys):
    steps = 64 if toy_run.config["model"]["task"] == "pixels" else 12
    path = str(toy_run.path)
    flags = ["--chains", "3", "--draws", "2", "--exponents", "2", "--steps", "80"]
    assert lyapunov.main([path, *flags]) == 0
    assert jacobian_norm.main([path, "--sequences", "3", "--every", "4"]) == 0
    found = analysis.load(toy_run, "lyapunov")
    norms = analysis.load(toy_run, "jacobian_norm")
    assert found["epochs"].tolist() == norms["epochs"].tolist() == [0, 1]
    assert (found["steps"], found["warm_up"]) == (80, 8)
    exponents, leading = found["exponents"], found["leading"]
    assert exponents.shape == (2, 3, 2) and leading.shape == (2, 3, 2)
    np.testing.assert_allclose(exponents[..., 0], leading.mean(axis=2))
    np.testing.assert_allclose(found["leading_mean"], leading.mean(axis=(1, 2)))
    values = leading.reshape(2, 6)
    np.testing.assert_allclose(found["leading_spread"], values.max(axis=1) - values.min(axis=1))
    assert norms["times"].tolist() == list(range(4, steps + 1, 4))
    assert norms["spectral"].shape == norms["infinity"].shape == (2, steps // 4, 3)
    assert len(np.unique(leading)) == 12  # one per epoch, chain and draw
    assert (norms["spectral"] > 0).all() and np.isfinite(exponents).all()
    assert (np.diff(exponents) <= 0).all()

    files = sorted((toy_run.path / "analysis").iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    assert lyapunov.main([path, *flags]) == 0
    assert jacobian_norm.main([path, "--sequences", "3", "--every", "4"]) == 0
    assert [file.stat().st_mtime_ns for file in files] == before
    capsys.readouterr()
    assert lyapunov.main([path, *flags, "--recompute"]) == 0
    assert capsys.readouterr().err == ""
    again = analysis.load(toy_run, "lyapunov")
    np.testing.assert_array_equal(again["exponents"], exponents)


def test_a_chain_of_sequences_carries_the_state(toy_run):
    """Chains on toy runs: sequences s, s + B, ... of the test set, or columns of text."""
    pixels = toy_run.config["model"]["task"] == "pixels"
    steps = 80 if pixels else 30  # longer than a sequence, or a window of text
    *_, (_, layer, x) = trained_layers(toy_run, 2, least=steps)
    if pixels:
        test = load_runs.data_set(toy_run).test
        expected = [torch.cat([test.images[s + 2 * i] for i in (0, 1)]) for s in (0, 1)]
        expected = torch.stack(expected, dim=1).unsqueeze(-1) / 16
    else:
        model = load_runs.load_run(toy_run.path).model
        text = load_runs.data_set(toy_run).test
        half = len(text) // 2
        with torch.no_grad():
            expected = model.encoder(torch.stack([text[:steps], text[half : half + steps]], dim=1))
    torch.testing.assert_close(x, expected.double())

    flags = ["--chains", "2", "--draws", "1", "--steps", str(steps), "--warm-up", "10"]
    assert lyapunov.main([str(toy_run.path), *flags]) == 0
    found = analysis.load(toy_run, "lyapunov")["exponents"][-1]
    state, Q = flatten(layer.initial_state(2)), None
    Q = torch.randn(*state.shape, 8, generator=generator(), dtype=torch.float64)
    Q = np.linalg.qr(Q.numpy())[0]
    total = np.zeros((2, 8))
    for t, x_t in enumerate(x[:steps]):  # one trajectory, by explicit Jacobians
        Q, R = np.linalg.qr(full_jacobians(layer, x_t, state).numpy() @ Q)
        total += np.log(np.abs(np.diagonal(R, axis1=1, axis2=2))) * (t >= 10)
        state = flat_step(layer)(x_t, state)
    expected = -np.sort(-total / (steps - 10))
    np.testing.assert_allclose(found[:, :4], expected[:, :4], atol=1e-8)

    with pytest.raises(Unsuitable, match=r"steps for each of 2 chains, 1000000 are needed"):
        next(trained_layers(toy_run, 2, least=1_000_000))
    if pixels:  # by default, whole sequences and at least 1,000 counted steps
        flags = ["--chains", "1", "--draws", "1", "--recompute"]
        assert lyapunov.main([str(toy_run.path), *flags]) == 0
        found = analysis.load(toy_run, "lyapunov")
        assert (found["steps"], found["warm_up"]) == (18 * 64, 115)
        assert found["exponents"].shape == (2, 1, 8)


def test_without_input_the_exponents_are_those_of_the_autonomous_network(call, only_run, capsys):
    arguments = [*TOY["PTB_task.py"], "--net-type", "RNN", "--nonlin", "none", "--epochs", 1]
    assert call("PTB_task.py", *arguments)[0] == 0
    run = Run(only_run())
    path = str(run.path)
    flags = ["--autonomous", "--steps", "300", "--exponents", "8", "--chains", "2"]
    assert lyapunov.main([path, *flags, "--warm-up", "50"]) == 0
    assert not (run.path / "analysis" / "lyapunov.npz").exists()  # of the driven network
    found = analysis.load(run, "lyapunov_autonomous")["exponents"]
    state_dict = torch.load(run.kept[1], weights_only=True)["state_dict"]
    _, expected = torch.linalg.slogdet(state_dict["rnn.V.weight"].double())
    np.testing.assert_allclose(found[1].sum(1), expected.item(), atol=1e-9)

    for flags, message in [
        (["--exponents", "9"], "from 1 to 8 (state size), got 9"),
        (["--steps", "1000000"], "for each of 4 chains, 1000000 are needed"),
        (["--steps", "12", "--warm-up", "12"], "must be shorter than the 12 steps, got 12"),
    ]:
        assert lyapunov.main([path, "--recompute", *flags]) == 1
        assert message in capsys.readouterr().err
    assert jacobian_norm.main([path, "--every", "13"]) == 1
    assert "--every must be at most 12, the sequence length, got 13" in capsys.readouterr().err
    assert not (run.path / "analysis" / "jacobian_norm.npz").exists()
