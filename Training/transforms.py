"""Changes of the input's statistics, as functions of time: brightness transforms and step drives.

A transform multiplies a sequence x (T, B, I) by a factor of its step, in the order in which the
network sees the steps; `factor(steps)` gives it as (T,). Source of the transforms and of their
sizes: Geadah et al., arXiv 2006.12253.
"""

import math
from dataclasses import dataclass

import torch


class Transform:
    """x_t ← x_t · factor_t."""

    def factor(self, steps):
        """The factor of every step, (T,)."""
        raise NotImplementedError

    def __call__(self, x):
        """x (T, B, I); returns the transformed sequences, of the same shape."""
        return x * self.factor(len(x)).to(x)[:, None, None]


@dataclass(frozen=True)
class SinTransform(Transform):
    """factor 1 + A sin(2π f t/T + φ): frequency f in cycles a sequence, phase φ in radians."""

    frequency: float = 1.0
    amplitude: float = 0.5
    phase: float = 0.0

    def factor(self, steps):
        angle = 2 * math.pi * self.frequency * torch.arange(steps) / steps + self.phase
        return 1 + self.amplitude * torch.sin(angle)


@dataclass(frozen=True)
class StepTransform(Transform):
    """factor 1 + size for position ≤ t < position + length, and 1 elsewhere."""

    size: float = 1.0
    position: int = 200
    length: int = 200

    def factor(self, steps):
        return 1 + step_drive(steps, self.size, self.position, self.length)


@dataclass(frozen=True)
class LinTransform(Transform):
    """factor t/T."""

    def factor(self, steps):
        return torch.arange(steps) / steps


@dataclass(frozen=True)
class NoTransform(Transform):
    """factor 1."""

    def factor(self, steps):
        return torch.ones(steps)


def step_drive(steps, size=1.0, position=200, length=200):
    """size for position ≤ t < position + length, and 0 elsewhere, (T,)."""
    t = torch.arange(steps)
    return size * ((position <= t) & (t < position + length)).float()


def step_window(steps):
    """Position and length of the step: 200 for 200 of 784 steps, in proportion for others."""
    return round(200 * steps / 784), round(200 * steps / 784)


def random_sin(amplitude, generator):
    """A SinTransform of frequency ~ U(0, 2) and phase 0."""
    return SinTransform(2 * torch.rand((), generator=generator).item(), amplitude)


# What the test set is seen through: name → transform for a number of steps.
TEST_TRANSFORMS = {
    "sin": lambda steps: SinTransform(),
    "step": lambda steps: StepTransform(1.0, *step_window(steps)),
    "lin": lambda steps: LinTransform(),
    "none": lambda steps: NoTransform(),
}
