"""expRNN, nnRNN and EURNN: their matrices and their equations."""

import math

import pytest
import torch

from NetworkCreation.exprnn import ORTHOGONAL_MAPS
from NetworkCreation.initialization import ROTATIONS, kaiming
from NetworkCreation.layer import modrelu
from tests.layers import build, new, randn, seeded

T, B, I, H = 9, 3, 2, 6  # noqa: E741
each_map = pytest.mark.parametrize("ostep_method", ORTHOGONAL_MAPS)


def departure(M):
    """The largest element of |Mᴴ M − 1|."""
    return (M.mH @ M - torch.eye(len(M), dtype=M.dtype)).abs().max().item()


@pytest.mark.parametrize("units", [6, 7])
@each_map
@pytest.mark.parametrize("rinit", ROTATIONS)
def test_exprnn_starts_with_the_matrix_drawn_by_rinit(rinit, ostep_method, units):
    generator = seeded(3)
    kaiming(torch.empty(units, I, dtype=torch.float64), generator)  # U is drawn first
    expected = ROTATIONS[rinit](torch.empty(units, units, dtype=torch.float64), generator)
    layer = new("expRNN", units=units, seed=3, rinit=rinit, ostep_method=ostep_method)
    torch.testing.assert_close(layer.V.weight, expected, rtol=0, atol=1e-14)
    assert torch.equal(layer.P, layer.V.weight)


@each_map
def test_exprnn_is_its_initial_matrix_times_the_map_of_a_skew_symmetric_one(ostep_method):
    layer = new("expRNN", units=H, ostep_method=ostep_method)
    start, parameter = layer.P.detach().clone(), layer.parameter_groups()["orthogonal"][0]
    with torch.no_grad():
        parameter.copy_(randn(H, H))
    lower = randn(H, H).tril(-1)
    A, one = lower - lower.t(), torch.eye(H, dtype=torch.float64)
    turned = {"exp": torch.matrix_exp(A), "cayley": (one + A / 2) @ (one - A / 2).inverse()}
    torch.testing.assert_close(layer.P, start @ turned[ostep_method])


def test_nnrnn_starts_orthogonal_and_matches_its_schur_form():
    layer = new("nnRNN", units=32, dtype=torch.float32)
    assert departure(layer.V.weight) < 1e-5
    assert layer.schur.alpha.tolist() == [1.0] * 16 and not layer.schur.T.any()
    assert layer.schur.theta.min() >= 0 and 4 < layer.schur.theta.max() <= 2 * math.pi
    layer = build("nnRNN", units=H)
    with torch.no_grad():
        layer.schur.T.copy_(randn(H, H))
    alpha, theta, P = layer.schur.alpha, layer.schur.theta, layer.P
    c, s = alpha * theta.cos(), alpha * theta.sin()
    rotations = torch.stack([c, -s, s, c], dim=1).view(-1, 2, 2)
    above = torch.ones(H // 2, H // 2).triu(1).kron(torch.ones(2, 2))
    expected = torch.block_diag(*rotations) + above * layer.schur.T
    torch.testing.assert_close(P.t() @ layer.V.weight @ P, expected)
    assert departure(P) < 1e-12 and departure(layer.V.weight) > 0.1
    assert layer.penalty().item() == pytest.approx(sum((a - 1) ** 2 for a in alpha.tolist()))


@pytest.mark.parametrize("units", [1, 2, 6, 7])
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_eurnn_is_a_product_of_rotations(units, capacity):
    layer = new("EURNN", units=units, capacity=capacity)
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
    torch.testing.assert_close(layer.recurrent_matrix(), torch.exp(1j * layer.omega).diag() @ W)
    assert departure(layer.recurrent_matrix()) < 1e-12


@each_map
def test_a_large_matrix_is_orthogonal_in_float32(ostep_method):
    layer = new("expRNN", units=400, rinit="random", ostep_method=ostep_method, dtype=torch.float32)
    with torch.no_grad():  # as far as 1,000 updates at a rate of 2e-5 can move each entry
        layer.V.parametrizations.weight.original.add_(randn(400, 400).float(), alpha=0.02)
    assert departure(layer.P) < 2e-6


def test_zero_input_keeps_eurnn_at_zero_with_finite_gradients():
    layer = new("EURNN", units=H)
    x = torch.zeros(T, B, I, dtype=torch.float64).requires_grad_()
    outputs, _ = layer(x)
    assert not outputs.any()
    outputs.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    z = torch.zeros(1, dtype=torch.complex128).requires_grad_()
    value = modrelu(z, torch.ones(1, dtype=torch.float64))
    assert value.item() == 0 and torch.autograd.grad(value.real, z)[0].item() == 0


@pytest.mark.parametrize("name", ["expRNN", "nnRNN"])
def test_the_matrix_is_built_once_per_sequence(name):
    layer, built = build(name, units=H), []
    layer.V.parametrizations.weight[0].register_forward_hook(lambda *_: built.append(name))
    for run in (layer, layer.loop, layer.trace):
        built.clear()
        run(randn(T, B, I))[0].sum().backward()
        assert built == [name]
