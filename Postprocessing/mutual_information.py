"""Mutual information between a network's state and its latest inputs, I(x_{t−w+1} … x_t; h_t).

    python3 -m Postprocessing.mutual_information RUN... [--all-epochs]

Writes analysis/mutual_information.npz to each run, from N sequences of its data set:
    epochs (E,)          of the checkpoints; without --all-epochs only the newest
    times (A,)           numbers of steps read, 1 … T; the read-out of pixels sees h_T
    information (E, A)   estimate of I(x_{t−w+1} … x_t; h_t) in nats
    gaussian_estimate, gaussian_truth (A,)   pixels only, else NaN: the same estimate, in nats, from
                         N samples of Gaussians that have the covariance of the window and of h at
                         the newest of these checkpoints, and their true mutual information
    window, samples, components ()   w, N and the number of principal components of h

The estimate is biased, and not equally for all networks, so that even a ranking may be wrong. The
bias is the difference between gaussian_estimate and gaussian_truth.

The N sequences are the first images of the test, validation and training sets, in this order:
mutual information is a property of the network and its input distribution, and needs no held-out
set. For text they are columns of the test text.

x is the input of the network: on a permuted task, the permuted pixels. A window of text is one
discrete value. h is projected onto its --components leading principal components over the samples
at that time, because the estimator is biased low in high dimension; for the same reason the result
is a lower bound in practice, and less informative for wide windows. The grey levels of pixels form
a lattice, on which the estimator is biased high; uniform noise within a level is added, which does
not change the information (after Kraskov et al., arXiv cond-mat/0305641).
"""

import sys

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from tqdm import tqdm

from NetworkCreation.checkpoints import model_of, read_checkpoint
from Postprocessing import analysis
from Postprocessing.load_runs import data_set
from Training.datasets import columns
from Training.flags import positive_int

BATCH = 100  # sequences at a time; the outputs of all their steps are in memory
FAR = 1e6  # distance between different windows of symbols, larger than any in a scaled h


def make_parser():
    parser = analysis.make_parser("mutual_information", __doc__)
    flag, newest = parser.add_argument, "every kept checkpoint, not only the newest"
    times = "numbers of steps read (default: 8 values, evenly spaced up to the last step)"
    samples = "maximum number of sequences (default: 10000 images or 1000 columns of text)"
    flag("--window", type=positive_int, help="w in steps (default: 5 pixels or 1 symbol)")
    flag("--times", type=positive_int, nargs="+", metavar="T", help=times)
    flag("--components", type=positive_int, default=3, help="principal components of h to use")
    flag("--samples", type=positive_int, metavar="N", help=samples)
    flag("--neighbours", type=positive_int, default=5, help="k of the estimator")
    flag("--all-epochs", action="store_true", help=newest)
    return parser


