"""ANRU under a step of current: n_t, s_t and h_t, with and without.

A step of size ξ is added to every pre-activation while the network reads test sequences, in the
step window of the test: 200 ≤ t < 400 of 784 steps, and in proportion otherwise.

Saved, for X sizes ξ (0: no step), T steps, U recorded units:
    xi (X,), window (2,)     the first driven step and the first after it
    units (U,)               indices of the recorded units, evenly spaced
    n, s, h (X, T)           means over sequences and units
    n_units, s_units, h_units (X, T, U)    of the recorded units along the first sequence
    n_end, s_end (H,)        without a step: means over steps and sequences, of each unit

Source: Geadah et al., PLOS Computational Biology 2024, figures 4a and 5b. Its script starts paths
in the (n, s) plane one step after the onset, ends them at the mean over 300 ≤ t < 380, and draws
contours where γ′ + 0.013 = 1; here at the onset, at the mean of the last quarter, and at γ′ = 1.
"""

import numpy as np
import torch

from Postprocessing.networks import layer_input, trained_anru
from Postprocessing.unit_responses import XI
from Training.transforms import step_drive, step_window


@torch.no_grad()
def along(layer, x, drive=None):
    """n, s and h of an ANRU along x (T, B, I), {name: (T, B, H) array}; drive: (T,) or None."""
    trace = layer.trace(x, drive=drive, keep=("n", "s", "h"))[2]
    return {name: values.cpu().numpy() for name, values in trace.items()}


def ends(values, window):
    """Values (..., T) at the onset of a step and averaged over its last quarter, each (...)."""
    first, end = window
    return values[..., first], values[..., end - round((end - first) / 4) : end].mean(-1)


def compute(run, data, device, *, sizes=XI, sequences=16, units=16):
    """The arrays listed in the module docstring; units: the recorded ones, at most."""
    model, layer = trained_anru(run, device)
    x = layer_input(run, model, sequences, data).to(device, torch.float64)
    position, length = step_window(len(x))
    count = layer.hidden_size
    recorded = np.linspace(0, count - 1, min(units, count)).round().astype(int)
    traces = [along(layer, x, step_drive(len(x), size, position, length)) for size in sizes]
    arrays = {
        "xi": np.array(sizes),
        "window": np.array([position, position + length]),
        "units": recorded,
    }
    for name in ("n", "s", "h"):
        arrays[name] = np.stack([trace[name].mean(axis=(1, 2)) for trace in traces])
        arrays[f"{name}_units"] = np.stack([trace[name][:, 0, recorded] for trace in traces])
    still = along(layer, x)
    return arrays | {f"{name}_end": still[name].mean(axis=(0, 1)) for name in ("n", "s")}
