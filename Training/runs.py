"""What a run leaves: its directory, and the state of training that lies in its checkpoints.

    <save_dir>/<task>/<seed>/<net>_lr<lr>_p<ratio>_hs<nhid>[_<nonlin>]/<date>[--k]/
        config.json         resolved arguments, command, commit, versions, device, data, model
        log.txt             what was printed
        metrics.csv         a row an epoch
        test_results.csv    a row a scoring of the test set
        e_<epoch>.pth.tar   {'state_dict', 'optimizer', 'epoch', ...}, kept, e_0 of the start
        last.pth.tar        the same, always the newest: a run resumes from it
        events.out.*        for TensorBoard

Every file but the log is written whole or not at all. Checkpoints hold tensors and plain values.
"""

import contextlib
import csv
import datetime
import io
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from tensorboardX import SummaryWriter
from torch import nn
from tqdm import tqdm

LAST = "last.pth.tar"
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "tensorboardX")
STREAMS = ("initialisation", "order", "transform", "evaluation")


class RunError(Exception):
    """A run directory cannot be written, or is none."""


class TrainingStopped(Exception):
    """Training cannot go on: a loss, a gradient or a parameter is not finite."""


class Interrupted(Exception):
    """A signal asked to stop; `code` is the exit code that belongs to it."""

    def __init__(self, signum):
        super().__init__(signal.Signals(signum).name)
        self.code = 128 + signum


class Interruption:
    """Within its block, SIGINT and SIGTERM wait for the next `check`, which raises Interrupted.

    A second signal acts at once, as it would without.
    """

    def __enter__(self):
        self._signum = None
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, signum, frame):
        self._signum = signum
        self.__exit__()

    def check(self):
        if self._signum is not None:
            raise Interrupted(self._signum)


def stream(seed, name, epoch=0):
    """A generator of its own for one purpose: a name in `STREAMS`, and where it needs it an epoch.

    Different purposes draw independent numbers from the same seed.
    """
    entropy = np.random.SeedSequence([seed, STREAMS.index(name), epoch])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))