def mutual_information(x, y, neighbours=5):
    """I(x; y) in nats from samples x (N, dx) and y (N, dy), by the mixed-KSG estimator.

    Either may be continuous, discrete, or a mixture of both. Distances use the max-norm, so x and
    y should have similar scales. The estimate may be slightly negative near independence. It is
    biased low in high dimension and for strong dependence, more so with fewer samples, and biased
    high if x or y is on a lattice so fine that the neighbours are distinct lattice points.
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
    tree = cKDTree(joint)
    distance = tree.query(joint, [neighbours + 1], p=np.inf)[0][:, 0]  # the nearest is itself
    tied = distance == 0
    k = np.full(len(x), neighbours)
    k[tied] = _within(tree, joint[tied], 0.0)
    inside = np.nextafter(distance, 0.0)
    counts = (_within(cKDTree(part), part, inside) for part in (x, y))
    return float(np.log(len(x)) + np.mean(digamma(k) - sum(map(digamma, counts))))


def _within(tree, points, radius):
    """The number of points of the tree within this radius of each point, including itself."""
    return tree.query_ball_point(points, radius, p=np.inf, return_length=True)


def principal_components(h, components):
    """h (N, H) projected onto its leading principal components, (N, at most components)."""
    centred = h - h.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2]
    return centred @ directions[:components].T


def gaussian_information(x, y):
    """I(x; y) in nats of Gaussians that have the covariance of the samples x (N, dx), y (N, dy).

    −½ Σ log(1 − ρ²) over the canonical correlations ρ; infinite if there is a linear relation.
    """
    rho = np.linalg.svd(_whitened(x).T @ _whitened(y), compute_uv=False)
    return float(-0.5 * np.sum(np.log1p(-(np.minimum(rho, 1) ** 2))))


def _whitened(x):
    """An orthonormal basis (N, rank) of the centred columns of x."""
    U, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return U[:, s > 1e-10 * s[0]]


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


def _sequences(run, args):
    """The input x (T, N, 1) or symbols (T, N), w, and the windows as a function t → (N, ·)."""
    found = data_set(run, args.data)
    if run.config["model"]["task"] == "pixels":
        few = slice(0, args.samples or 10000)
        sets = (found.test, found.validation, found.train)
        x = torch.cat([one.batch(few)[0] for one in sets], dim=1)[:, few]
        w = args.window or 5
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, x.shape[:2]) / found.test.scale
        values = x[..., 0].numpy() + noise
        return x, w, lambda t: _scaled(values[t - w : t].T)
    symbols = columns(found.test, args.samples or 1000)[: run.config["arguments"]["bptt"]]
    w = args.window or 1

    def windows(t):
        _, kind = np.unique(symbols[t - w : t].numpy(), axis=1, return_inverse=True)
        # from FAR on: cKDTree splits ties at the number next to 0, which is flushed to 0, forever
        return FAR * (1 + kind.reshape(-1, 1))

    return symbols, w, windows


def _times(args, window, steps):
    if args.times is None and window <= steps:
        return np.unique(np.linspace(window, steps, 8).round().astype(int))
    times = args.times or [window]
    if not window <= min(times) <= max(times) <= steps:
        raise analysis.Unsuitable(f"times must be from {window} (window) to {steps}, got {times}")
    return np.array(times)


@torch.no_grad()
def _states(model, sequences, times, device):
    """h (A, N, H) after these numbers of steps, times (A,)."""
    states = []
    model.to(device)
    for x in tqdm(sequences.split(BATCH, dim=1), desc="running", leave=False, disable=None):
        x = x.to(device)
        outputs, _ = model.rnn(x if x.is_floating_point() else model.encoder(x))
        states.append(outputs[times - 1].double().cpu())
    return torch.cat(states, dim=1).numpy()


def compute(run, args):
    """The arrays of one run, listed in the module docstring; raises Unsuitable if it has none."""
    sequences, window, windows = _sequences(run, args)
    steps, samples = sequences.shape[:2]
    times = _times(args, window, steps)
    if samples <= args.neighbours:
        raise analysis.Unsuitable(
            f"--neighbours must be below {samples}, the number of samples, got {args.neighbours}"
        )
    inputs = [windows(t) for t in times]
    epochs, information = [], []
    paths = run.kept.values() if args.all_epochs else [run.newest_checkpoint()]
    for path in paths:
        checkpoint = read_checkpoint(path)
        states = _states(model_of(checkpoint, path)[0], sequences, times, args.device)
        if not np.isfinite(states).all():
            raise analysis.Unsuitable(f"{path}: the states are not finite on the data set")
        states = [_scaled(principal_components(h, args.components)) for h in states]
        pairs = list(zip(inputs, states, strict=True))
        epochs.append(checkpoint["epoch"])
        information.append([mutual_information(x, h, args.neighbours) for x, h in pairs])
    gaussian = np.full((len(times), 2), np.nan)
    if sequences.is_floating_point():
        gaussian = np.array([_bias(x, h, args.neighbours) for x, h in pairs])
    return {
        "epochs": np.array(epochs),
        "times": times,
        "information": np.array(information),
        "gaussian_estimate": gaussian[:, 0],
        "gaussian_truth": gaussian[:, 1],
        "window": np.array(window),
        "samples": np.array(samples),
        "components": np.array(states[0].shape[1]),
    }


def main(argv=None):
    return analysis.main("mutual_information", make_parser(), compute, argv)


if __name__ == "__main__":
    sys.exit(main())
