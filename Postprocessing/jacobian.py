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

import contextlib
import functools
import math

import numpy as np
import torch
from torch.linalg import eigvals

from Postprocessing.dynamics import flat_step, flatten, step_jacobian
from Postprocessing.networks import Unsuitable, trained_layers
from Training.console import Progress

spectral_norm = functools.partial(torch.linalg.matrix_norm, ord=2)  # of (B, H, H): (B,)


def evenly(steps, count):
    """At most `count` evenly spaced times from 1 to steps, a range."""
    every = math.ceil(steps / count)
    return range(every, steps + 1, every)


def of_jacobians(function, layer, x, times):
    """function(∂h_t/∂h_{t−1}) at these times along x (T, B, I), stacked; t counts from 1.

    function: of a batch of matrices (B, H, H), such as `eigvals`: (B, H) complex.
    Raises ValueError if a state is not finite.
    """
    step, state, results = flat_step(layer), flatten(layer.initial_state(x.shape[1])), []
    for t, x_t in enumerate(Progress(x, desc="Jacobians", leave=False, delay=2), start=1):
        before, state = state, step(x_t, state)
        if not state.isfinite().all():
            raise ValueError(f"the state is not finite after {t} steps")
        if t in times:
            results.append(function(step_jacobian(layer, x_t, before)))
    return torch.stack(results)


def compute(run, data, device, *, sequences=8, times=64, eigen_sequences=4, eigen_times=16):
    """The arrays listed in the module docstring; sequences and times of norms and eigenvalues."""
    norms, matrix, eigenvalues = [], [], []
    for epoch, layer, x in trained_layers(run, sequences, data, device):
        many, few = evenly(len(x), times), evenly(len(x), eigen_times)
        try:
            norms.append(of_jacobians(spectral_norm, layer, x, many).cpu().numpy())
        except ValueError as error:
            raise Unsuitable(f"epoch {epoch}: {error}") from error
        if epoch in (min(run.kept), max(run.kept)):
            values = of_jacobians(eigvals, layer, x[:, :eigen_sequences], few)
            eigenvalues.append(values.cpu().numpy())
            with contextlib.suppress(NotImplementedError):  # of LSTM and GRU
                matrix.append(eigvals(layer.recurrent_matrix()).cpu().numpy())
    arrays = {"matrix": np.stack(matrix)} if matrix else {}
    return arrays | {
        "epochs": np.array(list(run.kept)),
        "times": np.array(many),
        "spectral": np.stack(norms),
        "times_of_eigenvalues": np.array(few),
        "eigenvalues": np.stack(eigenvalues),
    }
