"""One epoch of psMNIST from the initial values that the paper's code draws with its seed 400.

    python3 -m tests.benchmarks.paper_start

The paper's code draws from the global generators of torch and NumPy, sMNIST_task.py from one of its
own. From the same initial values the two should agree up to rounding. Network, data and their order
are those of `sMNIST_task.py -p --nonlin gamma --s 0`, with n = 5.3892, the paper's first draw.
Source of the order of the draws: github.com/vgeadah/NonlinMod, commit 2555579.
"""

import Training.machine  # isort: skip  # noqa: F401 — settings that torch reads when it loads

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from NetworkCreation.models import PixelClassifier
from NetworkCreation.Networks import RNN
from tests.conftest import DATA
from Training.console import Progress
from Training.datasets import load_pixels
from Training.evaluation import evaluate_pixels

SEED, UNITS, BATCH, REPORTED = 400, 400, 100, 100


def paper_model():
    """The paper's network, drawn in its order: n, U, V, V's angles, U's weights, the read-out."""
    torch.manual_seed(SEED)
    n = 5 + 2 * torch.rand(()).item()
    U, V = nn.Linear(1, UNITS), nn.Linear(UNITS, UNITS)
    angles = np.random.RandomState(SEED).uniform(-math.pi, 0, UNITS // 2)
    nn.init.kaiming_normal_(U.weight)
    lin = nn.Linear(UNITS, 10)
    A = torch.block_diag(*(torch.tensor([[0, a], [-a, 0]]) for a in angles.tolist()))
    V.weight.data = torch.linalg.matrix_exp(A)
    rnn = RNN(1, UNITS, "gamma", n=n, s=0.0)
    model = PixelClassifier(rnn)
    rnn.U, rnn.V, model.lin = U, V, lin
    return model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="data folder")
    parser.add_argument("--limit-batches", type=int, metavar="K", help="stop after K batches")
    args = parser.parse_args(argv)
    data = load_pixels("mnist", args.data, SEED, permute=True)
    model = paper_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    losses = []
    order = torch.arange(len(data.train)).split(BATCH)
    for index in Progress(order[: args.limit_batches], desc="training"):
        x, labels = data.train.batch(index)
        loss = cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    means = [np.mean(losses[k : k + REPORTED]) for k in range(0, len(losses), REPORTED)]
    print("first loss", f"{losses[0]:.3f}; means of", REPORTED, "batches:", *np.round(means, 3))
    scores = evaluate_pixels(model, data.validation, BATCH, limit=args.limit_batches)
    print("validation: loss {loss:.4f}, accuracy {accuracy:.2%}".format(**scores))


if __name__ == "__main__":
    main()
