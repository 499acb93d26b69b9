"""ANRU, the adaptive nonlinearity recurrent unit: a supervisor sets n and s of every unit.

    a_t = Uxh x_t + Whh h_{t−1} + b + drive_t            (B, H)
    g_t = tanh(Uag a_t + Wgg g_{t−1} + b_g)              (B, H, M), of each unit i its own a and g
    n_t = Wgn g_t + b_n,  s_t = Wgs g_t + b_s            (B, H)
    h_t = γ(a_t; n_t, s_t)                               (B, H)

Source: Geadah et al., arXiv 2006.12253.
"""

import math
from functools import partial

import torch
from torch import nn

from NetworkCreation import gamma_function, time_loop
from NetworkCreation.initialization import INPUT, RECURRENT, linear_map, xavier
from NetworkCreation.layer import RecurrentLayer, check_sizes, choose, unsqueeze_drive


class ANRU(RecurrentLayer):
    """The adaptive nonlinearity recurrent unit. All supervisors share their weights.

    supervisor_size: M. rinit: of Whh and Wgg. iinit: of Uxh and Uag. Their biases are initially 0.
    Wgn: xavier normal with gain 0.1, bias 5 + 2u with one u ~ U(0, 1); Wgs: xavier normal with gain
    0.01, bias 0. n and s are neither squashed nor clamped. State: (h, g), h (B, H), g (B, H, M).
    Raises OptionError for an unknown name or a size below 1.
    """

    def __init__(
        self, input_size, hidden_size, supervisor_size=50, rinit="henaff", iinit="kaiming",
        *, batch_first=False, generator=None, device=None, dtype=None,
    ):  # fmt: skip
        super().__init__(input_size, hidden_size, batch_first)
        check_sizes(supervisor_size=supervisor_size)
        self.supervisor_size = supervisor_size
        recurrent = choose("rinit", rinit, RECURRENT)
        entry = choose("iinit", iinit, INPUT)
        like = {"generator": generator, "device": device, "dtype": dtype}
        self.Uxh = linear_map(input_size, hidden_size, entry, **like)
        self.Whh = linear_map(hidden_size, hidden_size, recurrent, **like)
        self.Uag = linear_map(1, supervisor_size, entry, **like)
        self.Wgg = linear_map(supervisor_size, supervisor_size, recurrent, **like)
        self.Wgn = linear_map(supervisor_size, 1, partial(xavier, gain=0.1), **like)
        self.Wgs = linear_map(supervisor_size, 1, partial(xavier, gain=0.01), **like)
        for linear in (self.Uxh, self.Whh, self.Uag, self.Wgg, self.Wgs):
            nn.init.zeros_(linear.bias)
        self.Wgn.bias.data.fill_(5 + 2 * torch.rand((), generator=generator, device="cpu").item())

    def state_shapes(self, batch):
        return [(batch, self.hidden_size), (batch, self.hidden_size, self.supervisor_size)]

    def preactivation(self, x, h, drive=None):
        """a = Uxh x + Whh h + b + drive, (..., B, H)."""
        return self.Uxh(x) + self.Whh(h) + unsqueeze_drive(drive)

    def gain(self, g):
        """n = Wgn g + b_n, (..., B, H)."""
        return self.Wgn(g).squeeze(-1)

    def saturation(self, g):
        """s = Wgs g + b_s, (..., B, H)."""
        return self.Wgs(g).squeeze(-1)

    def step(self, x_t, state, drive_t=None):
        h, g = state
        a = self.preactivation(x_t, h, drive_t)  # (B, H)
        g = torch.tanh(self.Uag(a.unsqueeze(-1)) + self.Wgg(g))  # (B, H, M)
        h = gamma_function.gamma(a, self.gain(g), self.saturation(g))  # (B, H)
        return h, g

    def quantities(self, x_t, before, after, drive_t=None):
        """a, n, s and h, each (B, H), and g (B, H, M)."""
        h, g = after
        a = self.preactivation(x_t, before[0], drive_t)
        return {"a": a, "n": self.gain(g), "s": self.saturation(g), "h": h, "g": g}

    def recurrent_matrix(self):
        return self.Whh.weight.detach()

    def gains(self, x):
        """n and s at every step of x, each (T, B, H)."""
        return self.trace(x, keep=("n", "s"))[2]

    def parameter_groups(self):
        """'gains': b_n and b_s, the base values of n and s."""
        return {"gains": [self.Wgn.bias, self.Wgs.bias]}

    def _run(self, x, state, drive):
        h, g = state
        x, U = time_loop.joined_input(x, drive, self.Uxh.weight)
        b, y = self.Uxh.bias + self.Whh.bias, (g.transpose(1, 2) + 1) / 2
        inputs = (x, h, y, U, b, self.Whh.weight, *self._supervisor_maps())
        outputs, h, y = _ANRU.apply(time_loop.needs_backward(*inputs), *inputs)
        return outputs, (h, (2 * y - 1).transpose(1, 2))

    def _supervisor_maps(self):
        """E (M, M + 2) and N (2, M + 2): y_t = σ(E [y_{t−1}; a_t; 1]), [n_t; s_t] = N [y_t; ·; 1].

        y = (g + 1)/2 is σ(2 z) for g = tanh(z); the sigmoid takes a sixth of the time of tanh.
        """
        bias = (self.Uag.bias + self.Wgg.bias - self.Wgg.weight.sum(1)).unsqueeze(1)
        E = 2 * torch.cat([2 * self.Wgg.weight, self.Uag.weight, bias], dim=1)
        weight = torch.cat([self.Wgn.weight, self.Wgs.weight])
        bias = (torch.cat([self.Wgn.bias, self.Wgs.bias]) - weight.sum(1)).unsqueeze(1)
        return E, torch.cat([2 * weight, torch.zeros_like(bias), bias], dim=1)


