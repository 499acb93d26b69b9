"""Training steps of all networks on a device that computes nothing.

    python3 -m tests.fake_device        prints the operations of each as JSON

torch lets Python register a device. With fake tensors, which have a shape, a dtype and a device but
no data, forward and backward need no hardware. (Fake `cuda` tensors fail in autograd without a
driver.) The device must be registered before autograd starts its threads and cannot be removed, so
this runs in its own process.
"""

import copy
import json
import tempfile

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils import backend_registration

from NetworkCreation.models import CharacterModel, PixelClassifier
from tests.conftest import make_trainer
from tests.layers import EACH_LOOP, LAYERS, H, new
from tests.operations import Operations
from Training.datasets import PixelSet
from Training.evaluation import evaluate_pixels, evaluate_text, gain_statistics

DEVICE = "fake"
T, B = 2, 3


class FakeOperations(Operations):
    """Operations on fake tensors. Every number read from the device is 1."""

    def compute(self, function, args, kwargs):
        if function is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool or 1.0
        return function(*args, **kwargs)


def gru_cell(input_gates, hidden_gates, h, bias_x=None, bias_h=None):
    """The shapes of the outputs of torch's GRU cell, which has no fake version."""
    return torch.empty_like(h), h.new_empty(len(h), 5 * h.shape[1])


def gru_cell_backward(dh, workspace, has_bias):
    gates = [dh.new_empty(len(dh), 3 * dh.shape[1]) for _ in range(2)]
    biases = [gate.new_empty(gate.shape[1]) if has_bias else None for gate in gates]
    return *gates, torch.empty_like(dh), *biases


def move(model):
    """A copy of a model on the fake device; a parameter with two names stays one."""
    memo = {}
    for tensor in (*model.parameters(), *model.buffers()):
        there = torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)
        memo[id(tensor)] = nn.Parameter(there) if isinstance(tensor, nn.Parameter) else there
    return copy.deepcopy(model, memo)


def train_pixels(model, trainer):
    """A training step of a classifier; returns an evaluation with statistics of n and s."""
    images = torch.zeros(B, T, dtype=torch.uint8, device=DEVICE)
    data = PixelSet(images, torch.zeros(B, dtype=torch.long, device=DEVICE), 255)
    order = torch.arange(B, device=DEVICE)  # the script moves it once per epoch
    drive = torch.rand(T, device=DEVICE)
    with FakeOperations() as training:
        x, labels = data.batch(order)
        logits = model(x)
        correct = (logits.argmax(dim=1) == labels).sum()
        trainer.step(cross_entropy(logits, labels), B, correct=correct)
    with FakeOperations() as evaluation:
        evaluate_pixels(model, data, B, drive=drive)
        gain_statistics(model.rnn.gains(data.batch(slice(0, 1))[0]))
    return training, evaluation


def train_characters(model, trainer):
    """A training step of a character model from a given state; an evaluation and a trace."""
    text = torch.zeros(T + 1, B, dtype=torch.long, device=DEVICE)
    drive = torch.rand(1, B, device=DEVICE)
    with FakeOperations() as training:
        logits, _ = model(text[:T], model.rnn.initial_state(B))
        targets = text[1:].flatten()
        trainer.step(cross_entropy(logits.flatten(0, 1), targets), len(targets))
    with FakeOperations() as evaluation:
        evaluate_text(model, text, T)
        model.rnn.trace(model.encoder(text[:1]), drive=drive)
    return training, evaluation


def walk(model):
    """What to avoid in a training step and an evaluation of a model, and parameters left out."""
    step = train_pixels if isinstance(model, PixelClassifier) else train_characters
    with tempfile.TemporaryDirectory() as root:
        alam = None if model.rnn.penalty() is None else 1e-4
        trainer = make_trainer(root, model, torch.optim.Adam(model.parameters()), alam=alam)
        training, evaluation = step(model, trainer)
    untrained = [k for k, p in model.named_parameters() if p.grad is None or p.grad.is_cpu]
    return {"untrained": untrained, "training": training.avoid, "evaluation": evaluation.avoid}


def controls(model):
    """What deliberate faults are counted as, and the error raised for a parameter on the CPU."""
    x = torch.rand(3, 4, device=DEVICE)
    with FakeOperations() as operations:
        x[-1, -1] = 99
        x[torch.arange(2)].sum().item()
    model.rnn.U.bias = nn.Parameter(torch.zeros(H))
    try:
        walk(model)
    except RuntimeError as error:
        return operations.avoid, str(error)


def main():
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    library = torch.library.Library("aten", "IMPL")  # in effect as long as it is referenced
    library.impl("_thnn_fused_gru_cell", gru_cell, "Meta")
    library.impl("_thnn_fused_gru_cell_backward", gru_cell_backward, "Meta")
    models = {f"characters, {key}": CharacterModel(new(key, H, dtype=None), 3) for key in EACH_LOOP}
    for key in ["RNN-gamma", *(LAYERS.keys() - EACH_LOOP)]:
        models[f"pixels, {key}"] = PixelClassifier(new(key, 1, dtype=None))
    models["characters, tied"] = CharacterModel(new("RNN-gamma", H, dtype=None), 3, tied=True)
    spoilt = PixelClassifier(new("RNN-gamma", 1, dtype=None))
    with FakeTensorMode():
        found = {name: walk(move(model)) for name, model in models.items()}
        print(json.dumps([found, controls(move(spoilt))]))


if __name__ == "__main__":
    main()
