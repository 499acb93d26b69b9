"""Lyapunov exponents, Jacobian norms and the dynamics that they are computed from."""

import math

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

from NetworkCreation.gamma_function import gamma_prime
from NetworkCreation.layer import NONLINEARITIES
from NetworkCreation.Networks import NETWORKS
from Postprocessing import analyse
from Postprocessing.dynamics import flat_step, flatten, push, step_jacobian, tangent_step
from Postprocessing.jacobian import jacobian_eigenvalues, spectral_norms
from Postprocessing.lyapunov import lyapunov_exponents
from Postprocessing.networks import (
    Unsuitable,
    data_set,
    freeze,
    kept_model,
    trained_layers,
)
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


def exponents(step, *arguments):
    """`lyapunov_exponents` of a step (x_t, state) → state."""

    def advance(x_t, state, tangents):
        return push(lambda before: step(x_t, before), state, tangents)

    return lyapunov_exponents(advance, *arguments)


def test_a_linear_map_has_the_logarithms_of_its_eigenvalues():
    basis = draw(4, 4)
    values = torch.tensor([1.5, -0.9, 0.5, 0.1], dtype=torch.float64)
    A = basis @ values.diag() @ basis.inverse()
    found = exponents(
        lambda x_t, state: state @ A.t() + x_t, draw(2, 4), draw(200, 1, 1), 4, 100, generator()
    )
    assert found.shape == (2, 4)
    torch.testing.assert_close(found, values.abs().log().expand(2, 4), rtol=0, atol=1e-6)


def test_the_henon_map_has_its_known_exponents():
    def step(_, state):
        x, y = state.unbind(1)
        return torch.stack([1 - 1.4 * x * x + y, 0.3 * x], dim=1)

    start = 0.1 * torch.rand(64, 2, generator=generator(), dtype=torch.float64)
    found = exponents(step, start, range(1000), 2, 100, generator())
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
        push(lambda s: flat_step(layer)(x_t, s), state, tangents),
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
    found = exponents(flat_step(layer), state, x, state.shape[1], 2, generator())
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
        lyapunov_exponents(advance, state, x, k, 100, generator(k)) for k in (state.shape[1], 3)
    )
    torch.testing.assert_close(few, full[:, :3], rtol=0, atol=1e-3)
    assert few[0, 0] - few[0, 2] > 0.1  # they are not all equal


