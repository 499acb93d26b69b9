"""ANRU's n_t and s_t under a step of current: python3 -m Postprocessing.step_response RUN...

A step of size ξ is added to every pre-activation while the network reads test sequences, in the
step window of the test: 200 ≤ t < 400 of 784 steps, and in proportion otherwise.

Writes analysis/step_response.npz to each run: xi (X,), window (2,), the first driven step and the
first after it, and n, s (X, T), means of n_t and s_t over sequences and units.

Source: Geadah et al., PLOS Computational Biology 2024, figures 4a and 5b. The script of figure 5b
starts the paths in the (n, s) plane one step after the onset, ends them at the mean over
300 ≤ t < 380, and draws the contours of γ′ = 1 where γ′ + 0.013 = 1. Here paths start at the onset
and end at the mean of the last quarter of the step, and contours are at γ′ = 1.
"""

import sys

import numpy as np
import torch

from Postprocessing import analysis
from Postprocessing.load_runs import layer_input
from Postprocessing.unit_responses import XI, trained_anru
from Training.flags import positive_int
from Training.transforms import step_drive, step_window


@torch.no_grad()
def mean_shape(layer, x, drive):
    """n_t and s_t of an ANRU, mean over sequences and units, each (T,); x (T, B, I), drive (T,)."""
    _, _, trace = layer.trace(x, drive=drive, keep=("n", "s"))
    return [trace[name].mean((1, 2)).cpu().numpy() for name in ("n", "s")]


def ends(values, window):
    """Values (..., T) at the onset of a step and averaged over its last quarter, each (...).

    window: the first driven step, and the first after it.
    """
    first, end = window
    return values[..., first], values[..., end - round((end - first) / 4) : end].mean(-1)


def compute(run, args):
    """The arrays of analysis/step_response.npz; raises Unsuitable if they cannot be computed."""
    model, layer = trained_anru(run, args.device)
    x = layer_input(run, model, args.sequences, args.data).to(args.device, torch.float64)
    position, length = step_window(len(x))
    drives = [step_drive(len(x), size, position, length) for size in XI]
    n, s = np.array([mean_shape(layer, x, drive) for drive in drives]).swapaxes(0, 1)
    return {"xi": np.array(XI), "window": np.array([position, position + length]), "n": n, "s": s}


def main(argv=None):
    parser = analysis.make_parser("step_response", __doc__)
    parser.add_argument(
        "--sequences", type=positive_int, default=32, metavar="B", help="test sequences"
    )
    return analysis.main("step_response", parser, compute, argv)


if __name__ == "__main__":
    sys.exit(main())
