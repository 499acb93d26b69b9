"""λ₁, the leading Lyapunov exponent of trained networks, in nats per step.

Saved, for E kept checkpoints, S chains of test sequences, R random first directions:
    epochs (E,), leading (E, S, R)   λ₁ along each chain, from each direction
    steps, warm_up ()                of a chain; the mean is over steps − warm_up steps

Differences smaller than the range of `leading` over chains and directions must not be reported.

The exponent is that of the full state, (h, g) for ANRU and (h, c) for the LSTM, of the network with
its biases, driven by the test set. A chain is a number of test sequences without a reset of the
state in between, enough for 1,000 counted steps; for text, the text itself.
"""

import numpy as np
import torch

from Postprocessing.dynamics import flatten, tangent_step
from Postprocessing.networks import Unsuitable, trained_layers
from Training.console import Progress

STEPS = 1112  # at least, of a chain: 1,001 without a warm-up of a tenth


def lyapunov_exponents(advance, state, inputs, k=1, warm_up=0, generator=None):
    """The k leading Lyapunov exponents of the trajectories from a batch of states, (B, k).

    The mean of log |R_jj| (natural logarithm, per step) over the steps after the warm-up, where
    Q R is the QR decomposition of the step's Jacobian times the previous Q. The first Q is random.
    The order is descending for long trajectories; −∞ for a direction that vanishes.

    advance: (x_t, state (B, D), tangents (B, D, k)) → both after the step, such as `tangent_step`.
    inputs: sequence of x_t. generator: of the first Q. Raises ValueError if k is not in 1 … D, no
    step is left after the warm-up, or a state is not finite.
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
        state, tangents = advance(x_t, state, Q)
        if not state.isfinite().all():
            raise ValueError(f"the state is not finite after {t + 1} steps")
        Q, R = torch.linalg.qr(tangents)
        if t >= warm_up:
            total += R.diagonal(dim1=1, dim2=2).abs().log()
    return total / (len(inputs) - warm_up)


def compute(run, data, device, *, chains=4, draws=3, steps=STEPS):
    """The arrays listed in the module docstring.

    chains: S, at most. draws: R. steps: of a chain, at least; whole sequences are used.
    """
    leading = []
    for epoch, layer, x in trained_layers(run, chains, data, device, steps):
        state = flatten(layer.initial_state(x.shape[1])).repeat_interleave(draws, dim=0)
        inputs = x.repeat_interleave(draws, dim=1)  # (N, S R, I)
        length, warm_up = len(inputs), len(inputs) // 10
        bar = Progress(inputs, desc=f"epoch {epoch}", leave=False, delay=2)
        generator = torch.Generator().manual_seed(0)
        try:
            exponents = lyapunov_exponents(tangent_step(layer), state, bar, 1, warm_up, generator)
        except ValueError as error:
            raise Unsuitable(f"epoch {epoch}: {error}") from error
        leading.append(exponents.view(-1, draws).cpu().numpy())
    return {
        "epochs": np.array(list(run.kept)),
        "leading": np.stack(leading),
        "steps": np.array(length),
        "warm_up": np.array(warm_up),
    }
