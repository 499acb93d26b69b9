"""What a run leaves: its directory.

    <save_dir>/<task>/<seed>/<net>_lr<lr>_p<ratio>_hs<nhid>[_<nonlin>]/<date>[--k]/
        config.json         resolved arguments, command, commit, versions, device, data, model
        log.txt             what was printed
        metrics.csv         one row per epoch
        test_results.csv    one row per evaluation of the test set
        e_<epoch>.pth.tar   kept checkpoints {'state_dict', 'optimizer', 'epoch', …}; e_0: the start
        last.pth.tar        the newest state, from which a run resumes
        events.out.*        for TensorBoard
        lock                held by the process that trains the run

Every file except the log and the events is written completely or not at all, an epoch's metrics
before its checkpoints. Checkpoints hold tensors and plain values.
"""

import contextlib
import csv
import datetime
import errno
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LAST = "last.pth.tar"
LOCK = "lock"
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "tensorboardX")
MODE = ("test", "checkpoint", "resume")  # flags that say what to do, not part of a run
RENAMED = {"gain": "n", "saturation": "s", "batch": "batch_size"}  # arguments of earlier versions


class RunError(Exception):
    """A run directory is missing, damaged, not writable, or locked by another process."""


def describe(parser, args, spec, data, device):
    """The config of a run: all that is needed to know and to repeat it, as plain values.

    parser: of the script, after parsing. args: resolved arguments. spec: of the model. data: name
    and `sha256` of the data set.
    """
    config = {
        "script": parser.prog,
        "arguments": {name: value for name, value in vars(args).items() if name not in MODE},
        "model": spec,
        "data": data,
        "command": parser.command,
        "commit": _commit(),
        "started": datetime.datetime.now().astimezone().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **_versions(),
            "cuda": torch.version.cuda,  # that torch is built for; None for the CPU
        },
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }
    return plain(config)


def plain(values):
    """Values as they come back from JSON: tuples become lists, paths absolute strings."""
    return json.loads(json.dumps(values, default=lambda path: str(path.absolute())))


