"""ANRU's supervisors: n and s under noise, and the plane in which the supervisors move.

Noise: a current ~ N(0, ξ²), independent for every unit and step, is added to the pre-activations
from step 100 on, while the network reads test sequences; n(ξ) and s(ξ) are the means of n_t and s_t
over sequences, units and 110 ≤ t < 200. Sequences shorter than 200 steps are concatenated.
    xi (X,), n, s (X,)
Plane: one supervisor in open loop, that is, without a main unit to act on:
    g_t = tanh(Uag a_t + b_ag + Wgg g_{t−1} + b_gg),   a_t = 0 for t ≤ 200, ξ for 201 ≤ t < 400
for 10 ξ from e^−2 to e^2, evenly spaced in log ξ, averaged over 10 initial g ~ N(0, 1). g_t is
projected onto the first two principal components over all (ξ, t).
    xi_plane (X',), path (X', T, 2), explained (2,)   the fractions of the variance

Source: Geadah et al., PLOS Computational Biology 2024, figures 3 and 5a. Its fits start from
(1, 1, 1); `fit` needs no start and gives errors. The script of figure 5a starts each ξ from the
final state of the previous one; here all ξ share their 10 initial states.
"""

import math

import numpy as np
import torch
from scipy.optimize import approx_fprime, minimize_scalar
from sklearn.decomposition import PCA

from Postprocessing.networks import Unsuitable, chains, layer_input, trained_anru
from Postprocessing.unit_responses import with_weights

NOISE = (1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0)
NOISE_STEPS, NOISE_ONSET, WINDOW = 200, 100, slice(110, 200)
STEP = np.exp(np.linspace(-2, 2, 10))
STEPS, ONSET, STARTS = 400, 201, 10


@torch.no_grad()
def gain_and_saturation(layer, x, xi=NOISE, generator=None):
    """n(ξ) and s(ξ) of an ANRU that reads x (200, B, I), each (X,); generator: of the currents."""
    size = layer.hidden_size
    identity = torch.eye(size).to(x)
    noisy = with_weights(layer, torch.cat([layer.Uxh.weight, identity], dim=1))  # inputs x, current
    means = []
    for size_of_noise in xi:
        current = torch.randn(*x.shape[:2], size, generator=generator, dtype=x.dtype).to(x)
        current[:NOISE_ONSET] = 0
        inputs = torch.cat([x, size_of_noise * current], dim=2)
        _, _, trace = noisy.trace(inputs, keep=("n", "s"))
        means.append([trace[name][WINDOW].mean().item() for name in ("n", "s")])
    return np.array(means).T


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


@torch.no_grad()
def supervisor_states(layer, xi=STEP, generator=None):
    """g_t of a supervisor in open loop, averaged over its initial states, (X, T, M)."""
    like = layer.Wgg.weight
    start = torch.randn(STARTS, 1, layer.supervisor_size, generator=generator, dtype=like.dtype)
    g = start.to(like).expand(-1, len(xi), -1)
    driven, states = torch.as_tensor(xi).to(like)[:, None], []
    for t in range(STEPS):
        a = driven if t >= ONSET else torch.zeros_like(driven)
        g = torch.tanh(layer.Uag(a) + layer.Wgg(g))  # (starts, X, M)
        states.append(g.mean(0))
    return torch.stack(states, dim=1).cpu().numpy()


def holds(parameters, errors):
    """Whether a fit (a, b, c) holds: a and b are larger than two of their standard errors."""
    return (np.abs(parameters[:2]) > 2 * errors[:2]).all()


def compute(run, data, device, *, sequences=32):
    """The arrays listed in the module docstring."""
    model, layer = trained_anru(run, device)
    copies = math.ceil(NOISE_STEPS / len(layer_input(run, model, 1, data)))
    x = layer_input(run, model, copies * sequences, data)
    if x.shape[1] < copies:
        raise Unsuitable(f"needs {NOISE_STEPS} steps, the test set has fewer")
    x = chains(x, x.shape[1] // copies)[:NOISE_STEPS].to(device, torch.float64)
    seed = run.config["arguments"]["seed"]
    n, s = gain_and_saturation(layer, x, generator=torch.Generator().manual_seed(seed))
    states = supervisor_states(layer, generator=torch.Generator().manual_seed(seed))
    pca = PCA(2)
    path = pca.fit_transform(states.reshape(-1, states.shape[-1])).reshape(*states.shape[:2], 2)
    noise = {"xi": np.array(NOISE), "n": n, "s": s}
    return noise | {"xi_plane": STEP, "path": path, "explained": pca.explained_variance_ratio_}
