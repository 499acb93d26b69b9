"""Times a training step of each layer against the plain loop of its steps and against torch.nn.

    python3 -m tests.benchmarks.step_time
    python3 -m tests.benchmarks.step_time --shape psMNIST --layer RNN-gamma2 GRU --repeats 15
    python3 -m tests.benchmarks.step_time --report linearity evaluation
    python3 -m tests.benchmarks.step_time --device cuda

A step is forward, backward, gradient norm and Adam, in float32 with denormals flushed. The loss is
of the last h (psMNIST) or of h at all steps (PTB). PTB-task is the complete model of PTB_task.py,
from the embedding of 50 symbols to the cross-entropy, around a contestant. The contestants take
turns in one process, and the medians are compared:

- loop: `layer.loop`, the steps one by one under autograd;
- torch.nn: `torch.nn.RNN` with ReLU, `LSTM` or `GRU` of the same size, if torch has one;
- layer: a call of the layer (LSTM and GRU use torch's recurrence);
- floor: only the matrix products of the step, in their actual sizes (none for EURNN).

Memory is the peak of a new process that takes three steps (loop: one); on a GPU, of torch's memory
there. Kernels are the operations of a step of the layer that compute something: on a GPU each is
at least one launch, and torch's LSTM and GRU count as one. The table is Markdown. The plain loop of
ANRU takes 14 GB.
"""

import Training.machine  # isort: skip — settings that torch reads when it loads

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from NetworkCreation.models import CharacterModel
from NetworkCreation.Networks import NETWORKS, RNN
from tests.operations import Operations


class Shape(NamedTuple):
    T: int
    B: int
    I: int  # noqa: E741, the letter of the input size
    H: int
    every_step: bool  # whether the loss is of all steps, not the last
    symbols: int = 0  # of an embedding and a read-out around the layer


SHAPES = {
    "psMNIST": Shape(784, 100, 1, 400, every_step=False),
    "PTB": Shape(150, 128, 200, 600, every_step=True),
    "PTB-task": Shape(150, 128, 200, 600, every_step=True, symbols=50),
}


def elman(*sizes):
    return nn.RNN(*sizes, nonlinearity="relu")


# name: (this project's layer, torch's)
LAYERS = {f"RNN-{name}": (partial(RNN, nonlin=name), elman) for name in ("gamma2", "gamma", "ReLU")}
LAYERS |= {
    name: (kind, {"LSTM": nn.LSTM, "GRU": nn.GRU}.get(name))
    for name, kind in NETWORKS.items()
    if name != "RNN"
}
CONTESTANTS = ("loop", "torch.nn", "layer", "floor")


class Step:
    """A callable training step of a network whose recurrence is `run`."""

    def __init__(self, network, run, shape):
        self.network, self.run, self.every_step = network, run, shape.every_step
        self.x = torch.rand(shape.T, shape.B, shape.I)
        target_shape = (shape.T, shape.B, shape.H) if shape.every_step else (shape.B, shape.H)
        self.target = torch.randn(target_shape)
        self.optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)

    def loss(self):
        outputs, state = self.run(self.x)
        h = state[0] if isinstance(state, tuple) else state
        h = outputs if self.every_step else h.view(self.target.shape)
        return (h * self.target).mean()

    def __call__(self):
        self.optimiser.zero_grad(set_to_none=True)
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1e3)
        self.optimiser.step()


class TaskStep(Step):
    """The same for a character model around `run`; None: the model calls its layer."""

    def __init__(self, layer, run, shape):
        self.network, self.run = CharacterModel(layer, shape.symbols), run
        self.x, self.target = torch.randint(shape.symbols, (2, shape.T, shape.B))
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-4)

    def loss(self):
        if self.run is None:
            logits, _ = self.network(self.x)
        else:
            outputs, _ = self.run(self.network.encoder(self.x))
            logits = self.network.decoder(outputs)
        return nn.functional.cross_entropy(logits.flatten(0, 1), self.target.flatten())