def device_name(device):
    """The name of a device, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _versions():
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {name: installed.get(name.lower()) for name in PACKAGES}


def _commit():
    """The commit of the code, with a + for uncommitted changes; None without git."""
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe"]
    command += ["--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def is_run_file(name):
    """Whether a run has a file of this name, or will have."""
    names = ("config.json", "log.txt", "metrics.csv", "test_results.csv", LAST, LOCK)
    return name in names or re.match(r"events\.out\.|e_\d+\.pth\.tar$", name) is not None


def run_name(args):
    """The name of the directory shared by runs with these arguments."""
    ratio = getattr(args, "transform_ratio", 0.0)
    name = f"{args.net_type}_lr{args.lr}_p{ratio}_hs{args.nhid}"
    return name if args.nonlin is None else f"{name}_{args.nonlin}"


class Run:
    """The directory of one run: `Run.create` makes a new one, `Run(path)` opens an existing one.

    Raises RunError if path is not a run.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.config = read_config(self.path)
        self._first = 1  # the epoch of the first row that this process adds
        self._events = None
        self._lock = None

    @classmethod
    def create(cls, args, task, config):
        """A new directory with its config, the next free one of today, locked.

        args: resolved arguments. task: name of the first folder below --save-dir.
        Raises RunError if it cannot be written, and then leaves no new directory behind.
        """
        parent = args.save_dir / task / str(args.seed) / run_name(args)
        path, new = None, []
        try:
            new = [folder for folder in (parent, *parent.parents) if not folder.exists()]
            parent.mkdir(parents=True, exist_ok=True)
            path = _next_free(parent / datetime.date.today().isoformat())
            write_whole(path / "config.json", json.dumps(config, indent=2).encode())
        except OSError as error:
            for folder in new if path is None else [path, *new]:
                with contextlib.suppress(OSError):  # not empty: another run has begun in it
                    folder.rmdir()
            raise RunError(f"{parent}: cannot be written ({error.strerror})") from error
        run = cls(path)
        run.lock()
        run.print(f"run: {path}\ndevice: {config['device']}")
        return run

    def lock(self):
        """Reserves the run for this process until it closes it or ends, in whatever way.

        Raises RunError if another process holds it. Warns where locks are not supported.
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
                f"{self.path / LOCK}: cannot be locked ({error.strerror}): make sure that no other "
                "process resumes this run"
            )
        self.config = read_config(self.path)  # as the process that held it left it

    def print(self, text):
        """Prints a line, above a progress bar if there is one, and appends it to log.txt."""
        with _Writing("standard output"):
            tqdm.write(text)
            sys.stdout.flush()
        with self._writing("log.txt"), (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def save(self, name, checkpoint):
        """Writes a checkpoint to a path in the run, or an absolute one."""
        data = io.BytesIO()
        torch.save(checkpoint, data)
        self.write(name, data.getbuffer())

    def write(self, name, data):
        """Writes bytes to a path in the run, or an absolute one, completely or not at all."""
        with self._writing(name):
            if self.path.is_dir():  # a run that was removed does not come back
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / name, data)

    def write_config(self):
        """Writes config.json again."""
        self.write("config.json", json.dumps(self.config, indent=2).encode())

    def add_row(self, name, row):
        """Adds a row to metrics.csv or test_results.csv, and its numbers to the events."""
        rows = [*self.rows(name), {k: "" if v is None else str(v) for k, v in row.items()}]
        if rows[0].keys() != row.keys():
            raise RunError(f"{self.path / name}: damaged, its columns are not those of a new row")
        self._write_rows(name, rows)
        texts = [value for value in row.values() if isinstance(value, str)]
        group = "/".join([name.removesuffix(".csv"), *texts])
        with self._writing("events.out"):
            for key, value in row.items():
                if key != "epoch" and isinstance(value, (int, float)):
                    self._add_event(row["epoch"], f"{group}/{key}", value)
            self._events.flush()

    def _add_event(self, epoch, name, value):
        """Writes a number for TensorBoard here, not in a thread that would hide its errors."""
        if self._events is None:
            self._events = EventsWriter(str(self.path / "events"), f".{os.getpid()}")
            # Makes TensorBoard drop what an interrupted process wrote from this epoch on.
            start = Event(step=self._first, session_log=SessionLog(status=SessionLog.START))
            self._events.write_event(start)
        event = Event(wall_time=time.time(), step=epoch, summary=scalar(name, value))
        self._events.write_event(event)

    def rows(self, name):
        """The rows of metrics.csv or test_results.csv, as dictionaries of strings.

        Raises RunError if the file is damaged.
        """
        path = self.path / name
        if not path.exists():
            return []
        try:
            text = path.read_text(encoding="utf-8")
            rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
            if text and not text.endswith("\n"):
                raise ValueError("the last line is cut")
            for row in rows:
                _check_row(row)
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, csv.Error) as error:
            raise RunError(f"{path}: damaged ({error})") from error
        return rows

    def resume_after(self, epoch):
        """Drops the rows of later epochs, written after the checkpoint that the run resumes from.

        Raises RunError if an epoch has no row.
        """
        epochs = [int(row["epoch"]) for row in self.rows("metrics.csv")]
        if len(epochs) < epoch or epochs != list(range(1, len(epochs) + 1)):
            raise RunError(
                f"{self.path / 'metrics.csv'}: lacks rows of the {epoch} epochs in {LAST}"
            )
        for name in ("metrics.csv", "test_results.csv"):
            rows = self.rows(name)
            kept = [row for row in rows if int(row["epoch"]) <= epoch]
            if len(kept) < len(rows):
                self._write_rows(name, kept)
        self._first = epoch + 1

    def check_config(self, saved):
        """Raises RunError if config.json differs from the config in a checkpoint."""
        if saved is None:
            raise RunError(f"{self.path / LAST}: has no config")
        saved = saved | {"arguments": current_names(saved["arguments"])}
        for part in ("script", "arguments", "model", "data"):
            here, there = self.config[part], saved[part]
            if part == "arguments":  # --resume may raise the number of epochs
                here, there = here | {"epochs": None}, there | {"epochs": None}
            if here != there:
                raise RunError(f"{self.path / 'config.json'}: {part} differ from those in {LAST}")

    def check_data(self, checksums):
        """Raises RunError if these are not the checksums of the data that the run began with."""
        if self.config["data"].get("sha256") != checksums:
            raise RunError(f"{self.path / 'config.json'}: the run used other data than these")

    @property
    def complete(self):
        """Whether the last epoch has been trained and the test set evaluated after it."""
        last = self.config["arguments"]["epochs"]
        scored = any(int(row["epoch"]) == last for row in self.rows("test_results.csv"))
        return scored and (self.path / f"e_{last}.pth.tar").is_file()

    @property
    def kept(self):
        """{epoch: path} of the kept checkpoints, in order."""
        found = {}
        for path in self.path.glob("e_*.pth.tar"):
            if epoch := re.fullmatch(r"e_(\d+)\.pth\.tar", path.name):
                found[int(epoch[1])] = path
        return dict(sorted(found.items()))

    def newest_checkpoint(self):
        """The path of the kept checkpoint of the latest epoch, or else of the last state."""
        epoch = max(self.kept, default=0)
        return self._existing(self.kept[epoch] if epoch else self.path / LAST)

    def scored_checkpoint(self):
        """The path of what the test set is evaluated with: the best model of a text, if that is
        what the run saves, or else the newest checkpoint."""
        best = self.config["arguments"].get("save")
        return self.newest_checkpoint() if best is None else self._existing(self.path / best)

    def _existing(self, path):
        if not path.is_file():
            raise RunError(f"{self.path}: has no checkpoint {path.name} yet")
        return path

    def close(self):
        """Closes the events and releases the lock."""
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
        self.write(name, text.getvalue().encode())

    def _writing(self, name):
        return _Writing(self.path / name)


class _Writing:
    """Turns the system's refusal to write a file into a RunError with its name."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, OSError):
            raise RunError(f"{self.path}: cannot be written ({error.strerror})") from error


