"""EURNN, the efficient unitary network: h is complex, and W a product of L layers of rotations.

    h_t = φ(U x_t + W h_{t−1} + drive_t)                 (B, H), O(L·H) per step
    W = D F_L … F_1

F_1, F_3, … rotate the units (0, 1), (2, 3), …, and F_2, F_4, … the units (1, 2), (3, 4), …, each
pair by its own matrix

    [[e^{iφ} cos θ, −e^{iφ} sin θ], [sin θ, cos θ]];

a unit without a partner is unchanged. D is diagonal with the phases e^{iω}.

Source: Jing et al., arXiv 1612.05231 (tunable-space implementation).
"""

import math

import torch
from torch.nn.functional import pad

from NetworkCreation import time_loop
from NetworkCreation.initialization import INPUT, linear_map, uniform_parameter
from NetworkCreation.layer import RecurrentLayer, check_sizes, choose, modrelu, unsqueeze_drive

NONLINEARITIES = {"modrelu": modrelu, "none": lambda z, bias: z}


class EURNN(RecurrentLayer):
    """The efficient unitary network.

    capacity: L. θ and φ (one per pair, layer by layer) and ω (H,) are initially U(0, 2π).
    U x = Ure x + i Uim x; the drive is real. nonlin: 'modrelu' (complex, with a bias b as in `RNN`)
    or 'none' (Ure then has a bias, as in torch). iinit: a key of `initialization.INPUT` (for Ure
    and Uim). Raises OptionError for an unknown name, or a size or capacity below 1.

    The outputs are Re h. State: (Re h, Im h), each (B, H).
    """

    training_flags = ("lr_orth",)

    def __init__(
        self, input_size, hidden_size, capacity=2, nonlin="modrelu", iinit="kaiming",
        *, batch_first=False, generator=None, device=None, dtype=None,
    ):  # fmt: skip
        super().__init__(input_size, hidden_size, batch_first)
        like = {"generator": generator, "device": device, "dtype": dtype}
        check_sizes(capacity=capacity)
        choose("nonlin", nonlin, NONLINEARITIES)
        self.capacity = capacity
        self.nonlin = nonlin
        entry = choose("iinit", iinit, INPUT)
        self.Ure = linear_map(input_size, hidden_size, entry, bias=nonlin != "modrelu", **like)
        self.Uim = linear_map(input_size, hidden_size, entry, bias=False, **like)
        pairs = sum((hidden_size - layer % 2) // 2 for layer in range(capacity))
        self.theta = uniform_parameter(pairs, math.pi, math.pi, **like)  # U(0, 2π)
        self.phi = uniform_parameter(pairs, math.pi, math.pi, **like)
        self.omega = uniform_parameter(hidden_size, math.pi, math.pi, **like)
        self.b = uniform_parameter(hidden_size, 0.01, **like) if nonlin == "modrelu" else None

    def parameter_groups(self):
        """'orthogonal': the parameters of W."""
        return {"orthogonal": [self.theta, self.phi, self.omega]}

    def state_shapes(self, batch):
        return [(batch, self.hidden_size)] * 2

    def rotations(self):
        """own, other and swaps, each (L, H): F_l h = own_l h + other_l h[swaps_l], D in F_L."""
        ones = self.theta.new_ones(self.capacity, self.hidden_size)
        unit = torch.arange(self.hidden_size, device=ones.device)
        layer = torch.arange(self.capacity, device=ones.device).unsqueeze(1)
        first = ((unit - layer) % 2 == 0) & (unit < self.hidden_size - 1)  # a pair begins here
        second = first.roll(1, dims=1)
        # The number of each unit's pair, counted from 1; 0, with no angle, for a unit without one
        pair = first.flatten().cumsum(0).view(first.shape) * (first | second)
        theta, phi = (pad(angles, (1, 0))[pair] for angles in (self.theta, self.phi))  # (L, H)
        turn = torch.polar(ones, phi * first + self.omega * (layer == self.capacity - 1))
        swaps = unit + first.int() - second.int()
        return turn * theta.cos(), turn * theta.sin() * (unit - swaps), swaps

    def rotate(self, h):
        """W h of a complex h (..., H)."""
        for own, other, swap in zip(*self.rotations(), strict=True):
            h = own * h + other * h[..., swap]
        return h

    @torch.no_grad()
    def recurrent_matrix(self):
        """W, (H, H), complex."""
        basis = torch.eye(self.hidden_size).to(self.theta)
        return self.rotate(torch.complex(basis, torch.zeros_like(basis))).t()

    def preactivation(self, x, h, drive=None):
        """a = U x + W h + drive, complex, (..., B, H); h complex."""
        return torch.complex(self.Ure(x) + unsqueeze_drive(drive), self.Uim(x)) + self.rotate(h)

    def step(self, x_t, state, drive_t=None):
        a = self.preactivation(x_t, torch.complex(*state), drive_t)  # (B, H)
        h = NONLINEARITIES[self.nonlin](a, self.b)
        return h.real, h.imag

    def quantities(self, x_t, before, after, drive_t=None):
        """a and h, the real parts, and a_im and h_im, the imaginary ones; each (B, H)."""
        a = self.preactivation(x_t, torch.complex(*before), drive_t)
        return {"a": a.real, "h": after[0], "a_im": a.imag, "h_im": after[1]}

    def _run(self, x, state, drive):
        U, H = torch.cat([self.Ure.weight, self.Uim.weight]), self.hidden_size
        x, U = time_loop.joined_input(x, drive, U, driven=slice(0, H))
        re, im = torch.matmul(U, x.transpose(1, 2)).split(H, dim=1)  # (T, H, B)
        if self.Ure.bias is not None:
            re = re + self.Ure.bias.unsqueeze(1)
        bias = None if self.b is None else self.b.unsqueeze(1)
        inputs = (torch.complex(re, im), torch.complex(*state).t(), *self.rotations())
        learns = time_loop.needs_backward(*inputs, bias)
        outputs, h = _Unitary.apply(learns, NONLINEARITIES[self.nonlin], *inputs, bias)
        return outputs.transpose(1, 2), (h.real.t(), h.imag.t())

    def extra_repr(self):
        return f"capacity={self.capacity}, nonlin={self.nonlin}"


def _factors(own, other, swaps, back=False):
    """(own_l, other_l, swap_l) of each layer; back: of the adjoint of their product."""
    factors = []
    for mine, others, swap in zip(own, other, swaps, strict=True):
        if back:
            mine, others = mine.conj().resolve_conj(), others[swap].conj().resolve_conj()
        factors.append((mine.unsqueeze(1), others.unsqueeze(1), swap))
    return factors[::-1] if back else factors


def _turn(h, factors, outs, swapped):
    """The layers' rotations applied to h (H, B) in turn, each layer's result in one of outs."""
    for (own, other, swap), out in zip(factors, outs, strict=True):
        torch.index_select(h, 0, swap, out=swapped)
        h = torch.mul(own, h, out=out).addcmul_(swapped, other)
    return h


def _stretch(size, bias):
    """|h|/|z| of the modReLU, from |z| and the bias as a column; changes size."""
    out = (size + bias).clamp_min_(0)
    # |z| is computed from squares, which underflow below this
    return out.div_(size.clamp_min_(math.sqrt(torch.finfo(size.dtype).tiny)))


class _Unitary(torch.autograd.Function):
    """All steps of an EURNN, z_t = entry_t + W h_{t−1} and h_t = φ(z_t).

    Units are on the second-last axis, (T, H, B) and (H, B), so that swapping units moves whole
    rows. own, other, swaps: (L, H), of `EURNN.rotations`; bias: (H, 1) or None.
    """

    @staticmethod
    @torch.no_grad()  # for torch.compile in torch 2.4
    def forward(ctx, learns, phi, entry, h, own, other, swaps, bias):
        steps, real = len(entry), entry.real
        outputs = torch.empty_like(real, memory_format=torch.contiguous_format)
        z = entry.new_empty(steps if learns else 1, *h.shape)
        factors = _factors(own, other, swaps)
        state, swapped, *pair = entry.new_empty(4, *h.shape).unbind()
        buffers = [pair[layer % 2] for layer in range(len(factors))]
        size = real.new_empty(h.shape)
        state.copy_(h)
        for t in range(steps):
            z_t = z[t if learns else 0]
            torch.add(_turn(state, factors, buffers, swapped), entry[t], out=z_t)
            if bias is None:
                state.copy_(z_t)
            else:
                # torch's absolute value of a complex number takes twice as long
                torch.mul(z_t.real, z_t.real, out=size).addcmul_(z_t.imag, z_t.imag).sqrt_()
                torch.mul(z_t, _stretch(size, bias), out=state)
            outputs[t] = state.real
        if learns:
            ctx.phi = phi
            ctx.save_for_backward(h, own, other, swaps, bias, z)
        ctx.set_materialize_grads(False)
        return outputs, state.clone()

    @staticmethod
    @time_loop.differentiable_once
    def backward(ctx, saved, doutputs, dstate):
        h, own, other, swaps, bias, z = saved
        forth, back = _factors(own, other, swaps), _factors(own, other, swaps, back=True)
        d_entry = torch.empty_like(z)
        d_own, d_other = torch.zeros_like(own), torch.zeros_like(other)
        d_bias = None if bias is None else torch.zeros_like(bias)
        swapped, delta = torch.zeros_like(z[:1].expand(2, -1, -1)).unbind()  # δ = dL/dh
        if dstate is not None:
            delta.copy_(dstate)
        for first, last in reversed(time_loop.passes(z)):
            before, dz = torch.empty_like(z[first:last]), d_entry[first:last]
            before[0] = h if first == 0 else ctx.phi(z[first - 1], bias)
            before[1:] = ctx.phi(z[first : last - 1], bias)
            # dL/d(F_l … F_1 h), l < L
            between = z.new_empty(len(forth) - 1, *dz.shape)
            if bias is not None:
                size, unit = z[first:last].abs(), z[first:last].sgn()
                alive = ((size + bias > 0) & (size > 0)).to(size.dtype)
                # of dh, seen from the direction of z: along it, and across
                slopes = torch.stack([alive, _stretch(size, bias)], dim=-1)
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
                time_loop.flush(torch.view_as_real(dz[k]))
                _turn(dz[k], back, [*reversed(between[:, k].unbind()), delta], swapped)
            if bias is not None:
                d_bias += turned.real.sum((0, 2)).unsqueeze(1)
            for layer, (mine, others, swap) in enumerate(forth):
                after = between[layer] if layer < len(between) else dz
                exchanged = before[:, swap]
                d_own[layer] += (before.conj() * after).sum((0, 2))
                d_other[layer] += (exchanged.conj() * after).sum((0, 2))
                before = mine * before + others * exchanged
        return None, None, d_entry, delta, d_own, d_other, None, d_bias
