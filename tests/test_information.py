"""Mutual information: the estimator against known values, and the command on toy runs."""

import math

import numpy as np
import pytest
import torch

from Postprocessing import analyse
from Postprocessing.mutual_information import (
    gaussian_information,
    mutual_information,
    principal_components,
)
from Postprocessing.networks import Unsuitable
from tests.conftest import TOY
from Training.run_directory import Run

N = 4000


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def column(values):
    return np.asarray(values, dtype=float).reshape(-1, 1)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.9])
def test_correlated_gaussians(rng, rho):
    x, noise = rng.standard_normal((2, N))
    y = rho * x + math.sqrt(1 - rho**2) * noise
    expected = -0.5 * math.log(1 - rho**2)
    assert mutual_information(column(x), column(y)) == pytest.approx(expected, abs=0.05)


def test_independent_coordinates_add_up(rng):
    x, noise = rng.standard_normal((2, N, 2))
    y = 0.6 * x + 0.8 * noise
    assert mutual_information(x, y) == pytest.approx(-math.log(1 - 0.36), abs=0.06)


@pytest.mark.parametrize("m", [2, 5])
def test_discrete_and_continuous(rng, m):
    """X ~ U{0, …, m−1}, Y ~ U[X, X+2]: the first experiment of arXiv 1709.06212."""
    x = rng.integers(m, size=N)
    y = x + 2 * rng.random(N)
    expected = math.log(m) - (m - 1) * math.log(2) / m
    assert mutual_information(column(x), column(y)) == pytest.approx(expected, abs=0.05)


def test_zero_inflated_poisson(rng):
    """X ~ Exp(1), Y = 0 or Poisson(X): the third experiment of arXiv 1709.06212.

    E[Y log Y!] has no closed form; I = H(Y) − H(Y | X) is summed over y and integrated over x.
    """
    p = 0.15  # probability of the added zero
    x = rng.exponential(size=N)
    y = np.where(rng.random(N) < p, 0, rng.poisson(x))
    counts = np.arange(60)
    log_factorial = np.array([math.lgamma(k + 1) for k in counts])
    nodes, weights = np.polynomial.laguerre.laggauss(60)
    given = (1 - p) * np.exp(counts * np.log(nodes[:, None]) - nodes[:, None] - log_factorial)
    given[:, 0] += p

    def entropy(q):
        return -np.sum(q * np.log(np.maximum(q, 1e-300)), axis=-1)

    expected = entropy(weights @ given) - weights @ entropy(given)
    assert mutual_information(column(x), column(y)) == pytest.approx(expected, abs=0.05)


def test_ties_alone(rng):
    """Dice: a throw has full information about itself, none about another; a constant has none."""
    x = rng.integers(6, size=N)
    assert mutual_information(column(x), column(x)) == pytest.approx(math.log(6), abs=0.01)
    other = rng.integers(6, size=N)
    assert mutual_information(column(x), column(other)) == pytest.approx(0, abs=0.01)
    assert mutual_information(column(np.zeros(N)), column(x)) == pytest.approx(0, abs=0.01)


def test_mixture_of_points_and_density(rng):
    """Half of the samples are (9, 9), the others correlated Gaussians: log 2 + half of theirs."""
    x, noise = rng.standard_normal((2, N))
    y = 0.9 * x + math.sqrt(0.19) * noise
    x[: N // 2] = y[: N // 2] = 9
    expected = math.log(2) - 0.25 * math.log(0.19)
    assert mutual_information(column(x), column(y)) == pytest.approx(expected, abs=0.06)


def test_against_the_definition(rng):
    """The estimator computed point by point, from all pairwise distances."""
    x = rng.integers(3, size=(150, 1)).astype(float)
    y = np.where(rng.random((150, 2)) < 0.5, 0.0, rng.standard_normal((150, 2)))
    dx, dy = (np.abs(z[:, None] - z[None]).max(axis=2) for z in (x, y))
    joint = np.maximum(dx, dy)

    def digamma(n):
        return sum(1 / j for j in range(1, n)) - np.euler_gamma

    total = 0.0
    for i in range(150):
        distance = np.sort(joint[i])[4]
        near = (dx[i] < distance, dy[i] < distance) if distance else (dx[i] == 0, dy[i] == 0)
        k = 4 if distance else np.sum(joint[i] == 0)
        total += digamma(k) + math.log(150) - sum(digamma(np.sum(one)) for one in near)
    assert np.any(np.sort(joint)[:, 4] == 0) and np.any(np.sort(joint)[:, 4] > 0)
    assert mutual_information(x, y, neighbours=4) == pytest.approx(total / 150, abs=1e-12)


def test_it_is_symmetric_and_independent_of_scale_and_order(rng):
    x, noise = rng.standard_normal((2, 500, 2))
    y = x + noise
    found = mutual_information(x, y)
    assert mutual_information(y, x) == pytest.approx(found, abs=1e-12)
    assert mutual_information(4 * x + 1, 4 * y) == pytest.approx(found, abs=1e-9)
    order = rng.permutation(500)
    assert mutual_information(x[order], y[order]) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "neighbours", "said"),
    [
        (np.zeros(9), np.zeros((9, 1)), 5, r"\(N, dx\)"),
        (np.zeros((9, 1)), np.zeros((8, 1)), 5, r"\(N, dx\)"),
        (np.zeros((9, 1)), np.zeros((9, 1)), 9, "got 9"),
        (np.zeros((9, 1)), np.zeros((9, 1)), 0, "got 0"),
        (np.full((9, 1), np.nan), np.zeros((9, 1)), 5, "not finite"),
    ],
)
def test_invalid_samples_are_rejected(x, y, neighbours, said):
    with pytest.raises(ValueError, match=said):
        mutual_information(x, y, neighbours)


