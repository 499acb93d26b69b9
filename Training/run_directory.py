"""The directory of a run.

    <save_dir>/<task>/<seed>/<net>_lr<lr>_p<ratio>_hs<nhid>[_<nonlin>][_n<n>_s<s>][_static]/<date>[--k]/
        config.json         arguments, command, commit, versions, device, data and model;
                            `resumed`: the same for every resume; `finished`: what was left
        log.txt             what was printed
        metrics.csv         one row per epoch
        test_results.csv    one row per evaluation of the test set
        e_<epoch>.pth.tar   checkpoints {'state_dict', 'optimizer', 'epoch', …}; e_0: the start
        last.pth.tar        the latest state, from which a run resumes
        events.out.…        for TensorBoard
        lock                host and process id of the process that trains the run

All but the log and the events are written completely or not at all. last.pth.tar has the text of
both tables, so that resuming drops later rows. Checkpoints hold tensors and plain values only.
"""

import contextlib
import csv
import datetime
import errno
import io
import itertools
import json
import os
import socket
import sys
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from NetworkCreation.checkpoints import kept_checkpoints
from Training.config import RunError, identity, read_config, run_name

LOCK = "lock"
TABLES = ("metrics.csv", "test_results.csv")
RESUME_FIELDS = ("started", "command", "commit", "code", "versions", "platform", "device")
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of a file system without locks


class RunBusy(RunError):
    """Another process is training the run."""

    exit_code = os.EX_TEMPFAIL


class Run:
    """The directory of a run: `Run.create` makes a new one, `Run(path)` opens an existing one."""

    def __init__(self, path):
        self.path = Path(path)
        self.config = read_config(self.path)
        self.tables = dict.fromkeys(TABLES, "")  # the text of each table

    @classmethod
    def create(cls, args, config):
        """A new directory, the next free one of today, locked. Raises RunError."""
        parent = args.save_dir / config["task"] / str(args.seed) / run_name(args)
        with writing(parent):
            parent.mkdir(parents=True, exist_ok=True)
            today = datetime.date.today().isoformat()
            for number in itertools.count():
                path = parent / (f"{today}--{number}" if number else today)
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    break
        write_whole(path / "config.json", json.dumps(config, indent=2).encode())
        run = cls(path)
        run.lock()
        return run

    def lock(self):
        """Locks the run for this process, until `close` or the end of the process."""
        self._lock = take_lock(self.path / LOCK)
        for leftover in self.path.glob(".*.part"):  # of a process that was killed
            leftover.unlink(missing_ok=True)

    def resume(self, config):
        """Locks the run and adds a resume to its config, which is config from now on.

        Raises RunError if its model or data differ. Warns if the code or the machine has changed.
        """
        self.lock()
        for part in ("model", "data"):
            if config[part] != self.config[part]:
                raise RunError(f"{self.path}: the {part} of this run differs from the one given")
        before = self.config.get("resumed", [self.config])[-1]
        for part, name in (("code", "commit"), ("device", "device"), ("versions", "versions")):
            if before[part] != config[part]:
                self.print(
                    f"warning: this run was begun with other {part} ({name} {before[name]}, now "
                    f"{config[name]}): its results are a mixture of both"
                )
        resume = {name: config[name] for name in RESUME_FIELDS}
        self.config.setdefault("resumed", []).append(resume)
        self.config["arguments"] = config["arguments"]
        self.config.pop("finished", None)
        self.write_config()

    def print(self, text):
        """Prints a line, above a progress bar if there is one, and appends it to log.txt."""
        tqdm.write(text)
        with writing(self.path / "log.txt") as path, path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def save(self, name, checkpoint):
        """Writes a checkpoint."""
        data = io.BytesIO()
        torch.save(checkpoint, data)
        write_whole(self.path / name, data.getbuffer())

    def write_config(self):
        """Writes config.json again."""
        write_whole(self.path / "config.json", json.dumps(self.config, indent=2).encode())

    def add_row(self, name, row):
        """Appends a row, {column: value}, to a table."""
        text = io.StringIO(newline="")
        columns = (self.tables[name].partition("\n")[0] or ",".join(row)).split(",")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if not self.tables[name]:
            writer.writeheader()
        writer.writerow(row)
        self.write_table(name, self.tables[name] + text.getvalue())

    def write_table(self, name, text):
        """Replaces the text of a table."""
        self.tables[name] = text
        if text:
            write_whole(self.path / name, text.encode())
        else:
            (self.path / name).unlink(missing_ok=True)

    def finish(self):
        """Notes in config.json that the run has ended, and which files it left."""
        names = [*TABLES, f"e_{self.config['arguments']['epochs']}.pth.tar"]
        self.config["finished"] = [name for name in names if (self.path / name).exists()]
        self.write_config()

    @property
    def complete(self):
        """Whether the run has ended, and its tables and last checkpoint are still there."""
        left = self.config.get("finished", [])
        return bool(left) and all((self.path / name).exists() for name in left)

    @property
    def identity(self):
        """What distinguishes the run from others; see `config.identity`."""
        return identity(self.config)

    @property
    def dry(self):
        """Whether the run used only part of each data set (--limit-batches)."""
        return self.config["arguments"].get("limit_batches") is not None

    @property
    def kept(self):
        """{epoch: path} of the kept checkpoints, in order."""
        return kept_checkpoints(self.path)

    def close(self):
        """Releases the lock."""
        self._lock.release()


def take_lock(path):
    """Locks a file until it is released or the process ends.

    Where the file system has no locks, warns and returns a lock that locks nothing. Raises RunBusy
    if another process holds the lock, and RunError if the file cannot be written.
    """
    lock = FileLock(path, fallback_to_soft=False)  # a killed process would hold a soft one forever
    with writing(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = path.read_text(errors="replace").strip()
            raise RunBusy(f"{path}: another process is training this run ({holder})") from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            tqdm.write(
                f"warning: {path}: this file system has no locks; make sure that no other process "
                "trains this run",
                file=sys.stderr,
            )
        path.write_text(f"{socket.gethostname()}, process {os.getpid()}\n")
    return lock


@contextlib.contextmanager
def writing(path):
    """Turns an OSError into a RunError that names the path."""
    try:
        yield path
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error


def write_whole(path, data):
    """Writes bytes to a file completely, or leaves it unchanged. Raises RunError.

    If the process is killed here, `.<name>.<pid>.part` stays until the run is next locked.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # report the first error
                temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that files survive a crash in the order written
        finally:
            os.close(folder)


def run_directories(root):
    """The paths of the directories at or below root that have a config.json."""
    # Not by rglob, which fails if a folder is deleted meanwhile.
    return [Path(folder) for folder, _, files in os.walk(root) if "config.json" in files]


def find_runs(root):
    """The runs at or below root, complete ones first, then the newest first.

    Of runs with the same `identity` the first one counts. Damaged ones are named and skipped.
    """
    runs = []
    for path in run_directories(root):
        try:
            runs.append(Run(path))
        except RunError as error:
            tqdm.write(f"skipped: {error}", file=sys.stderr)
    started = datetime.datetime.fromisoformat
    return sorted(runs, key=lambda r: (r.complete, started(r.config["started"])), reverse=True)
