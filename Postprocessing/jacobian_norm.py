"""Norms of the Jacobian of a step: python3 -m Postprocessing.jacobian_norm RUN...

Writes analysis/jacobian_norm.npz into each run: epochs (E,) of the kept checkpoints, times (T',),
and the norms of ∂h_t/∂h_{t−1} of S test sequences at these times, spectral (E, T', S) and infinity
(E, T', S), the largest absolute row sum. t counts from 1: h_0 is the state before the first input.

∂h_t/∂h_{t−1} is a matrix, with the rest of the state held fixed (g of ANRU, c of the LSTM), along
the trajectory that the sequence drives in the network as it runs.
"""

import math
import sys

import numpy as np
import torch
from tqdm import tqdm

from Postprocessing import analysis
from Postprocessing.analysis import Unsuitable
from Postprocessing.dynamics import flat_step, flatten, step_jacobian, trained_layers
from Training.arguments import positive_int

TIMES = 64  # at most, of a sequence, where --every is not given


def jacobian_norms(layer, state, inputs, times):
    """The spectral and the infinity norm of ∂h_t/∂h_{t−1}, each (T', B).

    state: (B, D), h_0 and what else there is, as `flatten` gives it. inputs: the x_t (B, I) in
    turn, the first is x_1. times: the t at which the norms are taken, of which T' are reached.
    Raises ValueError where a state is not finite.
    """
    step, spectral, infinity = flat_step(layer), [], []
    for t, x_t in enumerate(inputs, start=1):
        before, state = state, step(x_t, state)
        if not state.isfinite().all():
            raise ValueError(f"a state is not finite after {t} steps")
        if t in times:
            J = step_jacobian(layer, x_t, before)
            spectral.append(torch.linalg.matrix_norm(J, 2))
            infinity.append(torch.linalg.matrix_norm(J, torch.inf))
    return torch.stack(spectral), torch.stack(infinity)


def compute(run, args):
    """The arrays of analysis/jacobian_norm.npz; Unsuitable where the run has none."""
    epochs, norms = [], []
    for epoch, layer, x in trained_layers(run, args.sequences, args.data):
        every = args.every or math.ceil(len(x) / TIMES)
        if every > len(x):
            raise Unsuitable(f"its sequences have {len(x)} steps, and --every is {every}")
        times = range(every, len(x) + 1, every)
        steps = tqdm(x, desc=f"epoch {epoch}", leave=False, delay=2, disable=None)
        try:
            state = flatten(layer.initial_state(x.shape[1]))
            norms.append(jacobian_norms(layer, state, steps, times))
        except ValueError as error:
            raise Unsuitable(f"epoch {epoch}: {error}") from error
        epochs.append(epoch)
    spectral, infinity = (torch.stack(norm).numpy() for norm in zip(*norms, strict=True))
    arrays = {"spectral": spectral, "infinity": infinity}
    return {"epochs": np.array(epochs), "times": np.array(times), **arrays}


def main(argv=None):
    parser = analysis.make_parser("jacobian_norm", __doc__)
    flag = parser.add_argument
    flag("--sequences", type=positive_int, default=8, metavar="S", help="test sequences")
    flag(
        "--every",
        type=positive_int,
        metavar="N",
        help=f"at every Nth step alone (default: what gives at most {TIMES} of them)",
    )
    return analysis.main("jacobian_norm", parser, compute, argv)


if __name__ == "__main__":
    sys.exit(main())
