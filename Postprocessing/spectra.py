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

Source: the spectra of the matrices are those of Geadah et al., PLOS Computational Biology 2024,
against the unit circle. The spectra of the Jacobian, which the paper does not have, say what the
matrix and the slopes γ′(a_t) do together.
"""

import math
import sys

import numpy as np
import torch
from matplotlib.patches import Circle

from NetworkCreation.Networks import ANRU, EURNN, GRU, LSTM
from Postprocessing import analysis
from Postprocessing.analysis import Unsuitable
from Postprocessing.dynamics import flat_step, flatten, freeze, step_jacobian
from Postprocessing.load_runs import layer_input, load_run
from Training.flags import positive_int


def recurrent_matrix(layer):
    """The matrix (H, H) by which h_{t−1} enters a_t, without gradient; complex for EURNN.

    V of the RNN, Whh of ANRU, and the matrix that the parameters make of expRNN, nnRNN and EURNN.
    LSTM and GRU, whose gates have a matrix each: that of the candidate, tanh(…).
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
    """The eigenvalues of ∂h_t/∂h_{t−1} at these times t ≥ 1, (T', B, H) complex; x (T, B, I).

    Raises ValueError if a state is not finite.
    """
    step, state, found = flat_step(layer), flatten(layer.initial_state(x.shape[1])), []
    for t, x_t in enumerate(x, start=1):
        before, state = state, step(x_t, state)
        if not state.isfinite().all():
            raise ValueError(f"the state is not finite after {t} steps")
        if t in times:
            found.append(torch.linalg.eigvals(step_jacobian(layer, x_t, before)))
    return torch.stack(found)


def compute(run, args):
    """The arrays of one run, listed in the module docstring."""
    if not run.kept:
        raise Unsuitable("has no kept checkpoint")
    epochs = sorted({min(run.kept), max(run.kept)})
    matrix, jacobian = [], []
    for epoch in epochs:
        model = load_run(run.path, epoch).model
        layer = freeze(model.rnn).to(args.device)
        matrix.append(torch.linalg.eigvals(recurrent_matrix(layer)).cpu().numpy())
        x = layer_input(run, model, args.sequences, args.data).double().to(args.device)
        every = math.ceil(len(x) / args.times)
        times = range(every, len(x) + 1, every)
        try:
            jacobian.append(jacobian_eigenvalues(layer, x, times).cpu().numpy())
        except ValueError as error:
            raise Unsuitable(f"epoch {epoch}: {error}") from error
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
