"""Lyapunov exponents, Jacobian norms and the dynamics that they are computed from."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

from Postprocessing import analyse
from Postprocessing.dynamics import flat_step, flatten, push, step_jacobian, tangent_step
from Postprocessing.jacobian import of_jacobians, spectral_norm
from Postprocessing.lyapunov import lyapunov_exponents
from Postprocessing.networks import Unsuitable, data_set, freeze, kept_model, trained_layers
from tests.layers import LAYERS, B, H, I, T, build, randn, random_state, seeded
from tests.toy_runs import train
from Training.run_directory import Run


def full_jacobians(layer, x_t, state):
    """The explicit Jacobian of the full state, per sample, (B, D, D)."""
    step, pairs = flat_step(layer), zip(x_t, state, strict=True)
    return torch.stack([jacobian(lambda s, x=x: step(x[None], s[None])[0], s) for x, s in pairs])


def exponents(step, *arguments):
    """`lyapunov_exponents` of a step (x_t, state) → state."""
    return lyapunov_exponents(lambda x_t, *at: push(partial(step, x_t), *at), *arguments)


def test_a_linear_map_has_the_logarithms_of_its_eigenvalues():
    basis = randn(4, 4)
    values = torch.tensor([1.5, -0.9, 0.5, 0.1], dtype=torch.float64)
    A = basis @ values.diag() @ basis.inverse()
    state, x = randn(2, 4), randn(200, 1, 1)
    leading = exponents(lambda x_t, state: state @ A.t() + x_t, state, x, 4, 100, seeded(0))
    torch.testing.assert_close(leading, values.abs().log().expand(2, 4), rtol=0, atol=1e-6)
    vanished = exponents(lambda x_t, state: 0 * state, randn(2, 3), range(4))
    assert (vanished == -math.inf).all()


@pytest.mark.parametrize("key", LAYERS)
def test_tangents_and_the_jacobian_of_a_step_match_autograd(key):
    """Of a frozen layer, whose steps are those of the layer."""
    layer = build(key, scale=0.2)
    x_t, state = randn(B, I), random_state(layer)
    expected = flatten(layer.step(x_t, state))
    layer, state = freeze(layer), flatten(state)
    assert not any(p.requires_grad for p in layer.parameters())
    torch.testing.assert_close(flat_step(layer)(x_t, state), expected)
    tangents, full = randn(*state.shape, 3, seed=2), full_jacobians(layer, x_t, state)
    for after, pushed in (
        push(lambda s: flat_step(layer)(x_t, s), state, tangents),
        tangent_step(layer)(x_t, state, tangents),
    ):
        torch.testing.assert_close(after, expected)
        torch.testing.assert_close(pushed, full @ tangents)
    size = 2 * H if "EURNN" in key else H
    torch.testing.assert_close(step_jacobian(layer, x_t, state), full[:, :size, :size])


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
    layer = freeze(build(name, scale=0.2))
    x, state, times = randn(T, B, I), flatten(layer.initial_state(B)), range(2, T + 1, 2)
    norms, eigenvalues = (
        of_jacobians(function, layer, x, times).numpy()
        for function in (spectral_norm, torch.linalg.eigvals)
    )
    jacobians = []
    for x_t in x:  # with the rest of the state fixed
        jacobians.append(full_jacobians(layer, x_t, state)[:, :H, :H].numpy())
        state = flat_step(layer)(x_t, state)
    J = np.stack(jacobians[1::2])
    np.testing.assert_allclose(norms, np.linalg.svd(J)[1][..., 0])
    expected = np.sort_complex(np.linalg.eigvals(J))
    np.testing.assert_allclose(np.sort_complex(eigenvalues), expected, atol=1e-10)


def test_units_of_an_eurnn_at_zero_have_slope_0():
    """At h = 0 and without input, z = 0: the modulus has no derivative there."""
    layer = freeze(build("EURNN", scale=0.2))
    layer.b.abs_()  # alive wherever z is not 0
    layer.Ure.weight[:2] = layer.Uim.weight[:2] = 0  # z of two units is 0
    x_t, state = randn(B, I), torch.zeros(B, 2 * H).double()
    J = step_jacobian(layer, x_t, state)
    assert J.isfinite().all()
    zero = [0, 1, H, H + 1]  # real and imaginary parts
    assert (J[:, zero] == 0).all() and J.abs().sum(2).gt(0).sum() == B * (2 * H - 4)
    inputs = [0 * x_t, *randn(9, B, I)]
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
    draws, warm_up = randn(4, size, 1).view(2, 2, size), len(x) // 10
    for c, directions in enumerate(draws):  # of the draws of a chain
        state, tangents, lengths = flatten(layer.initial_state(1)), directions.T, []
        for x_t in x[:, c : c + 1]:  # by explicit Jacobians
            tangents = full_jacobians(layer, x_t, state)[0] @ tangents
            lengths.append(tangents.norm(dim=0).log())
            state = flat_step(layer)(x_t, state)
        expected = (lengths[-1] - lengths[warm_up - 1]) / (len(x) - warm_up)
        np.testing.assert_allclose(leading[c], expected, atol=1e-8)
    assert len(np.unique(leading)) == 4
    with pytest.raises(Unsuitable, match=r"steps for each of 2 chains, 1000000 are needed"):
        next(trained_layers(toy_run, 2, least=1_000_000))
