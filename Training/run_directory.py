"""The directory of a run.

    <save_dir>/<task>/<seed>/<net>_lr<lr>_p<ratio>_hs<nhid>[_<nonlin>]/<date>[--k]/
        config.json         resolved arguments, command, commit, versions, device, data, model;
                            `resumed`: the same of every resume
        log.txt             what was printed
        metrics.csv         one row per epoch
        test_results.csv    one row per evaluation of the test set
        e_<epoch>.pth.tar   kept checkpoints {'state_dict', 'optimizer', 'epoch', …}; e_0: the start
        last.pth.tar        the newest state, from which a run resumes
        events/             for TensorBoard
        lock                held by the process that trains the run

Every file except the log and the events is written completely or not at all; an epoch's metrics are
written before its checkpoints. Checkpoints hold tensors and plain values only.
"""

import contextlib
import csv
import datetime
import errno
import functools
import io
import json
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from Training.output import OutputError, printable, report, say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LAST = "last.pth.tar"
LOCK = "lock"
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "tensorboard")
MODE = ("test", "checkpoint", "resume")  # flags that choose what to do; not saved
# Flags that say where and how a run is trained, not what: may be given anew on resuming.
HOW = ("data", "cuda", "snapshot_minutes", "verbose", "note")
PART = ("started", "command", "commit", "versions", "platform", "device", "threads")  # of a resume
RENAMED = {"gain": "n", "saturation": "s", "batch": "batch_size"}  # arguments of earlier versions


class RunError(Exception):
    """A run directory is missing, damaged, not writable, or locked by another process."""


def describe(parser, args, spec, data, device):
    """The config of a run, from which it can be repeated, as plain values.

    parser: the script's, after parsing. args: resolved arguments. spec: the model's. data: name and
    `sha256` of the data set, and its size.
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
            "cuda": torch.version.cuda,  # None in a CPU build
        },
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }
    return plain(config)


def plain(values):
    """Values as JSON returns them: tuples become lists, paths absolute strings."""
    return json.loads(json.dumps(values, default=lambda path: str(path.absolute())))


def device_name(device):
    """The name of a device, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


