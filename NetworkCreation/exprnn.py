"""expRNN: an Elman network whose recurrent matrix is orthogonal by parametrization.

    h_t = φ(U x_t + P h_{t−1} + drive_t)                 (B, H)
    P = P₀ Q(A),  Q(A) = exp(A) or (1 + A/2)(1 − A/2)⁻¹  (H, H), A skew-symmetric and learned

P is computed, and differentiated, once per sequence; on a GPU the host waits for it.

Source: Lezcano-Casado & Martínez-Rubio, arXiv 1901.08428; P₀: arXiv 1909.09501, not updated.
"""

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from NetworkCreation.initialization import INPUT, ROTATIONS, linear_map
from NetworkCreation.layer import choose
from NetworkCreation.rnn import ElmanLayer

# Q(A): our name and torch's.
ORTHOGONAL_MAPS = {"exp": "matrix_exp", "cayley": "cayley"}


class NewtonStep(nn.Module):
    """P (3 − PᵀP)/2: makes an almost orthogonal P (H, H), such as exp(A), orthogonal to rounding.

    Source: the Newton-Schulz iteration for the polar factor, Higham, Functions of Matrices, 2008.
    """

    def forward(self, P):
        if P.dtype.itemsize < 4:  # torch.matrix_exp is wrong
            raise ValueError(f"an orthogonal matrix needs float32 or float64, got {P.dtype}")
        return 1.5 * P - 0.5 * P @ (P.t() @ P)


class ExpRNN(ElmanLayer):
    """expRNN; `V.weight` is P, of determinant +1.

    A is initially 0. ostep_method: 'exp' or 'cayley', the map Q. rinit: a key of
    `initialization.ROTATIONS` (for P₀). U has a bias unless φ is modrelu, which has its own. Other
    arguments, errors and state: as for `RNN`.
    """

    training_flags = ("lr_orth",)

    def __init__(
        self, input_size, hidden_size, nonlin="modrelu", n=5.0, s=0.0, learn_params=True,
        rinit="henaff", iinit="kaiming", ostep_method="exp",
        *, batch_first=False, generator=None, device=None, dtype=None,
    ):  # fmt: skip
        super().__init__(input_size, hidden_size, batch_first)
        like = {"generator": generator, "device": device, "dtype": dtype}
        start = choose("rinit", rinit, ROTATIONS)
        entry = choose("iinit", iinit, INPUT)
        orthogonal_map = choose("ostep_method", ostep_method, ORTHOGONAL_MAPS)
        self.U = linear_map(input_size, hidden_size, entry, bias=nonlin != "modrelu", **like)
        self.V = linear_map(hidden_size, hidden_size, start, bias=False, **like)
        orthogonal(self.V, "weight", orthogonal_map)
        parametrize.register_parametrization(self.V, "weight", NewtonStep(), unsafe=True)
        self._add_activation(nonlin, n, s, learn_params, **like)
        self._extend_parametrization(**like)

    def _extend_parametrization(self, generator, device, dtype):
        """Hook for a subclass whose V is a function of P."""

    @property
    def P(self):
        """The orthogonal matrix, (H, H)."""
        to_orthogonal, step, *_ = self.V.parametrizations.weight
        return step(to_orthogonal(self.V.parametrizations.weight.original))

    def parameter_groups(self):
        """'orthogonal': the parameter of A; 'gains' as for `RNN`."""
        skew = self.V.parametrizations.weight.original
        return super().parameter_groups() | {"orthogonal": [skew]}
