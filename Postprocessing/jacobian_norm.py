"""Norms of the Jacobian of a step: python3 -m Postprocessing.jacobian_norm RUN...

Writes analysis/jacobian_norm.npz to each run: epochs (E,) of the kept checkpoints, times (T',), and
the norms of ∂h_t/∂h_{t−1} at these times for S test sequences: spectral (E, T', S) and infinity
(E, T', S), the maximum absolute row sum. t counts from 1; h_0 is the state before the first input.

∂h_t/∂h_{t−1} is the full matrix along the network's trajectory, with the rest of the state (g of
ANRU, c of the LSTM) held fixed.
"""

import math
import sys

import numpy as np
import torch
from tqdm import tqdm

from Postprocessing import analysis
from Postprocessing.dynamics import flatten, jacobians, trained_layers
from Training.flags import positive_int

TIMES = 64  # at most, per sequence, if --every is not given


def jacobian_norms(layer, state, inputs, times):
    """Spectral and infinity norm of ∂h_t/∂h_{t−1}, each (T', B); arguments as for `jacobians`."""
    norm, orders = torch.linalg.matrix_norm, (2, torch.inf)
    norms = [[norm(J, order) for order in orders] for J in jacobians(layer, state, inputs, times)]
    return tuple(map(torch.stack, zip(*norms, strict=True)))


def compute(run, args):
    """The arrays of analysis/jacobian_norm.npz; raises Unsuitable if they cannot be computed."""
    epochs, norms = [], []
    for epoch, layer, x in trained_layers(run, args.sequences, args.data, args.device):
        every = args.every or math.ceil(len(x) / TIMES)
        if every > len(x):
            raise analysis.Unsuitable(
                f"--every must be at most {len(x)}, the sequence length, got {every}"
            )
        times = range(every, len(x) + 1, every)
        steps = tqdm(x, desc=f"epoch {epoch}", leave=False, delay=2, disable=None)
        try:
            state = flatten(layer.initial_state(x.shape[1]))
            norms.append(jacobian_norms(layer, state, steps, times))
        except ValueError as error:
            raise analysis.Unsuitable(f"epoch {epoch}: {error}") from error
        epochs.append(epoch)
    spectral, infinity = (torch.stack(norm).cpu().numpy() for norm in zip(*norms, strict=True))
    arrays = {"spectral": spectral, "infinity": infinity}
    return {"epochs": np.array(epochs), "times": np.array(times), **arrays}


def main(argv=None):
    parser = analysis.make_parser("jacobian_norm", __doc__)
    flag = parser.add_argument
    flag("--sequences", type=positive_int, default=8, metavar="S", help="number of test sequences")
    every = f"compute the norms at every Nth step (default: at most {TIMES} times)"
    flag("--every", type=positive_int, metavar="N", help=every)
    return analysis.main("jacobian_norm", parser, compute, argv)


if __name__ == "__main__":
    sys.exit(main())
