"""Lyapunov exponents of trained networks: python3 -m Postprocessing.lyapunov RUN...

Writes analysis/lyapunov.npz into each run: epochs (E,) of the kept checkpoints, exponents
(E, S, k) of S sequences, natural log per step, and over the sequences their mean (E, k) and std
(E, k).

The exponents are those of the network as it runs, with its biases, along the trajectory that a
test sequence drives; of the whole state: h of the RNN, (h, g) of ANRU, (h, c) of the LSTM.
--autonomous: without input (x_t = 0, the biases stay), from states drawn from N(0, 1).
"""

import sys

import numpy as np
import torch
from tqdm import tqdm

from Postprocessing import analysis
from Postprocessing.analysis import Unsuitable
from Postprocessing.dynamics import flat_step, flatten, push, trained_layers
from Training.arguments import not_negative_int, positive_int

AUTONOMOUS_STEPS = 500


def lyapunov_exponents(step, state, inputs, k=1, warm_up=0, generator=None):
    """The k leading Lyapunov exponents along the trajectories from a batch of states, (B, k).

    The mean over the steps after the warm-up of log |R_jj|, natural logarithm, per step; Q R is
    the factorisation of what the step's Jacobian makes of the last step's Q, which is random at
    the start. During the warm-up Q turns into the leading directions. They come in the order of
    the directions, which for long trajectories is from the largest down. −∞ for a direction that
    vanishes.

    step: (x_t, state (B, D)) → state (B, D), differentiable in forward mode, that treats the
    samples of the batch apart. inputs: the x_t in turn, with a length. generator: draws the first
    Q. Raises ValueError where k exceeds D, no step is left after the warm-up, or a state is not
    finite.
    Source: Benettin et al., Meccanica 15 (1980); Geist et al., Prog. Theor. Phys. 83 (1990).
    """
    batch, size = state.shape
    if not 1 <= k <= size:
        raise ValueError(f"{k} exponents of a state of {size} numbers: 1 to {size} are possible")
    if not 0 <= warm_up < len(inputs):
        raise ValueError(f"a warm-up of {warm_up} steps of {len(inputs)} leaves none")
    Q = torch.randn(batch, size, k, generator=generator, dtype=state.dtype)
    Q = torch.linalg.qr(Q.to(state.device)).Q
    total = state.new_zeros(batch, k)
    for t, x_t in enumerate(inputs):
        state, tangents = push(step, x_t, state, Q)
        if not state.isfinite().all():
            raise ValueError(f"a state is not finite after {t + 1} steps")
        Q, R = torch.linalg.qr(tangents)
        if t >= warm_up:
            total += R.diagonal(dim1=1, dim2=2).abs().log()
    return total / (len(inputs) - warm_up)


def compute(run, args):
    """The arrays of analysis/lyapunov.npz; Unsuitable where the run has no such exponents."""
    epochs, exponents = [], []
    for epoch, layer, x in trained_layers(run, args.sequences, args.data):
        generator = torch.Generator().manual_seed(0)
        state = flatten(layer.initial_state(x.shape[1]))
        if args.autonomous:
            x = x.new_zeros(1, *x.shape[1:]).expand(args.steps or AUTONOMOUS_STEPS, -1, -1)
            state = torch.randn(state.shape, generator=generator, dtype=state.dtype)
        elif args.steps is not None and args.steps > len(x):
            raise Unsuitable(f"its sequences have {len(x)} steps, and --steps is {args.steps}")
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
    flag("--exponents", type=positive_int, default=1, metavar="K", help="how many, largest first")
    flag("--sequences", type=positive_int, default=16, metavar="S", help="test sequences")
    flag("--autonomous", action="store_true", help="of the network without input")
    flag(
        "--steps",
        type=positive_int,
        metavar="N",
        help=f"the first N alone (default: all; --autonomous: {AUTONOMOUS_STEPS})",
    )
    flag(
        "--warm-up",
        type=not_negative_int,
        metavar="N",
        help="steps that are not counted (default: a tenth)",
    )
    return analysis.main("lyapunov", parser, compute, argv)


if __name__ == "__main__":
    sys.exit(main())
