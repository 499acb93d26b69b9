"""The layers' loops over time, forward and backward, written for speed.

Letters: T time, B batch, I input, H main units, M supervisor units.

`Networks.py` says what a step of a layer is. Here a whole sequence is one autograd function, which
gives the same values and gradients as the loop of steps and saves time and memory:

- kernels write into buffers that are allocated once, and the work that needs no recurrence (input
  products, weight gradients, derivatives of the activation) is done for several steps at a time;
- only what the backward needs is kept, and what is cheap is computed again;
- large buffers are used again in the next call (`Workspace`), as fresh pages are slow;
- the recurrent matrix is packed once for all steps (`_Product`);
- an input that is made of few symbols costs as much as there are symbols (`Embedded`).

The functions take and give what a layer does. They can be differentiated once; in forward mode,
under torch.func or twice, use the loop of steps (`layer.loop`).
"""

import ctypes
import functools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from NetworkCreation.gamma_function import (
    combine_terms,
    gamma_derivatives_into,
    gamma_into,
    gamma_terms_into,
)

# Elements that a pass over several steps works on: few enough to stay in a cache.
PASS = 3 << 17
# Units of all samples whose supervisors are worked on together: 2 MB of them for M = 50.
CHUNK = 10000
# Steps between two states of the supervisors that are kept; those between are computed again.
BLOCK = 14
# A matrix is packed from this many multiplications a product on, and from this many products on:
# to call the packed product costs 20 μs, and to pack as much as five to ten products save.
PACKED_WORK = 10_000_000
PACKED_STEPS = 32


class Workspace:
    """Memory that a layer uses again, call after call.

    The system gives large blocks out in fresh pages, and to fault those in takes a good part of a
    training step. So a block is lent to a tensor, and comes back when the tensor's storage is
    freed: when neither a graph, nor a caller, nor a view holds it any more. A block is therefore
    never lent twice, whatever becomes of the graphs and in whichever thread. Blocks that no longer
    fit are dropped when another size is asked for, and all of them with the workspace.

    Other devices than the CPU have an allocator that does this.
    """

    SMALLEST = 1 << 20  # bytes; the C library itself keeps what is smaller

    def __init__(self):
        self._free = {}  # bytes → blocks

    def empty(self, shape, like):
        """An uninitialised tensor of this shape, of the type and on the device of `like`."""
        size = math.prod(shape) * like.element_size()
        if like.device.type != "cpu" or size < self.SMALLEST:
            return like.new_empty(shape)
        try:
            block = self._free[size].pop()
        except (KeyError, IndexError):
            self._free = {}
            block = torch.empty(size, dtype=torch.uint8)
        view = (ctypes.c_char * size).from_address(block.data_ptr())  # the storage will own it
        weakref.finalize(view, _give_back, weakref.ref(self), size, block).atexit = False
        return torch.frombuffer(view, dtype=like.dtype).view(shape)

    def __reduce__(self):
        return Workspace, ()  # a copy of a layer, or one that is pickled, starts with none


def _give_back(home, size, block):
    """Puts a block back into the workspace it came from, where that still exists."""
    workspace = home()
    if workspace is not None:
        workspace._free.setdefault(size, []).append(block)


@dataclass(frozen=True)
class Embedded:
    """The input x of a layer where it is made of symbols: x[t, b] is table[symbols[t, b]].

    symbols: (T, B), integers. table: (number of symbols, I). A layer takes it as the x (T, B, I)
    that it stands for. Where there are fewer symbols than inputs it is the faster of the two.
    """

    symbols: torch.Tensor
    table: torch.Tensor

    @property
    def shape(self):
        return torch.Size([*self.symbols.shape, self.table.shape[1]])

    def dense(self):
        """x (T, B, I)."""
        return torch.nn.functional.embedding(self.symbols, self.table)


def inputs_and_maps(x, *maps):
    """The input and the matrices (units, I) that it meets, as the loops take them.

    With one-hot vectors e_k for the symbols k, U x = (U tableᵀ) e_k: the products are over the
    symbols instead of the inputs, and no input is left that a gradient has to be found for.
    """
    if not isinstance(x, Embedded):
        return x, *maps
    one_hot = x.table.new_zeros(*x.symbols.shape, len(x.table))
    one_hot.scatter_(-1, x.symbols.long().unsqueeze(-1), 1)
    return one_hot, *(U @ x.table.t() for U in maps)