def test_the_spread_of_the_leading_exponent_shrinks_with_the_number_of_steps():
    layer = make_layer("RNN", nonlin="tanh")
    leading = {
        steps: lyapunov_exponents(
            tangent_step(layer), *(draw(16, H), draw(steps, 16, INPUTS)), 2, 20, generator()
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
    found = exponents(lambda x_t, state: 0 * state, draw(2, 3), range(4))
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
        exponents(lambda x_t, state: factor * state, ones, range(4), k, warm_up)


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
    x, state = draw(T, B, INPUTS), flatten(layer.initial_state(B))
    found = spectral_norms(layer, x, range(2, T + 1, 2))
    assert found.shape == (2, B)
    for t, x_t in enumerate(x, start=1):
        J = full_jacobians(layer, x_t, state).numpy()
        if t % 2 == 0:
            np.testing.assert_allclose(found[t // 2 - 1], np.linalg.svd(J)[1][:, 0])
        state = flat_step(layer)(x_t, state)


def test_units_of_an_eurnn_at_zero_have_slope_0():
    """At h = 0 and without input, z = 0: the modulus has no derivative there."""
    layer = make_layer("EURNN")
    layer.b.abs_()  # alive wherever z is not 0
    layer.Ure.weight[:2] = layer.Uim.weight[:2] = 0  # z of two units is 0
    x_t, state = draw(B, INPUTS), torch.zeros(B, 2 * H).double()
    J = step_jacobian(layer, x_t, state)
    assert J.isfinite().all()
    zero = [0, 1, H, H + 1]  # real and imaginary parts
    assert (J[:, zero] == 0).all() and J.abs().sum(2).gt(0).sum() == B * (2 * H - 4)
    inputs = [0 * x_t, *draw(9, B, INPUTS)]
    found = lyapunov_exponents(tangent_step(layer), state, inputs, 1, 5, generator())
    assert found.isfinite().all()


def test_freezing_keeps_a_parametrised_matrix():
    layer = NETWORKS["nnRNN"](INPUTS, H, generator=generator()).double()
    expected = layer.V.weight.detach().clone()
    assert freeze(layer).V.weight is layer.V.weight
    torch.testing.assert_close(layer.V.weight, expected)
    assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("name", ["RNN", "ANRU", "expRNN", "nnRNN", "EURNN"])
def test_the_recurrent_matrix_takes_h_to_the_preactivation(name):
    layer = make_layer(name)
    W, x = layer.recurrent_matrix(), torch.zeros(1, INPUTS).double()
    h = torch.randn(1, H, dtype=W.dtype, generator=generator(1))
    difference = layer.preactivation(x, h) - layer.preactivation(x, torch.zeros_like(h))
    torch.testing.assert_close(W @ h[0], difference[0])


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_gated_networks_have_no_single_recurrent_matrix(name):
    with pytest.raises(NotImplementedError, match=f"{name} has no single recurrent matrix"):
        make_layer(name).recurrent_matrix()


@pytest.mark.parametrize("name", ["RNN", "ANRU", "expRNN", "nnRNN", "EURNN"])
def test_orthogonal_matrices_have_eigenvalues_on_the_unit_circle(name):
    layer = freeze(NETWORKS[name](INPUTS, H, generator=generator()))
    values = torch.linalg.eigvals(layer.recurrent_matrix())
    torch.testing.assert_close(values.abs(), torch.ones_like(values.abs()), rtol=0, atol=1e-6)
    assert values.imag.abs().max() > 0.1


def test_the_jacobian_of_a_linear_network_has_the_eigenvalues_of_its_matrix():
    layer = make_layer("RNN", nonlin="none")
    layer.V.weight.copy_(torch.diag(torch.linspace(-0.9, 0.6, H)))
    found = jacobian_eigenvalues(layer, torch.ones(4, 2, INPUTS).double(), range(2, 5, 2))
    assert found.shape == (2, 2, H)
    expected = layer.V.weight.diag().expand(2, 2, H)
    torch.testing.assert_close(found.real.sort().values, expected)
    assert (found.imag == 0).all()


def test_the_jacobian_is_that_of_each_step_at_fixed_g():
    layer = make_layer("ANRU")
    x = draw(3, 1, INPUTS)
    found, state = jacobian_eigenvalues(layer, x, range(1, 4)), layer.initial_state(1)
    for x_t, values in zip(x, found, strict=True):
        h, g = state
        J = jacobian(lambda h, x_t=x_t, g=g: layer.step(x_t, (h[None], g))[0][0], h[0])
        expected = np.sort_complex(np.linalg.eigvals(J.numpy()))
        np.testing.assert_allclose(np.sort_complex(values[0].numpy()), expected, atol=1e-10)
        state = layer.step(x_t, state)


# Saved runs

RUNS = {
    "gamma2": ["sMNIST_task.py", "--net-type", "RNN", "--nonlin", "gamma2"],
    "EURNN": ["sMNIST_task.py", "--net-type", "EURNN"],
    "text": ["PTB_task.py", "--net-type", "LSTM"],
}


@pytest.fixture(params=RUNS)
def toy_run(request, call, only_run):
    script, *arguments = RUNS[request.param]
    assert call(script, *TOY[script], *arguments, "--epochs", 1)[0] == 0
    return Run(only_run())


def test_the_analyses_save_finite_arrays_once(toy_run):
    text = toy_run.config["model"]["task"] == "characters"
    steps, chain = (12, 80) if text else (64, 128)  # whole sequences of pixels
    few = {"lyapunov": {"chains": 3, "draws": 2, "steps": 80}}
    few["jacobian"] = {"sequences": 3, "times": 16, "eigen_sequences": 2, "eigen_times": 4}
    for name, settings in few.items():
        assert analyse.compute(toy_run, name, settings)
        assert not analyse.compute(toy_run, name, settings)
    found, norms = (analyse.load(toy_run.path, name) for name in few)
    assert found["epochs"].tolist() == norms["epochs"].tolist() == [0, 1]
    assert (found["steps"], found["warm_up"]) == (chain, chain // 10)
    assert found["leading"].shape == (2, 3, 2)
    eurnn = toy_run.config["model"]["net_type"] == "EURNN"  # forgets its direction at z = 0
    assert len(np.unique(found["leading"])) == (6 if eurnn else 12)  # one per epoch, chain, draw
    every = -(-steps // 16)
    assert norms["times"].tolist() == list(range(every, steps + 1, every))
    assert norms["spectral"].shape == (2, len(norms["times"]), 3) and (norms["spectral"] > 0).all()
    assert norms["eigenvalues"].shape == (2, 4, 2, 16 if eurnn else 8)
    if text:
        assert "matrix" not in norms  # of an LSTM
    else:
        assert norms["matrix"].shape == (2, 8)
        expected = freeze(kept_model(toy_run, 1).rnn).recurrent_matrix().numpy()
        expected = np.sort(np.abs(np.linalg.eigvals(expected)))
        np.testing.assert_allclose(np.sort(np.abs(norms["matrix"][1])), expected)


def test_a_chain_of_sequences_carries_the_state(toy_run):
    """Chains on toy runs: sequences s, s + B, ... of the test set, or columns of text."""
    text = toy_run.config["model"]["task"] == "characters"
    steps = 30 if text else 80  # longer than a window of text, or a sequence
    *_, (_, layer, x) = trained_layers(toy_run, 2, least=steps)
    test = data_set(toy_run).test
    if text:
        half = len(test) // 2
        with torch.no_grad():
            symbols = torch.stack([test[:steps], test[half : half + steps]], dim=1)
            expected = kept_model(toy_run).encoder(symbols)
    else:
        expected = [torch.cat([test.images[s + 2 * i] for i in (0, 1)]) for s in (0, 1)]
        expected = torch.stack(expected, dim=1).unsqueeze(-1) / 16
    torch.testing.assert_close(x, expected.double())

    settings = {"chains": 2, "draws": 1, "steps": steps}
    assert analyse.compute(toy_run, "lyapunov", settings)
    found = analyse.load(toy_run.path, "lyapunov")["leading"][-1, :, 0]
    state = flatten(layer.initial_state(2))
    Q = torch.randn(*state.shape, 1, generator=generator(), dtype=torch.float64)
    Q = np.linalg.qr(Q.numpy())[0]
    total, warm_up = np.zeros(2), len(x) // 10
    for t, x_t in enumerate(x):  # one trajectory, by explicit Jacobians
        if toy_run.config["model"]["net_type"] == "EURNN":
            pytest.skip("its explicit Jacobian is not defined at z = 0")
        Q, R = np.linalg.qr(full_jacobians(layer, x_t, state).numpy() @ Q)
        total += np.log(np.abs(R[:, 0, 0])) * (t >= warm_up)
        state = flat_step(layer)(x_t, state)
    np.testing.assert_allclose(found, total / (len(x) - warm_up), atol=1e-8)
    with pytest.raises(Unsuitable, match=r"steps for each of 2 chains, 1000000 are needed"):
        next(trained_layers(toy_run, 2, least=1_000_000))
