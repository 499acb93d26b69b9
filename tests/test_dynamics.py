"""Lyapunov exponents, Jacobian norms and the dynamics that they are computed from."""

import math

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

from NetworkCreation.Networks import NETWORKS
from Postprocessing import analyse
from Postprocessing.dynamics import flat_step, flatten, push, step_jacobian, tangent_step
from Postprocessing.jacobian import of_jacobians, spectral_norm
from Postprocessing.lyapunov import lyapunov_exponents
from Postprocessing.networks import Unsuitable, data_set, freeze, kept_model, trained_layers
from tests.layers import LAYERS, build, randn, random_state, seeded
from tests.toy_runs import train
from Training.run_directory import Run

T, B, INPUTS, H = 5, 3, 2, 4


def make_layer(key, **options):
    """A frozen layer with biases other than 0, which would hide their omission."""
    return freeze(build(key, scale=0.2, inputs=INPUTS, units=H, **options))


def full_jacobians(layer, x_t, state):
    """The explicit Jacobian of the full state, per sample, (B, D, D)."""
    step, pairs = flat_step(layer), zip(x_t, state, strict=True)
    return torch.stack([jacobian(lambda s, x=x: step(x[None], s[None])[0], s) for x, s in pairs])


def exponents(step, *arguments):
    """`lyapunov_exponents` of a step (x_t, state) → state."""

    def advance(x_t, state, tangents):
        return push(lambda before: step(x_t, before), state, tangents)

    return lyapunov_exponents(advance, *arguments)


def test_a_linear_map_has_the_logarithms_of_its_eigenvalues():
    basis = randn(4, 4)
    values = torch.tensor([1.5, -0.9, 0.5, 0.1], dtype=torch.float64)
    A = basis @ values.diag() @ basis.inverse()

    def step(x_t, state):
        return state @ A.t() + x_t

    leading = exponents(step, randn(2, 4), randn(200, 1, 1), 4, 100, seeded(0))
    assert leading.shape == (2, 4)
    torch.testing.assert_close(leading, values.abs().log().expand(2, 4), rtol=0, atol=1e-6)
    vanished = exponents(lambda x_t, state: 0 * state, randn(2, 3), range(4))
    assert (vanished == -math.inf).all()


@pytest.mark.parametrize("key", LAYERS)
def test_tangents_and_the_jacobian_of_a_step_match_autograd(key):
    layer = make_layer(key)
    x_t, state = randn(B, INPUTS), flatten(random_state(layer))
    tangents, full = randn(*state.shape, 3, seed=2), full_jacobians(layer, x_t, state)
    for after, pushed in (
        push(lambda s: flat_step(layer)(x_t, s), state, tangents),
        tangent_step(layer)(x_t, state, tangents),
    ):
        torch.testing.assert_close(after, flat_step(layer)(x_t, state))
        torch.testing.assert_close(pushed, full @ tangents)
    size = 2 * H if "EURNN" in key else H
    torch.testing.assert_close(step_jacobian(layer, x_t, state), full[:, :size, :size])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_frozen_layer_and_its_flat_step_follow_the_trajectory_of_the_layer(name):
    layer, x = build(name, inputs=INPUTS), randn(T, B, INPUTS)
    expected = flatten(layer(x)[1])
    state = flatten(layer.initial_state(B))
    layer = freeze(layer)
    for x_t in x:
        state = flat_step(layer)(x_t, state)
    torch.testing.assert_close(state, expected)
    assert not any(p.requires_grad for p in layer.parameters())


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


