"""Initial values of the recurrent matrices (`RECURRENT`) and of the input maps (`INPUT`).

`ROTATIONS` are the orthogonal matrices of determinant +1 among `RECURRENT`.

They fill a weight in place and return it, like the functions of `torch.nn.init`, and draw from a
CPU generator (None: torch's own), so that a seed gives the same numbers on every device.
"""

import functools
import math

import torch
from torch import nn


def _in_place(draw):
    """Turns `draw`, which fills a CPU tensor, into a function that fills a weight anywhere."""

    @functools.wraps(draw)
    def fill(weight, generator=None, **options):
        with torch.no_grad(), torch.device("cpu"):
            drawn = draw(torch.empty(weight.shape, dtype=weight.dtype), generator, **options)
            return weight.copy_(drawn)

    return fill


@_in_place
def henaff(weight, generator=None):
    """exp(A), A (H, H) block-diagonal and skew-symmetric with angles θ ~ U(−π, 0).

    Each 2 × 2 block of exp(A) is the rotation [[cos θ, sin θ], [−sin θ, cos θ]]; the last unit of
    an odd H is unchanged. Raises ValueError if not square.
    Source: Henaff, Szlam, LeCun (arXiv 1602.06662), with the angles of expRNN's code.
    """
    angles = torch.empty(weight.shape[0] // 2, dtype=weight.dtype)
    return _rotate_pairs(weight, angles.uniform_(-math.pi, 0, generator=generator))


@_in_place
def cayley(weight, generator=None):
    """exp(A), A as for `henaff` with entries −√((1 − cos θ)/(1 + cos θ)), θ ~ U(0, π/2).

    Source: Helfrich, Willmott, Ye (arXiv 1707.09520), with the exponential of expRNN's code.
    """
    theta = torch.empty(weight.shape[0] // 2, dtype=weight.dtype)
    theta.uniform_(0, math.pi / 2, generator=generator)
    return _rotate_pairs(weight, -torch.sqrt((1 - theta.cos()) / (1 + theta.cos())))


def _rotate_pairs(weight, angles):
    """Writes exp of the block-diagonal skew-symmetric matrix with these angles into weight."""
    _check_square(weight)
    first = 2 * torch.arange(len(angles))
    nn.init.eye_(weight)
    weight[first, first] = weight[first + 1, first + 1] = angles.cos()
    weight[first, first + 1] = angles.sin()
    weight[first + 1, first] = -angles.sin()
    return weight


@_in_place
def random_rotation(weight, generator=None):
    """A rotation drawn uniformly from SO(H). Raises ValueError if not square."""
    _check_square(weight)
    nn.init.orthogonal_(weight, generator=generator)
    if torch.linalg.det(weight) < 0:
        weight[0].neg_()
    return weight


def _check_square(weight):
    if weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
        raise ValueError(f"a rotation is a square matrix, got the shape {tuple(weight.shape)}")


@_in_place
def xavier(weight, generator=None, gain=1.0):
    """N(0, σ²) with σ = gain · √(2/(fan_in + fan_out)). Source: Glorot & Bengio 2010."""
    return nn.init.xavier_normal_(weight, gain, generator)


@_in_place
def kaiming(weight, generator=None):
    """N(0, σ²) with σ = √(2/fan_in). Source: He et al., arXiv 1502.01852."""
    return nn.init.kaiming_normal_(weight, generator=generator)


@_in_place
def normal(weight, generator=None):
    """N(0, σ²) with σ = 1/√(number of rows): 1/√H for the recurrent matrix and the input map."""
    return nn.init.normal_(weight, std=weight.shape[0] ** -0.5, generator=generator)


@_in_place
def uniform(weight, generator=None, bound=1.0):
    """U(−bound, bound)."""
    return nn.init.uniform_(weight, -bound, bound, generator)


def torch_default(weight, generator=None):
    """U(−1/√fan_in, 1/√fan_in), the default of `torch.nn.Linear`."""
    return uniform(weight, generator, bound=weight.shape[1] ** -0.5)


def linear_map(inputs, outputs, initialise, bias=True, *, generator=None, device=None, dtype=None):
    """A linear map: weight (outputs, inputs) by `initialise`, bias U(±1/√inputs) as in torch."""
    device = torch.get_default_device() if device is None else device
    like = {"device": device, "dtype": dtype}
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, **like)
    initialise(linear.weight, generator)
    if bias:
        uniform(linear.bias, generator, bound=inputs**-0.5)
    return linear


def uniform_parameter(size, bound, shift=0.0, *, generator=None, device=None, dtype=None):
    """A parameter (size,), initially U(−bound, bound) + shift."""
    values = torch.empty(size, device=device, dtype=dtype)
    return nn.Parameter(uniform(values, generator, bound=bound).add_(shift))


ROTATIONS = {"henaff": henaff, "cayley": cayley, "random": random_rotation}
INPUT = {"xavier": xavier, "kaiming": kaiming, "normal": normal}
RECURRENT = ROTATIONS | INPUT