CHUNK = 10000  # units of all samples whose supervisors a CPU updates together: 2 MB for M = 50
BLOCK = 14  # every BLOCK-th state of the supervisors is kept; backward recomputes the others


def _chunks(h):
    """Slices of the batch of h (B, H) whose supervisors stay in a CPU's cache; on a GPU all."""
    batch = len(h)
    number = math.ceil(h.numel() / CHUNK) if h.is_cpu else 1
    length = math.ceil(batch / min(number, batch))
    return [slice(first, min(first + length, batch)) for first in range(0, batch, length)]


def _blocks(steps):
    """(first, last + 1) of the blocks of steps, each of which begins with a kept y."""
    return [(first, min(first + BLOCK, steps)) for first in range(0, steps, BLOCK)]


def _square(E):
    """E with two more rows: anything for the row of a, and σ(99) = 1 for the row of ones."""
    square = nn.functional.pad(E, (0, 0, 0, 2))
    square[-1, -1].fill_(99)  # an assignment would copy the number to a GPU, and wait
    return square


class _ANRU(torch.autograd.Function):
    """All steps of an ANRU, with a_t = U x_t + b + W h_{t−1}, and E and N of `_supervisor_maps`.

    The supervisors' states are (B, M + 2, H): M rows of y, a row of a and a row of ones, so that
    input and biases are part of the one product.
    """

    @staticmethod
    @torch.no_grad()  # for torch.compile in torch 2.4
    def forward(ctx, learns, x, h, y, U, b, W, E, N):
        steps, batch, size, M = *x.shape[:2], len(W), len(E)
        outputs = h.new_empty(steps, batch, size)
        a = torch.empty_like(outputs) if learns else outputs
        for first, last in time_loop.passes(outputs):
            time_loop.input_product(x[first:last], U, b, out=a[first:last])
        kept = h.new_empty(len(_blocks(steps)) if learns else 0, batch, M + 2, size)
        ns = h.new_empty(steps if learns else 1, batch, 2, size)
        square, recurrent = _square(E), W.t().contiguous()
        y_last = torch.empty_like(y)
        for chunk in _chunks(h):
            length = chunk.stop - chunk.start
            before, after = h.new_empty(2, length, M + 2, size).unbind()
            before[:, :M] = y[chunk]
            before[:, M + 1].fill_(1)
            step_map, read = square.expand(length, -1, -1), N.expand(length, -1, -1)
            state = h[chunk]
            for t in range(steps):
                a_t = a[t, chunk].addmm_(state, recurrent)
                before[:, M] = a_t
                if learns and t % BLOCK == 0:
                    kept[t // BLOCK, chunk] = before
                torch.bmm(step_map, before, out=after).sigmoid_()
                ns_t = torch.bmm(read, after, out=ns[t if learns else 0, chunk])
                state = outputs[t, chunk]
                gamma_function.value(a_t, ns_t[:, 0], ns_t[:, 1], out=state)
                before, after = after, before
            y_last[chunk] = before[:, :M]
        if learns:
            ctx.save_for_backward(x, h, U, W, E, N, outputs, a, ns, kept)
        ctx.set_materialize_grads(False)
        return outputs, outputs[-1].clone(), y_last

    @staticmethod
    @time_loop.differentiable_once
    def backward(ctx, saved, doutputs, dstate, dy_last):
        x, h, U, W, E, N, outputs, a, ns, kept = saved
        steps, batch, size, M = *outputs.shape, len(E)
        blocks, square = _blocks(steps), _square(E)
        back = torch.zeros_like(square)  # dL/dy_t = back [dL/dz_{t+1}; dL/dn_t; dL/ds_t]
        back[:M] = torch.cat([E[:, :M], N[:, :M]]).t()
        to_a = torch.zeros_like(square[:1])
        to_a[0, :M] = E[:, M]
        dh, dy, dmaps = torch.empty_like(h), h.new_empty(batch, M, size), torch.zeros_like(square)
        gradients = time_loop.AffineGradients(x, h, outputs, U, W, ctx.needs_input_grad[1])
        for chunk in _chunks(h):
            length = chunk.stop - chunk.start
            ys = list(h.new_empty(BLOCK + 1, length, M + 2, size).unbind())
            D, D_before = h.new_zeros(2, length, M + 2, size).unbind()
            products = h.new_zeros(length, M + 2, M + 2)
            step_map, step_back, a_back = (
                matrix.expand(length, -1, -1) for matrix in (square, back, to_a)
            )
            chunk_dstate = None if dstate is None else dstate[chunk]
            chunk_doutputs = None if doutputs is None else doutputs[:, chunk]
            da_t, dh_t = None, torch.empty_like(h[chunk])
            for index, (first, last) in reversed(list(enumerate(blocks))):
                if last < steps:  # the next block begins with the y that this one ends with
                    ys[BLOCK], ys[0] = ys[0], ys[BLOCK]
                ys[0].copy_(kept[index, chunk])
                for t in range(first, last if last == steps else last - 1):
                    y_t = torch.bmm(step_map, ys[t - first], out=ys[t - first + 1]).sigmoid_()
                    if t + 1 < steps:
                        y_t[:, M] = a[t + 1, chunk]
                n, s = ns[first:last, chunk].unbind(2)
                slope, into_n, into_s = gamma_function.derivatives(a[first:last, chunk], n, s)
                for i in reversed(range(last - first)):
                    y_t = ys[i + 1]
                    time_loop.hidden_gradient(
                        first + i, da_t, W, chunk_doutputs, chunk_dstate, out=dh_t
                    )
                    torch.mul(dh_t, into_n[i], out=D[:, M])
                    torch.mul(dh_t, into_s[i], out=D[:, M + 1])
                    products.baddbmm_(D, y_t.transpose(1, 2))
                    torch.bmm(step_back, D, out=D_before)
                    if da_t is None and dy_last is not None:
                        D_before[:, :M] += dy_last[chunk]
                    torch.ops.aten.sigmoid_backward.grad_input(D_before, y_t, grad_input=D_before)
                    D, D_before = time_loop.flush(D_before), D
                    da_t = slope[i].mul_(dh_t)  # slope becomes dL/da
                    da_t.unsqueeze(1).baddbmm_(a_back, D)
                    time_loop.flush(da_t)
                gradients.add(first, last, slope, chunk)
            D[:, M:].zero_()
            dmaps += products.baddbmm_(D, ys[0].transpose(1, 2)).sum(0)
            torch.mm(da_t, W, out=dh[chunk])
            dy[chunk] = torch.bmm(step_back, D)[:, :M]
        affine = gradients.dU, gradients.db, gradients.dW
        return None, gradients.dx, dh, dy, *affine, dmaps[:M], dmaps[M:]
