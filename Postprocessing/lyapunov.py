"""Lyapunov exponents of trained networks: python3 -m Postprocessing.lyapunov RUN...

Writes analysis/lyapunov.npz to each run, natural log per step:
    epochs (E,)             of the kept checkpoints
    exponents (E, S, k)     the k leading exponents along S chains of test sequences, in descending
                            order, averaged over R random draws of the first directions
    leading (E, S, R)       the largest exponent, λ₁, of each chain and draw
    leading_mean (E,)       over chains and draws
    leading_spread (E,)     the range (largest minus smallest) over chains and draws, or NaN
    steps, warm_up ()       of a chain; the exponents are averages over steps − warm_up steps

The spread is the resolution of λ₁: smaller differences, between epochs or networks, must not be
reported. It covers the choice of test sequences (chains) and directions that have not aligned yet
(draws).

The exponents are those of the network with its biases, along the trajectory driven by the test set.
A chain is a number of test sequences without a reset of the state in between, enough for 1,000
counted steps; for text, the text itself. The exponents cover the full state: h of the RNN, (h, g)
of ANRU, (h, c) of the LSTM.
On one core a checkpoint of a digits run with 64 units takes 1 s (RNN), 4 s (LSTM, GRU) or 14 s
(ANRU, whose state has 51 numbers per unit); of a psMNIST run with 400 units 9 s, 35 s and 145 s.
--autonomous: without input (x_t = 0, biases included), from initial states ~ N(0, 1), in
analysis/lyapunov_autonomous.npz.
"""

import functools
import sys

import numpy as np
import torch
from tqdm import tqdm

from Postprocessing import analysis
from Postprocessing.dynamics import flat_step, flatten, push, tangent_step, trained_layers
from Training.flags import not_negative_int, positive_int

STEPS = 1112  # at least, of a chain: 1,001 without a warm-up of a tenth
EXPONENTS = 8  # at most, if --exponents is not given


def lyapunov_exponents(step, state, inputs, k=1, warm_up=0, generator=None, advance=None):
    """The k leading Lyapunov exponents of the trajectories from a batch of states, (B, k).

    The mean of log |R_jj| (natural logarithm, per step) over the steps after the warm-up, where
    Q R is the QR decomposition of the step's Jacobian times the previous Q. The first Q is random;
    during the warm-up it aligns with the leading directions. The exponents are in the order of the
    columns of Q, which is descending for long trajectories; −∞ for a direction that vanishes.

    step: (x_t, state (B, D)) → state (B, D), as for `push`. inputs: sequence of x_t. generator: of
    the first Q. advance: (x_t, state, tangents) → both after the step, such as `tangent_step`;
    None: `push` of step. Raises ValueError if k is not in 1 … D, no step is left after the warm-up,
    or a state is not finite.
    Source: Benettin et al., Meccanica 15 (1980); Geist et al., Prog. Theor. Phys. 83 (1990).
    """
    batch, size = state.shape
    if not 1 <= k <= size:
        raise ValueError(f"the number of exponents must be from 1 to {size} (state size), got {k}")
    if not 0 <= warm_up < len(inputs):
        raise ValueError(f"the warm-up must be shorter than the {len(inputs)} steps, got {warm_up}")
    Q = torch.randn(batch, size, k, generator=generator, dtype=state.dtype)
    Q = torch.linalg.qr(Q.to(state.device)).Q
    advance = advance or functools.partial(push, step)
    total = state.new_zeros(batch, k)
    for t, x_t in enumerate(inputs):
        state, tangents = advance(x_t, state, Q)
        if not state.isfinite().all():
            raise ValueError(f"the state is not finite after {t + 1} steps")
        Q, R = torch.linalg.qr(tangents)
        if t >= warm_up:
            total += R.diagonal(dim1=1, dim2=2).abs().log()
    return total / (len(inputs) - warm_up)


def compute(run, args):
    """The arrays of one run, listed in the module docstring; raises Unsuitable if it has none."""
    shortest = 1 if args.autonomous else args.steps or STEPS
    S, R = args.chains, args.draws
    epochs, found = [], []
    for epoch, layer, x in trained_layers(run, S, args.data, args.device, shortest):
        generator = torch.Generator().manual_seed(0)
        state = flatten(layer.initial_state(S))
        if args.autonomous:
            x = x.new_zeros(1, *x.shape[1:]).expand(args.steps or STEPS, -1, -1)
            state = torch.randn(state.shape, generator=generator, dtype=state.dtype).to(x.device)
        inputs = x[: args.steps].repeat_interleave(R, dim=1)  # (N, S R, I)
        state = state.repeat_interleave(R, dim=0)
        steps, k = len(inputs), args.exponents or min(EXPONENTS, state.shape[1])
        warm_up = steps // 10 if args.warm_up is None else args.warm_up
        inputs = tqdm(inputs, desc=f"epoch {epoch}", leave=False, delay=2, disable=None)
        try:
            exponents = lyapunov_exponents(
                flat_step(layer), state, inputs, k, warm_up, generator, tangent_step(layer)
            )
        except ValueError as error:
            raise analysis.Unsuitable(f"epoch {epoch}: {error}") from error
        epochs.append(epoch)
        found.append(exponents.sort(dim=1, descending=True).values.view(S, R, k).cpu().numpy())
    found = np.stack(found)  # (E, S, R, k)
    leading = found[..., 0]
    return {
        "epochs": np.array(epochs),
        "exponents": found.mean(axis=2),
        "leading": leading,
        "leading_mean": leading.mean(axis=(1, 2)),
        "leading_spread": np.ptp(leading, axis=(1, 2))
        if S * R > 1
        else np.full(len(epochs), np.nan),
        "steps": np.array(steps),
        "warm_up": np.array(warm_up),
    }


def main(argv=None):
    parser = analysis.make_parser("lyapunov", __doc__)
    flag, default = parser.add_argument, f"whole sequences, at least {STEPS} steps"
    flag(
        "--exponents",
        type=positive_int,
        metavar="K",
        help=f"the K leading exponents (default: {EXPONENTS}, or all if fewer)",
    )
    flag("--chains", type=positive_int, default=4, metavar="S", help="chains of test sequences")
    flag("--draws", type=positive_int, default=3, metavar="R", help="draws of the directions")
    flag("--autonomous", action="store_true", help="run the network without input")
    flag("--steps", type=positive_int, metavar="N", help=f"length of a chain (default: {default})")
    warm_up = "steps of a chain to discard (default: a tenth)"
    flag("--warm-up", type=not_negative_int, metavar="N", help=warm_up)

    def name(args):
        return "lyapunov_autonomous" if args.autonomous else "lyapunov"

    return analysis.main(name, parser, compute, argv)


if __name__ == "__main__":
    sys.exit(main())