def test_principal_components_have_the_largest_variances(rng):
    turn, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    h = rng.standard_normal((3000, 4)) * [5.0, 2.0, 0.1, 0.01] @ turn + 3.0
    projected = principal_components(h, 2)
    np.testing.assert_allclose(projected.std(axis=0), [5.0, 2.0], rtol=0.05)
    assert principal_components(h, 9).shape == (3000, 4)


def test_gaussian_information_follows_from_the_covariance(rng):
    """Against the determinants of the covariance, and the correlation of two variables."""
    x, noise = rng.standard_normal((2, 300, 3))
    y = x[:, :2] @ rng.standard_normal((2, 2)) + 0.5 * noise[:, :2]
    C = np.cov(np.hstack([x, y]).T)
    logs = [np.linalg.slogdet(part)[1] for part in (C[:3, :3], C[3:, 3:], C)]
    expected = (logs[0] + logs[1] - logs[2]) / 2
    assert gaussian_information(x, y) == pytest.approx(expected, rel=1e-9)
    assert gaussian_information(x, np.hstack([y, y])) == pytest.approx(expected, rel=1e-9)
    assert gaussian_information(x, np.zeros((300, 1))) == 0  # a dead layer
    rho = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
    found = gaussian_information(x[:, :1], y[:, :1])
    assert found == pytest.approx(-0.5 * math.log(1 - rho**2), rel=1e-9)


def test_ties_with_denormals_flushed(rng):
    """Many equal values, of which 0 is one, ended the process in a crash of the tree."""
    torch.set_flush_denormal(True)
    noise = column(rng.standard_normal(N))
    binary, unit = column(rng.integers(2, size=N)), np.maximum(noise - 1.3, 0)
    assert mutual_information(binary, noise) == pytest.approx(0, abs=0.05)
    assert mutual_information(binary, binary) == pytest.approx(math.log(2), abs=0.01)
    assert (unit == 0).mean() > 0.85 and mutual_information(unit, binary) < 0.05
    assert mutual_information(column(np.zeros(N)), binary) == pytest.approx(0, abs=0.01)


def test_the_analysis_of_pixels(call, only_run):
    call("sMNIST_task.py", *TOY["sMNIST_task.py"], "-p", "--epochs", "1")
    run = Run(only_run())
    assert analyse.compute(run, "mutual_information", {})
    found = analyse.load(run.path, "mutual_information")
    assert found["samples"] == 1797  # all images
    assert found["window"] == 5
    assert found["times"][0] == 5 and found["times"][-1] == 64
    assert found["information"].shape == (8,)
    assert found["information"][0] > 0.5  # h_5 is a function of the window
    estimate, truth = found["gaussian_estimate"], found["gaussian_truth"]
    assert estimate.shape == truth.shape == (8,)
    assert estimate[0] < truth[0] - 0.5  # biased low, as h_5 is almost linear in the window
    weak = truth < 0.3
    np.testing.assert_allclose(estimate[weak], truth[weak], atol=0.15)
    with pytest.raises(Unsuitable, match="has only 5 sequences of 64 steps"):
        analyse.compute(run, "mutual_information", {"samples": 5})


def test_the_analysis_of_text(call, only_run):
    call("PTB_task.py", *TOY["PTB_task.py"], "--epochs", "1")
    run = Run(only_run())
    assert analyse.compute(run, "mutual_information", {"times": 2, "components": 8})
    found = analyse.load(run.path, "mutual_information")
    first, last = found["information"]
    assert first > 1.5 and first > last > 0.5  # h_1 depends on one symbol, h_12 on twelve
    assert (found["samples"], found["window"]) == (1000, 1)
    assert "gaussian_estimate" not in found
