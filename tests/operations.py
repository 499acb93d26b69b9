"""Counts the operations that code runs on its device."""

import traceback
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
    """Counts operations, and those that a device other than the CPU should avoid.

    kernels: the number of operations that compute something, on any device. Each is at least one
    kernel launch on a GPU; operations inside another, such as the steps of cuDNN's recurrence, are
    not counted. avoid: a Counter of "kind file: operation" with the file of `NetworkCreation` or
    `Training` that causes it; kind is wait, if the host waits for a device; copy, between devices;
    or mixed, on tensors of several devices.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.avoid = 0, Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = self.compute(function, args, kwargs or {})
        name = function.overloadpacket.__name__
        if name not in NO_KERNEL and not function.is_view:
            self.kernels += 1
        given, made = _tensors((args, kwargs)), _tensors(result)
        devices = {t.device.type for t in (*given, *made)}
        if devices <= {"cpu"}:
            return result
        kinds = ["wait"] if name in WAITING else []
        if (len(devices) > 1 and name in ("copy_", "_to_copy")) or name == "scalar_tensor":
            kinds.append("copy")
        elif len({t.device for t in given if t.ndim > 0}) > 1:
            kinds.append("mixed")
        self.avoid.update(f"{kind} {_file()}: {name}" for kind in kinds)
        return result

    def compute(self, function, args, kwargs):
        """Runs the operation."""
        return function(*args, **kwargs)


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _file():
    """The file of the innermost line of the code under test."""
    for frame, _ in traceback.walk_stack(None):
        if frame.f_code.co_filename.startswith(CODE):
            return Path(frame.f_code.co_filename).name
    return "elsewhere"
