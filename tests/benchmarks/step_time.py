"""Times a training step of each network, and of what one could use instead.

    git clone https://github.com/vgeadah/NonlinMod ../NonlinMod
    python3 -m tests.benchmarks.step_time --paper ../NonlinMod
    python3 -m tests.benchmarks.step_time --network RNN-gamma2 expRNN --contestant code loop

A step is forward, backward, gradient norm and Adam, in float32, of the whole model of psMNIST (a
cross-entropy after the last step) or PTB (an embedding of 50 symbols, a cross-entropy at every
step). The contestants take turns, one step each, and each runs in a process of its own:

- code: this project's model, with the settings of its scripts;
- paper: the networks of the paper's code, in the loop of its scripts;
- torch.nn: `torch.nn.RNN` with ReLU, `LSTM` or `GRU` in a model of the same size;
- products: only the matrix products of the step, in their actual sizes (not for EURNN);
- loop: this project's layer, step by step under autograd (ANRU takes 14 GB for psMNIST).

A cell has the median time; the ratio of the time of `code` to it, the median over rounds, with the
quartiles; and the peak memory of the process, on a GPU of torch's memory there. Kernels are the
operations of a step of `code` that compute something: on a GPU each is at least one launch, and
torch's LSTM counts as one, and so does its GRU on a GPU. The table is Markdown.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from NetworkCreation.Networks import NETWORKS
from tests.benchmarks.contestants import SHAPES

REPOSITORY = Path(__file__).resolve().parents[2]
RNNS = ["RNN-gamma2", "RNN-gamma", "RNN-ReLU"]
CHOICES = [*RNNS, *(name for name in NETWORKS if name != "RNN")]
TABLE = ["RNN-gamma", "ANRU", "LSTM", "GRU"]  # the networks of the paper's code
CONTESTANTS = {  # the networks that each can train
    "code": CHOICES,
    "paper": TABLE,
    "torch.nn": [*RNNS, "LSTM", "GRU"],
    "products": [name for name in CHOICES if name != "EURNN"],
    "loop": CHOICES,
}
ANRU_STEPS = 196  # with 784, the paper's ANRU needs four times as much memory, about 18 GB


class Worker:
    """A process that takes the training steps of a contestant, when it is asked to."""

    def __init__(self, stack, contestant, **options):
        start = "from tests.benchmarks.contestants import main; main()"
        if contestant not in ("paper", "torch.nn"):
            start = f"import Training.machine; {start}"  # before torch: see there
        command = [sys.executable, "-c", start, json.dumps({"contestant": contestant} | options)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=REPOSITORY, **pipes)
        self.contestant, self.process = contestant, stack.enter_context(process)

    def ask(self, request):
        print(request, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"step_time: the process of {self.contestant} ended")
        return json.loads(answer)


def measure(contestants, repeats, **options):
    """The times of the steps and the peak memory of each contestant, and the kernels of `code`.

    Each is started once, and takes one step a round; the first round is not timed.
    """
    with ExitStack() as stack:
        workers = [Worker(stack, contestant, **options) for contestant in contestants]
        times, peaks = {name: [] for name in contestants}, {}
        for turn in range(repeats + 1):
            progress(f"{options['shape']}, {options['network']}: round {turn} of {repeats}")
            for worker in workers:
                taken, peaks[worker.contestant] = worker.ask("step")
                if turn > 0:
                    times[worker.contestant].append(taken)
        kernels = workers[0].ask("kernels") if contestants[0] == "code" else None
    return times, peaks, kernels


def cell(times, peak, code):
    """Time, ratio with its quartiles, and memory, in words."""
    text = f"{statistics.median(times):.3g} s"
    if code not in (None, times):
        ratios = [ours / theirs for ours, theirs in zip(code, times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        text += f", {middle:.2f} ({low:.2f}–{high:.2f})"
    return text if peak is None else f"{text}, {peak / 1e9:.2f} GB"


def progress(text):
    print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def print_row(row):
    progress("")
    print("| " + " | ".join(map(str, row)) + " |", flush=True)


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flag = parser.add_argument
    flag("--paper", type=Path, metavar="DIR", help="a clone of the paper's code")
    flag("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    flag("--network", nargs="+", choices=CHOICES, default=TABLE)
    flag("--contestant", nargs="+", choices=CONTESTANTS, help="default: all but loop")
    flag("--repeats", type=int, default=15, help="timed rounds (default: 15)")
    flag("--T", type=int, help=f"number of steps, if fewer (default for ANRU: {ANRU_STEPS})")
    flag("--threads", type=int, help="of each process (default: as many as torch chooses)")
    flag("--device", default="cpu", help="such as cpu or cuda")
    return parser


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.paper and not (args.paper / "NetworkCreation" / "exp_numpy.py").exists():
        parser.error(f"argument --paper: {args.paper} is not a clone of the paper's code")
    names = args.contestant or [name for name in CONTESTANTS if name != "loop"]
    names = [name for name in CONTESTANTS if name in names and (name != "paper" or args.paper)]
    options = {"threads": args.threads, "device": args.device}
    options["paper"] = args.paper and str(args.paper.resolve())
    threads = args.threads or torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {device_name(args.device)}\n")
    print_row(["shape", "T", "network", *names, "kernels"])
    print_row(["---"] * (len(names) + 4))
    for shape in args.shape:
        for network in args.network:
            T = args.T or (ANRU_STEPS if network == "ANRU" else SHAPES[shape].T)
            options |= {"shape": shape, "network": network, "T": min(T, SHAPES[shape].T)}
            there = [name for name in names if network in CONTESTANTS[name]]
            times, peaks, kernels = measure(there, args.repeats, **options)
            peaks.pop("products", None)
            cells = [
                cell(times[name], peaks.get(name), times.get("code")) if name in times else "–"
                for name in names
            ]
            print_row([shape, options["T"], network, *cells, kernels or "–"])


def device_name(device="cpu"):
    """The name of the GPU, or of the processor (on Linux)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    main()
