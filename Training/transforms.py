"""Changes in input statistics: brightness transforms and step drives, as functions of time.

A transform is a factor for each step, (T, 1, 1), by which a sequence x (T, B, I) is multiplied; the
steps are counted in the order in which the network sees the input. Source of the transforms and
their sizes: Geadah et al., arXiv 2006.12253.
"""

import math

import torch


def sine(steps, frequency=1.0, amplitude=0.5):
    """The transform 1 + A sin(2π f t/T), with f in cycles per sequence."""
    angle = 2 * math.pi * frequency * torch.arange(steps) / steps
    return (1 + amplitude * torch.sin(angle))[:, None, None]


def random_sine(steps, amplitude, generator):
    """A sine transform with frequency ~ U(0, 2)."""
    return sine(steps, 2 * torch.rand((), generator=generator).item(), amplitude)


def step_drive(steps, size, position, length):
    """A step (T,): size for position ≤ t < position + length, and 0 elsewhere."""
    t = torch.arange(steps)
    return size * ((position <= t) & (t < position + length)).float()


def step_window(steps):
    """Position and length of the step: both 200 for 784 steps, and in proportion otherwise."""
    return round(200 * steps / 784), round(200 * steps / 784)


# Transforms of the test set: name → function of the number of steps.
TEST_TRANSFORMS = {
    "sin": sine,
    "step": lambda steps: 1 + step_drive(steps, 1.0, *step_window(steps))[:, None, None],
    "lin": lambda steps: (torch.arange(steps) / steps)[:, None, None],
    "none": lambda steps: torch.ones(steps, 1, 1),
}
