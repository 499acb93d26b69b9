"""n and s during training, and unit activity along a test sequence with and without a step drive.

    python3 -m Postprocessing.adaptation RUN... [--size 2.5]

Writes analysis/adaptation.npz to each run, for E kept checkpoints, R rows of metrics.csv, U units:
    metrics_epochs, n_mean, n_std, s_mean, s_std (R,)   as in metrics.csv, NaN without n and s
    epochs (E,), n, s (E, 1 or H)   RNN only: of the layer or of each unit, at each kept checkpoint
    drive (T,)                      step drive of size --size, in the step window of the test
    units (U,)                      indices of the recorded units, evenly spaced
    a_as_is, h_as_is, a_driven, h_driven (T, U)         along the first test sequence, without and
                                                        with the drive, at the newest checkpoint
    a_as_is_mean, a_as_is_std, ... (T,)                 over all units
ANRU only: n_t and s_t as n_as_is, s_as_is, n_driven, s_driven, with their mean and std.
a is the pre-activation that receives the drive; LSTM: the output gate's, GRU: the candidate's.
"""

import sys

import numpy as np
import torch

from NetworkCreation.Networks import ANRU
from Postprocessing import analysis
from Postprocessing.load_runs import layer_input, load_run
from Training import flags
from Training.transforms import step_drive, step_window


def make_parser():
    parser = analysis.make_parser("adaptation", __doc__)
    parser.add_argument("--size", type=flags.finite, default=1.0, help="size of the step drive")
    parser.add_argument(
        "--units", type=flags.positive_int, default=16, help="maximum number of recorded units"
    )
    return parser


def learned(run):
    """n and s at the kept checkpoints, {'epochs': (E,), 'n', 's': (E, 1 or H)}; {} if none."""
    layers = {epoch: load_run(run.path, epoch).model.rnn for epoch in run.kept}
    if not all(hasattr(layer, "n") for layer in layers.values()):
        return {}
    found = {"epochs": np.array(list(layers))}
    for name in ("n", "s"):
        found[name] = np.array([getattr(rnn, name).detach().numpy() for rnn in layers.values()])
    return found


@torch.no_grad()
def along(layer, x, drive, units):
    """Activity along a sequence x (T, 1, I): of selected units, and mean and std over all units.

    drive: (T,) or None. units: (U,) indices. Returns {quantity: (T, U), quantity_mean and
    quantity_std: (T,)}; the quantities are a and h, for ANRU also n and s.
    """
    names = ("a", "n", "s", "h") if isinstance(layer, ANRU) else ("a", "h")
    _, _, trace = layer.trace(x, drive=drive, keep=names)
    found = {}
    for name, values in trace.items():
        values = values[:, 0].numpy()  # (T, H)
        found[name] = values[:, units]
        found[f"{name}_mean"], found[f"{name}_std"] = values.mean(axis=1), values.std(axis=1)
    return found


def compute(run, args):
    """The arrays of one run, listed in the module docstring."""
    _, metrics, model = load_run(run.path)
    x = layer_input(run, model, 1, args.data)
    drive = step_drive(len(x), args.size, *step_window(len(x)))
    units = model.rnn.hidden_size
    units = np.linspace(0, units - 1, min(args.units, units)).round().astype(int)
    arrays = {"metrics_epochs": metrics.get("epoch", np.empty(0))}
    for name in ("n_mean", "n_std", "s_mean", "s_std"):
        arrays[name] = metrics.get(name, np.empty(0))
    arrays |= learned(run) | {"drive": drive.numpy(), "units": units}
    for condition, current in (("as_is", None), ("driven", drive)):
        for name, values in along(model.rnn, x, current, units).items():
            quantity, *statistic = name.split("_")
            arrays["_".join([quantity, condition, *statistic])] = values
    return arrays


def main(argv=None):
    return analysis.main("adaptation", make_parser(), compute, argv)


if __name__ == "__main__":
    sys.exit(main())
