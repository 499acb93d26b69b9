"""Mutual information: the estimator against known values, and the analysis of toy runs."""

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma

from Postprocessing import analyse
from Postprocessing import mutual_information as module
from Postprocessing.mutual_information import gaussian_information, mutual_information
from Postprocessing.networks import Unsuitable, data_set
from tests.toy_runs import train
from Training.run_directory import Run

N = 4000


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("flush", [False, True])
def test_known_values(rng, flush):
    """Of Gaussians, and of ties; flushed denormals next to 0 must not end the process."""
    torch.set_flush_denormal(flush)
    noise, x = rng.standard_normal((2, N, 1))
    y, expected = -0.9 * x + math.sqrt(0.19) * noise, -0.5 * math.log(0.19)
    assert mutual_information(x, y) == pytest.approx(expected, abs=0.05)
    dice, binary = (rng.integers(sides, size=(N, 1)).astype(float) for sides in (6, 2))
    unit = np.maximum(noise - 1.3, 0)
    assert mutual_information(dice, dice) == pytest.approx(math.log(6), abs=0.01)
    assert mutual_information(dice, binary) == pytest.approx(0, abs=0.01)
    assert mutual_information(np.zeros((N, 1)), dice) == pytest.approx(0, abs=0.01)
    assert mutual_information(binary, noise) == pytest.approx(0, abs=0.05)
    assert (unit == 0).mean() > 0.85 and mutual_information(unit, binary) < 0.05


def test_against_the_definition(rng):
    """The estimator computed point by point, from all pairwise distances."""
    x = rng.integers(3, size=(150, 1)).astype(float)
    y = np.where(rng.random((150, 2)) < 0.5, 0.0, rng.standard_normal((150, 2)))
    dx, dy = (np.abs(z[:, None] - z[None]).max(axis=2) for z in (x, y))
    joint = np.maximum(dx, dy)
    total = 0.0
    for i in range(150):
        distance = np.sort(joint[i])[4]
        near = (dx[i] < distance, dy[i] < distance) if distance else (dx[i] == 0, dy[i] == 0)
        k = 4 if distance else np.sum(joint[i] == 0)
        total += digamma(k) + math.log(150) - sum(digamma(np.sum(inside)) for inside in near)
    assert np.any(np.sort(joint)[:, 4] == 0) and np.any(np.sort(joint)[:, 4] > 0)
    assert mutual_information(x, y, neighbours=4) == pytest.approx(total / 150, abs=1e-12)


def test_invalid_samples_are_rejected():
    zeros = np.zeros((9, 1))
    for x, y, neighbours, message in (
        (zeros[:, 0], zeros, 5, r"\(N, dx\)"),
        (zeros, zeros[:8], 5, r"\(N, dx\)"),
        (zeros, zeros, 9, "got 9"),
        (zeros, zeros, 0, "got 0"),
        (np.nan + zeros, zeros, 5, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            mutual_information(x, y, neighbours)


def test_gaussian_information_follows_from_the_covariance(rng):
    x, noise = rng.standard_normal((2, 300, 3))
    y = x[:, :2] @ rng.standard_normal((2, 2)) + 0.5 * noise[:, :2]
    C = np.cov(np.hstack([x, y]).T)
    logs = [np.linalg.slogdet(part)[1] for part in (C[:3, :3], C[3:, 3:], C)]
    expected = (logs[0] + logs[1] - logs[2]) / 2
    assert gaussian_information(x, y) == pytest.approx(expected, rel=1e-9)
    assert gaussian_information(x, np.hstack([y, y])) == pytest.approx(expected, rel=1e-9)
    assert gaussian_information(x, np.zeros((300, 1))) == 0  # a dead layer


def test_the_analysis_of_pixels(tmp_path):
    run = Run(train(tmp_path, "sMNIST_task.py", "-p"))
    assert analyse.compute(run, "mutual_information", {})
    saved = analyse.load(run.path, "mutual_information")
    assert (saved["samples"], saved["window"]) == (1797, 5)  # all images
    assert saved["times"][0] == 5 and saved["times"][-1] == 64
    assert saved["information"].shape == (8,)
    assert saved["information"][0] > 0.5  # h_5 is a function of the window
    estimate, truth = saved["gaussian_estimate"], saved["gaussian_truth"]
    assert estimate.shape == truth.shape == (8,)
    assert estimate[0] < truth[0] - 0.5  # biased low, as h_5 is almost linear in the window
    weak = truth < 0.3
    np.testing.assert_allclose(estimate[weak], truth[weak], atol=0.15)
    with pytest.raises(Unsuitable, match="has only 5 sequences of 64 steps"):
        analyse.compute(run, "mutual_information", {"samples": 5})
    data = data_set(run)
    x, _ = module._sequences(run, None, len(data.test) + len(data.validation) + 3)
    images = [part.images for part in (data.test, data.validation, data.train)]
    expected = torch.cat(images)[: x.shape[1]].T / 16
    torch.testing.assert_close(x[..., 0], expected.float())


def test_the_analysis_of_text(tmp_path):
    run = Run(train(tmp_path, "PTB_task.py"))
    assert analyse.compute(run, "mutual_information", {"times": 2, "components": 8})
    saved = analyse.load(run.path, "mutual_information")
    first, last = saved["information"]
    assert first > 1.5 and first > last > 0.5  # h_1 depends on one symbol, h_12 on twelve
    assert (saved["samples"], saved["window"]) == (1000, 1)
    assert "gaussian_estimate" not in saved