@dataclass
class TrainingState:
    """All that changes while a network trains, between two batches.

    epoch: finished epochs. batch: finished batches of the one under way. sums: what that epoch
    has added up so far, by name. carry: tensors that go from batch to batch (the order of the
    samples, the hidden state). best: the lowest validation loss so far.

    What the run keeps: clip, the largest norm of the gradient, and penalty, a function of nothing
    that gives what is added to the loss that is descended; None for neither.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau
    generators: dict
    epoch: int = 0
    batch: int = 0
    sums: dict = field(default_factory=dict)
    carry: dict = field(default_factory=dict)
    best: float = float("inf")
    clip: float | None = None
    penalty: Callable | None = None

    @property
    def lr(self):
        """The learning rate in use, of the first parameter group."""
        return self.optimizer.param_groups[0]["lr"]

    def add(self, **values):
        """Adds to the sums of the epoch under way."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def update(self, loss):
        """One step down the loss; returns the loss and the gradient's norm as numbers.

        The loss is returned without the penalty, the norm as it was before it was clipped.
        Raises TrainingStopped where either is not finite, or a parameter after the step, and names
        what is not. Where parameters are finite and the loss is not, the network overflowed, by the
        size of a parameter or an n near 0: it names the largest parameter and the smallest n.
        """
        if not loss.isfinite():
            self._stop_unless_finite(self.model.state_dict())
            self._stop_unless_finite({"the loss": loss}, self._extremes())
        self.optimizer.zero_grad()
        (loss if self.penalty is None else loss + self.penalty()).backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not norm.isfinite():
            parameters = self.model.named_parameters()
            named = {n: p.grad for n, p in parameters if p.grad is not None and p.numel()}
            self._stop_unless_finite({f"the gradient of {n}": g for n, g in named.items()})
            sizes = {name: gradient.abs().max() for name, gradient in named.items()}
            largest = max(sizes, key=sizes.get)
            said = f"the gradient is finite, the largest {sizes[largest]:.3g} in {largest}; "
            self._stop_unless_finite({"the gradient's norm": norm}, said)
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip, norm)
        self.optimizer.step()
        self._stop_unless_finite(dict(self.model.named_parameters()))
        return loss.item(), norm.item()

    def _extremes(self):
        """What of the parameters may have made a network overflow, in words."""
        sizes = {name: t.abs() for name, t in self.model.state_dict().items() if t.numel()}
        largest = max(sizes, key=lambda name: sizes[name].max())
        said = f"all parameters are finite, the largest {sizes[largest].max():.3g} in {largest}; "
        gains = [name for name in sizes if name.endswith(".n")]
        return said + "".join(f"|n| is {sizes[n].min():.3g} or more in {n}; " for n in gains)

    def _stop_unless_finite(self, named, said=""):
        names = [name for name, tensor in named.items() if not tensor.isfinite().all()]
        if names:
            raise TrainingStopped(
                f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not finite in epoch "
                f"{self.epoch + 1}, batch {self.batch + 1}, at learning rate {self.lr:g}: {said}a "
                "lower --lr may help"
            )

    def finish_epoch(self, validation_loss):
        """Sets the learning rate by the validation loss, and makes ready for the next epoch.

        Raises TrainingStopped where that loss is not finite.
        """
        if not math.isfinite(validation_loss):
            raise TrainingStopped(
                f"the validation loss is not finite after epoch {self.epoch + 1}, at learning rate "
                f"{self.lr:g}: {self._extremes()}a lower --lr may help"
            )
        self.scheduler.step(validation_loss)
        self.best = min(self.best, validation_loss)
        self.epoch += 1
        self.batch, self.sums, self.carry = 0, {}, {}

    def checkpoint(self, config):
        """The state as a dictionary of tensors and plain values, config included."""
        return {
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": self.sums,
            "carry": self.carry,
            "best": self.best,
            "config": config,
        }

    def restore(self, checkpoint):
        """Takes the state back from such a dictionary."""
        self.model.load_state_dict(checkpoint["state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        for name, generator in self.generators.items():
            generator.set_state(checkpoint["generators"][name])
        for name in ("epoch", "batch", "sums", "carry", "best"):
            setattr(self, name, checkpoint[name])


def describe(script, command, args, spec, data, device):
    """The config of a run, plain values all: what is needed to know and to repeat it.

    script: its file. command: as it was typed. args: the resolved arguments. spec: of the model.
    data: what the set is, its `sha256` included.
    """
    mode = ("test", "checkpoint", "resume")
    config = {
        "script": Path(script).name,
        "arguments": {name: value for name, value in vars(args).items() if name not in mode},
        "model": spec,
        "data": data,
        "command": command,
        "commit": _commit(Path(script).resolve().parent),
        "started": datetime.datetime.now().astimezone().isoformat(),
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }
    return plain(config)


def plain(values):
    """Values as they come back from a file: tuples are lists, a path holds from any directory."""
    return json.loads(json.dumps(values, default=lambda path: str(path.absolute())))


def device_name(device):
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _versions():
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {name: installed.get(name.lower()) for name in PACKAGES}


def _commit(folder):
    """The commit of the code, with + where it was changed since; None without git."""
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--abbrev=40"]
    command.append("--dirty=+")
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def is_run_file(name):
    """Whether a run has a file of this name already, or will have."""
    names = ("config.json", "log.txt", "metrics.csv", "test_results.csv", LAST)
    return name in names or re.match(r"events\.out\.|e_\d+\.pth\.tar$", name) is not None


def run_name(net_type, lr, ratio, nhid, nonlin=None):
    """The name of the directory that runs with these arguments share."""
    return f"{net_type}_lr{lr}_p{ratio}_hs{nhid}" + (f"_{nonlin}" if nonlin else "")


class Run:
    """The directory of one run. `Run.create` makes a new one, `Run(path)` opens one."""

    def __init__(self, path):
        """Opens a run. Raises RunError where path is none."""
        self.path = Path(path)
        self.config = read_config(self.path)
        self._events = None

    @classmethod
    def create(cls, save_dir, task, seed, name, config):
        """A new directory with its config, the next free one of today.

        Raises RunError where it cannot be written; it leaves no new directory behind then.
        """
        parent = Path(save_dir) / task / str(seed) / name
        path, new = None, []
        try:
            new = [folder for folder in (parent, *parent.parents) if not folder.exists()]
            parent.mkdir(parents=True, exist_ok=True)
            path = _next_free(parent / datetime.date.today().isoformat())
            write_whole(path / "config.json", json.dumps(config, indent=2).encode())
        except OSError as error:
            for folder in new if path is None else [path, *new]:
                with contextlib.suppress(OSError):  # another run may have come to lie in it
                    folder.rmdir()
            raise RunError(f"{parent}: cannot be written ({error.strerror})") from error
        run = cls(path)
        run.print(f"run: {path}\ndevice: {config['device']}")
        return run

    def print(self, text):
        """Prints a line, above a bar where there is one, and keeps it in log.txt."""
        tqdm.write(text)
        sys.stdout.flush()
        with self._writing("log.txt"), (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def save(self, name, checkpoint):
        """Writes a checkpoint, under a path in the run or an absolute one, whole or not at all."""
        data = io.BytesIO()
        torch.save(checkpoint, data)
        self.write(name, data.getbuffer())

    def write(self, name, data):
        """Writes bytes to a file of the run or at an absolute path, whole or not at all."""
        with self._writing(name):
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / name, data)

    def add_row(self, name, row):
        """Adds a row to metrics.csv or test_results.csv, and its numbers to the events."""
        rows = [*self.rows(name), {k: "" if v is None else str(v) for k, v in row.items()}]
        self._write_rows(name, rows)
        if self._events is None:
            with self._writing("events"):
                self._events = SummaryWriter(str(self.path), purge_step=row["epoch"])
        group = "/".join([name.removesuffix(".csv"), *(v for v in row.values() if _is_text(v))])
        for key, value in row.items():
            if key != "epoch" and value is not None and not _is_text(value):
                self._events.add_scalar(f"{group}/{key}", value, row["epoch"])
        self._events.flush()

    def rows(self, name):
        """The rows of metrics.csv or test_results.csv, as dictionaries of strings."""
        if not (self.path / name).exists():
            return []
        with (self.path / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def forget_after(self, epoch):
        """Drops the rows of later epochs: those that a run wrote after its last checkpoint."""
        for name in ("metrics.csv", "test_results.csv"):
            rows = self.rows(name)
            kept = [row for row in rows if int(row["epoch"]) <= epoch]
            if len(kept) < len(rows):
                self._write_rows(name, kept)

    def check_data(self, checksums):
        """Raises RunError where these are not the checksums of the data that the run began with."""
        if self.config["data"]["sha256"] != checksums:
            raise RunError(f"{self.path}: was trained on other data than is there now")

    def go_on(self, checkpoint, state, epochs):
        """Makes ready to resume: restores the state, and sets the number of epochs."""
        state.restore(checkpoint)
        self.forget_after(state.epoch)
        self.config["arguments"]["epochs"] = epochs
        with self._writing("config.json"):
            write_whole(self.path / "config.json", json.dumps(self.config, indent=2).encode())
        self.print(
            f"run: {self.path}\ndevice: {self.config['device']}\n"
            f"resumed after {state.epoch} epochs and {state.batch} batches"
        )

    @property
    def complete(self):
        """Whether the last epoch has been trained and the test set scored."""
        last = f"e_{self.config['arguments']['epochs']}.pth.tar"
        return (self.path / last).is_file() and bool(self.rows("test_results.csv"))

    @property
    def kept(self):
        """The paths of the kept checkpoints by their epoch, in its order."""
        found = {}
        for path in self.path.glob("e_*.pth.tar"):
            if epoch := re.fullmatch(r"e_(\d+)\.pth\.tar", path.name):
                found[int(epoch[1])] = path
        return dict(sorted(found.items()))

    def newest_checkpoint(self):
        """The path of the kept checkpoint of the latest epoch, or else of the last state."""
        epoch = max(self.kept, default=0)
        path = self.kept[epoch] if epoch else self.path / LAST
        if not path.is_file():
            raise RunError(f"{self.path}: has no checkpoint yet")
        return path

    def carry_out(self, state, epoch, finish=None):
        """Trains to the last epoch of the config; returns the exit code.

        epoch: a function of `check` that takes the state through what is left of an epoch, and
        calls check() where it may be interrupted: that saves the state and ends the run with the
        signal's code. finish: a function of the same kind, for what comes after the last epoch.
        """
        if not (self.path / LAST).exists():
            for name in ("e_0.pth.tar", LAST):  # the start, and what the first epoch resumes from
                self.save(name, state.checkpoint(self.config))
        try:
            with Interruption() as interruption:
                while state.epoch < self.config["arguments"]["epochs"]:
                    epoch(interruption.check)
                if finish is not None:
                    finish(interruption.check)
        except Interrupted as signum:
            self.save(LAST, state.checkpoint(self.config))
            self.print(f"{signum}: saved; go on with --resume {self.path}")
            return signum.code
        except TrainingStopped as error:
            self.print(f"stopped: {error}; the last good state is {self.path / LAST}")
            return 1
        finally:
            self.close()
        self.print(f"done: {self.path}")
        return 0

    def close(self):
        """Closes the events, where there are any."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _write_rows(self, name, rows):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0].keys() if rows else (), lineterminator="\n")
        if rows:
            writer.writeheader()
            writer.writerows(rows)
        with self._writing(name):
            write_whole(self.path / name, text.getvalue().encode())

    def _writing(self, name):
        return _Writing(self.path / name)


class _Writing:
    """Names the file where the system refuses to write it."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, OSError):
            raise RunError(f"{self.path}: cannot be written ({error.strerror})") from error


def write_whole(path, data):
    """Writes bytes to a file that holds them all, or what it held before. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_config(path):
    """The config of a run. Raises RunError where path is no run's directory."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path}: no run, its config.json cannot be read ({reason})") from error
    if not isinstance(config, dict) or not {"script", "arguments", "model"} <= config.keys():
        raise RunError(f"{path}: no run, its config.json is of something else")
    return config


def find_runs(root, script=None, **arguments):
    """The runs of a script, None for any, below root whose saved arguments are these.

    Returns a list of Run, the newest first. Directories whose config cannot be read are named and
    passed over.
    """
    found = []
    for path in sorted(Path(root).rglob("config.json")):
        try:
            run = Run(path.parent)
        except RunError as error:
            print(f"passed over: {error}", file=sys.stderr)
            continue
        if script in (None, run.config["script"]) and has_arguments(run, arguments):
            found.append(run)
    return sorted(found, key=lambda run: run.config["started"], reverse=True)


def has_arguments(run, arguments):
    """Whether a run's saved arguments are these, a dictionary of some of them."""
    saved = run.config["arguments"]
    return all(name in saved and saved[name] == value for name, value in arguments.items())


def _next_free(path):
    """Makes the directory path, or path--1, path--2, … where those before it exist."""
    number = 0
    while True:
        candidate = path if number == 0 else path.with_name(f"{path.name}--{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            number += 1
        else:
            return candidate


def _is_text(value):
    return isinstance(value, str)
