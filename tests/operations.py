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
    """Counts operations, and records by file those that a device other than the CPU should avoid.

    kernels: the number of operations that compute something, on any device. Each is at least one
    kernel launch on a GPU; operations inside another, such as the steps of cuDNN's recurrence, are
    not counted. The others are Counters of the files of `NetworkCreation` and `Training` that cause
    them: waits of the host for a device; copies between devices; mixed, on tensors of several
    devices.
    """

    def __init__(self):
        super().__init__()
        self.kernels = 0
        self.waits, self.copies, self.mixed = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = self.compute(function, args, kwargs or {})
        name = function.overloadpacket.__name__
        if name not in NO_KERNEL and not function.is_view:
            self.kernels += 1
        given, made = _tensors((args, kwargs)), _tensors(result)
        devices = {t.device.type for t in (*given, *made)}
        if devices <= {"cpu"}:
            return result
        place = f"{_file()}: {name}"
        if name in WAITING:
            self.waits[place] += 1
        if (len(devices) > 1 and name in ("copy_", "_to_copy")) or name == "scalar_tensor":
            self.copies[place] += 1
        elif len({t.device for t in given if t.ndim > 0}) > 1:
            self.mixed[place] += 1
        return result

    def compute(self, function, args, kwargs):
        """Runs the operation."""
        return function(*args, **kwargs)


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _file():
    """The file of the innermost line of the code under test."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(CODE):
            return Path(frame.f_code.co_filename).name
        frame = frame.f_back
    return "elsewhere"