def write_whole(path, data):
    """Writes bytes to a file, which then holds all of them or what it held before.

    Raises OSError. A process killed here leaves `.<name>.part`, which the next write replaces.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder):
    """Puts the names in a folder on disk, so that no later write survives a crash without them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by the file system
            raise
    finally:
        os.close(descriptor)


def read_config(path):
    """The config of a run. Raises RunError if path is not a run's directory."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path}: not a run, config.json cannot be read ({reason})") from error
    kinds = {"script": str, "arguments": dict, "model": dict, "data": dict}
    kinds |= {"device": str, "started": str}
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), kind) for name, kind in kinds.items()
    ):
        raise RunError(f"{path}: not a run, config.json lacks {', '.join(kinds)}")
    config["arguments"] = current_names(config["arguments"])
    return config


def current_names(arguments):
    """Saved arguments of this or an earlier version under their present names."""
    named = {RENAMED.get(name, name): value for name, value in arguments.items()}
    return named | ({"nonlin": "ReLU"} if named.get("nonlin") == "relu" else {})


def find_runs(root, script=None, **arguments):
    """The runs below root with these saved arguments, newest first: a list of Run.

    script: file name of the task script, None for any. Directories whose config cannot be read
    are reported on stderr and skipped.
    """
    found = []
    for path in sorted(Path(root).rglob("config.json")):
        try:
            run = Run(path.parent)
        except RunError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        if script in (None, run.config["script"]) and has_arguments(run, arguments):
            found.append(run)
    return sorted(found, key=lambda run: run.config["started"], reverse=True)


def has_arguments(run, arguments):
    """Whether a run was started with these arguments, {name: value} of some of them."""
    saved = run.config["arguments"]
    return all(name in saved and saved[name] == value for name, value in arguments.items())


def _next_free(path):
    """Makes the directory path, or path--1, path--2, … if those before it exist."""
    number = 0
    while True:
        candidate = path if number == 0 else path.with_name(f"{path.name}--{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            number += 1
        else:
            return candidate


def _check_row(row):
    """Raises ValueError unless a row is made of numbers, apart from its condition."""
    if None in row or None in row.values() or not row.get("epoch"):
        raise ValueError(f"a line does not fit the header: {list(row.values())}")
    int(row["epoch"])
    for name, value in row.items():
        if name != "condition" and value:
            float(value)
