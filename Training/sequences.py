"""Sequences of one's own to classify, from a NumPy file."""

import hashlib
import zipfile

import numpy as np
import torch

from NetworkCreation.errors import UserError

SPLIT = ("train", "validation", "test")


def load_npz(path):
    """A NumPy file of arrays, written by `np.savez(path, x=x, y=y)`, optionally with split=split.

    x (N, T) or (N, T, I): numbers of any type but complex. Real ones stay as they are; integers are
    divided by the largest absolute value in the training part. y (N,): integer labels, whose
    distinct values are the classes, in ascending order. split (N,): 0, 1, 2 or train, validation,
    test; without it, the seed draws 80, 10 and 10 % of the samples.
    """
    if not path.is_file():
        raise UserError(f"argument --data: --dataset npz needs a file FILE.npz, got {path}")
    checksums = {"npz": hashlib.sha256(path.read_bytes()).hexdigest()}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x", "y", "split") if name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a file of arrays, as np.savez writes ({error})") from error

    def require(fits, message):
        if not fits:
            raise UserError(f"{path}: {message}")

    for name in "xy":
        require(name in arrays, f"has no array {name}")
    x, y = arrays["x"], arrays["y"]
    require(x.ndim in (2, 3) and x.size > 0, f"x must be (N, T) or (N, T, I), got {x.shape}")
    require(x.dtype.kind in "biuf", f"x must be numbers, got {x.dtype}")
    require(y.shape == x.shape[:1], f"y must be ({len(x)},) like x, got {y.shape}")
    require(y.dtype.kind in "biu", f"y must be integers, got {y.dtype}")
    with np.errstate(over="ignore"):
        x = x.astype(np.uint8 if x.dtype in (bool, np.uint8) else np.float32)
    images = torch.from_numpy(x)
    require(images.isfinite().all(), "x has values that are not finite in float32")
    classes, labels = np.unique(y, return_inverse=True)
    require(len(classes) > 1, f"y must have two classes or more, got only {classes[0]}")
    labels = torch.from_numpy(labels.astype(np.int64))
    sizes, last = [len(y) - len(y) // 10 * 2, len(y) // 10, len(y) // 10], 0
    if "split" in arrays:
        split = arrays["split"]
        require(split.shape == y.shape, f"split must be ({len(x)},) like x, got {split.shape}")
        split = split.astype(str)
        parts = [np.flatnonzero(np.isin(split, (str(i), SPLIT[i]))) for i in range(3)]
        order, sizes = np.concatenate(parts), list(map(len, parts))
        allowed = f"0, 1, 2 or {', '.join(SPLIT)}"
        require(len(order) == len(y), f"split must be {allowed}, got {', '.join(np.unique(split))}")
        images, labels, last = images[order], labels[order], sizes[1] + sizes[2]
    require(min(sizes) > 0, f"{', '.join(SPLIT)} need a sample each, got {sizes}")
    scale = 1 if arrays["x"].dtype.kind == "f" else None
    return images, labels, scale, sizes, last, checksums
