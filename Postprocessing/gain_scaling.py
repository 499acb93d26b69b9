"""ANRU's gain and saturation under noise: python3 -m Postprocessing.gain_scaling RUN...

A current ~ N(0, ξ²), independent for every unit and step, is added to the pre-activations from step
100 on, while the network reads test sequences; n(ξ) and s(ξ) are the means of n_t and s_t over
sequences, units and 110 ≤ t < 200. Sequences shorter than 200 steps are concatenated.

Writes analysis/gain_scaling.npz to each run: xi, n, s (X,), and the least-squares fits n_fit and
s_fit (2, 3): the parameters a, b, c and their standard errors, of
    n = a ξ^(−b) + c        s = a e^(−b ξ) + c

Source: Geadah et al., PLOS Computational Biology 2024, figure 3. Its script averages three seeds
and starts the fits from (1, 1, 1) only, without errors of the parameters; the program that
generated its data is not published. `fit` needs no starting point.
"""

import math
import sys

import numpy as np
import torch
from scipy.optimize import approx_fprime, minimize_scalar

from Postprocessing import analysis
from Postprocessing.dynamics import chains
from Postprocessing.load_runs import layer_input
from Postprocessing.unit_responses import trained_anru, with_weights
from Training.flags import positive_int

XI = (1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0)
STEPS, ONSET, WINDOW = 200, 100, slice(110, 200)


@torch.no_grad()
def gain_and_saturation(layer, x, xi=XI, generator=None):
    """n(ξ) and s(ξ) of an ANRU that reads x (200, B, I), each (X,); generator: of the currents."""
    size = layer.hidden_size
    identity = torch.eye(size).to(x)
    noisy = with_weights(layer, torch.cat([layer.Uxh.weight, identity], dim=1))  # inputs x, current
    found = []
    for size_of_noise in xi:
        current = torch.randn(*x.shape[:2], size, generator=generator, dtype=x.dtype).to(x)
        current[:ONSET] = 0
        inputs = torch.cat([x, size_of_noise * current], dim=2)
        _, _, trace = noisy.trace(inputs, keep=("n", "s"))
        found.append([trace[name][WINDOW].mean().item() for name in ("n", "s")])
    n, s = np.array(found).T
    return n, s


def power(xi, a, b, c):
    """a ξ^(−b) + c."""
    return a * xi**-b + c


def exponential(xi, a, b, c):
    """a e^(−b ξ) + c."""
    return a * np.exp(-b * xi) + c


def fit(curve, xi, values):
    """Least-squares parameters of a curve and their standard errors, (2, 3).

    curve: `power` or `exponential`, linear in a and c, so that only b, from −3 to 3, is searched.
    """
    xi = np.asarray(xi)

    def solve(b):
        """The best a and c for this b, and the sum of squares that is left."""
        design = np.stack([curve(xi, 1, b, 0), np.ones_like(xi)], axis=1)
        (a, c), *_ = np.linalg.lstsq(design, values, rcond=None)
        return (a, b, c), ((design @ (a, c) - values) ** 2).sum()

    grid, step = np.linspace(-3, 3, 121, retstep=True)
    near = min(grid, key=lambda b: solve(b)[1])
    options = {"bounds": (near - step, near + step), "options": {"xatol": 1e-10}}
    parameters, residual = solve(minimize_scalar(lambda b: solve(b)[1], **options).x)
    derivatives = approx_fprime(parameters, lambda p: curve(xi, *p))  # (X, 3)
    covariance = residual / (len(xi) - 3) * np.linalg.pinv(derivatives.T @ derivatives)
    return np.stack([parameters, np.sqrt(np.diag(covariance))])


def compute(run, args):
    """The arrays of analysis/gain_scaling.npz; raises Unsuitable if they cannot be computed."""
    model, layer = trained_anru(run, args.device)
    copies = math.ceil(STEPS / len(layer_input(run, model, 1, args.data)))
    x = layer_input(run, model, copies * args.sequences, args.data)
    x = chains(x, x.shape[1] // copies)[:STEPS].to(args.device, torch.float64)
    generator = torch.Generator().manual_seed(run.config["arguments"]["seed"])
    n, s = gain_and_saturation(layer, x, generator=generator)
    fits = {"n_fit": fit(power, XI, n), "s_fit": fit(exponential, XI, s)}
    return {"xi": np.array(XI), "n": n, "s": s, **fits}


def main(argv=None):
    parser = analysis.make_parser("gain_scaling", __doc__)
    parser.add_argument(
        "--sequences", type=positive_int, default=32, metavar="B", help="test sequences"
    )
    return analysis.main("gain_scaling", parser, compute, argv)


if __name__ == "__main__":
    sys.exit(main())
