"""Training steps of all networks on a device that computes nothing.

    python3 -m tests.fake_device        prints the operations of each as JSON

torch lets Python register a device. With fake tensors, which have a shape, a dtype and a device but
no data, forward and backward need no hardware. (Fake `cuda` tensors fail in autograd without a
driver.) The device must be registered before autograd starts its threads and cannot be removed, so
this runs in its own process.
"""

import json

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration

from NetworkCreation import time_loop
from NetworkCreation.models import CharacterModel, PixelClassifier, gain_statistics
from tests.conftest import make_trainer
from tests.layers import EACH_LOOP, LAYERS, H, new
from tests.operations import Operations
from Training.datasets import PixelSet
from Training.evaluation import evaluate_pixels, evaluate_text
from Training.machine import allow_tf32

DEVICE = "fake"
T, B, CLASSES = 2, 3, 10


class FakeOperations(Operations):
    """Operations on fake tensors. Every number read from the device is 1."""

    def compute(self, function, args, kwargs):
        if function is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1.0
        return function(*args, **kwargs)


class Recurrences(TorchFunctionMode):
    """Records the calls of torch's own recurrences."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.lstm, torch.gru):
            self.calls.append(function.__name__)
        return function(*args, **(kwargs or {}))


def register_gru_cell():
    """Registers the output shapes of torch's GRU cell, which has no fake version."""

    def forward(input_gates, hidden_gates, h, bias_x=None, bias_h=None):
        return torch.empty_like(h), h.new_empty(len(h), 5 * h.shape[1])

    def backward(dh, workspace, has_bias):
        gates = [dh.new_empty(len(dh), 3 * dh.shape[1]) for _ in range(2)]
        biases = [gate.new_empty(gate.shape[1]) if has_bias else None for gate in gates]
        return *gates, torch.empty_like(dh), *biases

    library = torch.library.Library("aten", "IMPL")
    library.impl("_thnn_fused_gru_cell", forward, "Meta")
    library.impl("_thnn_fused_gru_cell_backward", backward, "Meta")
    return library


def move(model, device=DEVICE):
    """Moves a model to a fake device by hand; a parameter with two names is moved once."""
    moved = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor not in moved:
                    there = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    learns = tensors is module._parameters
                    moved[tensor] = nn.Parameter(there) if learns else there
                tensors[name] = moved.get(tensor)
    return model


class Pixels:
    """A training step of a classifier, an evaluation, and statistics of n and s."""

    def __init__(self, key):
        self.model = PixelClassifier(new(key, 1, dtype=None), CLASSES)

    def load(self):
        images = torch.zeros(B, T, dtype=torch.uint8, device=DEVICE)
        self.data = PixelSet(images, torch.zeros(B, dtype=torch.long, device=DEVICE), 255)
        self.order = torch.arange(B, device=DEVICE)  # the script moves it once per epoch

    def train(self, trainer):
        x, labels = self.data.batch(self.order)
        logits = self.model(x)
        correct = (logits.argmax(dim=1) == labels).sum()
        trainer.step(cross_entropy(logits, labels), B, correct=correct)

    def look(self):
        evaluate_pixels(self.model, self.data, B, drive=torch.rand(T, device=DEVICE))
        gain_statistics(self.model.rnn, self.data.batch(slice(0, 1))[0])


class Characters:
    """A training step of a character model from a given state, and a trace under a drive."""

    def __init__(self, key, vocabulary, tied=False):
        self.model = CharacterModel(new(key, H, dtype=None), vocabulary, tied)

    def load(self):
        self.data = torch.zeros(T + 1, B, dtype=torch.long, device=DEVICE)

    def train(self, trainer):
        logits, _ = self.model(self.data[:T], self.model.rnn.initial_state(B))
        targets = self.data[1:].flatten()
        trainer.step(cross_entropy(logits.flatten(0, 1), targets), len(targets))

    def look(self):
        evaluate_text(self.model, self.data, T)
        x = self.model.encoder(self.data[:1])
        self.model.rnn.trace(x, drive=torch.rand(1, B, device=DEVICE))


def walk(case):
    """Runs a case; returns its operations in a training step and in evaluation and analysis."""
    case.load()
    model = case.model
    trainer = make_trainer(model, torch.optim.Adam(model.parameters()), alam=1e-4)
    with FakeOperations() as training, Recurrences() as recurrences:
        case.train(trainer)
    with FakeOperations() as looking:
        case.look()
    return {
        "untrained": [k for k, p in model.named_parameters() if p.grad is None or p.grad.is_cpu],
        "recurrences": recurrences.calls,
        "training": notes(training),
        "looking": notes(looking),
    }


def notes(operations):
    return {kind: getattr(operations, kind) for kind in ("waits", "copies", "doubles", "mixed")}


def kernels(layer, batch, device):
    """The kernels of three steps of a layer, forward and backward, on a fake device."""
    move(layer, device)
    with FakeOperations() as operations:
        layer(torch.rand(3, batch, 1, device=device))[0].sum().backward()
    return operations.kernels


def passes_and_flushes():
    """The passes over a long sequence on a fake device, and the kernels of `time_loop.flush`."""
    sequence = torch.rand(784, 100, 400, device=DEVICE)
    with FakeOperations() as operations:
        time_loop.flush(sequence)
    return [len(time_loop.passes(sequence)), operations.kernels]


def controls(case):
    """The records of deliberate faults, and the error raised for a CPU tensor."""
    x, double = torch.rand(3, 4, device=DEVICE), torch.rand(3, device=DEVICE, dtype=torch.double)
    faults = {
        "waits": lambda: x.sum().item(),
        "copies": lambda: x[-1].__setitem__(-1, 99),
        "doubles": lambda: double + 1,
        "mixed": lambda: x[torch.arange(2)],
    }
    found = {}
    for kind, fault in faults.items():
        with FakeOperations() as operations:
            fault()
        found[kind] = notes(operations)
    case.model.rnn.U.bias = nn.Parameter(torch.zeros(H))
    try:
        walk(case)
    except RuntimeError as error:
        found["slipped in"] = str(error)
    return found


def main():
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    library = register_gru_cell()  # in effect as long as it is referenced
    cases = {"characters, tied, RNN-gamma": Characters("RNN-gamma", 3, tied=True)}
    cases["characters, dense, RNN-gamma"] = Characters("RNN-gamma", H + 1)
    for key in LAYERS:
        cases[f"pixels, {key}"] = Pixels(key)
    for key in EACH_LOOP:
        cases[f"characters, {key}"] = Characters(key, 3)
    slip = Pixels("RNN-gamma")
    large, small, on_cpu = (
        new("ANRU", 1, units, dtype=None, supervisor_size=50) for units in (400, H, 400)
    )
    with FakeTensorMode():
        for case in (*cases.values(), slip):
            move(case.model)
        found = {
            "steps": {name: walk(case) for name, case in cases.items()},
            "controls": controls(slip),
            "passes and flushes": passes_and_flushes(),
            "kernels": {
                "large": kernels(large, 100, DEVICE),
                "small": kernels(small, 2, DEVICE),
                "on a CPU": kernels(on_cpu, 100, "cpu"),
            },
        }
    tf32_by_environment = torch.backends.cuda.matmul.allow_tf32
    allow_tf32(False)
    found["tf32"] = [tf32_by_environment, torch.backends.cuda.matmul.allow_tf32]
    print(json.dumps(found))
    del library


if __name__ == "__main__":
    main()
