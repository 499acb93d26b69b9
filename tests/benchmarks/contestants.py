"""The contestants of step_time.py. Each runs in a process of its own, and takes steps on request.

Only this project's contestants import its modules, which change torch in the whole process: threads
sleep earlier, and softplus is faster once gamma_function.py is imported.
"""

import json
import math
import resource
import sys
import time
from collections import namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn.functional import cross_entropy

# characters: those of PTB, embedded and predicted at every step; else pixels. n: at the start.
Shape = namedtuple("Shape", ("T", "B", "I", "H", "classes", "characters", "n"))
SHAPES = {
    "psMNIST": Shape(784, 100, 1, 400, classes=10, characters=False, n=5.0),
    "PTB": Shape(150, 128, 200, 600, classes=50, characters=True, n=2.5),
}


class Step:
    """A callable training step, on random data: forward, backward, gradient norm, Adam."""

    def __init__(self, model, shape):
        self.model = model
        if shape.characters:
            self.x, self.targets = torch.randint(shape.classes, (2, shape.T, shape.B))
        else:
            self.x = torch.rand(shape.T, shape.B, shape.I)
            self.targets = torch.randint(shape.classes, (shape.B,))
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def __call__(self):
        self.optimizer.zero_grad()
        logits = self.model(self.x)
        logits = logits[0] if isinstance(logits, tuple) else logits
        loss = cross_entropy(logits.flatten(0, -2), self.targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), math.inf)
        self.optimizer.step()
        if not math.isfinite(loss.item()):
            raise ArithmeticError(f"the loss is {loss.item()}")


class TaskModel(nn.Module):
    """The model of a task around a layer that is called as `torch.nn.RNN` is, by `run`."""

    def __init__(self, layer, run, shape):
        super().__init__()
        self.layer, self.run, self.characters = layer, run, shape.characters
        self.encoder = nn.Embedding(shape.classes, shape.I) if shape.characters else nn.Identity()
        self.decoder = nn.Linear(shape.H, shape.classes)

    def forward(self, x):
        outputs, state = self.run(self.encoder(x))
        h = state[0] if isinstance(state, tuple) else state
        return self.decoder(outputs if self.characters else h.flatten(0, -2))


def this_code(network, shape, by_steps):
    """The model of this project's task script; by_steps: around a plain loop of the steps."""
    from NetworkCreation.models import CharacterModel, PixelClassifier
    from NetworkCreation.Networks import NETWORKS

    name, _, nonlin = network.partition("-")
    options = {"nonlin": nonlin} | ({"n": shape.n} if "gamma" in nonlin else {}) if nonlin else {}
    layer = NETWORKS[name](shape.I, shape.H, **options)
    if by_steps:
        return TaskModel(layer, layer.loop, shape)
    return (CharacterModel if shape.characters else PixelClassifier)(layer, shape.classes)


def torch_nn(network, shape):
    """The model around a layer of torch.nn: for the RNN, the one with ReLU."""
    if network.startswith("RNN"):
        layer = nn.RNN(shape.I, shape.H, nonlinearity="relu")
    else:
        layer = {"LSTM": nn.LSTM, "GRU": nn.GRU}[network](shape.I, shape.H)
    return TaskModel(layer, layer, shape)


