"""The layers' loops over time, forward and backward, written for speed.

Letters: T time, B batch, I input, H main units, M supervisor units.

`Networks.py` says what a step of a layer is. Here a whole sequence is one autograd function, which
gives the same values and gradients as the loop of steps and saves three things:

- kernels write into buffers that are allocated once, and the work that needs no recurrence (input
  products, weight gradients, derivatives of the activation) is done for several steps at a time;
- only what the backward needs is kept, and what is cheap is computed again;
- large buffers are used again in the next call (`Workspace`), as fresh pages are slow.

The functions take and give what a layer does. They can be differentiated once; in forward mode,
under torch.func or twice, use the loop of steps (`layer.loop`).
"""

import ctypes
import math
import weakref

import torch
from torch.autograd.function import once_differentiable

from NetworkCreation.gamma_function import gamma_derivatives_into, gamma_into

# Elements that a pass over several steps works on: few enough to stay in a cache.
PASS = 1 << 17


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
        free = self._free.setdefault(size, [])
        try:
            block = free.pop()
        except IndexError:
            for blocks in list(self._free.values()):
                blocks.clear()
            block = torch.empty(size, dtype=torch.uint8)
        view = (ctypes.c_char * size).from_address(block.data_ptr())
        weakref.finalize(view, free.append, block).atexit = False  # the storage owns the view
        return torch.frombuffer(view, dtype=like.dtype).view(shape)

    def __reduce__(self):
        return Workspace, ()  # a copy of a layer, or one that is pickled, starts with none


