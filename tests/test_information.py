"""Mutual information: the estimator against known values, and the command on toy runs."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from Postprocessing import mutual_information as command
from Postprocessing.analysis import load
from Postprocessing.mutual_information import (
    gaussian_information,
    mutual_information,
    principal_components,
)
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


def test_tied_windows_with_denormals_flushed(monkeypatch, rng):
    text = (torch.arange(100) % 7 == 0).long()  # most of the 50 columns begin with 0
    monkeypatch.setattr(command, "data_set", lambda *_: SimpleNamespace(test=text))
    config = {"model": {"task": "characters"}, "arguments": {"bptt": 1}}
    args = SimpleNamespace(data=None, samples=50, window=None)
    _, _, windows = command._sequences(SimpleNamespace(config=config), args)
    torch.set_flush_denormal(True)
    x = windows(1)
    assert mutual_information(x, column(rng.standard_normal(50))) < 0.5
    assert mutual_information(x, x) > 0.3


def information(path):
    return load(Run(path), "mutual_information")


def test_the_command_on_pixels(call, only_run, capsys):
    call("sMNIST_task.py", *TOY["sMNIST_task.py"], "-p", "--epochs", "2", "--save-freq", "1")
    path = only_run()
    assert main(path) == 0
    found = information(path)
    assert found["epochs"] == [2] and found["samples"] == 1797  # all images
    assert (found["window"], found["components"]) == (5, 3)
    assert found["times"][0] == 5 and found["times"][-1] == 64
    assert found["information"].shape == (1, 8) and np.isfinite(found["information"]).all()
    assert found["information"][0, 0] > 0.5  # h_5 is a function of the window
    estimate, truth = found["gaussian_estimate"], found["gaussian_truth"]
    assert estimate.shape == truth.shape == (8,)
    assert estimate[0] < truth[0] - 0.5  # biased low, as h_5 is almost linear in the window
    weak = truth < 0.3
    np.testing.assert_allclose(estimate[weak], truth[weak], atol=0.15)

    file = path / "analysis" / "mutual_information.npz"
    before = file.stat().st_mtime_ns
    assert main(path) == 0 and file.stat().st_mtime_ns == before
    assert main(path, "--all-epochs", "--times", "9", "64") == 0
    assert "recomputed" in capsys.readouterr().err  # with other settings
    assert list(information(path)["epochs"]) == [0, 1, 2]
    assert information(path)["information"][2, 1] == found["information"][0, -1]
    for flags in (["--times", "65"], ["--window", "65"], ["--samples", "5"]):
        capsys.readouterr()
        assert main(path, "--recompute", *flags) == 1
        assert "skipped" in capsys.readouterr().err
    assert information(path)["information"].shape == (3, 2)


def test_the_command_on_text(call, only_run):
    call("PTB_task.py", *TOY["PTB_task.py"], "--epochs", "1")
    path = only_run()
    assert main(path, "--times", "1", "12", "--components", "8") == 0
    first, last = information(path)["information"][0]
    assert first > 1.5 and first > last > 0.5  # h_1 depends on one symbol, h_12 on twelve
    found = information(path)
    assert (found["samples"], found["window"], found["components"]) == (1000, 1, 8)
    assert np.isnan([found["gaussian_estimate"], found["gaussian_truth"]]).all()


def main(path, *flags):
    parser = command.make_parser()
    arguments = [str(path), *flags]
    return command.analysis.main("mutual_information", parser, command.compute, arguments)
