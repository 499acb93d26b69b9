"""Changes in input statistics as functions of time: brightness transforms and step drives.

A transform multiplies a sequence x (T, B, I) by a factor that depends on the step, counted in the
order in which the network sees the input; `factor(steps)` returns it, (T,). Source of the
transforms and their sizes: Geadah et al., arXiv 2006.12253.
"""

import math
from dataclasses import dataclass

import torch


class Transform:
    """x_t ← x_t · factor_t."""

    def factor(self, steps):
        """The factor at each step, (T,)."""
        raise NotImplementedError

    def __call__(self, x):
        """Returns the transformed sequences, of the same shape as x (T, B, I)."""
        return x * self.factor(len(x)).to(x)[:, None, None]


@dataclass(frozen=True)
class SinTransform(Transform):
    """Factor 1 + A sin(2π f t/T + φ), with f in cycles per sequence and φ in radians."""

    frequency: float = 1.0
    amplitude: float = 0.5
    phase: float = 0.0

    def factor(self, steps):
        angle = 2 * math.pi * self.frequency * torch.arange(steps) / steps + self.phase
        return 1 + self.amplitude * torch.sin(angle)


@dataclass(frozen=True)
class StepTransform(Transform):
    """Factor 1 + size for position ≤ t < position + length, and 1 elsewhere."""

    size: float = 1.0
    position: int = 200
    length: int = 200

    def factor(self, steps):
        return 1 + step_drive(steps, self.size, self.position, self.length)


@dataclass(frozen=True)
class LinTransform(Transform):
    """Factor t/T."""

    def factor(self, steps):
        return torch.arange(steps) / steps


@dataclass(frozen=True)
class NoTransform(Transform):
    """Factor 1."""

    def factor(self, steps):
        return torch.ones(steps)


def step_drive(steps, size=1.0, position=200, length=200):
    """A step (T,): size for position ≤ t < position + length, and 0 elsewhere."""
    t = torch.arange(steps)
    return size * ((position <= t) & (t < position + length)).float()


def step_window(steps):
    """Position and length of the step: both 200 for 784 steps, and in proportion otherwise."""
    return round(200 * steps / 784), round(200 * steps / 784)


def random_sin(amplitude, generator):
    """A SinTransform with frequency ~ U(0, 2) and phase 0."""
    return SinTransform(2 * torch.rand((), generator=generator).item(), amplitude)


# Transforms of the test set: name → function from the number of steps to a transform.
TEST_TRANSFORMS = {
    "sin": lambda steps: SinTransform(),
    "step": lambda steps: StepTransform(1.0, *step_window(steps)),
    "lin": lambda steps: LinTransform(),
    "none": lambda steps: NoTransform(),
}
