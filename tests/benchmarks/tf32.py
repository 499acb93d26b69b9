"""The error in psMNIST's RNN if the factors of its products are rounded to fewer bits.

    python3 -m tests.benchmarks.tf32

With TF32, a GPU rounds both factors of a float32 product to 10 bits of mantissa and accumulates in
float32; bfloat16 has 7 bits. Here a CPU does this rounding, in the plain loop of steps, forward and
backward. Network and loss are those of sMNIST_task.py before the first update, on the first
training batch, at the initial n and s of the table. The errors are ‖error‖ / ‖value in float64‖, of
the last state h_T and of dL/dV.
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from NetworkCreation.models import PixelClassifier
from NetworkCreation.Networks import RNN
from tests.conftest import DATA
from Training.datasets import load_pixels
from Training.trainer import stream

SEED, BATCH, UNITS = 400, 100, 400

MANTISSA = {"float32": 23, "TF32": 10, "bfloat16": 7}
GAINS = ((6.0, 0.0), (1.0, 1.0))


def rounded(x, bits):
    """Rounds float32 x to this many bits of mantissa, to nearest, ties to even."""
    fraction, exponent = torch.frexp(x)  # 1/2 ≤ |fraction| < 1: the mantissa over 2
    steps = 2 ** (bits + 1)
    return torch.ldexp((fraction * steps).round() / steps, exponent)


class Product(torch.autograd.Function):
    """x Wᵀ with rounded factors, forward and backward."""

    @staticmethod
    def forward(ctx, x, W, bits):
        ctx.save_for_backward(x, W)
        ctx.bits = bits
        return rounded(x, bits) @ rounded(W, bits).t()

    @staticmethod
    def backward(ctx, dy):
        (x, W), bits = ctx.saved_tensors, ctx.bits
        dy = rounded(dy, bits)
        return dy @ rounded(W, bits), dy.t() @ rounded(x, bits), None


class RoundedLinear(nn.Module):
    def __init__(self, linear, bits):
        super().__init__()
        self.linear, self.bits = linear, bits

    def forward(self, x):
        return Product.apply(x, self.linear.weight, self.bits) + self.linear.bias


def run(model, x, labels):
    """h_T and dL/dV of a model."""
    _, h = model.rnn.loop(x)
    model.zero_grad()
    cross_entropy(model.lin(h), labels).backward()
    V = getattr(model.rnn.V, "linear", model.rnn.V)
    return h.detach().double(), V.weight.grad.double()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="data folder")
    args = parser.parse_args(argv)
    x, labels = load_pixels("mnist", args.data, SEED, permute=True).train.batch(slice(0, BATCH))
    print("| n | s | products in | error of h_T | error of dL/dV |\n|---|---|---|---|---|")
    for n, s in GAINS:
        generator = stream(SEED, "initialisation")
        model = PixelClassifier(RNN(1, UNITS, n=n, s=s, generator=generator), generator=generator)
        right = run(copy.deepcopy(model).double(), x.double(), labels)
        maps = {"U": model.rnn.U, "V": model.rnn.V}
        for name, bits in MANTISSA.items():
            for part, linear in maps.items():
                setattr(model.rnn, part, RoundedLinear(linear, bits))
            found = run(model, x, labels)
            errors = [(f - r).norm() / r.norm() for f, r in zip(found, right, strict=True)]
            print(f"| {n:g} | {s:g} | {name} | {errors[0]:.1%} | {errors[1]:.1%} |", flush=True)


if __name__ == "__main__":
    main()