@functools.cache
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
    """Whether this is the name of a run's own files."""
    names = ("config.json", "log.txt", "metrics.csv", "test_results.csv", "events", LAST, LOCK)
    name = re.sub(r"^\.(.*)\.part$", r"\1", name)  # of `part_of`
    return name in names or re.fullmatch(r"e_\d+\.pth\.tar", name) is not None


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
        self._events = {}
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
        """Locks the run for this process, until the run is closed or the process ends.

        Raises RunError if another process holds the lock. Warns where locks are not supported.
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
        self.config = read_config(self.path)  # another process may have changed it

    def state(self, read):
        """The checkpoint to resume from, or None for a run that ended before it saved one.

        read: function from a path to a checkpoint. Raises RunError if config.json is not that of
        the checkpoint.
        """
        if not (self.path / LAST).exists() and not any(self.kept) and not self.rows("metrics.csv"):
            return None
        checkpoint = read(self.path / LAST)
        self.check_config(checkpoint.get("config"))
        return checkpoint

    def resume(self, config):
        """Adds a resume to the config, without writing it yet; returns the run.

        config: from `describe`. Raises RunError if the data differ from the run's. Warns of changes
        that may affect the last bits of the results.
        """
        self.check_data(config["data"]["sha256"])
        parts = self.config.get("resumed", [])
        before, now = _settings(parts[-1] if parts else self.config), _settings(config)
        changes = [f"{k} was {before[k]}, is {v}" for k, v in now.items() if before[k] != v]
        if changes:
            self.print(f"warning: {'; '.join(changes)}: results may differ in their last bits")
        arguments = {k: v for k, v in config["arguments"].items() if k in (*HOW, "epochs")}
        part = {name: config[name] for name in PART} | {"arguments": arguments}
        self.config["arguments"] |= arguments
        self.config["resumed"] = [*parts, part]
        return self

    def print(self, text):
        """Prints a line, above a progress bar if there is one, and appends it to log.txt.

        If standard output fails, the run goes on with log.txt alone.
        """
        text = printable(text)
        try:
            say(text)
        except OutputError as error:
            report(f"{error}; the run goes on: {self.path / 'log.txt'}")
        with self._writing("log.txt"), (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def save(self, name, checkpoint):
        """Writes a checkpoint to a path in the run."""
        data = io.BytesIO()
        torch.save(checkpoint, data)
        self.write(name, data.getbuffer())

    def write(self, name, data):
        """Writes bytes to a path in the run, completely or not at all."""
        with self._writing(name):
            if self.path.is_dir():  # do not recreate a run that was deleted
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / name, data)

    def write_config(self):
        """Writes config.json again."""
        self.write("config.json", json.dumps(self.config, indent=2).encode())

    def add_row(self, name, row):
        """Adds a row to metrics.csv or test_results.csv, and its numbers to the events.

        In TensorBoard, training, validation and test are lines of one chart.
        """
        self.put_row(name, row)
        for key, value in row.items():
            if key != "epoch" and isinstance(value, (int, float)):
                found = re.match(r"(train|validation_transformed|validation)_", key)
                line = found[1] if found else "train"
                if "condition" in row:
                    line = f"test_{row['condition']}"
                self.add_event(line, row["epoch"], key.removeprefix(f"{line}_"), value)
        with self._writing("events"):
            for writer in self._events.values():
                writer.flush()

    def put_row(self, name, row):
        """Adds a row to metrics.csv or test_results.csv; replaces one of the same epoch and
        condition."""
        rows = [*self.rows(name), {k: "" if v is None else str(v) for k, v in row.items()}]
        if rows[0].keys() != row.keys():
            raise RunError(f"{self.path / name}: damaged, its columns are not those of a new row")
        unique = {(old["epoch"], old.get("condition")): old for old in rows}
        self._write_rows(name, list(unique.values()))

    def add_event(self, line, step, chart, value):
        """Adds a point to a line of a TensorBoard chart (TensorBoard calls a line a run)."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, only needed here

        with self._writing("events"):
            if line not in self._events:
                if not self.path.is_dir():  # do not recreate a run that was deleted
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                # TensorBoard then ignores what an interrupted process wrote from this step on.
                folder = self.path / "events" / line
                self._events[line] = SummaryWriter(str(folder), purge_step=step)
            self._events[line].add_scalar(chart, value, step)

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

    def resume_after(self, epoch, columns=None):
        """Drops the rows of epochs after this one, which the run resumes from.

        columns: those that metrics.csv must have, if given. Raises RunError if it has others or
        lacks the row of an epoch.
        """
        metrics = self.rows("metrics.csv")
        if metrics and columns is not None and list(metrics[0]) != columns:
            names = ", ".join(sorted({*metrics[0]} ^ {*columns})) or "their order"
            raise RunError(f"{self.path / 'metrics.csv'}: has other columns than a run: {names}")
        epochs = [int(row["epoch"]) for row in metrics]
        if len(epochs) < epoch or epochs != list(range(1, len(epochs) + 1)):
            raise RunError(
                f"{self.path / 'metrics.csv'}: lacks rows of the {epoch} epochs in {LAST}"
            )
        for name in ("metrics.csv", "test_results.csv"):
            rows = self.rows(name)
            kept = [row for row in rows if int(row["epoch"]) <= epoch]
            if len(kept) < len(rows):
                self._write_rows(name, kept)

    def check_config(self, saved, name=LAST):
        """Raises RunError if config.json differs from the config in the checkpoint `name`."""
        if saved is None:
            raise RunError(f"{self.path / name}: has no config")
        saved = saved | {"arguments": current_names(saved["arguments"])}
        for part in ("script", "arguments", "model", "data"):
            here, there = self.config[part], saved[part]
            if part == "arguments":  # these may be given anew
                anew = dict.fromkeys((*HOW, "epochs"))
                here, there = here | anew, there | anew
            if here != there:
                raise RunError(f"{self.path / 'config.json'}: {part} differ from those in {name}")

    def check_data(self, checksums):
        """Raises RunError if these checksums differ from those of the run's data."""
        if self.config["data"].get("sha256") != checksums:
            raise RunError(f"{self.path / 'config.json'}: the run used other data than these")

    @property
    def complete(self):
        """Whether the last epoch has been trained and the test set evaluated after it."""
        last = self.config["arguments"]["epochs"]
        return self.evaluated(last) and (self.path / f"e_{last}.pth.tar").is_file()

    def evaluated(self, epoch):
        """Whether training has evaluated the test set after an epoch (--test does not count)."""
        conditions = ("as_is", "best")
        rows = [row for row in self.rows("test_results.csv") if row.get("condition") in conditions]
        return any(int(row["epoch"]) == epoch for row in rows)

    @property
    def kept(self):
        """{epoch: path} of the kept checkpoints, in order."""
        found = {}
        for path in self.path.glob("e_*.pth.tar"):
            if epoch := re.fullmatch(r"e_(\d+)\.pth\.tar", path.name):
                found[int(epoch[1])] = path
        return dict(sorted(found.items()))

    def newest_checkpoint(self):
        """The path of the latest kept checkpoint, or else of the newest state."""
        epoch = max(self.kept, default=0)
        return self._existing(self.kept[epoch] if epoch else self.path / LAST)

    def scored_checkpoint(self):
        """The path of the checkpoint that --test evaluates: the best model if the run saves one,
        else the newest checkpoint."""
        best = self.config["arguments"].get("save")
        if best is None:
            return self.newest_checkpoint()
        if os.path.isabs(best):  # of an earlier version; two runs may have the same
            raise RunError(f"{self.path}: its best model is not in the run, but at {best}")
        return self._existing(self.path / best)

    def _existing(self, path):
        if not path.is_file():
            raise RunError(f"{self.path}: has no checkpoint {path.name} yet")
        return path

    def close(self):
        """Closes the events and releases the lock."""
        events, self._events = self._events, {}
        with self._writing("events"):
            for writer in events.values():
                writer.close()
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
    """Turns an OSError into a RunError that names the file."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, OSError):
            raise RunError(f"{self.path}: cannot be written ({error.strerror})") from error


def write_whole(path, data):
    """Writes bytes to a file completely, or leaves it unchanged.

    Raises OSError. If the process is killed here, `.<name>.part` stays until the next write.
    """
    temporary = part_of(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # report the first error
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def part_of(path):
    """The temporary file that `write_whole` writes first."""
    return path.with_name(f".{path.name}.part")


def _sync_folder(folder):
    """Flushes a folder's entries to disk, so that files survive a crash in the order written."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by the file system
            raise
    finally:
        os.close(descriptor)


