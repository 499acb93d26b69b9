"""Transforms and step drives as functions of time."""

import math

import pytest
import torch

from Training.transforms import TEST_TRANSFORMS, random_sine, sine, step_drive, step_window


def test_the_sine_has_a_frequency_amplitude_and_phase():
    factors = sine(6, frequency=1.5, amplitude=0.3, phase=0.4)
    expected = [1 + 0.3 * math.sin(2 * math.pi * 1.5 * t / 6 + 0.4) for t in range(6)]
    assert factors.shape == (6, 1, 1) and factors.flatten().tolist() == pytest.approx(expected)


def test_the_step_is_half_open():
    assert step_drive(6, 0.5, 1, 2).tolist() == [0, 0.5, 0.5, 0, 0, 0]


def test_test_transforms_match_the_paper_and_scale_with_the_length():
    assert (step_window(784), step_window(64)) == ((200, 200), (16, 16))
    transforms = {name: make(784) for name, make in TEST_TRANSFORMS.items()}
    assert {factors.shape for factors in transforms.values()} == {(784, 1, 1)}
    t = torch.arange(784)[:, None, None]
    assert torch.equal(transforms["sin"], sine(784, 1.0, 0.5, 0.0))
    assert torch.equal(transforms["step"], 1.0 + ((t >= 200) & (t < 400)))
    assert torch.equal(transforms["lin"], t / 784)
    assert (transforms["none"] == 1).all()


@pytest.mark.parametrize("amplitude", [0.2, 0.5])
def test_the_random_sine_draws_its_frequency_from_0_to_2(amplitude):
    drawn, again = (torch.Generator().manual_seed(1) for _ in range(2))
    for _ in range(20):
        frequency = 2 * torch.rand((), generator=again).item()
        expected = sine(64, frequency, amplitude)
        assert torch.equal(random_sine(64, amplitude, drawn), expected)
