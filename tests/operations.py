"""Counts the operations that code runs on its device."""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REPOSITORY = Path(__file__).resolve().parent.parent
CODE = tuple(str(REPOSITORY / part) for part in ("NetworkCreation", "Training"))

ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
NO_KERNEL = {*ALLOCATIONS, "device", "_unsafe_view", "_local_scalar_dense"}
# Operations that wait for the device to finish its work; some wait several times.
WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "allclose"),
    *("nonzero", "masked_select", "masked_scatter_backward", "unique_dim", "_unique2"),
    *("linalg_matrix_exp", "_linalg_check_errors"),
}


class Operations(TorchDispatchMode):
    """Counts operations, and records by file and line those that a device should avoid.

    kernels: the number of operations that compute something, on any device. Each is at least one
    kernel launch on a GPU; operations inside another, such as the steps of cuDNN's recurrence, are
    not counted. The others are Counters of the lines of `NetworkCreation` and `Training` that
    cause them (only the operation for backward functions inside torch): waits of the host for a
    device; copies between devices; doubles, in float64 on a device; mixed, on tensors of several
    devices. The CPU does not count as a device.
    """

    def __init__(self):
        super().__init__()
        self.kernels = 0
        self.waits, self.copies, self.doubles, self.mixed = (Counter() for _ in range(4))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = self.compute(function, args, kwargs or {})
        name = function.overloadpacket.__name__
        if name not in NO_KERNEL and not function.is_view:
            self.kernels += 1
        given, made = _tensors((args, kwargs)), _tensors(result)
        devices = {t.device.type for t in (*given, *made)}
        if devices <= {"cpu"}:
            return result
        line = f"{_line()}: {name}"
        if name in WAITING:
            self.waits[line] += 1
        if any(t.dtype in (torch.float64, torch.complex128) for t in (*given, *made)):
            self.doubles[line] += 1
        if (len(devices) > 1 and name in ("copy_", "_to_copy")) or name == "scalar_tensor":
            self.copies[line] += 1
        elif len({t.device for t in given if t.ndim > 0}) > 1:
            self.mixed[line] += 1
        return result

    def compute(self, function, args, kwargs):
        """Runs the operation."""
        return function(*args, **kwargs)


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _line():
    """The innermost line of the code under test."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(CODE):
            return f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
