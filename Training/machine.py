"""Settings of the process, for speed: threads that do not spin, and memory that is kept.

Import this module before torch: libgomp reads its environment when torch loads it.
"""

import ctypes
import os

# Between two operations OpenMP's threads spin at a barrier. On a busy machine the thread that they
# wait for may not be running at all, so they sleep after this many turns instead.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_memory():
    """Has glibc keep freed memory for the next allocation instead of returning it to the system.

    A training step allocates the same large buffers again and again; in fresh pages they cost a
    tenth of its time. Does nothing where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
