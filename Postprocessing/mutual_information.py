"""Mutual information between a network's state and its latest inputs, I(x_{t−w+1} … x_t; h_t).

Saved, from N sequences of the data set, at A times, for the newest checkpoint:
    times (A,)           numbers of steps read; the read-out of pixels sees h_T
    information (A,)     estimate of I(x_{t−w+1} … x_t; h_t) in nats
    gaussian_estimate, gaussian_truth (A,)   pixels only: the same estimate from N samples of
                         Gaussians with the covariance of the window and of h, and their true value
    window, samples ()   w and N

The estimate is biased, by gaussian_estimate − gaussian_truth on Gaussians, and not equally for all
networks, so that even a ranking may be wrong.

The sequences are the first images of the test, validation and training sets, in this order: the
information is a property of the network and its input distribution, and needs no held-out set. For
text they are columns of the test text, and a window is one discrete value. h is projected onto its
leading principal components at that time, because the estimator is biased low in high dimension.
The grey levels of pixels form a lattice, on which it is biased high; uniform noise within a level
is added, which does not change the information (Kraskov et al., arXiv cond-mat/0305641).
"""

import numpy as np
import torch
from scipy.linalg import orth
from scipy.spatial import cKDTree
from scipy.special import digamma
from sklearn.decomposition import PCA

from Postprocessing.networks import Unsuitable, data_set, is_text, kept_model
from Training.datasets import columns

BATCH = 100  # sequences at a time; the outputs of all their steps are in memory
FAR = 1e6  # distance between different windows of symbols, larger than any in a scaled h
WINDOW = {False: 5, True: 1}  # w of pixels and of text
SAMPLES = {False: 10000, True: 1000}  # N, at most


def mutual_information(x, y, neighbours=5):
    """I(x; y) in nats from samples x (N, dx) and y (N, dy), by the mixed-KSG estimator.

    Either may be continuous, discrete, or a mixture of both. Distances use the max-norm, so x and
    y should have similar scales. The estimate may be slightly negative near independence.
    Raises ValueError for other shapes, neighbours outside 1 … N − 1, or values that are not finite.
    Source: Gao et al. 2017, arXiv 1709.06212, as in their code: digamma throughout, and marginal
    neighbours counted strictly within the distance if it is positive.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"x and y must be (N, dx) and (N, dy), got {x.shape} and {y.shape}")
    if not 1 <= neighbours < len(x):
        raise ValueError(f"neighbours must be from 1 to N − 1 = {len(x) - 1}, got {neighbours}")
    joint = np.hstack([x, y])
    if not np.isfinite(joint).all():
        raise ValueError("the samples contain values that are not finite")
    # cKDTree splits ties at the number next to them; next to 0 it may be flushed to 0, for ever.
    spread = np.ptp(joint, axis=0)
    joint = joint - joint.min(axis=0) + np.where(spread > 0, spread, 1)
    x, y = np.split(joint, [x.shape[1]], axis=1)
    count = {"p": np.inf, "return_length": True}  # of the points within a distance, with itself
    tree = cKDTree(joint)
    distance = tree.query(joint, [neighbours + 1], p=np.inf)[0][:, 0]  # the nearest is itself
    tied = distance == 0
    k = np.full(len(x), neighbours)
    k[tied] = tree.query_ball_point(joint[tied], 0.0, **count)
    inside = np.nextafter(distance, 0.0)
    counts = (cKDTree(part).query_ball_point(part, inside, **count) for part in (x, y))
    return float(np.log(len(x)) + np.mean(digamma(k) - sum(map(digamma, counts))))


def gaussian_information(x, y):
    """I(x; y) in nats of Gaussians that have the covariance of the samples x (N, dx), y (N, dy).

    −½ Σ log(1 − ρ²) over the canonical correlations ρ; infinite if there is a linear relation.
    """
    x, y = (orth(columns - columns.mean(axis=0), 1e-10) for columns in (x, y))
    rho = np.linalg.svd(x.T @ y, compute_uv=False)
    return float(-0.5 * np.sum(np.log1p(-(np.minimum(rho, 1) ** 2))))


def _bias(x, y, neighbours):
    """`mutual_information` and its true value for Gaussians with the covariance of x and y."""
    drawn = np.random.default_rng(0).multivariate_normal(
        np.zeros(x.shape[1] + y.shape[1]), np.cov(np.hstack([x, y]).T), size=len(x)
    )
    estimate = mutual_information(*np.split(drawn, [x.shape[1]], axis=1), neighbours)
    return estimate, gaussian_information(x, y)


def _scaled(x):
    """x with unit standard deviation, pooled over columns, so that neither x nor h dominates."""
    spread = np.sqrt(np.mean((x - x.mean(axis=0)) ** 2))
    return x / spread if spread > 0 else x


def _sequences(run, data, samples):
    """The input x (T, N, I) or symbols (T, N), and the windows as a function (t, w) → (N, ·)."""
    loaded = data_set(run, data)
    if is_text(run):
        symbols = columns(loaded.test, samples)[: run.config["arguments"]["bptt"]]

        def symbol_windows(t, width):
            _, kind = np.unique(symbols[t - width : t].numpy(), axis=1, return_inverse=True)
            return FAR * kind.reshape(-1, 1)

        return symbols, symbol_windows
    few = slice(0, samples)
    parts = (loaded.test, loaded.validation, loaded.train)
    x = torch.cat([part.batch(few)[0] for part in parts], dim=1)[:, few]
    values = x.numpy()
    if not loaded.test.images.is_floating_point() or loaded.test.scale != 1:  # integers have ties
        values = values + np.random.default_rng(0).uniform(-0.5, 0.5, x.shape) / loaded.test.scale
    return x, lambda t, width: _scaled(values[t - width : t].swapaxes(0, 1).reshape(x.shape[1], -1))


@torch.no_grad()
def _states(model, sequences, times):
    """h (A, N, H) after these numbers of steps, times (A,)."""
    states = []
    for x in sequences.split(BATCH, dim=1):
        outputs, _ = model.rnn(x if x.is_floating_point() else model.encoder(x))
        states.append(outputs[times - 1].double().cpu())
    return torch.cat(states, dim=1).numpy()


def compute(run, data, device, *, samples=None, times=8, components=3, neighbours=5):
    """The arrays listed in the module docstring.

    samples: N, at most. times: A, evenly spaced up to the last step. components: of h, at most.
    neighbours: k of the estimator.
    """
    text = is_text(run)
    sequences, windows = _sequences(run, data, samples or SAMPLES[text])
    steps, count = sequences.shape[:2]
    width = WINDOW[text]
    if count <= neighbours or steps < width:
        raise Unsuitable(f"has only {count} sequences of {steps} steps")
    at = np.unique(np.linspace(width, steps, times).round().astype(int))
    states = _states(kept_model(run).to(device), sequences.to(device), at)
    if not np.isfinite(states).all():
        raise Unsuitable("the states are not finite on the data set")
    pca = PCA(min(components, *states[0].shape))
    states = [_scaled(pca.fit_transform(h)) for h in states]
    pairs = [(windows(t, width), h) for t, h in zip(at, states, strict=True)]
    arrays = {
        "times": at,
        "information": np.array([mutual_information(x, h, neighbours) for x, h in pairs]),
        "window": np.array(width),
        "samples": np.array(count),
    }
    if not text:
        gaussian = np.array([_bias(x, h, neighbours) for x, h in pairs])
        arrays |= {"gaussian_estimate": gaussian[:, 0], "gaussian_truth": gaussian[:, 1]}
    return arrays