class Floor:
    """The matrix products of a step: forward, backward to h, and the weights' gradients."""

    def __init__(self, layer, shape):
        T, B, inputs, H = shape[:4]
        self.symbols = shape.symbols
        if self.symbols:
            inputs = min(inputs, self.symbols)
            self.outputs, self.doutputs = torch.rand(2, T * B, H).unbind()
            self.logits = torch.rand(T * B, self.symbols)
            self.read_out, self.dread_out = torch.rand(2, self.symbols, H).unbind()
        self.T, self.gates = T, {"LSTM": 4, "GRU": 3}.get(layer, 1)
        self.x, self.h = torch.rand(T * B, inputs), torch.rand(B, H)
        self.U, self.W = torch.rand(self.gates * H, inputs), torch.rand(self.gates * H, H)
        self.a = torch.rand(T, B, self.gates * H)
        self.da = torch.rand(B, self.gates * H)
        self.dh, self.together = torch.empty(B, H), min(T, 8)  # steps per gradient product
        self.states = torch.rand(self.together * B, H)
        self.dW, self.dU = torch.empty_like(self.W), torch.empty_like(self.U)
        self.parts = []
        if layer == "ANRU":  # with 52 = M + 2 rows: y, a and ones; n and s are two more products
            part = max(1, round(10000 / H))
            self.parts = [min(part, B - first) for first in range(0, B, part)]
            self.square, self.two = torch.rand(52, 52), torch.rand(2, 52)
            self.y, self.next = torch.rand(2, part, 52, H).unbind()
            self.ns, self.products = torch.empty(part, 2, H), torch.zeros(part, 52, 52)

    def __call__(self):
        torch.mm(self.x, self.U.t(), out=self.a.view(len(self.x), -1))
        for t in range(self.T):
            torch.mm(self.h, self.W.t(), out=self.a[t])
        for _ in range(self.T):
            torch.mm(self.da, self.W, out=self.dh)
        da = self.a.view(len(self.x), -1)
        for first in range(0, self.T, self.together):
            rows = da[first * len(self.h) : (first + self.together) * len(self.h)]
            torch.mm(rows.t(), self.states[: len(rows)], out=self.dW)
        torch.mm(da.t(), self.x, out=self.dU)
        if self.symbols:
            torch.mm(self.outputs, self.read_out.t(), out=self.logits)
            torch.mm(self.logits, self.read_out, out=self.doutputs)
            torch.mm(self.logits.t(), self.outputs, out=self.dread_out)
        for part in self.parts:
            y, following, ns = self.y[:part], self.next[:part], self.ns[:part]
            square, two = self.square.expand(part, -1, -1), self.two.expand(part, -1, -1)
            for _ in range(self.T):
                torch.bmm(square, y, out=following)
                torch.bmm(two, y, out=ns)
            for _ in range(self.T):
                torch.bmm(square, y, out=following)
                self.products[:part].baddbmm_(y, following.transpose(1, 2)).zero_()
                torch.bmm(two[:, :1], y, out=ns[:, :1])


def contestant(name, layer, shape):
    """The callable step of a contestant; None if there is no such contestant."""
    torch.manual_seed(0)
    ours, theirs = LAYERS[layer]
    if name == "floor":
        return None if layer == "EURNN" else Floor(layer, shape)
    if name == "torch.nn":
        network = theirs and theirs(shape.I, shape.H)
        run = network
    else:
        network = ours(shape.I, shape.H)
        run = network.loop if name == "loop" else network
    if network is None:
        return None
    if shape.symbols:
        return TaskStep(network, None if name == "layer" else run, shape)
    return Step(network, run, shape)


def seconds(work):
    """The time of a call, including what it starts on a GPU, which must be idle before."""
    start = time.perf_counter()
    work()
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def kernels(layer, shape):
    """The number of operations that compute something in the layer's second step."""
    work = contestant("layer", layer, shape)
    work()  # the first creates the optimiser's state
    with Operations() as operations:
        work()
    return operations.kernels


def medians(layer, shape, names, repeats, loop_repeats):
    """The median time of each contestant, {name: seconds}; they take turns after a warm-up."""
    contestants = {name: contestant(name, layer, shape) for name in names}
    contestants = {name: work for name, work in contestants.items() if work is not None}
    times = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, work in contestants.items():
            if name == "loop" and turn > loop_repeats:
                continue
            taken = seconds(work)
            if turn > 0:
                times[name].append(taken)
        progress(f"{layer}: round {turn} of {repeats}")
    return {name: statistics.median(taken) for name, taken in times.items() if taken}


