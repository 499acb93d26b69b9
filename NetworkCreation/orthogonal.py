"""Recurrent layers that are made for long memory: expRNN, nnRNN and EURNN.

Letters: T time, B batch, I input, H units, L layers of rotations.

Their recurrent matrix is orthogonal or unitary at any values of its parameters, or departs from
that by parameters of its own. It is made of its parameters once a sequence, and the gradient goes
through its making once. `layers.py` says how a layer is called.
"""

import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import relu
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from NetworkCreation import initialization, recurrence
from NetworkCreation.layers import (
    ElmanLayer,
    RecurrentLayer,
    choose,
    column,
    linear_map,
    modrelu_bias,
)

# How a skew-symmetric matrix becomes an orthogonal one: names of ours and of torch's.
ORTHOGONAL_MAPS = {"exp": "matrix_exp", "cayley": "cayley"}


class NewtonStep(nn.Module):
    """P (3 − PᵀP)/2: an almost orthogonal matrix P (H, H) as near to it as its numbers can be.

    In float32 the exponential of a large matrix is off by more than 1e-5. An exactly orthogonal P
    stays, and of a gradient what would leave the orthogonal matrices is dropped.
    Source: the Newton-Schulz iteration for the polar factor, Higham, Functions of Matrices, 2008.
    """

    def forward(self, P):
        return 1.5 * P - 0.5 * P @ (P.t() @ P)


class ExpRNN(ElmanLayer):
    """expRNN: h_t = φ(U x_t + P h_{t−1} + drive_t), P orthogonal.

    P = P₀ Q(A), A skew-symmetric, learned, and 0 at the start. ostep_method: Q(A) is exp(A)
    ('exp') or (1 + A/2)(1 − A/2)⁻¹ ('cayley'). rinit: a key of `initialization.ROTATIONS`, which
    draws P₀, so that det P is +1 always. iinit: a key of `initialization.INPUT` (U). With modrelu
    there is no bias but its own; with another φ U has one, torch's. nonlin, n, s, learn_params: as
    for `Networks.RNN`. Raises ValueError for an unknown name, a size below 1 or n = 0.

    `V` is the linear map whose `weight` is the recurrent matrix: here P.
    Source: Lezcano-Casado & Martínez-Rubio, arXiv 1901.08428; P₀ is the base of their dynamic
    trivializations, arXiv 1909.09501, and stays what it is.

    State: h (B, H).
    """

    def __init__(
        self,
        input_size,
        hidden_size,
        nonlin="modrelu",
        n=5.0,
        s=0.0,
        learn_params=True,
        rinit="henaff",
        iinit="kaiming",
        ostep_method="exp",
        *,
        generator=None,
        device=None,
        dtype=None,
    ):
        super().__init__(input_size, hidden_size)
        like = (generator, device, dtype)
        start = choose("rinit", rinit, initialization.ROTATIONS)
        entry = choose("iinit", iinit, initialization.INPUT)
        self.ostep_method = ostep_method
        orthogonal_map = choose("ostep_method", ostep_method, ORTHOGONAL_MAPS)
        self.U = linear_map(input_size, hidden_size, entry, *like, bias=nonlin != "modrelu")
        self.V = linear_map(hidden_size, hidden_size, start, *like, bias=False)
        orthogonal(self.V, "weight", orthogonal_map)
        parametrize.register_parametrization(self.V, "weight", NewtonStep())
        self._add_activation(nonlin, n, s, learn_params, *like)

    @property
    def P(self):
        """The orthogonal matrix, (H, H)."""
        to_orthogonal, step, *_ = self.V.parametrizations.weight
        return step(to_orthogonal(self.V.parametrizations.weight.original))

    def parameters_apart(self):
        """'orthogonal': the one that A is made of."""
        return {"orthogonal": [self.V.parametrizations.weight.original]}

    def extra_repr(self):
        return f"nonlin={self.nonlin}, ostep_method={self.ostep_method}"


