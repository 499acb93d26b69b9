"""nnRNN: an Elman network whose recurrent matrix, in Schur form, can become non-normal.

    h_t = φ(U x_t + V h_{t−1} + drive_t)                 (B, H)
    V = P (Λ + T) Pᵀ                                     (H, H), P orthogonal as in expRNN

Λ is block-diagonal, its 2 × 2 blocks are α_j R(θ_j) with R(θ) = [[cos θ, −sin θ], [sin θ, cos θ]];
T is zero except strictly above the blocks.

Source: Kerg et al., arXiv 1905.12080.
"""

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from NetworkCreation.errors import OptionError
from NetworkCreation.exprnn import ExpRNN
from NetworkCreation.initialization import uniform_parameter


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
    """nnRNN. Arguments, of P, and errors as for `ExpRNN`; OptionError for an odd hidden_size."""

    training_flags = ("lr_orth", "alam", "Tdecay")

    def _extend_parametrization(self, generator, device, dtype):
        if self.hidden_size % 2:
            raise OptionError("hidden_size", f"hidden_size must be even, got {self.hidden_size}")
        schur = Schur(self.hidden_size, generator, device, dtype)
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