@pytest.mark.parametrize("name", ["GRU", "ANRU"])
def test_norms_and_eigenvalues_are_those_of_the_jacobian_at_the_requested_times(name):
    layer = make_layer(name)
    x, state, times = randn(T, B, INPUTS), flatten(layer.initial_state(B)), range(2, T + 1, 2)
    norms, eigenvalues = (
        of_jacobians(function, layer, x, times).numpy()
        for function in (spectral_norm, torch.linalg.eigvals)
    )
    assert norms.shape == (2, B) and eigenvalues.shape == (2, B, H)
    for t, x_t in enumerate(x, start=1):
        if t in times:
            J = full_jacobians(layer, x_t, state)[:, :H, :H].numpy()  # the rest of the state fixed
            np.testing.assert_allclose(norms[t // 2 - 1], np.linalg.svd(J)[1][:, 0])
            expected = np.sort_complex(np.linalg.eigvals(J))
            measured = np.sort_complex(eigenvalues[t // 2 - 1])
            np.testing.assert_allclose(measured, expected, atol=1e-10)
        state = flat_step(layer)(x_t, state)


def test_units_of_an_eurnn_at_zero_have_slope_0():
    """At h = 0 and without input, z = 0: the modulus has no derivative there."""
    layer = make_layer("EURNN")
    layer.b.abs_()  # alive wherever z is not 0
    layer.Ure.weight[:2] = layer.Uim.weight[:2] = 0  # z of two units is 0
    x_t, state = randn(B, INPUTS), torch.zeros(B, 2 * H).double()
    J = step_jacobian(layer, x_t, state)
    assert J.isfinite().all()
    zero = [0, 1, H, H + 1]  # real and imaginary parts
    assert (J[:, zero] == 0).all() and J.abs().sum(2).gt(0).sum() == B * (2 * H - 4)
    inputs = [0 * x_t, *randn(9, B, INPUTS)]
    leading = lyapunov_exponents(tangent_step(layer), state, inputs, 1, 5, seeded(0))
    assert leading.isfinite().all()


RUNS = {
    "gamma2": ["sMNIST_task.py", "--net-type", "RNN", "--nonlin", "gamma2"],
    "EURNN": ["sMNIST_task.py", "--net-type", "EURNN"],
    "text": ["PTB_task.py", "--net-type", "LSTM"],
}


@pytest.fixture(scope="module", params=RUNS)
def toy_run(request, tmp_path_factory):
    return Run(train(tmp_path_factory.mktemp(request.param), *RUNS[request.param]))


def test_the_analyses_save_finite_arrays_once(toy_run):
    text = toy_run.config["model"]["task"] == "characters"
    steps, chain = (12, 40) if text else (64, 64)  # whole sequences of pixels
    few = {"lyapunov": {"chains": 3, "draws": 2, "steps": 40}}
    few["jacobian"] = {"sequences": 3, "times": 16, "eigen_sequences": 2, "eigen_times": 4}
    for name, settings in few.items():
        assert analyse.compute(toy_run, name, settings)
        assert not analyse.compute(toy_run, name, settings)
    exponents, norms = (analyse.load(toy_run.path, name) for name in few)
    assert exponents["epochs"].tolist() == norms["epochs"].tolist() == [0, 1]
    assert (exponents["steps"], exponents["warm_up"]) == (chain, chain // 10)
    assert exponents["leading"].shape == (2, 3, 2)
    every = -(-steps // 16)
    assert norms["times"].tolist() == list(range(every, steps + 1, every))
    assert norms["spectral"].shape == (2, len(norms["times"]), 3) and (norms["spectral"] > 0).all()
    eurnn = toy_run.config["model"]["net_type"] == "EURNN"
    assert norms["eigenvalues"].shape == (2, 4, 2, 16 if eurnn else 8)
    if text:
        assert "matrix" not in norms  # of an LSTM
    else:
        assert norms["matrix"].shape == (2, 8)
        expected = freeze(kept_model(toy_run, 1).rnn).recurrent_matrix().numpy()
        expected = np.sort(np.abs(np.linalg.eigvals(expected)))
        np.testing.assert_allclose(np.sort(np.abs(norms["matrix"][1])), expected)


@pytest.mark.parametrize("toy_run", ["gamma2", "text"], indirect=True)
def test_the_exponents_of_a_chain_are_those_of_that_chain_alone(toy_run):
    """Chains of toy runs: sequences s, s + B, ... of the test set, or columns of text."""
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

    assert analyse.compute(toy_run, "lyapunov", {"chains": 2, "draws": 2, "steps": steps})
    leading = analyse.load(toy_run.path, "lyapunov")["leading"][-1]
    size = flatten(layer.initial_state(1)).shape[1]
    first = randn(4, size, 1).numpy()
    for c, directions in enumerate(first.reshape(2, 2, size, 1)):  # of the draws of a chain
        state, total, warm_up = flatten(layer.initial_state(1)), np.zeros(2), len(x) // 10
        Q = np.linalg.qr(directions)[0]
        for t, x_t in enumerate(x[:, c : c + 1]):  # by explicit Jacobians
            Q, R = np.linalg.qr(full_jacobians(layer, x_t, state).numpy() @ Q)
            total += np.log(np.abs(R[:, 0, 0])) * (t >= warm_up)
            state = flat_step(layer)(x_t, state)
        np.testing.assert_allclose(leading[c], total / (len(x) - warm_up), atol=1e-8)
    assert len(np.unique(leading)) == 4
    with pytest.raises(Unsuitable, match=r"steps for each of 2 chains, 1000000 are needed"):
        next(trained_layers(toy_run, 2, least=1_000_000))
