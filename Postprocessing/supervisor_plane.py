"""The plane in which ANRU's supervisor moves: python3 -m Postprocessing.supervisor_plane RUN...

One supervisor in open loop, that is, without a main unit to act on:
    g_t = tanh(Uag a_t + b_ag + Wgg g_{t−1} + b_gg),   a_t = 0 for t ≤ 200, ξ for 201 ≤ t < 400
for 10 ξ from e^−2 to e^2, evenly spaced in log ξ, averaged over 10 initial g ~ N(0, 1). g_t is
projected onto the first two principal components over all (ξ, t).

Writes analysis/supervisor_plane.npz to each run: xi (X,), components (2, M), mean (M,), explained
(2,), the fractions of the variance, and path (X, T, 2), the projected g_t.

Source: Geadah et al., PLOS Computational Biology 2024, figure 5a. Its script starts each ξ from the
final state of the previous one; here all ξ share their 10 initial states.
"""

import sys

import numpy as np
import torch
from sklearn.decomposition import PCA

from Postprocessing import analysis
from Postprocessing.unit_responses import trained_anru

XI = np.exp(np.linspace(-2, 2, 10))
STEPS, ONSET, STARTS = 400, 201, 10


@torch.no_grad()
def supervisor_states(layer, xi=XI, generator=None):
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


def plane(states):
    """Two principal components of g (X, T, M): a fitted PCA, and the projections (X, T, 2)."""
    pca = PCA(n_components=2)
    path = pca.fit_transform(states.reshape(-1, states.shape[-1]))
    return pca, path.reshape(*states.shape[:2], 2)


def compute(run, args):
    """The arrays of analysis/supervisor_plane.npz; raises Unsuitable for another network."""
    _, layer = trained_anru(run, args.device)
    generator = torch.Generator().manual_seed(run.config["arguments"]["seed"])
    pca, path = plane(supervisor_states(layer, generator=generator))
    return {
        "xi": XI,
        "components": pca.components_,
        "mean": pca.mean_,
        "explained": pca.explained_variance_ratio_,
        "path": path,
    }


def main(argv=None):
    parser = analysis.make_parser("supervisor_plane", __doc__)
    return analysis.main("supervisor_plane", parser, compute, argv)


if __name__ == "__main__":
    sys.exit(main())
