"""What a run leaves: its directory, and the state of training that lies in its checkpoints.

    <save_dir>/<task>/<seed>/<net>_lr<lr>_p<ratio>_hs<nhid>[_<nonlin>]/<date>[--k]/
        config.json         resolved arguments, command, commit, versions, device, data, model
        log.txt             what was printed
        metrics.csv         a row an epoch
        test_results.csv    a row a scoring of the test set
        e_<epoch>.pth.tar   {'state_dict', 'optimizer', 'epoch', ...}, kept, e_0 of the start
        last.pth.tar        the same, always the newest: a run resumes from it
        events.out.*        for TensorBoard
        lock                held by the process that trains the run, as long as it lives

Every file but the log and the events is written whole or not at all, the metrics of an epoch
before its checkpoints. Checkpoints hold tensors and plain values.
"""

import contextlib
import csv
import datetime
import errno
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
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from torch import nn
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # there is none on Windows
    fcntl = None

LAST = "last.pth.tar"
LOCK = "lock"
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "tensorboardX")
MODE = ("test", "checkpoint", "resume")  # arguments that say what to do, and are no run's own
STREAMS = ("initialisation", "order", "transform", "evaluation")


class RunError(Exception):
    """A run directory cannot be written, is none, is damaged, or is another process's."""


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

    def restore(self, checkpoint, sums, carry):
        """Takes the state back from such a dictionary.

        sums, carry: what they are like within an epoch; at its start they may be empty.
        Raises ValueError, and changes nothing, where the dictionary is not like this state.
        """
        expected = self.checkpoint(checkpoint.get("config"))
        expected["optimizer"]["state"] = self._optimizer_state()
        for name, like in (("sums", sums), ("carry", carry)):
            expected[name] = like if checkpoint.get(name) else {}
        match checkpoint:
            case {"optimizer": {"state": state}} if state == {}:  # before the first batch
                expected["optimizer"]["state"] = {}
        _check_alike(expected, checkpoint, "it")
        if min(checkpoint["epoch"], checkpoint["batch"]) < 0:
            raise ValueError("its epoch or batch is negative")
        if checkpoint["batch"] and not checkpoint["sums"]:
            raise ValueError("it lies within an epoch and has no 'sums'")
        try:
            for name, generator in self.generators.items():
                generator.set_state(checkpoint["generators"][name])
        except RuntimeError as error:
            raise ValueError(f"its generators cannot be taken ({error})") from error
        self.model.load_state_dict(checkpoint["state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        for name in ("epoch", "batch", "sums", "carry", "best"):
            setattr(self, name, checkpoint[name])

    def _optimizer_state(self):
        """What the optimiser has kept of each parameter after its first step, by number."""
        scratch = nn.Parameter(torch.zeros(()))
        scratch.grad = torch.zeros(())
        twin = type(self.optimizer)([scratch], lr=0.0)
        twin.step()
        kept = twin.state[scratch]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return {
            number: {
                name: value if name == "step" else parameter.detach()
                for name, value in kept.items()
            }
            for number, parameter in enumerate(parameters)
        }


def _check_alike(expected, found, where):
    """Raises ValueError unless found is built of the same names, types, and shapes of tensors."""
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            raise ValueError(f"{where} is no dictionary")
        if missing := sorted(map(str, expected.keys() - found.keys())):
            raise ValueError(f"{where} has no {', '.join(missing)}")
        if unknown := sorted(map(str, found.keys() - expected.keys())):
            raise ValueError(f"{where} has {', '.join(unknown)}, of another version or network")
        for name, value in expected.items():
            _check_alike(value, found[name], str(name))
    elif isinstance(expected, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(expected):
            raise ValueError(f"{where} is no list of {len(expected)}")
        for value, other in zip(expected, found, strict=True):
            _check_alike(value, other, where)
    elif isinstance(expected, torch.Tensor):
        kind = (expected.shape, expected.dtype)
        if not isinstance(found, torch.Tensor) or (found.shape, found.dtype) != kind:
            raise ValueError(f"{where} is not {tuple(expected.shape)} of {expected.dtype}")
        if expected.dtype == torch.int64 and not found.sort()[0].equal(expected.sort()[0]):
            raise ValueError(f"{where} is no order of {len(expected)} samples")
    else:
        number = isinstance(expected, float) and type(found) is int
        if type(found) is not type(expected) and not number:
            raise ValueError(f"{where} is {found!r:.50}, not {type(expected).__name__}")


def describe(script, command, args, spec, data, device):
    """The config of a run, plain values all: what is needed to know and to repeat it.

    script: its file. command: as it was typed. args: the resolved arguments. spec: of the model.
    data: what the set is, its `sha256` included.
    """
    config = {
        "script": Path(script).name,
        "arguments": {name: value for name, value in vars(args).items() if name not in MODE},
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
    names = ("config.json", "log.txt", "metrics.csv", "test_results.csv", LAST, LOCK)
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
        self._first = 1  # the epoch of the first row that this process adds
        self._events = None
        self._lock = None

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
        run.lock()
        run.print(f"run: {path}\ndevice: {config['device']}")
        return run

    def lock(self):
        """Keeps the run to this process until it closes it or ends, in whatever way it ends.

        Raises RunError where another process has it. Where the system or the file system knows no
        locks, it says so and goes on.
        """
        with self._writing(LOCK):
            self._lock = (self.path / LOCK).open("a")
        try:
            if fcntl is None:
                raise OSError(errno.ENOLCK, "no locks on this system")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{self.path}: another process is training this run") from None
        except OSError as error:
            self.print(
                f"{self.path / LOCK}: cannot be locked ({error.strerror}): take care that no other "
                "process resumes this run"
            )
        self.config = read_config(self.path)  # as the process that had it left it

    def print(self, text):
        """Prints a line, above a bar where there is one, and keeps it in log.txt."""
        with _Writing("standard output"):
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
            if self.path.is_dir():  # the directory of a run that was removed does not come back
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / name, data)

    def add_row(self, name, row):
        """Adds a row to metrics.csv or test_results.csv, and its numbers to the events."""
        rows = [*self.rows(name), {k: "" if v is None else str(v) for k, v in row.items()}]
        if rows[0].keys() != row.keys():
            raise RunError(f"{self.path / name}: is damaged, its columns are not those of a row")
        self._write_rows(name, rows)
        group = "/".join([name.removesuffix(".csv"), *(v for v in row.values() if _is_text(v))])
        scalars = {
            f"{group}/{key}": value
            for key, value in row.items()
            if key != "epoch" and value is not None and not _is_text(value)
        }
        with self._writing("events.out"):
            self._add_events(row["epoch"], scalars)

    def _add_events(self, epoch, scalars):
        """Writes numbers for TensorBoard, by name, at once rather than by a thread of its own."""
        if self._events is None:
            self._events = EventsWriter(str(self.path / "events"), f".{os.getpid()}")
            # What an earlier process wrote from there on is no more.
            start = Event(step=self._first, session_log=SessionLog(status=SessionLog.START))
            self._events.write_event(start)
        for name, value in scalars.items():
            self._events.write_event(
                Event(wall_time=time.time(), step=epoch, summary=scalar(name, value))
            )
        self._events.flush()

    def rows(self, name):
        """The rows of metrics.csv or test_results.csv, as dictionaries of strings.

        Raises RunError where the file holds anything else.
        """
        path = self.path / name
        if not path.exists():
            return []
        try:
            text = path.read_text(encoding="utf-8")
            rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
            if text and not text.endswith("\n"):
                raise ValueError("its last line is cut")
            for row in rows:
                _check_row(row)
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, csv.Error) as error:
            raise RunError(f"{path}: is damaged ({error})") from error
        return rows

    def forget_after(self, epoch):
        """Drops the rows of later epochs: those that a run wrote after its last checkpoint."""
        for name in ("metrics.csv", "test_results.csv"):
            rows = self.rows(name)
            kept = [row for row in rows if int(row["epoch"]) <= epoch]
            if len(kept) < len(rows):
                self._write_rows(name, kept)

    def check_data(self, checksums):
        """Raises RunError where these are not the checksums of the data that the run began with."""
        if self.config["data"].get("sha256") != checksums:
            raise RunError(
                f"{self.path / 'config.json'}: is of a run on other data than are there now"
            )

    def go_on(self, checkpoint, state, epochs, sums, carry):
        """Makes ready to resume: restores the state, and sets the number of epochs.

        sums, carry: as for `TrainingState.restore`. Raises RunError, and changes no file, where
        the checkpoint, config.json and metrics.csv are not of one run.
        """
        self._check_config(checkpoint["config"])
        try:
            state.restore(checkpoint, sums, carry)
        except ValueError as error:
            raise RunError(f"{self.path / LAST}: cannot be resumed from: {error}") from error
        there = [int(row["epoch"]) for row in self.rows("metrics.csv")]
        if len(there) < state.epoch or there != list(range(1, len(there) + 1)):
            raise RunError(
                f"{self.path / 'metrics.csv'}: has no row for each of the {state.epoch} epochs of "
                f"{LAST}"
            )
        self.forget_after(state.epoch)
        self._first = state.epoch + 1
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

    def _check_config(self, saved):
        """Raises RunError where config.json says other than the config of a checkpoint."""
        for part in ("script", "arguments", "model", "data"):
            here, there = self.config[part], saved.get(part)
            if part == "arguments" and isinstance(there, dict):  # --resume may raise the epochs
                here, there = here | {"epochs": None}, there | {"epochs": None}
            if here != there:
                raise RunError(f"{self.path / 'config.json'}: its {part} are not those of {LAST}")

    def newest_checkpoint(self):
        """The path of the kept checkpoint of the latest epoch, or else of the last state."""
        epoch = max(self.kept, default=0)
        path = self.kept[epoch] if epoch else self.path / LAST
        if not path.is_file():
            raise RunError(f"{self.path}: has no checkpoint yet")
        return path

    def carry_out(self, state, epoch, minutes, finish=None):
        """Trains to the last epoch of the config; returns the exit code.

        epoch: a function of `check` that takes the state through what is left of an epoch, and
        calls check() where it may be interrupted: that saves the state and ends the run with the
        signal's code. minutes: the least time between two saves within an epoch, which check()
        does too. finish: a function like epoch, for what comes after the last one.
        """
        if not (self.path / LAST).exists():
            for name in ("e_0.pth.tar", LAST):  # the start, and what the first epoch resumes from
                self.save(name, state.checkpoint(self.config))
        saved = (state.epoch, state.batch)
        due = time.monotonic() + 60 * minutes

        def check():
            nonlocal saved, due
            interruption.check()
            if time.monotonic() >= due and (state.epoch, state.batch) != saved:
                self.save(LAST, state.checkpoint(self.config))
                saved = (state.epoch, state.batch)
                due = time.monotonic() + 60 * minutes

        try:
            with Interruption() as interruption:
                while state.epoch < self.config["arguments"]["epochs"]:
                    epoch(check)
                if finish is not None:
                    finish(check)
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
        """Closes the events, where there are any, and lets other processes have the run."""
        events, self._events = self._events, None
        if events is not None:
            with self._writing("events.out"):
                events.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

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
    """Writes bytes to a file that holds them all, or what it held before. Raises OSError.

    What a process that was killed here leaves, `.<name>.part`, the next write takes over.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what is said
            temporary.unlink(missing_ok=True)
        raise
    _keep_order(path.parent)


def _keep_order(folder):
    """Has the names in a folder on the disk, so that no later write survives a crash without it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


def read_config(path):
    """The config of a run. Raises RunError where path is no run's directory."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path}: no run, its config.json cannot be read ({reason})") from error
    kinds = {"script": str, "arguments": dict, "model": dict, "data": dict}
    kinds |= {"device": str, "started": str}
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), kind) for name, kind in kinds.items()
    ):
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


def _check_row(row):
    """Raises ValueError where a row is not made of numbers, its condition apart."""
    if None in row or None in row.values() or not row.get("epoch"):
        raise ValueError(f"a line does not fit the first: {list(row.values())}")
    int(row["epoch"])
    for name, value in row.items():
        if name != "condition" and value:
            float(value)
