"""What the fused loops over time share.

`step` is the reference implementation of a layer. Its fused loop is one autograd function for a
whole sequence: work that needs no recurrence is batched over several steps (`passes`), only what
backward needs is saved, and a text is multiplied once per distinct symbol (`Embedded`).
"""

import contextlib
import functools
from dataclasses import dataclass

import torch
from torch.nn.functional import embedding, one_hot

PASS = 3 << 18  # elements in a pass over several steps, on a CPU


@dataclass(frozen=True)
class Embedded:
    """An input given as symbols: x[t, b] is table[symbols[t, b]].

    symbols: (T, B), integers. table: (number of symbols, I). Layers accept it in place of x, and
    are faster with it if there are fewer symbols than inputs.
    """

    symbols: torch.Tensor
    table: torch.Tensor

    @property
    def shape(self):
        return torch.Size([*self.symbols.shape, self.table.shape[1]])

    def transpose(self, *axes):
        """The same input with the axes T and B exchanged."""
        return Embedded(self.symbols.transpose(*axes), self.table)

    def dense(self):
        """x (T, B, I)."""
        return embedding(self.symbols, self.table)


def joined_input(x, drive, U, driven=slice(None)):
    """x (T, B, ·) and U (units, ·) such that U x_t is the whole input of step t.

    For `Embedded` symbols, x contains one-hot vectors e_k, and U x = (U tableᵀ) e_k. A drive, (T,)
    or (T, B), is one more input, with weight 1 into the `driven` units and 0 into the others.
    """
    if isinstance(x, Embedded):
        U = U @ x.table.t()
        x = one_hot(x.symbols.long(), len(x.table)).to(U.dtype)
    if drive is not None:
        weight = torch.zeros_like(U[:, :1])
        weight[driven].fill_(1)
        drive = drive if drive.ndim == 2 else drive.unsqueeze(1).expand(x.shape[:2])
        x, U = torch.cat([x, drive.unsqueeze(-1)], dim=-1), torch.cat([U, weight], dim=1)
    return x, U


def flat_weights(*weights):
    """Copies the tensors into one contiguous buffer, the layout that cuDNN expects."""
    buffer = torch.cat([weight.flatten() for weight in weights])
    pieces = buffer.split([weight.numel() for weight in weights])
    return [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]


def needs_backward(*tensors):
    """Whether autograd records, and any of the tensors (or None) requires a gradient."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def without_autocast(device):
    """A context in which autocast is disabled on this device."""
    kind = device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else contextlib.nullcontext()


def differentiable_once(backward):
    """Decorator of the `backward` of a fused loop: no autocast, no second derivatives.

    Raises RuntimeError if they are asked for; with torch's `once_differentiable` some are wrong.
    """

    @functools.wraps(backward)
    def run(ctx, *gradients):
        if torch.is_grad_enabled():  # only with create_graph=True
            raise RuntimeError("layers are differentiable once; use layer.loop for more")
        with without_autocast((saved := ctx.saved_tensors)[0].device):  # checkpoint allows one look
            return backward(ctx, saved, *gradients)

    return run


def passes(sequence):
    """(first, last + 1) of the steps of each pass over a sequence (T, ·, ·), in order.

    On a CPU a pass stays in the cache; on a GPU one covers all steps, for the fewest kernels.
    """
    steps = len(sequence)
    length = max(1, PASS // sequence[0].numel()) if sequence.is_cpu else steps
    return [(first, min(first + length, steps)) for first in range(0, steps, length)]


def input_product(x, U, b, out):
    """U x + b of some steps into `out` (steps, B, units)."""
    if U.shape[1] == 1:
        torch.addcmul(b, x, U.t(), out=out)  # a matrix product with one column is slower
    else:
        torch.addmm(b, x.flatten(0, -2), U.t(), out=out.flatten(0, -2))


def hidden_gradient(t, da, W, doutputs, dstate, out):
    """dL/dh_t into `out` (B, H): through output t, and the next pre-activation or final state.

    da: dL/da_{t+1} (B, H) with a_{t+1} = W h_t + …, or None for the last step. doutputs (T, B, H)
    and dstate (B, H): gradients of the outputs and of the final state, or None.
    """
    if da is None:
        out.copy_(dstate) if dstate is not None else out.zero_()
        return out if doutputs is None else out.add_(doutputs[t])
    if doutputs is None:
        return torch.mm(da, W, out=out)
    return torch.addmm(doutputs[t], da, W, out=out)


def flush(gradient):
    """Zeroes near-denormal values in place (CPU only); NaN and inf are unchanged.

    Gradients vanish backwards in time, and on a CPU a product of denormal numbers takes a hundred
    times as long as one of normal numbers. The threshold is 1e-30 in float32, and 0 in float16,
    whose range is too small for one.
    """
    if gradient.is_cpu and gradient.dtype != torch.float16:
        torch.hardshrink(gradient, 1e8 * torch.finfo(gradient.dtype).tiny, out=gradient)
    return gradient


class AffineGradients:
    """dL/dU, dL/db, dL/dW and, if asked for, dL/dx of a_t = U x_t + b + W h_{t−1}."""

    def __init__(self, x, h, outputs, U, W, needs_dx):
        self.x, self.h, self.outputs, self.U = x, h, outputs, U
        self.dU, self.db, self.dW = torch.zeros_like(U), U.new_zeros(len(U)), torch.zeros_like(W)
        self.dx = torch.empty_like(x) if needs_dx else None

    def add(self, first, last, da, batch=slice(None)):
        """Adds steps first … last − 1; da (last − first, B, H): dL/da of all or some samples."""
        x, h = self.x[first:last, batch], self.outputs[max(first - 1, 0) : last - 1, batch]
        if first == 0:
            h = torch.cat([self.h[None, batch], h])
        da = da.flatten(0, -2)
        self.dU.addmm_(da.t(), x.flatten(0, -2))
        self.db += da.sum(0)
        self.dW.addmm_(da.t(), h.flatten(0, -2))
        if self.dx is not None:
            self.dx[first:last, batch] = (da @ self.U).view(x.shape)
