"""Lyapunov exponents of trained networks: python3 -m Postprocessing.lyapunov RUN...

Writes analysis/lyapunov.npz to each run: epochs (E,) of the kept checkpoints, exponents (E, S, k)
of S sequences, natural log per step, and their mean (E, k) and std (E, k) over sequences.

The exponents are those of the network as it runs, with its biases, along the trajectory driven by a
test sequence. They cover the full state: h of the RNN, (h, g) of ANRU, (h, c) of the LSTM.
--autonomous: without input (x_t = 0, biases included), from initial states ~ N(0, 1).
"""

import sys

import numpy as np
import torch
from tqdm import tqdm

from Postprocessing import analysis
from Postprocessing.analysis import Unsuitable
from Postprocessing.dynamics import flat_step, flatten, push, trained_layers
from Training.flags import not_negative_int, positive_int

AUTONOMOUS_STEPS = 500


def lyapunov_exponents(step, state, inputs, k=1, warm_up=0, generator=None):
    """The k leading Lyapunov exponents of the trajectories from a batch of states, (B, k).

    The mean of log |R_jj| (natural logarithm, per step) over the steps after the warm-up, where
    Q R is the QR decomposition of the step's Jacobian times the previous Q. The first Q is random;
    during the warm-up it aligns with the leading directions. The exponents are in the order of the
    columns of Q, which is descending for long trajectories. A vanishing direction gives −∞.

    step: (x_t, state (B, D)) → state (B, D), differentiable in forward mode and independent across
    the batch. inputs: the x_t in order, with a length. generator: draws the first Q. Raises
    ValueError if k is not in 1 … D, no step is left after the warm-up, or a state is not finite.
    Source: Benettin et al., Meccanica 15 (1980); Geist et al., Prog. Theor. Phys. 83 (1990).
    """
    batch, size = state.shape
    if not 1 <= k <= size:
        raise ValueError(f"the number of exponents must be from 1 to {size} (state size), got {k}")
    if not 0 <= warm_up < len(inputs):
        raise ValueError(f"the warm-up must be shorter than the {len(inputs)} steps, got {warm_up}")
    Q = torch.randn(batch, size, k, generator=generator, dtype=state.dtype)
    Q = torch.linalg.qr(Q.to(state.device)).Q
    total = state.new_zeros(batch, k)
    for t, x_t in enumerate(inputs):
        state, tangents = push(step, x_t, state, Q)
        if not state.isfinite().all():
            raise ValueError(f"the state is not finite after {t + 1} steps")
        Q, R = torch.linalg.qr(tangents)
        if t >= warm_up:
            total += R.diagonal(dim1=1, dim2=2).abs().log()
    return total / (len(inputs) - warm_up)


def compute(run, args):
    """The arrays of analysis/lyapunov.npz; raises Unsuitable if they cannot be computed."""
    epochs, exponents = [], []
    for epoch, layer, x in trained_layers(run, args.sequences, args.data):
        generator = torch.Generator().manual_seed(0)
        state = flatten(layer.initial_state(x.shape[1]))
        if args.autonomous:
            x = x.new_zeros(1, *x.shape[1:]).expand(args.steps or AUTONOMOUS_STEPS, -1, -1)
            state = torch.randn(state.shape, generator=generator, dtype=state.dtype)
        elif args.steps is not None and args.steps > len(x):
            raise Unsuitable(
                f"--steps must be at most {len(x)}, the sequence length, got {args.steps}"
            )
        inputs = x[: args.steps]
        warm_up = len(inputs) // 10 if args.warm_up is None else args.warm_up
        inputs = tqdm(inputs, desc=f"epoch {epoch}", leave=False, delay=2, disable=None)
        try:
            found = lyapunov_exponents(
                flat_step(layer), state, inputs, args.exponents, warm_up, generator
            )
        except ValueError as error:
            raise Unsuitable(f"epoch {epoch}: {error}") from error
        epochs.append(epoch)
        exponents.append(found.numpy())
    exponents = np.stack(exponents)
    return {
        "epochs": np.array(epochs),
        "exponents": exponents,
        "mean": exponents.mean(axis=1),
        "std": exponents.std(axis=1),
    }


def main(argv=None):
    parser = analysis.make_parser("lyapunov", __doc__)
    flag = parser.add_argument
    flag("--exponents", type=positive_int, default=1, metavar="K", help="the K leading exponents")
    flag("--sequences", type=positive_int, default=16, metavar="S", help="number of test sequences")
    flag("--autonomous", action="store_true", help="run the network without input")
    flag(
        "--steps",
        type=positive_int,
        metavar="N",
        help=f"use only the first N steps (default: all; --autonomous: {AUTONOMOUS_STEPS})",
    )
    flag(
        "--warm-up",
        type=not_negative_int,
        metavar="N",
        help="steps to discard (default: a tenth)",
    )
    return analysis.main("lyapunov", parser, compute, argv)


if __name__ == "__main__":
    sys.exit(main())