def paper_code(network, shape, folder, cuda):
    """The model around a network of the paper's code, in a loop over time as in its scripts.

    Three things keep the published code from running, and are repaired here: exp_numpy.py needs an
    old SciPy, the class ARUN calls itself ANRU, and sMNIST_task.py passes a drive of 0 to the GRU,
    which takes none. PTB_task.py imports classes that were not published; its loop is used here.
    """
    sys.modules["NetworkCreation.exp_numpy"] = SimpleNamespace(expm=torch.matrix_exp)
    sys.path.insert(0, folder)
    from NetworkCreation import Networks

    Networks.ANRU = Networks.ARUN
    sizes, initial = (shape.I, shape.H), {"r_initializer": "henaff", "i_initializer": "kaiming"}
    gains = {"n_init": shape.n, "s_init": 0.0, "learn_params": True}
    if network == "RNN-gamma":
        cell = Networks.RNN(*sizes, nonlin="gamma", bias=True, cuda=cuda, **gains, **initial)
    elif network == "ANRU":
        cell = Networks.ARUN(*sizes, 50, cuda=cuda, **initial)
    else:
        cell = {"LSTM": Networks.LSTM, "GRU": Networks.GRU}[network](*sizes, cuda=cuda)

    def run(x):
        if network != "RNN-gamma":
            cell.init_states(x.shape[1])
        h, outputs = None, []
        for x_t in x:
            h = cell(x_t, h)
            if shape.characters:
                outputs.append(h)
            else:
                h.retain_grad()
        return torch.stack(outputs) if outputs else None, h

    return TaskModel(cell, run, shape)


def products(network, shape):
    """A call of the matrix products of a step: forward, backward to h, the weights' gradients."""
    T, B, inputs, H, classes = shape[:5]
    inputs = min(inputs, classes) if shape.characters else inputs
    gates = H * {"LSTM": 4, "GRU": 3}.get(network, 1)
    x, h, da = torch.rand(T * B, inputs), torch.rand(T * B, H), torch.rand(T * B, gates)
    U, W = torch.rand(gates, inputs), torch.rand(gates, H)

    def product(left, right):
        multiply = torch.mm if left.ndim == 2 else torch.bmm
        return partial(multiply, left, right, out=multiply(left, right))

    calls = [product(x, U.t()), product(da.t(), x), product(da.t(), h)]
    calls += [product(h[:B], W.t()), product(da[:B], W)] * T
    if shape.characters:
        V, dlogits = torch.rand(classes, H), torch.rand(T * B, classes)
        calls += [product(h, V.t()), product(dlogits, V), product(dlogits.t(), h)]
    if network == "ANRU":  # with 52 = M + 2 rows: y, a and ones; n and s are two more products
        parts = max(1, round(B * H / 10000))  # of the batch, each of which stays in a CPU's cache
        y, dz = torch.rand(2, B // parts, 52, H).unbind()
        square, two, one = (torch.rand(rows, 52).expand(len(y), -1, -1) for rows in (52, 2, 1))
        calls += [product(square, y), product(two, y)] * T * parts
        back = [product(square, dz), product(one, dz), product(dz, y.transpose(1, 2))]
        calls += back * T * parts

    def run():
        for call in calls:
            call()

    return run


def build(contestant, network, shape, paper):
    """The callable step of a contestant."""
    torch.manual_seed(0)
    if contestant == "products":
        return products(network, shape)
    if contestant == "torch.nn":
        model = torch_nn(network, shape)
    elif contestant == "paper":
        model = paper_code(network, shape, paper, torch.get_default_device().type == "cuda")
    else:
        model = this_code(network, shape, by_steps=contestant == "loop")
    return Step(model, shape)


def seconds(work):
    """The time of a call, including what it starts on a GPU, which must be idle before."""
    start = time.perf_counter()
    work()
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory():
    """The peak of this process in bytes; on a GPU, of torch's memory there."""
    if torch.get_default_device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def kernels(work):
    """The number of operations of a call that compute something."""
    from tests.operations import Operations

    with Operations() as operations:
        work()
    return operations.kernels


def main():
    """Answers each line of the standard input with one line of JSON."""
    args = SimpleNamespace(**json.loads(sys.argv[1]))
    if machine := sys.modules.get("Training.machine"):  # as the task scripts do
        machine.keep_memory()
        machine.allow_tf32(False)
        torch.set_flush_denormal(True)  # before the first parallel operation: threads inherit it
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device != "cpu":  # on a CPU it would only slow every operation down
        torch.set_default_device(args.device)
    shape = SHAPES[args.shape]._replace(T=args.T)
    step = build(args.contestant, args.network, shape, args.paper)
    for request in sys.stdin:
        answer = kernels(step) if request == "kernels\n" else (seconds(step), peak_memory())
        print(json.dumps(answer), flush=True)
