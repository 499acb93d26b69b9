"""Process settings: threads that do not spin, memory that is kept, products in float32, Ctrl-C.

Import this module before torch: libgomp reads its environment when torch loads it.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

# Between two operations OpenMP's threads spin at a barrier. On a busy machine the thread that they
# wait for may not be running at all, so they sleep after this many turns instead.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

REPOSITORY = Path(__file__).resolve().parent.parent

# Ctrl-C ends a script of this repository at once: while torch is imported, Python would print a
# traceback of hundreds of lines. The trainer and the sweep have handlers of their own. Other
# programs, such as a notebook's kernel or pytest, may lie in the repository's environment.
SCRIPT = Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve()
if REPOSITORY in (SCRIPT.parent, SCRIPT.parent.parent):
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def keep_memory():
    """Has glibc, if it is there, keep freed memory instead of returning it to the system.

    A training step allocates the same large buffers again and again; in fresh pages they cost a
    tenth of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def allow_tf32(allowed):
    """Sets whether a GPU may round the factors of float32 products to TF32's 10 bits of mantissa.

    Call it before the first use of the GPU. torch allows TF32 in cuDNN's LSTM and GRU by default,
    and the environment of NVIDIA's containers allows it in every product.
    """
    from torch import backends  # this module is imported before torch

    backends.cuda.matmul.allow_tf32 = allowed
    backends.cudnn.allow_tf32 = allowed
    if not allowed:
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # for NVIDIA's libraries, which read it themselves