def keep_results(path, checkpoint, results, limit, checksums):
    """Adds the results of --test to test_results.csv of the checkpoint's run, if it is in one.

    results: {condition: {column: number}}; the file prefixes conditions with `test_`. limit: the
    --limit-batches. checksums: of the data. If the results cannot be added, for example because
    another process is training the run, prints why.
    """
    folders = path.resolve().parents
    folder = next((one for one in folders if (one / "config.json").is_file()), None)
    if folder is None:
        return
    try:
        if checkpoint.get("batch"):
            raise RunError(f"{path.name} was saved within an epoch")
        if limit is not None:
            raise RunError("--limit-batches evaluates only part of the test set")
        with contextlib.closing(Run(folder)) as run:
            run.check_config(checkpoint.get("config"), path.name)
            run.check_data(checksums)
            run.lock()
            for condition, result in results.items():
                row = {"epoch": checkpoint["epoch"], "condition": f"test_{condition}", **result}
                run.put_row("test_results.csv", row)
    except RunError as error:
        say(f"not added to test_results.csv: {error}")
    else:
        say(f"added to {run.path / 'test_results.csv'}")


def _settings(part):
    """What the last bits of results depend on; part: a config or an entry of its `resumed`."""
    versions = part.get("versions")
    torch_version = versions.get("torch") if isinstance(versions, dict) else None
    found = {name: part.get(name) for name in ("device", "commit")}  # the CPU's has its threads
    return found | {"torch": torch_version}


def read_config(path):
    """The config of a run. Raises RunError if path is not a run's directory."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path}: not a run, config.json cannot be read ({reason})") from error
    kinds = {"script": str, "arguments": dict, "model": dict, "data": dict}
    kinds |= {"device": str, "started": str}
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), kind) for name, kind in kinds.items()
    ):
        raise RunError(f"{path}: not a run, config.json lacks {', '.join(kinds)}")
    parts = config.get("resumed", [])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RunError(f"{path}: not a run, `resumed` in config.json is not a list of parts")
    config["arguments"] = current_names(config["arguments"])
    return config


def current_names(arguments):
    """Saved arguments of this or an earlier version under their current names."""
    named = {RENAMED.get(name, name): value for name, value in arguments.items()}
    return named | ({"nonlin": "ReLU"} if named.get("nonlin") == "relu" else {})


def find_runs(root, script=None, **arguments):
    """The runs below root with these saved arguments, newest first: a list of Run.

    Symbolic links are followed. script: file name of the task script, None for any. Directories
    whose config cannot be read are reported on stderr and skipped.
    """
    found = []
    for path in sorted(_folders(Path(root))):
        try:
            run = Run(path)
        except RunError as error:
            report(f"skipped: {printable(str(error))}")
            continue
        if script in (None, run.config["script"]) and has_arguments(run, arguments):
            found.append(run)
    return sorted(found, key=lambda run: run.config["started"], reverse=True)


def _folders(root):
    """The folders with a config.json at or below root, each once; follows symbolic links."""
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True):
        below.sort()
        if (place := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(place)
        if "config.json" in files:
            yield Path(folder)


def has_arguments(run, arguments):
    """Whether a run has these arguments, {name: value}, among its own."""
    saved = run.config["arguments"]
    return all(name in saved and saved[name] == value for name, value in arguments.items())


def _next_free(path):
    """Creates the directory path, or the first of path--1, path--2, … that does not exist."""
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