class Schur(nn.Module):
    """V = P (Λ + T) Pᵀ of an orthogonal P: the parametrization that makes expRNN nnRNN.

    Λ is block-diagonal, its 2 × 2 blocks are α_j R(θ_j) with R(θ) = [[cos θ, −sin θ], [sin θ,
    cos θ]]; T is what lies strictly above the blocks. α (H/2,) starts at 1, θ (H/2,) at U(0, 2π),
    T (H, H) at 0. Raises ValueError for an odd H.
    Source: Kerg et al., arXiv 1905.12080.
    """

    def __init__(self, size, generator=None, device=None, dtype=None):
        super().__init__()
        if size % 2:
            raise ValueError(f"hidden_size is {size}: nnRNN needs an even number of units")
        like = {"device": device, "dtype": dtype}
        self.alpha = nn.Parameter(torch.ones(size // 2, **like))
        self.theta = _angles(size // 2, generator, **like)
        self.T = nn.Parameter(torch.zeros(size, size, **like))
        block = torch.arange(size, device=device) // 2
        self.register_buffer("above", block[:, None] < block, persistent=False)

    def forward(self, P):
        """V (H, H) of P (H, H)."""
        diagonal = (self.alpha * self.theta.cos()).repeat_interleave(2)
        sines = self.alpha * self.theta.sin()
        beside = torch.stack([sines, torch.zeros_like(sines)], dim=1).flatten()[:-1]
        rotations = diagonal.diag() + beside.diag(-1) - beside.diag(1)
        return P @ (rotations + self.T * self.above) @ P.t()


class NonNormalRNN(ExpRNN):
    """nnRNN: h_t = φ(U x_t + V h_{t−1} + drive_t), V = P (Λ + T) Pᵀ: see `Schur`.

    The arguments are those of `ExpRNN`, and rinit and ostep_method are those of P. V starts
    orthogonal. Raises ValueError for an odd number of units too.
    Source: Kerg et al., arXiv 1905.12080.

    State: h (B, H).
    """

    def __init__(
        self,
        input_size,
        hidden_size,
        *arguments,
        generator=None,
        device=None,
        dtype=None,
        **options,
    ):
        like = {"generator": generator, "device": device, "dtype": dtype}
        super().__init__(input_size, hidden_size, *arguments, **options, **like)
        parametrize.register_parametrization(self.V, "weight", Schur(hidden_size, **like))

    @property
    def schur(self):
        """The part that turns P into V, with `alpha`, `theta` and `T`."""
        return self.V.parametrizations.weight[2]

    def parameters_apart(self):
        """'orthogonal' as for `ExpRNN`, and 'T'."""
        return super().parameters_apart() | {"T": [self.schur.T]}

    def penalty(self):
        """Σ_j (α_j − 1)², (): how far the eigenvalues are from the unit circle."""
        return (self.schur.alpha - 1).square().sum()


def _angles(count, generator, device, dtype):
    """A parameter (count,), U(0, 2π) at the start."""
    angles = nn.Parameter(torch.empty(count, device=device, dtype=dtype))
    with torch.no_grad():
        initialization.uniform(angles, generator, bound=math.pi).add_(math.pi)
    return angles


def complex_modrelu(z, bias):
    """z/|z| · max(|z| + bias, 0), and 0 where z = 0. Source: Arjovsky et al., arXiv 1511.06464."""
    return z.sgn() * relu(z.abs() + bias)


def _factors(own, other, swaps, back=False):
    """(own_l, other_l, swap_l) of the layers in turn; back: of the adjoint of their product."""
    factors = []
    for layer, (mine, others) in enumerate(zip(own, other, strict=True)):
        swap = swaps[layer % 2]
        if back:
            mine, others = mine.conj().resolve_conj(), others[swap].conj().resolve_conj()
        factors.append((mine.unsqueeze(1), others.unsqueeze(1), swap))
    return factors[::-1] if back else factors


def _turn(h, factors, outs, swapped):
    """The product of the layers' rotations with h (H, B), each layer's result in one of outs."""
    for (own, other, swap), out in zip(factors, outs, strict=True):
        torch.index_select(h, 0, swap, out=swapped)
        h = torch.mul(own, h, out=out).addcmul_(swapped, other)
    return h


def _stretch(size, bias, out):
    """|h|/|z| of the modReLU, from |z| and the bias as a column; changes size."""
    torch.add(size, bias, out=out).clamp_min_(0)
    # |z| is made of squares, which are 0 below this
    return out.div_(size.clamp_min_(math.sqrt(torch.finfo(size.dtype).tiny)))


class _Unitary(torch.autograd.Function):
    """The EURNN through time, forward and backward; `recurrence.py` says why and how.

    Every tensor has the units on the last axis but one, (T, H, B) and (H, B), so that units change
    places by whole rows. own, other: (L, H), as of `EURNN.rotations`; bias: (H, 1) or None.
    """

    @staticmethod
    def forward(ctx, workspace, learning, swaps, entry, h, own, other, bias):
        steps, real = len(entry), entry.real
        outputs = workspace.empty(entry.shape, real)
        z = workspace.empty(entry.shape if learning else (1, *h.shape), entry)
        factors = _factors(own, other, swaps)
        state, swapped, *pair = entry.new_empty(4, *h.shape).unbind()
        buffers = [pair[layer % 2] for layer in range(len(factors))]
        size, stretch = real.new_empty(2, *h.shape).unbind()
        state.copy_(h)
        for t in range(steps):
            z_t = z[t if learning else 0]
            torch.add(_turn(state, factors, buffers, swapped), entry[t], out=z_t)
            if bias is None:
                state.copy_(z_t)
            else:
                # torch's absolute value of a complex number takes twice as long
                torch.mul(z_t.real, z_t.real, out=size).addcmul_(z_t.imag, z_t.imag).sqrt_()
                torch.mul(z_t, _stretch(size, bias, out=stretch), out=state)
            outputs[t] = state.real
        if learning:
            ctx.save_for_backward(swaps, h, own, other, bias, z)
        ctx.set_materialize_grads(False)
        return outputs, state

    @staticmethod
    @once_differentiable
    def backward(ctx, doutputs, dstate):
        swaps, h, own, other, bias, z = ctx.saved_tensors
        forth, back = _factors(own, other, swaps), _factors(own, other, swaps, back=True)
        d_entry = torch.empty_like(z)
        d_own, d_other = torch.zeros_like(own), torch.zeros_like(other)
        d_bias = None if bias is None else torch.zeros_like(bias)
        swapped, delta = torch.zeros_like(z[:1].expand(2, -1, -1)).unbind()  # δ = dL/dh
        if dstate is not None:
            delta.copy_(dstate)
        passes = recurrence._passes(len(z), *h.shape)
        between = z.new_empty(len(forth) - 1, passes[0][1], *h.shape)  # dL/d(F_l … F_1 h), l < L
        for first, last in reversed(passes):
            before, dz = torch.empty_like(z[first:last]), d_entry[first:last]
            before[0] = h if first == 0 else _modrelu(z[first - 1], bias)
            before[1:] = _modrelu(z[first : last - 1], bias)
            if bias is not None:
                size, unit = z[first:last].abs(), z[first:last].sgn()
                alive = ((size + bias > 0) & (size > 0)).to(size.dtype)
                # of dh, seen from the direction of z: along it, and across
                slopes = torch.stack([alive, _stretch(size, bias, torch.empty_like(size))], dim=-1)
                conjugate, turned = unit.conj_physical(), torch.empty_like(unit)
            for t in reversed(range(first, last)):
                k = t - first
                if doutputs is not None:
                    delta.real.add_(doutputs[t])
                if bias is None:
                    dz[k] = delta
                else:
                    torch.mul(delta, conjugate[k], out=turned[k])
                    torch.view_as_real(turned[k]).mul_(slopes[k])
                    torch.mul(turned[k], unit[k], out=dz[k])
                recurrence._flush(torch.view_as_real(dz[k]))
                _turn(dz[k], back, [*reversed(between[:, k].unbind()), delta], swapped)
            if bias is not None:
                d_bias += turned.real.sum((0, 2)).unsqueeze(1)
            for layer, (mine, others, swap) in enumerate(forth):
                after = dz if layer == len(between) else between[layer, : last - first]
                exchanged = before[:, swap]
                d_own[layer] += (before.conj() * after).sum((0, 2))
                d_other[layer] += (exchanged.conj() * after).sum((0, 2))
                before = mine * before + others * exchanged
        return None, None, None, d_entry, delta, d_own, d_other, d_bias


def _modrelu(z, bias):
    """φ as `_Unitary` has it, of z (…, H, B)."""
    return z if bias is None else complex_modrelu(z, bias)


class EURNN(RecurrentLayer):
    """The efficient unitary network: h_t = φ(U x_t + W h_{t−1} + drive_t), h complex, W unitary.

    W = D F_L … F_1, O(L·H) a step. F_1, F_3, … rotate the units (0, 1), (2, 3), …, and F_2, F_4, …
    the units (1, 2), (3, 4), …, every pair by a matrix of its own,

        [[e^{iφ} cos θ, −e^{iφ} sin θ], [sin θ, cos θ]];

    a unit without a partner passes. D is diagonal with the phases e^{iω}. θ and φ (one for each
    pair, layer after layer) and ω (H,) start at U(0, 2π). U x = Ure x + i Uim x; the drive is
    real. φ: modReLU of a complex number, with a bias b as `Networks.RNN` has it, or 'none': then
    Ure has a bias, torch's.
    capacity: L. iinit: a key of `initialization.INPUT` (Ure and Uim).
    Raises ValueError for an unknown name, or a size or capacity below 1.
    Source: Jing et al., arXiv 1612.05231 (tunable-space implementation).

    The outputs are the real parts of h, so that a read-out has an input a unit, as elsewhere; what
    is kept over time is the whole of it.
    State: (Re h, Im h), each (B, H).
    """

    NONLINEARITIES = ("modrelu", "none")

    def __init__(
        self,
        input_size,
        hidden_size,
        capacity=2,
        nonlin="modrelu",
        iinit="kaiming",
        *,
        generator=None,
        device=None,
        dtype=None,
    ):
        super().__init__(input_size, hidden_size)
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it must be at least 1")
        if nonlin not in self.NONLINEARITIES:
            raise ValueError(
                f"nonlin is {nonlin!r}: of EURNN it must be one of {', '.join(self.NONLINEARITIES)}"
            )
        self.capacity = capacity
        self.nonlin = nonlin
        like = (generator, device, dtype)
        entry = choose("iinit", iinit, initialization.INPUT)
        self.Ure = linear_map(input_size, hidden_size, entry, *like, bias=nonlin != "modrelu")
        self.Uim = linear_map(input_size, hidden_size, entry, *like, bias=False)
        firsts = [torch.arange(hidden_size - 1)[layer % 2 :: 2] for layer in range(capacity)]
        layers = [torch.full_like(first, layer) for layer, first in enumerate(firsts)]
        swaps = torch.arange(hidden_size).repeat(2, 1)
        for swap, first in zip(swaps, firsts, strict=False):
            swap[first], swap[first + 1] = first + 1, first
        places = {"swaps": swaps, "first": torch.cat(firsts), "layer": torch.cat(layers)}
        for name, place in places.items():
            self.register_buffer(name, place.to(device), persistent=False)
        pairs = len(self.first)
        self.theta = _angles(pairs, *like)
        self.phi = _angles(pairs, *like)
        self.omega = _angles(hidden_size, *like)
        if nonlin == "modrelu":
            self.b = modrelu_bias(hidden_size, *like)

    def parameters_apart(self):
        """'orthogonal': all that W is made of."""
        return {"orthogonal": [self.theta, self.phi, self.omega]}

    def state_shapes(self, batch):
        return [(batch, self.hidden_size)] * 2

    def rotations(self):
        """own and other, each (L, H) and complex: F_l h = own_l h + other_l h[swap], D in F_L."""
        one = self.theta.new_ones(self.capacity, self.hidden_size)
        cos, sin = self.theta.cos(), self.theta.sin()
        first, second = (self.layer, self.first), (self.layer, self.first + 1)
        turn = torch.polar(torch.ones_like(self.phi), self.phi)
        own = (one + 0j).index_put(first, turn * cos).index_put(second, cos + 0j)
        other = (0j * one).index_put(first, -turn * sin).index_put(second, sin + 0j)
        last = torch.arange(self.capacity, device=one.device).unsqueeze(1) == self.capacity - 1
        phases = torch.polar(one, torch.where(last, self.omega, 0.0))
        return own * phases, other * phases

    def rotate(self, h):
        """W h of a complex h (..., H)."""
        for layer, (own, other) in enumerate(zip(*self.rotations(), strict=True)):
            h = own * h + other * h[..., self.swaps[layer % 2]]
        return h

    def preactivation(self, x, h, drive=None):
        """a = U x + W h + drive, complex, (..., B, H); h complex."""
        return torch.complex(self.Ure(x) + column(drive), self.Uim(x)) + self.rotate(h)

    def step(self, x_t, state, drive_t=None):
        a = self.preactivation(x_t, torch.complex(*state), drive_t)  # (B, H)
        h = complex_modrelu(a, self.b) if self.nonlin == "modrelu" else a
        return h.real, h.imag

    def _run(self, x, state, drive):
        x, *weights = recurrence.inputs_and_maps(x, self.Ure.weight, self.Uim.weight)
        re, im = (torch.matmul(U, x.transpose(1, 2)) for U in weights)
        if self.Ure.bias is not None:
            re = re + self.Ure.bias.unsqueeze(1)  # (T, H, B)
        if drive is not None:
            re = re + (drive if drive.ndim == 2 else drive.unsqueeze(1)).unsqueeze(1)
        bias = self.b.unsqueeze(1) if self.nonlin == "modrelu" else None
        inputs = (torch.complex(re, im), torch.complex(*state).t(), *self.rotations(), bias)
        learning = recurrence._learning(*inputs)
        outputs, h = _Unitary.apply(self._workspace, learning, self.swaps, *inputs)
        return outputs.transpose(1, 2), (h.real.t(), h.imag.t())

    def quantities(self, x_t, before, after, drive_t=None):
        """a and h, the real parts, and a_im and h_im, the imaginary ones; each (B, H)."""
        a = self.preactivation(x_t, torch.complex(*before), drive_t)
        return {"a": a.real, "h": after[0], "a_im": a.imag, "h_im": after[1]}

    def extra_repr(self):
        return f"capacity={self.capacity}, nonlin={self.nonlin}"
