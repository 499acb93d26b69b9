"""Measures how much of an epoch of sMNIST_task.py is spent inside the recurrent layer.

    python3 -m tests.benchmarks.epoch_share --net-type RNN --data data -p --limit-batches 20

All arguments are those of sMNIST_task.py, which runs one epoch in a temporary directory. The time
of the layer is that of the forward and backward of its autograd function; the whole is the epoch's
own, as metrics.csv has it: batches, metrics, gradient norm, optimiser and both validations.
"""

import csv
import sys
import tempfile
import time
from pathlib import Path

import sMNIST_task
from NetworkCreation import recurrence

FUNCTIONS = (recurrence._RNN, recurrence._ANRU, recurrence._LSTM, recurrence._GRU)


def timed(function, spent):
    """The function, which adds the seconds of each call to the list `spent`."""

    def call(*arguments):
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            spent.append(time.perf_counter() - start)

    return call


def main(argv=None):
    spent = []
    for function in FUNCTIONS:
        for name in ("forward", "backward"):
            setattr(function, name, staticmethod(timed(getattr(function, name), spent)))
    with tempfile.TemporaryDirectory() as folder:
        arguments = sys.argv[1:] if argv is None else argv
        arguments = [*arguments, "--epochs", "1", "--save-dir", folder]
        arguments += ["--save-freq", "2"]
        code = sMNIST_task.main(arguments)
        if code != 0:
            return code
        (path,) = Path(folder).rglob("metrics.csv")
        with path.open() as file:
            (row,) = csv.DictReader(file)
    whole, layer = float(row["seconds"]), sum(spent)
    print(f"epoch {whole:.2f} s, layer {layer:.2f} s: {layer / whole:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
