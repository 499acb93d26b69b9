"""n and s during training, and unit activity along test sequences, with and without a step drive.

    python3 -m Postprocessing.adaptation RUN... [--size 1 2.5]

Writes analysis/adaptation.npz to each run, for E kept checkpoints, R rows of metrics.csv, Z drive
sizes, U units:
    metrics_epochs, n_mean, n_std, s_mean, s_std (R,)   as in metrics.csv, NaN without n and s
    epochs (E,), n, s (E, 1 or H)   RNN only: of the layer or of each unit, at each kept checkpoint
    sizes (Z,), drive (Z, T)        step drives of these sizes, in the step window of the test
    units (U,)                      indices of the recorded units, evenly spaced
    a_as_is, h_as_is (T, U)         of the recorded units along the first test sequence
    a_driven, h_driven (Z, T, U)    the same with each drive
    a_as_is_mean, a_as_is_std, h_... (T,), a_driven_mean, ... (Z, T)
                                    over all units and the first --sequences test sequences
For ANRU also n_t and s_t, as n_as_is, s_as_is, n_driven, s_driven, with mean and std.
a is the pre-activation that receives the drive: for LSTM the output gate's, for GRU the
candidate's. The network is that of the newest checkpoint.
"""

import sys

import numpy as np
import torch

from NetworkCreation.Networks import ANRU
from Postprocessing import analysis
from Postprocessing.load_runs import layer_input, load_run
from Training.flags import finite, positive_int
from Training.transforms import step_drive, step_window


def make_parser():
    parser = analysis.make_parser("adaptation", __doc__)
    flag, sizes = parser.add_argument, (1.0, 5.0, 20.0)
    flag("--size", type=finite, nargs="+", metavar="Z", default=sizes, help="step drive sizes")
    flag("--sequences", type=positive_int, default=16, metavar="S", help="number of test sequences")
    flag("--units", type=positive_int, default=16, help="maximum number of recorded units")
    return parser


def learned(run):
    """n and s at the kept checkpoints, {'epochs': (E,), 'n', 's': (E, 1 or H)}; {} without n, s."""
    layers = {epoch: load_run(run.path, epoch).model.rnn for epoch in run.kept}
    if not all(hasattr(layer, "n") for layer in layers.values()):
        return {}
    found = {"epochs": np.array(list(layers))}
    for name in ("n", "s"):
        found[name] = np.array([getattr(rnn, name).detach().numpy() for rnn in layers.values()])
    return found


@torch.no_grad()
def along(layer, x, drive, units):
    """Activity along sequences x (T, S, I), {quantity: (T, U), quantity_mean, quantity_std: (T,)}.

    Of units (U,) in the first sequence; mean and std are over all units and sequences. Quantities:
    a and h, for ANRU also n and s. drive: (T,) or None.
    """
    names = ("a", "n", "s", "h") if isinstance(layer, ANRU) else ("a", "h")
    _, _, trace = layer.trace(x, drive=drive, keep=names)
    found = {}
    for name, values in trace.items():
        values = values.cpu().numpy()  # (T, S, H)
        found[name] = values[:, 0, units]
        found[f"{name}_mean"] = values.mean(axis=(1, 2))
        found[f"{name}_std"] = values.std(axis=(1, 2))
    return found


def compute(run, args):
    """The arrays of one run, listed in the module docstring."""
    _, metrics, model = load_run(run.path)
    x = layer_input(run, model, args.sequences, args.data).to(args.device)
    drives = torch.stack([step_drive(len(x), size, *step_window(len(x))) for size in args.size])
    layer = model.rnn.to(args.device)
    units = layer.hidden_size
    units = np.linspace(0, units - 1, min(args.units, units)).round().astype(int)
    names = {"metrics_epochs": "epoch"} | {k: k for k in ("n_mean", "n_std", "s_mean", "s_std")}
    arrays = {name: metrics.get(column, np.empty(0)) for name, column in names.items()}
    arrays |= learned(run)
    arrays |= {"sizes": np.array(args.size), "drive": drives.numpy(), "units": units}
    as_is = along(layer, x, None, units)
    driven = [along(layer, x, drive, units) for drive in drives]
    for name, values in as_is.items():
        quantity, mark, statistic = name.partition("_")
        arrays[f"{quantity}_as_is{mark}{statistic}"] = values
        arrays[f"{quantity}_driven{mark}{statistic}"] = np.stack([d[name] for d in driven])
    return arrays


def main(argv=None):
    return analysis.main("adaptation", make_parser(), compute, argv)


if __name__ == "__main__":
    sys.exit(main())
