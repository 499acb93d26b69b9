"""nnRNN: an Elman network whose recurrent matrix, in Schur form, can become non-normal.

    h_t = φ(U x_t + V h_{t−1} + drive_t)                 (B, H)
    V = P (Λ + T) Pᵀ                                     (H, H), P orthogonal as in expRNN

Λ is block-diagonal, its 2 × 2 blocks are α_j R(θ_j) with R(θ) = [[cos θ, −sin θ], [sin θ, cos θ]];
T is zero except strictly above the blocks.

Source: Kerg et al., arXiv 1905.12080.
"""

import math
from typing import ClassVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from NetworkCreation.errors import OptionError
from NetworkCreation.exprnn import ExpRNN
from NetworkCreation.layer import uniform_parameter


class Schur(nn.Module):
    """V = P (Λ + T) Pᵀ of an orthogonal P: the parametrization that nnRNN adds to expRNN.

    Initially α (H/2,) is 1, θ (H/2,) ~ U(0, 2π) and T (H, H) 0.
    """

    def __init__(self, size, generator=None, device=None, dtype=None):
        super().__init__()
        like = {"device": device, "dtype": dtype}
        self.alpha = nn.Parameter(torch.ones(size // 2, **like))
        self.theta = uniform_parameter(size // 2, math.pi, math.pi, generator=generator, **like)
        self.T = nn.Parameter(torch.zeros(size, size, **like))

    def forward(self, P):
        """V (H, H) of P (H, H)."""
        diagonal = (self.alpha * self.theta.cos()).repeat_interleave(2)
        sines = self.alpha * self.theta.sin()
        beside = torch.stack([sines, torch.zeros_like(sines)], dim=1).flatten()[:-1]
        rotations = diagonal.diag() + beside.diag(-1) - beside.diag(1)
        block = torch.arange(len(P), device=P.device) // 2
        above = block[:, None] < block
        return P @ (rotations + self.T * above) @ P.t()


class NonNormalRNN(ExpRNN):
    """nnRNN: h_t = φ(U x_t + V h_{t−1} + drive_t), V = P (Λ + T) Pᵀ: see `Schur`.

    Arguments and errors as for `ExpRNN`, and OptionError for an odd number of units; rinit and
    ostep_method act on P. V is initially orthogonal. State: h (B, H).
    """

    training_flags: ClassVar = ("lr_orth", "alam", "Tdecay")

    def __init__(
        self, input_size, hidden_size, nonlin="modrelu", n=5.0, s=0.0, learn_params=True,
        rinit="henaff", iinit="kaiming", ostep_method="exp",
        *, batch_first=False, generator=None, device=None, dtype=None,
    ):  # fmt: skip
        if hidden_size % 2:
            raise OptionError("hidden_size", f"hidden_size must be even, got {hidden_size}")
        like = {"generator": generator, "device": device, "dtype": dtype}
        options = (nonlin, n, s, learn_params, rinit, iinit, ostep_method)
        super().__init__(input_size, hidden_size, *options, batch_first=batch_first, **like)
        schur = Schur(hidden_size, **like)
        parametrize.register_parametrization(self.V, "weight", schur, unsafe=True)

    @property
    def schur(self):
        """The parametrization of V by P, with `alpha`, `theta` and `T`."""
        return self.V.parametrizations.weight[2]

    def parameter_groups(self):
        """As for `ExpRNN`, and 'T'."""
        return super().parameter_groups() | {"T": [self.schur.T]}

    def penalty(self):
        """Σ_j (α_j − 1)², (): how far the eigenvalues are from the unit circle."""
        return (self.schur.alpha - 1).square().sum()
