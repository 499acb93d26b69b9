"""Transforms and step drives as functions of time."""

import math

import pytest
import torch

from Training.transforms import (
    TEST_TRANSFORMS,
    LinTransform,
    SinTransform,
    StepTransform,
    random_sin,
    step_drive,
    step_window,
)


def test_sin_multiplies_by_a_sine_wave():
    x = torch.rand(6, 2, 1)
    y = SinTransform(frequency=1.5, amplitude=0.3, phase=0.4)(x)
    for t in range(6):
        factor = 1 + 0.3 * math.sin(2 * math.pi * 1.5 * t / 6 + 0.4)
        assert torch.allclose(y[t], x[t] * factor)


def test_step_is_half_open():
    factor = StepTransform(size=2.0, position=3, length=4).factor(10)
    assert factor.tolist() == [1, 1, 1, 3, 3, 3, 3, 1, 1, 1]
    assert step_drive(6, 0.5, 1, 2).tolist() == [0, 0.5, 0.5, 0, 0, 0]


def test_lin_is_t_over_the_length():
    assert torch.allclose(LinTransform().factor(4), torch.tensor([0, 0.25, 0.5, 0.75]))


def test_test_transforms_match_the_paper_and_scale_with_the_length():
    assert step_window(784) == (200, 200)
    assert step_window(64) == (16, 16)
    assert TEST_TRANSFORMS["sin"](784) == SinTransform(1.0, 0.5, 0.0)
    assert TEST_TRANSFORMS["step"](784) == StepTransform(1.0, 200, 200)
    x = torch.rand(5, 3, 1)
    assert torch.equal(TEST_TRANSFORMS["none"](5)(x), x)


def test_a_transform_keeps_shape_and_type():
    x = torch.rand(7, 2, 1, dtype=torch.float64)
    y = SinTransform()(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("amplitude", [0.2, 0.5])
def test_random_sin_draws_its_frequency_from_0_to_2(amplitude):
    generator = torch.Generator().manual_seed(1)
    drawn = [random_sin(amplitude, generator) for _ in range(200)]
    frequencies = [one.frequency for one in drawn]
    assert 0 <= min(frequencies) < 0.1 and 1.9 < max(frequencies) < 2
    assert {one.amplitude for one in drawn} == {amplitude} and {one.phase for one in drawn} == {0}