def _passes(steps, batch, size):
    """(first, last + 1) of the steps that a pass takes, from the first step to the last."""
    length = max(1, PASS // (batch * size))
    return [(first, min(first + length, steps)) for first in range(0, steps, length)]


def _rows(tensor):
    """(..., size) as a matrix."""
    return tensor.reshape(-1, tensor.shape[-1])


def _input_product(x, U, b, drive, out):
    """U x + b + drive of some steps into `out` (steps, B, H)."""
    if U.shape[1] == 1:
        torch.addcmul(b, x, U.t(), out=out)  # a matrix product with one column is slower
    else:
        torch.addmm(b, _rows(x), U.t(), out=_rows(out))
    if drive is not None:
        out.add_(_column(drive, out.shape[1]))


def _column(drive, batch):
    """A drive (T,) or (T, B) as (T, B, 1)."""
    return (drive if drive.ndim == 2 else drive.unsqueeze(1).expand(-1, batch)).unsqueeze(-1)


def _previous(first_state, states, first, last):
    """The states before the steps first ... last − 1, as a matrix."""
    if first > 0:
        return _rows(states[first - 1 : last - 1])
    return torch.cat([first_state, _rows(states[: last - 1])])


def _flush(gradient):
    """Zeroes what is about to become denormal, in place; keeps NaN and infinity.

    A gradient vanishes on its way back in time, and a product of denormal numbers takes a hundred
    times as long as one of normal numbers.
    """
    smallest = torch.finfo(gradient.dtype).tiny * 1e8
    torch.ops.aten.hardshrink.out(gradient, smallest, out=gradient)


class _InputGradients:
    """dU, db, dx and the drive's gradient, from the pre-activation gradients of some steps."""

    def __init__(self, needed, x, U, drive):
        def zeros(name, like):
            return torch.zeros_like(like) if needed[name] else None

        self.x, self.U = x, U
        self.dx, self.dU = zeros("x", x), zeros("U", U)
        self.ddrive = zeros("drive", drive)
        self.db = U.new_zeros(U.shape[0]) if needed["b"] else None

    def add(self, first, last, da):
        """da (last − first, B, H)."""
        rows = _rows(da)
        if self.dU is not None:
            self.dU.addmm_(rows.t(), _rows(self.x[first:last]))
        if self.db is not None:
            self.db.add_(rows.sum(0))
        if self.dx is not None:
            self.dx[first:last] = (rows @ self.U).view(self.x[first:last].shape)
        if self.ddrive is not None:
            total = da.sum(-1)
            self.ddrive[first:last] = total if self.ddrive.ndim == 2 else total.sum(-1)


# The activations: value(a, parameters, out, work) and derivatives(a, h, parameters, slope, into,
# work), which writes φ'(a) into `slope` and, unless `into` is empty, ∂φ/∂parameter into each of
# `into`. `work` are two buffers. All but γ are differentiated from h alone, and out may be a.


def _gamma(a, parameters, out, work):
    gamma_into(a, *parameters, out, work)


def _gamma_derivatives(a, h, parameters, slope, into, work):
    gamma_derivatives_into(a, *parameters, slope, *(into or (None, None)), work)


def _relu(a, parameters, out, work):
    torch.clamp_min(a, 0, out=out)


def _relu_derivatives(a, h, parameters, slope, into, work):
    torch.sign(h, out=slope)


def _tanh(a, parameters, out, work):
    torch.tanh(a, out=out)


def _tanh_derivatives(a, h, parameters, slope, into, work):
    torch.mul(h, h, out=slope).neg_().add_(1)


def _sigmoid(a, parameters, out, work):
    torch.sigmoid(a, out=out)


def _sigmoid_derivatives(a, h, parameters, slope, into, work):
    torch.addcmul(h, h, h, value=-1, out=slope)


def _modrelu(a, parameters, out, work):
    sign = torch.sign(a, out=work[0])
    torch.abs(a, out=out).add_(parameters[0]).clamp_min_(0).mul_(sign)


def _modrelu_derivatives(a, h, parameters, slope, into, work):
    sign = torch.sign(h, out=into[0] if into else work[0])  # that of a, and 0 below the threshold
    torch.mul(sign, sign, out=slope)


def _none(a, parameters, out, work):
    out.copy_(a)


def _none_derivatives(a, h, parameters, slope, into, work):
    slope.fill_(1)


ACTIVATIONS = {
    "gamma": (_gamma, _gamma_derivatives),
    "gamma2": (_gamma, _gamma_derivatives),
    "ReLU": (_relu, _relu_derivatives),
    "tanh": (_tanh, _tanh_derivatives),
    "sigmoid": (_sigmoid, _sigmoid_derivatives),
    "modrelu": (_modrelu, _modrelu_derivatives),
    "none": (_none, _none_derivatives),
}


def _learning(*tensors):
    """Whether a call has to keep what its backward needs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _RNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, nonlin, workspace, learning, x, h, drive, U, b, V, *parameters):
        value, _ = ACTIVATIONS[nonlin]
        steps, batch, size = *x.shape[:2], len(U)
        outputs = workspace.empty((steps, batch, size), h)
        keeps = learning and nonlin in ("gamma", "gamma2")
        a = workspace.empty(outputs.shape, h) if keeps else outputs
        work = h.new_empty(2, batch, size).unbind()
        state, V_transposed = h, V.t()
        for first, last in _passes(steps, batch, size):
            part = None if drive is None else drive[first:last]
            _input_product(x[first:last], U, b, part, a[first:last])
            for t in range(first, last):
                a_t = a[t].addmm_(state, V_transposed)
                state = outputs[t]
                value(a_t, parameters, state, work)
        if learning:
            ctx.nonlin = nonlin
            ctx.save_for_backward(x, h, drive, U, V, outputs, a if keeps else None, *parameters)
        ctx.set_materialize_grads(False)
        return outputs, state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, doutputs, dstate):
        x, h, drive, U, V, outputs, a, *parameters = ctx.saved_tensors
        needed = dict(
            zip(("x", "h", "drive", "U", "b", "V"), ctx.needs_input_grad[3:9], strict=True)
        )
        learns = any(ctx.needs_input_grad[9:])
        _, derivatives = ACTIVATIONS[ctx.nonlin]
        steps, batch, size = outputs.shape
        passes = _passes(steps, batch, size)
        shape = (passes[0][1], batch, size)
        delta, da, slope, *work = outputs.new_empty(5, *shape).unbind()  # δ = dL/dh
        into = outputs.new_empty(len(parameters) if learns else 0, *shape).unbind()
        sums = torch.zeros(len(into), *shape, dtype=h.dtype, device=h.device).unbind()
        dV = torch.zeros_like(V) if needed["V"] else None
        entry = _InputGradients(needed, x, U, drive)
        da_t = None
        for first, last in reversed(passes):
            part = slice(0, last - first)
            derivatives(
                None if a is None else a[first:last],
                outputs[first:last],
                parameters,
                slope[part],
                [buffer[part] for buffer in into],
                [buffer[part] for buffer in work],
            )
            for t in reversed(range(first, last)):
                delta_t = _delta(delta[t - first], da_t, V, t, doutputs, dstate)
                da_t = torch.mul(delta_t, slope[t - first], out=da[t - first])
                _flush(da_t)
            for total, derivative in zip(sums, into, strict=True):
                total[part].addcmul_(delta[part], derivative[part])
            entry.add(first, last, da[part])
            if dV is not None:
                dV.addmm_(_rows(da[part]).t(), _previous(h, outputs, first, last))
        dh = da_t @ V if needed["h"] else None
        dparameters = [
            total.sum_to_size(parameter.shape)
            for total, parameter in zip(sums, parameters, strict=learns)
        ]
        dparameters += [None] * (len(parameters) - len(dparameters))
        return None, None, None, entry.dx, dh, entry.ddrive, entry.dU, entry.db, dV, *dparameters


def _delta(out, da, V, t, doutputs, dstate):
    """dL/dh of step t into `out`: what the step after it (da, None for the last) and L itself say.

    doutputs, dstate: the gradients of the outputs and of the final state, or None.
    """
    given = None if doutputs is None else doutputs[t]
    if da is None:
        out.copy_(dstate) if dstate is not None else out.zero_()
        return out if given is None else out.add_(given)
    return torch.mm(da, V, out=out) if given is None else torch.addmm(given, da, V, out=out)


def rnn(workspace, nonlin, x, h, drive, U, V, parameters):
    """The RNN of `Networks.RNN`: outputs (T, B, H) and the last h (B, H).

    x (T, B, I), h (B, H), drive (T,), (T, B) or None; U, V: linear maps with bias; parameters:
    those of the activation `nonlin`, a key of ACTIVATIONS: n and s, or b, or none.
    """
    inputs = (x, h, drive, U.weight, U.bias + V.bias, V.weight, *parameters)
    return _RNN.apply(nonlin, workspace, _learning(*inputs), *inputs)
