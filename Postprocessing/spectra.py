"""Eigenvalues of the recurrent matrix and of a step's Jacobian.

    python3 -m Postprocessing.spectra RUN...

Writes analysis/spectra.npz to each run, for its first and its newest kept checkpoint:
    epochs (E,)
    matrix (E, H)               of the recurrent matrix: V of the RNN, Whh of ANRU, that of the
                                candidate of LSTM and GRU
    times (T',)                 evenly spaced, at most --times; t counts from 1
    jacobian (E, T', S, H)      of ∂h_t/∂h_{t−1} at these times along S test sequences, with the
                                rest of the state (g of ANRU) held fixed; EURNN: 2H, of the real
                                and imaginary parts together

Source: the spectra of the matrices, against the unit circle, are from Geadah et al., PLOS
Computational Biology 2024. The spectra of the Jacobian, which also depend on the slopes γ′(a_t),
are not in the paper.
"""

import math
import sys

import numpy as np
import torch
from matplotlib.patches import Circle

from NetworkCreation.Networks import ANRU, EURNN, GRU, LSTM
from Postprocessing import analysis
from Postprocessing.dynamics import flatten, jacobians, trained_layers
from Training.flags import positive_int


def recurrent_matrix(layer):
    """The matrix (H, H) by which h_{t−1} enters a_t, without gradient; complex for EURNN.

    V of RNN, expRNN and nnRNN, Whh of ANRU, the product of rotations of EURNN, and the matrix of
    the candidate, tanh(…), of LSTM and GRU.
    """
    with torch.no_grad():
        if isinstance(layer, ANRU):
            return layer.Whh.weight.detach()
        if isinstance(layer, LSTM):
            return layer.Wg.weight[:, : layer.hidden_size].detach()
        if isinstance(layer, GRU):
            return layer.Whn.weight.detach()
        if isinstance(layer, EURNN):
            basis = torch.eye(layer.hidden_size).to(layer.theta)
            return layer.rotate(torch.complex(basis, torch.zeros_like(basis))).t()
        return layer.V.weight.detach()


def jacobian_eigenvalues(layer, x, times):
    """The eigenvalues of ∂h_t/∂h_{t−1} at these times t ≥ 1, (T', B, H) complex; x (T, B, I)."""
    found = jacobians(layer, flatten(layer.initial_state(x.shape[1])), x, times)
    return torch.stack([torch.linalg.eigvals(J) for J in found])


def compute(run, args):
    """The arrays of one run, listed in the module docstring."""
    epochs, matrix, jacobian = [], [], []
    for epoch, layer, x in trained_layers(run, args.sequences, args.data, args.device, ends=True):
        epochs.append(epoch)
        matrix.append(torch.linalg.eigvals(recurrent_matrix(layer)).cpu().numpy())
        every = math.ceil(len(x) / args.times)
        times = range(every, len(x) + 1, every)
        try:
            jacobian.append(jacobian_eigenvalues(layer, x, times).cpu().numpy())
        except ValueError as error:
            raise analysis.Unsuitable(f"epoch {epoch}: {error}") from error
    arrays = {"matrix": np.stack(matrix), "jacobian": np.stack(jacobian)}
    return {"epochs": np.array(epochs), "times": np.array(times), **arrays}


def draw_eigenvalues(values, ax, **style):
    """Eigenvalues in the complex plane, an array of any shape, and the unit circle."""
    ax.add_patch(Circle((0, 0), 1, fill=False, edgecolor="0.4", linewidth=0.6))
    shown = ax.scatter(values.real, values.imag, **{"s": 5, "linewidth": 0} | style)
    ax.set(aspect="equal", xlabel="real part", ylabel="imaginary part")
    return shown


def main(argv=None):
    parser = analysis.make_parser("spectra", __doc__)
    flag = parser.add_argument
    flag("--sequences", type=positive_int, default=4, metavar="S", help="number of test sequences")
    flag("--times", type=positive_int, default=16, help="maximum number of times t")
    return analysis.main("spectra", parser, compute, argv)


if __name__ == "__main__":
    sys.exit(main())