def progress(text):
    print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def peak(mode, layer, shape_name, *options):
    """The peak memory in bytes of a new process that runs one contestant."""
    progress(f"{layer}: memory of {mode}")
    command = [sys.executable, "-m", "tests.benchmarks.step_time", *options]
    command += ["--alone", mode, "--shape", shape_name, "--layer", layer]
    command += ["--device", str(torch.get_default_device())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_alone(mode, layer, shape):
    """Runs steps of a contestant, or forward passes under no_grad; prints the peak in bytes."""
    if mode == "evaluation":
        network = LAYERS[layer][0](shape.I, shape.H)  # no Step: an optimiser takes memory too
        if shape.symbols:
            network = CharacterModel(network, shape.symbols)
            x = torch.randint(shape.symbols, (shape.T, shape.B))
        else:
            x = torch.rand(shape.T, shape.B, shape.I)
        with torch.no_grad():
            for _ in range(3):
                network(x)
    elif mode != "nothing":
        work = contestant(mode, layer, shape)
        for _ in range(1 if mode == "loop" else 3):
            work()
    print(peak_memory())


def peak_memory():
    """The peak in bytes: of torch on a GPU, else of this process without its parent's."""
    if torch.get_default_device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def report_steps(args):
    head = ["shape", "layer", *(f"{name}, s" for name in CONTESTANTS)]
    head += ["× loop", "× torch.nn", "layer / floor", "kernels"]
    head += [f"{name}, GB" for name in CONTESTANTS[:3]] if args.memory else []
    table(head, [])
    for shape_name in args.shape:
        for layer in args.layer:
            shape = resized(shape_name, args)
            peaks = {}
            if args.memory:  # before this process runs the loop itself, which takes 14 GB for ANRU
                there = [name for name in args.contestant if name in CONTESTANTS[:3]]
                if LAYERS[layer][1] is None:
                    there = [name for name in there if name != "torch.nn"]
                peaks = {name: peak(name, layer, shape_name) / 1e9 for name in there}
            took = medians(layer, shape, args.contestant, args.repeats, args.loop_repeats)
            row = [shape_name, layer, *(number(took.get(name), ".3f") for name in CONTESTANTS)]
            row += [
                number(ratio(took, "loop", "layer"), ".2f"),
                number(ratio(took, "torch.nn", "layer"), ".2f"),
                number(ratio(took, "layer", "floor"), ".2f"),
                str(kernels(layer, shape)),
            ]
            if args.memory:
                row += [number(peaks.get(name), ".2f") for name in CONTESTANTS[:3]]
            print_row(row)


def report_linearity(args):
    rows = []
    for shape_name in args.shape:
        for layer in args.layer:
            shape = resized(shape_name, args)
            longer = shape._replace(T=2 * shape.T)
            works = [contestant("layer", layer, each) for each in (shape, longer)]
            times = [[seconds(work) for work in works] for _ in range(args.repeats + 1)][1:]
            once, twice = (statistics.median(column) for column in zip(*times, strict=True))
            rows.append([shape_name, layer, f"{once:.3f}", f"{twice:.3f}", f"{twice / once:.2f}"])
    table(["shape", "layer", "T, s", "2T, s", "2T / T"], rows)


def report_evaluation(args):
    rows = []
    for shape_name in args.shape:
        T, B, _, H = SHAPES[shape_name][:4]
        for layer in args.layer:
            modes = ("nothing", "evaluation", "layer")
            peaks = [peak(mode, layer, shape_name) / 1e9 for mode in modes]
            rows.append(
                [shape_name, layer, *(f"{p:.2f}" for p in peaks), f"{4e-9 * T * B * H:.2f}"]
            )
    head = ["shape", "layer", "imports, GB", "evaluation, GB", "training, GB", "outputs alone, GB"]
    table(head, rows)


def resized(shape_name, args):
    shape = SHAPES[shape_name]
    return shape._replace(T=args.T) if args.T else shape


def ratio(took, name, other):
    return took[name] / took[other] if name in took and other in took else None


def number(value, form):
    return "–" if value is None else format(value, form)


def table(head, rows):
    for row in (head, ["---"] * len(head), *rows):
        print_row(row)


def print_row(row):
    progress("")
    print("| " + " | ".join(row) + " |", flush=True)


REPORTS = {
    "steps": report_steps,
    "linearity": report_linearity,
    "evaluation": report_evaluation,
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", nargs="+", choices=REPORTS, default=["steps"])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--layer", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--contestant", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--loop-repeats", type=int, default=3, help="for the loop (default: 3)")
    parser.add_argument("--T", type=int, help="number of time steps for the timings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default="cpu", help="such as cpu or cuda")
    parser.add_argument("--tf32", action="store_true", help="allow TF32 in products on a GPU")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--alone", choices=[*CONTESTANTS, "nothing", "evaluation"], help="internal")
    args = parser.parse_args(argv)
    Training.machine.keep_memory()
    torch.set_flush_denormal(True)  # before the first parallel operation: threads inherit it
    torch.set_num_threads(args.threads)
    Training.machine.allow_tf32(args.tf32)
    if args.device.type != "cpu":  # on a CPU it would only slow every operation down
        torch.set_default_device(args.device)
    if args.alone:
        run_alone(args.alone, args.layer[0], resized(args.shape[0], args))
        return
    print(f"torch {torch.__version__}, {args.threads} threads, {device_name()}")
    for report in args.report:
        REPORTS[report](args)


def device_name():
    """The name of the GPU, or of the processor (on Linux)."""
    if torch.get_default_device().type == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    main()
