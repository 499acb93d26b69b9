"""n and s through training, and what the units do along a test sequence, with a step drive too.

    python3 -m Postprocessing.adaptation RUN... [--size 2.5]

Writes analysis/adaptation.npz into each run; E kept checkpoints, R rows of metrics.csv, U units:
    metrics_epochs, n_mean, n_std, s_mean, s_std (R,)   as in metrics.csv, NaN without n and s
    epochs (E,), n, s (E, 1 or H)   of an RNN: the layer's or every unit's at the kept checkpoints
    drive (T,)                      the step drive, --size, in the window of the test's step
    units (U,)                      the numbers of the units below, evenly chosen
    a_as_is, h_as_is, a_driven, h_driven (T, U)         along the first test sequence, without and
                                                        with the drive, of the newest checkpoint
    a_as_is_mean, a_as_is_std, ... (T,)                 over all units
ANRU: also n_as_is, s_as_is, n_driven, s_driven and theirs: n_t and s_t, which the others lack.
a is what the drive is added to: for LSTM of the output gate, for GRU of the candidate.
"""

import sys

import numpy as np
import torch

from NetworkCreation.Networks import ANRU
from Postprocessing import analysis
from Postprocessing.load_runs import layer_input, load_run
from Training import arguments
from Training.transforms import step_drive, step_window


def make_parser():
    parser = analysis.make_parser("adaptation", __doc__)
    parser.add_argument("--size", type=arguments.finite, default=1.0, help="of the step drive")
    parser.add_argument(
        "--units", type=arguments.positive_int, default=16, help="whose activity is kept, at most"
    )
    return parser


def learned(run):
    """n and s at the kept checkpoints, {'epochs': (E,), 'n', 's': (E, 1 or H)}; {} without them."""
    layers = {epoch: load_run(run.path, epoch).model.rnn for epoch in run.kept}
    if not all(hasattr(layer, "n") for layer in layers.values()):
        return {}
    found = {"epochs": np.array(list(layers))}
    for name in ("n", "s"):
        found[name] = np.array([getattr(rnn, name).detach().numpy() for rnn in layers.values()])
    return found


@torch.no_grad()
def along(layer, x, drive, units):
    """What a layer does along a sequence x (T, 1, I): units and mean and spread over all of them.

    drive: (T,) or None. units: (U,) numbers. Returns {quantity: (T, U), quantity_mean and
    quantity_std: (T,)}, the quantities a and h, and n and s of ANRU.
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
    """The arrays of a run: see above."""
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
