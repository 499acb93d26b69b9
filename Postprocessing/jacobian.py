"""The Jacobian ∂h_t/∂h_{t−1} of trained networks, and the spectrum of their recurrent matrix.

Saved, for E kept checkpoints, T' times, S test sequences:
    epochs (E,), times (T',)     t counts from 1; h_0 is the state before the first input
    spectral (E, T', S)          spectral norm of ∂h_t/∂h_{t−1}
and of the first and the newest checkpoint:
    matrix (2, H)                eigenvalues of the recurrent matrix, if the network has one
    times_of_eigenvalues (T",), eigenvalues (2, T", S", H)   of ∂h_t/∂h_{t−1}; EURNN: 2H, of the
                                 real and imaginary parts together

∂h_t/∂h_{t−1} is the full matrix along the network's trajectory, with the rest of the state (g of
ANRU, c of the LSTM) held fixed. The spectra of the matrices are from Geadah et al., PLOS
Computational Biology 2024; those of the Jacobian are not in the paper.
"""

import math

import numpy as np
import torch

from Postprocessing.dynamics import flatten, jacobians
from Postprocessing.networks import Unsuitable, trained_layers
from Training.console import Progress


def evenly(steps, count):
    """At most `count` evenly spaced times from 1 to steps, a range."""
    every = math.ceil(steps / count)
    return range(every, steps + 1, every)


def spectral_norms(layer, x, times):
    """The spectral norm of ∂h_t/∂h_{t−1} at these times, (T', B); x (T, B, I)."""
    state = flatten(layer.initial_state(x.shape[1]))
    bar = Progress(x, desc="Jacobians", leave=False, delay=2)
    norms = [torch.linalg.matrix_norm(J, 2) for J in jacobians(layer, state, bar, times)]
    return torch.stack(norms)


def jacobian_eigenvalues(layer, x, times):
    """The eigenvalues of ∂h_t/∂h_{t−1} at these times t ≥ 1, (T', B, H) complex; x (T, B, I)."""
    state = flatten(layer.initial_state(x.shape[1]))
    return torch.stack([torch.linalg.eigvals(J) for J in jacobians(layer, state, x, times)])


def matrix_eigenvalues(layer):
    """The eigenvalues of the recurrent matrix, (H,) complex; None if the network has none."""
    try:
        return torch.linalg.eigvals(layer.recurrent_matrix()).cpu().numpy()
    except NotImplementedError:
        return None


def compute(run, data, device, *, sequences=8, times=64, eigen_sequences=4, eigen_times=16):
    """The arrays listed in the module docstring; sequences and times of norms and eigenvalues."""
    epochs, norms, matrix, eigenvalues = [], [], [], []
    for epoch, layer, x in trained_layers(run, sequences, data, device):
        few = evenly(len(x), eigen_times)
        try:
            norms.append(spectral_norms(layer, x, evenly(len(x), times)).cpu().numpy())
            if epoch in (min(run.kept), max(run.kept)):
                of_jacobian = jacobian_eigenvalues(layer, x[:, :eigen_sequences], few)
                eigenvalues.append(of_jacobian.cpu().numpy())
                matrix.append(matrix_eigenvalues(layer))
        except ValueError as error:
            raise Unsuitable(f"epoch {epoch}: {error}") from error
        epochs.append(epoch)
    arrays = {} if matrix[0] is None else {"matrix": np.stack(matrix)}
    return arrays | {
        "epochs": np.array(epochs),
        "times": np.array(evenly(len(x), times)),
        "spectral": np.stack(norms),
        "times_of_eigenvalues": np.array(few),
        "eigenvalues": np.stack(eigenvalues),
    }
