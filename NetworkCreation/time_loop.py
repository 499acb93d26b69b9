"""What the fast loops of the layers share.

Letters: T time, B batch, I input, H main units.

`step` of a layer defines it. Its fast loop is one autograd function for a whole sequence, with the
same values and gradients in less time and memory:

- work that needs no recurrence (input products, weight gradients, derivatives of the activation)
  is done for several steps at a time (`passes`): on a CPU few enough that they stay in the cache,
  on a GPU all of them, for the fewest kernel launches;
- only what the backward pass needs is kept, and what is cheap is computed again;
- the input product of a text is computed once per distinct symbol (`Embedded`).
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import embedding, one_hot

# Elements that a pass over several steps works on, on a CPU.
PASS = 3 << 18


@dataclass(frozen=True)
class Embedded:
    """An input given as symbols: x[t, b] is table[symbols[t, b]].

    symbols: (T, B), integers. table: (number of symbols, I). Layers accept it in place of
    x (T, B, I), and are faster with it if there are fewer symbols than inputs.
    """

    symbols: torch.Tensor
    table: torch.Tensor

    @property
    def shape(self):
        return torch.Size([*self.symbols.shape, self.table.shape[1]])

    def dense(self):
        """x (T, B, I)."""
        return embedding(self.symbols, self.table)


def joined_input(x, drive, U, driven=slice(None)):
    """x (T, B, ·) and U (units, ·) such that U x_t is the whole input of step t.

    For `Embedded` symbols, x are one-hot vectors e_k, and U x = (U tableᵀ) e_k. A drive, (T,)
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


def one_block(*weights):
    """Copies of these tensors, one after another in one block of memory, as cuDNN wants them."""
    block = torch.cat([weight.flatten() for weight in weights])
    split = block.split([weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(split, weights, strict=True)]


def learning(*tensors):
    """Whether a call must keep what its backward pass needs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def passes(sequence):
    """(first, last + 1) of the steps of each pass over a sequence (T, ·, ·), in order."""
    steps = len(sequence)
    length = max(1, PASS // sequence[0].numel()) if sequence.is_cpu else steps
    return [(first, min(first + length, steps)) for first in range(0, steps, length)]


def rows(tensor):
    """(..., size) as a matrix."""
    return tensor.reshape(-1, tensor.shape[-1])


def input_product(x, U, b, out):
    """U x + b of some steps into `out` (steps, B, units)."""
    if U.shape[1] == 1:
        torch.addcmul(b, x, U.t(), out=out)  # a matrix product with one column is slower
    else:
        torch.addmm(b, rows(x), U.t(), out=rows(out))


def direct_gradient(first, last, doutputs, dstate, steps, like):
    """The direct part of dL/dh of the steps first … last − 1, a new tensor.

    doutputs (T, B, H), dstate (B, H): the gradients of the outputs and of the final state, or
    None. The loop adds the part that comes from later steps.
    """
    delta = torch.zeros_like(like) if doutputs is None else doutputs[first:last].clone()
    if last == steps and dstate is not None:
        delta[-1] += dstate
    return delta


SMALLEST_GRADIENT = {
    dtype: torch.finfo(dtype).tiny * 1e8 for dtype in (torch.bfloat16, torch.float32, torch.float64)
} | {torch.float16: 0.0}  # whose whole range is less than that


def flush(gradient):
    """Sets to 0 what is about to become denormal, in place, on a CPU; keeps NaN and infinity.

    A gradient vanishes on its way back in time, and a CPU takes a hundred times as long for a
    product of denormal numbers as for one of normal numbers. In float32 this is what is below
    1e-30.
    """
    if gradient.is_cpu:
        torch.hardshrink(gradient, SMALLEST_GRADIENT[gradient.dtype], out=gradient)
    return gradient


class AffineGradients:
    """dL/dU, dL/db, dL/dW and, if asked for, dL/dx of a_t = U x_t + b + W h_{t−1}."""

    def __init__(self, x, h, outputs, U, W, needs_dx):
        self.x, self.h, self.outputs, self.U = x, h, outputs, U
        self.dU, self.db, self.dW = torch.zeros_like(U), U.new_zeros(len(U)), torch.zeros_like(W)
        self.dx = torch.empty_like(x) if needs_dx else None

    def add(self, first, last, da, batch=slice(None)):
        """dL/da of the steps first … last − 1, (last − first, B, H), of all or some samples."""
        x, h = self.x[first:last, batch], self.outputs[max(first - 1, 0) : last - 1, batch]
        if first == 0:
            h = torch.cat([self.h[None, batch], h])
        da = rows(da)
        self.dU.addmm_(da.t(), rows(x))
        self.db += da.sum(0)
        self.dW.addmm_(da.t(), rows(h))
        if self.dx is not None:
            self.dx[first:last, batch] = (da @ self.U).view(x.shape)
