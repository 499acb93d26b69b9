"""Estimates the hours that 100 epochs of a command take, from a few batches of the real data.

    python3 -m tests.benchmarks.run_time --command "sMNIST_task.py -p --net-type GRU"

Each command trains and evaluates on a few batches, and prints the time of both. The first half of
the batches warms up. The estimate holds for the default batch sizes.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import torch

from tests.benchmarks.step_time import REPOSITORY, device_name

DATA = Path(os.environ.get("DATA_DIR", REPOSITORY / "data"))
COMMANDS = [  # of Usage in README; the last one is a run of the sweep
    "sMNIST_task.py -p --net-type RNN --nonlin gamma2",
    "sMNIST_task.py -p --net-type ANRU",
    "PTB_task.py --net-type RNN --nonlin gamma --n 2.5",
    "sMNIST_task.py -p --nonlin gamma --n 5 --s 0.5",
]
# Of training and of evaluation in an epoch, and evaluations after the one epoch that is timed.
Batches = namedtuple("Batches", ("training", "evaluation", "passes"))
# psMNIST: 2 × 100 of validation; in the last and every 25th epoch 2 × 100 of the test set.
BATCHES = {"sMNIST_task.py": Batches(500, 208, 4), "PTB_task.py": Batches(262, 263, 1)}


def estimate(command, data, limit):
    """Seconds per training batch and per evaluated batch, and hours of 100 epochs."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, *command.split(), "--data", data.resolve(), "--save-dir", folder]
        words += ["--epochs", 1, "--limit-batches", limit, "--log-interval", limit // 2]
        options = {"check": True, "capture_output": True, "text": True, "cwd": REPOSITORY}
        output = subprocess.run(list(map(str, words)), **options).stdout
    warm_up, training = (int(ms) / 1000 for ms in re.findall(r"(\d+) ms per batch", output))
    epoch = float(re.search(r"([\d.]+) s$", output, re.MULTILINE)[1])
    full = BATCHES[command.split()[0]]
    evaluation = (epoch - limit / 2 * (warm_up + training)) / (limit * full.passes)
    seconds = full.training * training + full.evaluation * evaluation
    return training, evaluation, 100 * seconds / 3600


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flag = parser.add_argument
    flag("--command", nargs="+", default=COMMANDS, help="default: those of Usage in README")
    flag("--data", type=Path, default=DATA, metavar="DIR", help="data folder")
    flag("--limit-batches", type=int, default=20, metavar="K", help="an even number (default: 20)")
    args = parser.parse_args(argv)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device_name()}\n")
    print("| command | training, s per batch | evaluation, s per batch | 100 epochs, h |")
    print("|---|---|---|---|")
    for command in args.command:
        training, evaluation, hours = estimate(command, args.data, args.limit_batches)
        print(f"| `{command}` | {training:.2f} | {evaluation:.2f} | {hours:.1f} |", flush=True)


if __name__ == "__main__":
    main()
