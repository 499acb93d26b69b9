"""Norms of the Jacobian of a step: python3 -m Postprocessing.jacobian_norm RUN...

Writes analysis/jacobian_norm.npz to each run: epochs (E,) of the kept checkpoints, times (T',), and
the norms of ∂h_t/∂h_{t−1} at these times for S test sequences: spectral (E, T', S) and infinity
(E, T', S), the maximum absolute row sum. t counts from 1; h_0 is the state before the first input.

∂h_t/∂h_{t−1} is the full matrix, with the rest of the state (g of ANRU, c of the LSTM) held fixed,
along the network's own trajectory as driven by the sequence.
"""

import math
import sys

import numpy as np
import torch
from tqdm import tqdm

from Postprocessing import analysis
from Postprocessing.analysis import Unsuitable
from Postprocessing.dynamics import flat_step, flatten, step_jacobian, trained_layers
from Training.flags import positive_int

TIMES = 64  # at most, per sequence, if --every is not given


def jacobian_norms(layer, state, inputs, times):
    """The spectral and the infinity norm of ∂h_t/∂h_{t−1}, each (T', B).

    state: (B, D), the initial state (h_0 first), as returned by `flatten`. inputs: iterable of x_t
    (B, I), starting with x_1. times: the t at which to take the norms; T' of them are reached.
    Raises ValueError if a state is not finite.
    """
    step, spectral, infinity = flat_step(layer), [], []
    for t, x_t in enumerate(inputs, start=1):
        before, state = state, step(x_t, state)
        if not state.isfinite().all():
            raise ValueError(f"the state is not finite after {t} steps")
        if t in times:
            J = step_jacobian(layer, x_t, before)
            spectral.append(torch.linalg.matrix_norm(J, 2))
            infinity.append(torch.linalg.matrix_norm(J, torch.inf))
    return torch.stack(spectral), torch.stack(infinity)


def compute(run, args):
    """The arrays of analysis/jacobian_norm.npz; raises Unsuitable if they cannot be computed."""
    epochs, norms = [], []
    for epoch, layer, x in trained_layers(run, args.sequences, args.data, args.device):
        every = args.every or math.ceil(len(x) / TIMES)
        if every > len(x):
            raise Unsuitable(f"--every must be at most {len(x)}, the sequence length, got {every}")
        times = range(every, len(x) + 1, every)
        steps = tqdm(x, desc=f"epoch {epoch}", leave=False, delay=2, disable=None)
        try:
            state = flatten(layer.initial_state(x.shape[1]))
            norms.append(jacobian_norms(layer, state, steps, times))
        except ValueError as error:
            raise Unsuitable(f"epoch {epoch}: {error}") from error
        epochs.append(epoch)
    spectral, infinity = (torch.stack(norm).cpu().numpy() for norm in zip(*norms, strict=True))
    arrays = {"spectral": spectral, "infinity": infinity}
    return {"epochs": np.array(epochs), "times": np.array(times), **arrays}


def main(argv=None):
    parser = analysis.make_parser("jacobian_norm", __doc__)
    flag = parser.add_argument
    flag("--sequences", type=positive_int, default=8, metavar="S", help="number of test sequences")
    flag(
        "--every",
        type=positive_int,
        metavar="N",
        help=f"compute the norms at every Nth step (default: at most {TIMES} times)",
    )
    return analysis.main("jacobian_norm", parser, compute, argv)


if __name__ == "__main__":
    sys.exit(main())