def _passes(steps, batch, size):
    """(first, last + 1) of the steps that a pass takes, from the first step to the last."""
    length = max(1, PASS // (batch * size))
    return [(first, min(first + length, steps)) for first in range(0, steps, length)]


def _rows(tensor):
    """(..., size) as a matrix."""
    return tensor.reshape(-1, tensor.shape[-1])


def _input_product(x, U, b, drive, out, driven=slice(None)):
    """U x + b of some steps into `out` (steps, B, units), and the drive to the `driven` units."""
    if U.shape[1] == 1:
        torch.addcmul(b, x, U.t(), out=out)  # a matrix product with one column is slower
    else:
        torch.addmm(b, _rows(x), U.t(), out=_rows(out))
    if drive is not None:
        out[..., driven].add_(_column(drive, out.shape[1]))


class _Product:
    """h ↦ h W, for the products with one matrix W (inputs, outputs) that a loop over time takes.

    torch packs the matrix anew for every product. oneDNN, which comes with torch, packs it once,
    and a large product then takes a tenth less time. h: (batch, inputs).
    """

    def __init__(self, W, steps, batch):
        if _packing_pays(W, steps, batch):
            self.packed = _packed(W.t().contiguous())
        else:
            self.packed, self.W = None, W.contiguous()  # a view is slower, at each product

    def into(self, out, h):
        """h W into `out`."""
        if self.packed is None:
            torch.mm(h, self.W, out=out)
        else:
            out.copy_(_packed_product(h, self.packed))

    def plus(self, given, out, h):
        """given + h W into `out`, which may be `given`."""
        if self.packed is None:
            total = out if out is given else out.copy_(given)  # faster than addmm(given, ...)
            total.addmm_(h, self.W)
        else:
            torch.add(given, _packed_product(h, self.packed), out=out)


def _packing_pays(W, steps, batch):
    """Whether W is packed: where it was found to be faster, on a processor of AVX-512 (Zen 4)."""
    return (
        W.device.type == "cpu"
        and W.dtype == torch.float32
        and batch * W.numel() >= PACKED_WORK
        and steps >= PACKED_STEPS
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.enabled
        and _packing_works()
    )


# What torch's own compiler calls for a linear map whose matrix does not change. The names are
# torch's internal ones, and so are tried out before they are relied on.


def _packed(W):
    """W (outputs, inputs) as oneDNN wants it."""
    return torch.ops.mkldnn._reorder_linear_weight(W)


def _packed_product(h, packed):
    """h Wᵀ, a new tensor."""
    return torch.ops.mkldnn._linear_pointwise(h, packed, None, "none", [], "")


@functools.cache
def _packing_works():
    """Whether this torch has those two functions, and they multiply."""
    h, W = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        return torch.equal(_packed_product(h, _packed(W)), h @ W.t())
    except (AttributeError, RuntimeError, TypeError):  # no such function, or another signature
        return False


def _column(drive, batch):
    """A drive (T,) or (T, B) as (T, B, 1)."""
    return (drive if drive.ndim == 2 else drive.unsqueeze(1).expand(-1, batch)).unsqueeze(-1)


def _previous(first_state, states, first, last):
    """The states before the steps first ... last − 1, as a matrix."""
    if first > 0:
        return _rows(states[first - 1 : last - 1])
    return torch.cat([first_state, _rows(states[: last - 1])])


SMALLEST_GRADIENT = {
    dtype: torch.finfo(dtype).tiny * 1e8 for dtype in (torch.bfloat16, torch.float32, torch.float64)
} | {torch.float16: 0.0}  # whose whole range is less than that


def _flush(gradient):
    """Zeroes what is about to become denormal, in place; keeps NaN and infinity.

    A gradient vanishes on its way back in time, and a product of denormal numbers takes a hundred
    times as long as one of normal numbers. In float32 this is what is below 1e-30.
    """
    torch.hardshrink(gradient, SMALLEST_GRADIENT[gradient.dtype], out=gradient)


class _InputGradients:
    """dU, db, dx and the drive's gradient, from the pre-activation gradients of some steps."""

    def __init__(self, needed, x, U, drive, driven=slice(None)):
        def zeros(name, like):
            return torch.zeros_like(like) if needed[name] else None

        self.x, self.U, self.driven = x, U, driven
        self.dx, self.dU = zeros("x", x), zeros("U", U)
        self.ddrive = zeros("drive", drive)
        self.db = U.new_zeros(U.shape[0]) if needed["b"] else None

    def add(self, first, last, da, batch=slice(None)):
        """da (last − first, B, H), of the batch or a part of it."""
        rows = _rows(da)
        x = self.x[first:last, batch]
        if self.dU is not None:
            self.dU.addmm_(rows.t(), _rows(x))
        if self.db is not None:
            self.db.add_(rows.sum(0))
        if self.dx is not None:
            self.dx[first:last, batch] = (rows @ self.U).view(x.shape)
        if self.ddrive is not None:
            total = da[..., self.driven].sum(-1)
            if self.ddrive.ndim == 2:
                self.ddrive[first:last, batch] = total
            else:
                self.ddrive[first:last] += total.sum(-1)


class Activation(NamedTuple):
    """What the time loop has to know of an activation φ; `parameters` are those it learns.

    value(a, parameters, out, work) writes φ(a) into `out`. derivatives(a, h, parameters, slope,
    terms, work) writes φ'(a) into `slope` and, unless `terms` is empty, what the derivatives by the
    parameters are made of into `terms`, as many as `number`. combine(parameters, terms) makes them,
    perhaps in place, also of sums of the terms over all that shares the parameters. `work` are two
    buffers. All but γ are differentiated from h alone, and `out` may be a.
    """

    value: Callable
    derivatives: Callable
    number: int = 0
    combine: Callable = lambda parameters, terms: terms


def _gamma(a, parameters, out, work):
    n, s, scale = parameters
    gamma_into(a, n, s, out, work, scale)


def _gamma_derivatives(a, h, parameters, slope, terms, work):
    gamma_terms_into(a, *parameters, slope, terms, work)


def _combine_gamma(parameters, terms):
    return combine_terms(*parameters, terms)


def _relu(a, parameters, out, work):
    torch.clamp_min(a, 0, out=out)


def _relu_derivatives(a, h, parameters, slope, terms, work):
    torch.sign(h, out=slope)


def _tanh(a, parameters, out, work):
    torch.tanh(a, out=out)


def _tanh_derivatives(a, h, parameters, slope, terms, work):
    torch.mul(h, h, out=slope).neg_().add_(1)


def _sigmoid(a, parameters, out, work):
    torch.sigmoid(a, out=out)


def _sigmoid_derivatives(a, h, parameters, slope, terms, work):
    torch.addcmul(h, h, h, value=-1, out=slope)


def _modrelu(a, parameters, out, work):
    sign = torch.sign(a, out=work[0])
    torch.abs(a, out=out).add_(parameters[0]).clamp_min_(0).mul_(sign)


def _modrelu_derivatives(a, h, parameters, slope, terms, work):
    sign = torch.sign(h, out=terms[0] if terms else work[0])  # of a, and 0 below the threshold
    torch.mul(sign, sign, out=slope)


def _none(a, parameters, out, work):
    out.copy_(a)


def _none_derivatives(a, h, parameters, slope, terms, work):
    slope.fill_(1)


ACTIVATIONS = {
    "gamma": Activation(_gamma, _gamma_derivatives, 3, _combine_gamma),
    "gamma2": Activation(_gamma, _gamma_derivatives, 3, _combine_gamma),
    "ReLU": Activation(_relu, _relu_derivatives),
    "tanh": Activation(_tanh, _tanh_derivatives),
    "sigmoid": Activation(_sigmoid, _sigmoid_derivatives),
    "modrelu": Activation(_modrelu, _modrelu_derivatives, 1),
    "none": Activation(_none, _none_derivatives),
}


def _learning(*tensors):
    """Whether a call has to keep what its backward needs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _RNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, nonlin, workspace, learning, x, h, drive, U, b, V, *parameters):
        value = ACTIVATIONS[nonlin].value
        steps, batch, size = *x.shape[:2], len(U)
        outputs = workspace.empty((steps, batch, size), h)
        keeps = learning and nonlin in ("gamma", "gamma2")
        a = workspace.empty(outputs.shape, h) if keeps else outputs
        work = h.new_empty(2, batch, size).unbind()
        state, recurrent = h, _Product(V.t(), steps, batch)
        given = parameters
        if nonlin in ("gamma", "gamma2"):
            n, s = parameters
            given = (n, s, (1 - s) / n)
        for first, last in _passes(steps, batch, size):
            part = None if drive is None else drive[first:last]
            _input_product(x[first:last], U, b, part, a[first:last])
            for a_t, h_t in zip(a[first:last].unbind(), outputs[first:last].unbind(), strict=True):
                recurrent.plus(a_t, a_t, state)
                value(a_t, given, h_t, work)
                state = h_t
        if learning:
            ctx.nonlin, ctx.workspace = nonlin, weakref.ref(workspace)
            ctx.save_for_backward(x, h, drive, U, V, outputs, a if keeps else None, *parameters)
        ctx.set_materialize_grads(False)
        return outputs, state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, doutputs, dstate):
        x, h, drive, U, V, outputs, a, *parameters = ctx.saved_tensors
        names = ("x", "h", "drive", "U", "b", "V")
        needed = dict(zip(names, ctx.needs_input_grad[3:9], strict=True))
        learns = any(ctx.needs_input_grad[9:])
        activation = ACTIVATIONS[ctx.nonlin]
        steps, batch, size = outputs.shape
        passes = _passes(steps, batch, size)
        shape = (passes[0][1], batch, size)
        workspace = ctx.workspace() or Workspace()  # a graph may outlive its layer
        buffers = workspace.empty((5, *shape), outputs)
        by_step = list(zip(*(buffer.unbind() for buffer in buffers[:3]), strict=True))
        number = activation.number if learns else 0
        terms, sums = (workspace.empty((number, *shape), outputs) for _ in range(2))
        sums.zero_()
        dV = torch.zeros_like(V) if needed["V"] else None
        entry = _InputGradients(needed, x, U, drive)
        back = _Product(V, steps, batch)
        da_t = None
        for first, last in reversed(passes):
            length = last - first
            delta, slope, da, *work = buffers[:, :length].unbind()  # δ = dL/dh
            activation.derivatives(
                None if a is None else a[first:last],
                outputs[first:last],
                parameters,
                slope,
                terms[:, :length].unbind(),
                work,
            )
            for t in reversed(range(first, last)):
                delta_t, slope_t, da_now = by_step[t - first]
                _delta(delta_t, da_t, back, t, doutputs, dstate)
                da_t = torch.mul(delta_t, slope_t, out=da_now)
                _flush(da_t)
            sums[:, :length].addcmul_(delta, terms[:, :length])
            entry.add(first, last, da)
            if dV is not None:
                dV.addmm_(_rows(da).t(), _previous(h, outputs, first, last))
        dh = da_t @ V if needed["h"] else None
        dparameters = [None] * len(parameters)
        if learns:
            totals = [total.sum_to_size(parameters[0].shape) for total in sums]
            dparameters = activation.combine(parameters, totals)
        return None, None, None, entry.dx, dh, entry.ddrive, entry.dU, entry.db, dV, *dparameters


def _delta(out, da, back, t, doutputs, dstate):
    """dL/dh of step t into `out`: what the step after it (da, None for the last) and L itself say.

    back: the product with the recurrent matrix. doutputs, dstate: the gradients of the outputs and
    of the final state, or None.
    """
    given = None if doutputs is None else doutputs[t]
    if da is None:
        out.copy_(dstate) if dstate is not None else out.zero_()
        return out if given is None else out.add_(given)
    if given is None:
        back.into(out, da)
    else:
        back.plus(given, out, da)
    return out


def rnn(workspace, nonlin, x, h, drive, U, V, parameters):
    """The RNN of `Networks.RNN`: outputs (T, B, H) and the last h (B, H).

    x (T, B, I), h (B, H), drive (T,), (T, B) or None; U, V: linear maps, U with bias; parameters:
    those of the activation `nonlin`, a key of ACTIVATIONS: n and s, or b, or none.
    """
    biases = [linear.bias for linear in (U, V) if linear.bias is not None]
    bias = sum(biases) if biases else U.weight.new_zeros(len(U.weight))
    x, weight = inputs_and_maps(x, U.weight)
    inputs = (x, h, drive, weight, bias, V.weight, *parameters)
    return _RNN.apply(nonlin, workspace, _learning(*inputs), *inputs)


# The supervisors' matrices are (B, M + 2, H): M rows of y = (g + 1)/2, a row of a, a row of ones,
# so that input and biases are part of the one product. y is a sigmoid, y = σ(2 z) where
# g = tanh(z), and the sigmoid takes a sixth of the time of the tanh.


def _supervisor_maps(Uag, Wgg, Wgn, Wgs):
    """E (M, M + 2) and N (2, M + 2): y_t = σ(E [y_{t−1}; a_t; 1]), [n_t; s_t] = N [y_t; ·; 1]."""
    bias = (Uag.bias + Wgg.bias - Wgg.weight.sum(1)).unsqueeze(1)
    entry = 2 * torch.cat([2 * Wgg.weight, Uag.weight, bias], dim=1)
    weight = torch.cat([Wgn.weight, Wgs.weight])
    bias = (torch.cat([Wgn.bias, Wgs.bias]) - weight.sum(1)).unsqueeze(1)
    return entry, torch.cat([2 * weight, torch.zeros_like(bias), bias], dim=1)


def _chunks(batch, size):
    """Slices of the batch whose supervisors stay in a cache."""
    number = math.ceil(batch * size / CHUNK)
    length = math.ceil(batch / min(number, batch))
    return [slice(first, min(first + length, batch)) for first in range(0, batch, length)]


def _blocks(steps):
    """(first, last + 1) of the blocks of steps that begin with a kept y."""
    return [(first, min(first + BLOCK, steps)) for first in range(0, steps, BLOCK)]


class _ANRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, workspace, learning, x, h, y, drive, U, b, W, E, N):
        steps, batch, size, M = *x.shape[:2], len(U), len(E)
        outputs = workspace.empty((steps, batch, size), h)
        a = workspace.empty(outputs.shape, h) if learning else outputs
        for first, last in _passes(steps, batch, size):
            part = None if drive is None else drive[first:last]
            _input_product(x[first:last], U, b, part, a[first:last])
        kept = workspace.empty((len(_blocks(steps)) if learning else 0, batch, M + 2, size), h)
        ns = workspace.empty((steps if learning else 1, batch, 2, size), h)
        square = _square(E)
        chunks = _chunks(batch, size)
        recurrent = _Product(W.t(), steps, chunks[0].stop)
        y_last = torch.empty_like(y)
        for chunk in chunks:
            length = chunk.stop - chunk.start
            before, after = h.new_empty(2, length, M + 2, size).unbind()
            before[:, :M], before[:, M + 1] = y[chunk], 1
            step_map, read = square.expand(length, -1, -1), N.expand(length, -1, -1)
            work = h.new_empty(2, length, size).unbind()
            state = h[chunk]
            for t in range(steps):
                a_t = a[t, chunk]
                recurrent.plus(a_t, a_t, state)
                before[:, M] = a_t
                if learning and t % BLOCK == 0:
                    kept[t // BLOCK, chunk] = before
                torch.bmm(step_map, before, out=after).sigmoid_()
                ns_t = torch.bmm(read, after, out=ns[t if learning else 0, chunk])
                state = outputs[t, chunk]
                gamma_into(a_t, ns_t[:, 0], ns_t[:, 1], state, work)
                before, after = after, before
            y_last[chunk] = before[:, :M]
        if learning:
            ctx.save_for_backward(x, h, drive, U, W, E, N, outputs, a, ns, kept)
        ctx.set_materialize_grads(False)
        return outputs, outputs[-1].clone(), y_last

    @staticmethod
    @once_differentiable
    def backward(ctx, doutputs, dstate, dy_last):
        x, h, drive, U, W, E, N, outputs, a, ns, kept = ctx.saved_tensors
        names = ("x", "h", "y", "drive", "U", "b", "W", "E", "N")
        needed = dict(zip(names, ctx.needs_input_grad[2:], strict=True))
        steps, batch, size, M = *outputs.shape, len(E)
        blocks = _blocks(steps)
        K = min(BLOCK, steps)
        square = _square(E)
        back = torch.zeros_like(square)  # dL/dy_t = back [dL/dz_{t+1}; dL/dn_t; dL/ds_t]
        back[:M] = torch.cat([E[:, :M], N[:, :M]]).t()
        to_a = torch.zeros_like(square[:1])
        to_a[0, :M] = E[:, M]
        dW = torch.zeros_like(W) if needed["W"] else None
        dh = torch.empty_like(h) if needed["h"] else None
        dy = h.new_empty(batch, M, size) if needed["y"] else None
        dmaps = torch.zeros_like(square)
        entry = _InputGradients(needed, x, U, drive)
        chunks = _chunks(batch, size)
        back_to_h = _Product(W, steps, chunks[0].stop)
        for chunk in chunks:
            length = chunk.stop - chunk.start
            shape = (K, length, size)
            delta, da, slope, into_n, into_s, *work = h.new_empty(7, *shape).unbind()  # δ = dL/dh
            ys = list(h.new_empty(K + 1, length, M + 2, size).unbind())
            D, D_before = h.new_zeros(2, length, M + 2, size).unbind()
            products = h.new_zeros(length, M + 2, M + 2)
            step_map, step_back, a_back = (
                matrix.expand(length, -1, -1) for matrix in (square, back, to_a)
            )
            given = [None if d is None else d[chunk] for d in (dstate, dy_last)]
            given_outputs = None if doutputs is None else doutputs[:, chunk]
            da_t = None
            for index, (first, last) in reversed(list(enumerate(blocks))):
                part = slice(0, last - first)
                if last < steps:  # what the last block began with is what this one ends with
                    ys[K], ys[0] = ys[0], ys[K]
                ys[0].copy_(kept[index, chunk])
                for t in range(first, last if last == steps else last - 1):
                    y_t = torch.bmm(step_map, ys[t - first], out=ys[t - first + 1]).sigmoid_()
                    if t + 1 < steps:
                        y_t[:, M] = a[t + 1, chunk]
                ns_part = ns[first:last, chunk]
                gamma_derivatives_into(
                    a[first:last, chunk],
                    ns_part[:, :, 0],
                    ns_part[:, :, 1],
                    slope[part],
                    into_n[part],
                    into_s[part],
                    [buffer[part] for buffer in work],
                )
                for t in reversed(range(first, last)):
                    i, y_t = t - first, ys[t - first + 1]
                    delta_t = _delta(delta[i], da_t, back_to_h, t, given_outputs, given[0])
                    torch.mul(delta_t, into_n[i], out=D[:, M])
                    torch.mul(delta_t, into_s[i], out=D[:, M + 1])
                    products.baddbmm_(D, y_t.transpose(1, 2))
                    torch.bmm(step_back, D, out=D_before)
                    if da_t is None and given[1] is not None:
                        D_before[:, :M] += given[1]
                    torch.ops.aten.sigmoid_backward.grad_input(D_before, y_t, grad_input=D_before)
                    _flush(D_before)
                    D, D_before = D_before, D
                    da_t = torch.mul(delta_t, slope[i], out=da[i])
                    da_t.unsqueeze(1).baddbmm_(a_back, D)
                    _flush(da_t)
                entry.add(first, last, da[part], chunk)
                if dW is not None:
                    previous = _previous(h[chunk], outputs[:, chunk], first, last)
                    dW.addmm_(_rows(da[part]).t(), previous)
            D[:, M:] = 0
            dmaps += products.baddbmm_(D, ys[0].transpose(1, 2)).sum(0)
            if dh is not None:
                torch.mm(da_t, W, out=dh[chunk])
            if dy is not None:
                dy[chunk] = torch.bmm(step_back, D)[:, :M]
        return (
            None,
            None,
            entry.dx,
            dh,
            dy,
            entry.ddrive,
            entry.dU,
            entry.db,
            dW,
            dmaps[:M],
            dmaps[M:],
        )


def _square(E):
    """E with two more rows: anything for the row of a, and σ(99) = 1 for the row of ones."""
    square = torch.nn.functional.pad(E, (0, 0, 0, 2))
    square[-1, -1] = 99
    return square


def anru(workspace, x, h, g, drive, Uxh, Whh, Uag, Wgg, Wgn, Wgs):
    """The ANRU of `Networks.ANRU`: outputs (T, B, H), the last h (B, H) and g (B, H, M).

    x (T, B, I), h (B, H), g (B, H, M), drive (T,), (T, B) or None; the rest: linear maps.
    """
    y = (g.transpose(1, 2) + 1) / 2
    maps = _supervisor_maps(Uag, Wgg, Wgn, Wgs)
    x, weight = inputs_and_maps(x, Uxh.weight)
    inputs = (x, h, y, drive, weight, Uxh.bias + Whh.bias, Whh.weight, *maps)
    outputs, h, y = _ANRU.apply(workspace, _learning(*inputs), *inputs)
    return outputs, h, (2 * y - 1).transpose(1, 2)


# In the LSTM and the GRU too, tanh(z) = 2 σ(2 z) − 1: the 2 inside is a factor of the weights.


def _of_sigmoid(y, out):
    """tanh(z) = 2 y − 1 from y = σ(2 z)."""
    return torch.mul(y, 2, out=out).sub_(1)


def _through_sigmoid(factor, y):
    """factor · y (1 − y), in place: the slope of the sigmoid whose value is y."""
    return torch.ops.aten.sigmoid_backward.grad_input(factor, y, grad_input=factor)


class _LSTM(torch.autograd.Function):
    """The gates are joined in the order f, i, g, o."""

    @staticmethod
    def forward(ctx, workspace, learning, x, h, c, drive, U, b, W):
        steps, batch, size = *x.shape[:2], W.shape[1]
        outputs = workspace.empty((steps, batch, size), h)
        passes = _passes(steps, batch, 4 * size)
        gates = workspace.empty((steps if learning else passes[0][1], batch, 4 * size), h)
        cells = workspace.empty((steps if learning else 1, batch, size), h)
        squashed = torch.empty_like(h)
        recurrent = _Product(W.t(), steps, batch)
        state, cell = h, c
        for first, last in passes:
            part = None if drive is None else drive[first:last]
            now = gates[first:last] if learning else gates[: last - first]
            _input_product(x[first:last], U, b, part, now, slice(3 * size, None))
            for t in range(first, last):
                joined = now[t - first]
                recurrent.plus(joined, joined, state)
                f, i, g, o = joined.sigmoid_().view(batch, 4, size).unbind(1)
                cell = torch.mul(f, cell, out=cells[t if learning else 0])
                cell.sub_(i).addcmul_(i, g, value=2)  # f c + i (2 g − 1)
                torch.mul(cell, 2, out=squashed).sigmoid_()
                _of_sigmoid(squashed, out=squashed)
                state = torch.mul(o, squashed, out=outputs[t])
        if learning:
            ctx.save_for_backward(x, h, c, drive, U, W, outputs, gates, cells)
        ctx.set_materialize_grads(False)
        return outputs, state.clone(), cell.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, doutputs, dh_last, dc_last):
        x, h, c, drive, U, W, outputs, gates, cells = ctx.saved_tensors
        names = ("x", "h", "c", "drive", "U", "b", "W")
        needed = dict(zip(names, ctx.needs_input_grad[2:], strict=True))
        steps, batch, size = outputs.shape
        passes = _passes(steps, batch, size)
        length = passes[0][1]
        squashed, to_cell = h.new_empty(2, length, batch, size).unbind()
        slopes, dz = h.new_empty(2, length, batch, 4 * size).unbind()
        delta = torch.empty_like(h)  # dL/dh
        dc = torch.zeros_like(c) if dc_last is None else dc_last.clone()
        dW = torch.zeros_like(W) if needed["W"] else None
        entry = _InputGradients(needed, x, U, drive, slice(3 * size, None))
        back = _Product(W, steps, batch)
        dz_t = None
        for first, last in reversed(passes):
            part = slice(0, last - first)
            now = gates[first:last]
            i, g, o = now.view(last - first, batch, 4, size).unbind(2)[1:]
            torch.mul(cells[first:last], 2, out=squashed[part]).sigmoid_()
            _of_sigmoid(squashed[part], out=squashed[part])
            # dc = δ o (1 − tanh² c) + ..., and slopes: [f, i, g] over dc and o over δ
            torch.mul(squashed[part], squashed[part], out=to_cell[part]).neg_().add_(1).mul_(o)
            of_f, of_i, of_g, of_o = slopes[part].view(-1, batch, 4, size).unbind(2)
            of_f[1:] = cells[first : last - 1]
            of_f[0] = c if first == 0 else cells[first - 1]
            _of_sigmoid(g, out=of_i)
            torch.mul(i, 2, out=of_g)
            of_o.copy_(squashed[part])
            _through_sigmoid(slopes[part], now)
            for t in reversed(range(first, last)):
                k = t - first
                delta_t = _delta(delta, dz_t, back, t, doutputs, dh_last)
                dc.addcmul_(delta_t, to_cell[k])
                dz_t = dz[k]
                parts, slope = dz_t.view(batch, 4, size), slopes[k].view(batch, 4, size)
                torch.mul(slope[:, :3], dc.unsqueeze(1), out=parts[:, :3])
                torch.mul(slope[:, 3], delta_t, out=parts[:, 3])
                _flush(dz_t)
                dc.mul_(now[k, :, :size])
                _flush(dc)
            entry.add(first, last, dz[part])
            if dW is not None:
                dW.addmm_(_rows(dz[part]).t(), _previous(h, outputs, first, last))
        dh = dz_t @ W if needed["h"] else None
        return None, None, entry.dx, dh, dc, entry.ddrive, entry.dU, entry.db, dW


def lstm(workspace, x, h, c, drive, Wf, Wi, Wo, Wg):
    """The LSTM of `Networks.LSTM`: outputs (T, B, H) and the last h and c, each (B, H).

    x (T, B, I), h and c (B, H), drive (T,), (T, B) or None; the rest: linear maps of [h, x].
    """
    weight = torch.cat([Wf.weight, Wi.weight, 2 * Wg.weight, Wo.weight])
    b = torch.cat([Wf.bias, Wi.bias, 2 * Wg.bias, Wo.bias])
    W, U = (part.contiguous() for part in weight.split([h.shape[1], x.shape[2]], dim=1))
    x, U = inputs_and_maps(x, U)
    inputs = (x, h, c, drive, U, b, W)
    return _LSTM.apply(workspace, _learning(*inputs), *inputs)


class _GRU(torch.autograd.Function):
    """The gates are joined in the order r, z, n."""

    @staticmethod
    def forward(ctx, workspace, learning, x, h, drive, U, b, W, b_n):
        steps, batch, size = *x.shape[:2], W.shape[1]
        outputs = workspace.empty((steps, batch, size), h)
        passes = _passes(steps, batch, 3 * size)
        kept = steps if learning else passes[0][1]
        gates = workspace.empty((kept, batch, 3 * size), h)
        inner = workspace.empty((kept, batch, size), h)  # Whn h + b
        candidate = torch.empty_like(h)
        to_rz, to_n = (_Product(part.t(), steps, batch) for part in W.split([2 * size, size]))
        state = h
        for first, last in passes:
            part = None if drive is None else drive[first:last]
            where = slice(first, last) if learning else slice(0, last - first)
            _input_product(x[first:last], U, b, part, gates[where], slice(2 * size, None))
            for t in range(first, last):
                gates_t, inner_t = gates[where][t - first], inner[where][t - first]
                rz, n = gates_t[:, : 2 * size], gates_t[:, 2 * size :]
                to_rz.plus(rz, rz, state)
                rz.sigmoid_()
                to_n.plus(b_n, inner_t, state)
                n.addcmul_(rz[:, :size], inner_t).sigmoid_()
                _of_sigmoid(n, out=candidate)
                state = torch.lerp(candidate, state, rz[:, size:], out=outputs[t])
        if learning:
            ctx.save_for_backward(x, h, drive, U, W, outputs, gates, inner)
        ctx.set_materialize_grads(False)
        return outputs, state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, doutputs, dstate):
        x, h, drive, U, W, outputs, gates, inner = ctx.saved_tensors
        names = ("x", "h", "drive", "U", "b", "W", "b_n")
        needed = dict(zip(names, ctx.needs_input_grad[2:], strict=True))
        steps, batch, size = outputs.shape
        passes = _passes(steps, batch, size)
        length = passes[0][1]
        delta, to_n, work = h.new_empty(3, length, batch, size).unbind()  # δ = dL/dh
        slopes, dz = h.new_empty(2, length, batch, 3 * size).unbind()
        dW = torch.zeros_like(W) if needed["W"] else None
        db_n = h.new_zeros(size) if needed["b_n"] else None
        entry = _InputGradients(needed, x, U, drive, slice(2 * size, None))
        dh = torch.empty_like(h)
        back = _Product(W, steps, batch)
        for first, last in reversed(passes):
            part = slice(0, last - first)
            r, z, n = gates[first:last].view(-1, batch, 3, size).unbind(2)
            of_r, of_z, of_inner = slopes[part].view(-1, batch, 3, size).unbind(2)
            # the gradients of n, r, z and of what is inside n are δ times these
            torch.mul(z, -2, out=to_n[part]).add_(2)  # 2 (1 − z)
            _through_sigmoid(to_n[part], n)
            torch.mul(r, to_n[part], out=of_inner)
            torch.mul(inner[first:last], to_n[part], out=of_r)
            of_z[1:] = outputs[first : last - 1]
            of_z[0] = h if first == 0 else outputs[first - 1]
            of_z.sub_(_of_sigmoid(n, out=work[part]))
            _through_sigmoid(slopes[part][..., : 2 * size], gates[first:last, :, : 2 * size])
            for t in reversed(range(first, last)):
                k = t - first
                after = dstate if t == steps - 1 else dh
                delta_t = _delta(delta[k], None, back, t, doutputs, after)
                parts = dz[k].view(batch, 3, size)
                torch.mul(slopes[k].view(batch, 3, size), delta_t.unsqueeze(1), out=parts)
                _flush(dz[k])
                back.plus(torch.mul(delta_t, z[k], out=dh), dh, dz[k])
            if dW is not None:
                dW.addmm_(_rows(dz[part]).t(), _previous(h, outputs, first, last))
            if db_n is not None:
                db_n.add_(_rows(dz[part])[:, 2 * size :].sum(0))
            dz[part][..., 2 * size :] = torch.mul(delta[part], to_n[part], out=to_n[part])
            entry.add(first, last, dz[part])
        return None, None, entry.dx, dh, entry.ddrive, entry.dU, entry.db, dW, db_n


def gru(workspace, x, h, drive, Wir, Whr, Wiz, Whz, Win, Whn):
    """The GRU of `Networks.GRU`: outputs (T, B, H) and the last h (B, H).

    x (T, B, I), h (B, H), drive (T,), (T, B) or None; the rest: linear maps of x and of h.
    """
    x, U = inputs_and_maps(x, torch.cat([Wir.weight, Wiz.weight, 2 * Win.weight]))
    W = torch.cat([Whr.weight, Whz.weight, 2 * Whn.weight])
    b = torch.cat([Wir.bias + Whr.bias, Wiz.bias + Whz.bias, 2 * Win.bias])
    doubled = None if drive is None else 2 * drive
    inputs = (x, h, doubled, U, b, W, 2 * Whn.bias)
    return _GRU.apply(workspace, _learning(*inputs), *inputs)
