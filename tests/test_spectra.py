"""Spectra: matrices and Jacobians with known eigenvalues, and the command on a toy run."""

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

from NetworkCreation.Networks import NETWORKS
from Postprocessing import analysis, spectra
from Postprocessing.dynamics import freeze
from Postprocessing.spectra import jacobian_eigenvalues, recurrent_matrix
from tests.conftest import TOY
from Training.run_directory import Run

H = 6


def make_layer(name, **options):
    return freeze(NETWORKS[name](1, H, generator=torch.Generator().manual_seed(0), **options))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_recurrent_matrix_takes_h_to_the_preactivation(name):
    layer = make_layer(name)
    W, x = recurrent_matrix(layer), torch.zeros(1, 1).double()
    h = torch.randn(1, H, dtype=W.dtype, generator=torch.Generator().manual_seed(1))
    if name == "LSTM":
        difference = layer.Wg(torch.cat([h, x], dim=1)) - layer.Wg.bias
    elif name == "GRU":
        difference = layer.Whn(h) - layer.Whn.bias
    else:
        difference = layer.preactivation(x, h) - layer.preactivation(x, torch.zeros_like(h))
    torch.testing.assert_close(W @ h[0], difference[0])


@pytest.mark.parametrize("name", ["RNN", "ANRU", "expRNN", "nnRNN", "EURNN"])
def test_orthogonal_matrices_have_eigenvalues_on_the_unit_circle(name):
    values = torch.linalg.eigvals(recurrent_matrix(make_layer(name)))
    torch.testing.assert_close(values.abs(), torch.ones_like(values.abs()), rtol=0, atol=1e-6)
    assert values.imag.abs().max() > 0.1


def test_the_eigenvalues_of_a_normal_matrix_fill_the_unit_disc():
    layer = NETWORKS["RNN"](1, 400, rinit="normal", generator=torch.Generator().manual_seed(0))
    size = torch.linalg.eigvals(recurrent_matrix(freeze(layer))).abs()
    assert 0.95 < size.max() < 1.1
    # uniform on the disc: a quarter within half the radius
    assert (size < 0.5).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_the_jacobian_of_a_linear_network_has_the_eigenvalues_of_its_matrix():
    layer = make_layer("RNN", nonlin="none")
    layer.V.weight.copy_(torch.diag(torch.linspace(-0.9, 0.6, H)))
    found = jacobian_eigenvalues(layer, torch.ones(4, 2, 1).double(), range(2, 5, 2))
    assert found.shape == (2, 2, H)
    expected = layer.V.weight.diag().expand(2, 2, H)
    torch.testing.assert_close(found.real.sort().values, expected)
    assert (found.imag == 0).all()


def test_the_jacobian_is_that_of_each_step_at_fixed_g():
    layer = make_layer("ANRU", supervisor_size=3)
    x = torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    found, state = jacobian_eigenvalues(layer, x, range(1, 4)), layer.initial_state(1)
    for x_t, values in zip(x, found, strict=True):
        h, g = state
        J = jacobian(lambda h, x_t=x_t, g=g: layer.step(x_t, (h[None], g))[0][0], h[0])
        expected = np.sort_complex(np.linalg.eigvals(J.numpy()))
        np.testing.assert_allclose(np.sort_complex(values[0].numpy()), expected, atol=1e-10)
        state = layer.step(x_t, state)


def test_the_command_saves_the_initial_and_final_spectra(call, only_run):
    arguments = [*TOY["sMNIST_task.py"], "--epochs", 2, "--save-freq", 1, "--nonlin", "ReLU"]
    assert call("sMNIST_task.py", *arguments)[0] == 0
    run = Run(only_run())
    assert spectra.main([str(run.path), "--sequences", "3", "--times", "5"]) == 0
    found = analysis.load(run, "spectra")
    assert found["epochs"].tolist() == [0, 2]
    assert found["times"].tolist() == [13, 26, 39, 52]
    assert found["matrix"].shape == (2, 8) and found["jacobian"].shape == (2, 4, 3, 8)
    for epoch, values in zip((0, 2), found["matrix"], strict=True):
        saved = torch.load(run.kept[epoch], weights_only=True)["state_dict"]["rnn.V.weight"]
        expected = np.sort(np.abs(np.linalg.eigvals(saved.double().numpy())))
        np.testing.assert_allclose(np.sort(np.abs(values)), expected)
