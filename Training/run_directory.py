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

Checkpoints and config.json are written completely or not at all. An epoch's rows are written before
its checkpoints, and last.pth.tar has the sizes of both tables: resuming cuts off what came later.
Checkpoints hold tensors and plain values only.
"""

import contextlib
import csv
import datetime
import errno
import io
import itertools
import json
import os
import re
import socket
import sys
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from Training.config import RunError, identity, read_config, read_text, run_name

LAST, LOCK = "last.pth.tar", "lock"
TABLES = ("metrics.csv", "test_results.csv")
RESUME_FIELDS = ("started", "command", "commit", "code", "versions", "platform", "device")
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of a file system without locks


class Run:
    """The directory of one run: `Run.create` makes a new one, `Run(path)` opens an existing one.

    Raises RunError if path is not a run.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.config = read_config(self.path)
        self.sizes = dict.fromkeys(TABLES, 0)  # bytes of each table that belong to the run
        self._lock = None

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
        """Locks the run for this process, until `close` or the end of the process.

        Raises RunError if another process holds the lock. Warns where there are no locks.
        """
        self._lock = take_lock(self.path / LOCK)
        if self._lock is None:
            holder = (self.path / LOCK).read_text(errors="replace").strip()
            raise RunError(f"{self.path}: another process is training this run ({holder})")
        for leftover in self.path.glob(".*.part"):  # of a process that was killed
            leftover.unlink(missing_ok=True)

    def resume(self, config):
        """Locks the run and adds a resume to its config, which is config from now on.

        Raises RunError if the run is another script's, or its model or data differ. Warns if the
        code or the machine has changed.
        """
        self.lock()
        for part in ("script", "model", "data"):
            if config[part] != self.config[part]:
                raise RunError(f"{self.path}: the {part} of this run differs from the one given")
        before = self.config.get("resumed", [self.config])[-1]
        if before["code"] != config["code"]:
            self.print(
                f"warning: this run was begun with other code (commit {before['commit']}, now "
                f"{config['commit']}): its results are a mixture of both"
            )
        for part in ("device", "versions"):
            if before[part] != config[part]:
                self.print(
                    f"warning: {part} was {before[part]}, is {config[part]}: results may differ in "
                    "their last bits"
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
        """Writes a checkpoint, completely or not at all."""
        data = io.BytesIO()
        torch.save(checkpoint, data)
        self.write(name, data.getbuffer())

    def write(self, name, data):
        """Writes bytes to a path in the run, completely or not at all."""
        with writing(self.path / name) as path:
            if self.path.is_dir():  # do not recreate a run that was deleted
                path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)

    def write_config(self):
        """Writes config.json again."""
        self.write("config.json", json.dumps(self.config, indent=2).encode())

    def add_row(self, name, row):
        """Appends a row to a table. Raises RunError if the table was changed from outside."""
        text, size = io.StringIO(newline=""), self.sizes[name]
        writer = csv.DictWriter(text, row.keys(), lineterminator="\n")
        if size == 0:
            writer.writeheader()
        writer.writerow(row)
        with writing(self.path / name) as path, path.open("ab") as file:
            if file.tell() != size:
                raise RunError(f"{path}: has {file.tell()} bytes, but the run has written {size}")
            file.write(text.getvalue().encode())
            file.flush()  # unlike an unbuffered write, all of it or an error
            os.fsync(file.fileno())
            self.sizes[name] = file.tell()

    def cut_tables(self, sizes):
        """Drops the rows written after a checkpoint; sizes: those of the tables at it, in bytes.

        Raises RunError if a table is shorter.
        """
        for name, size in sizes.items():
            present = self._size(name)
            with writing(self.path / name) as path:
                if present < size:
                    raise RunError(f"{path}: has {present} bytes, {size} when {LAST} was saved")
                if present > size:
                    os.truncate(path, size)
        self.sizes = dict(sizes)

    def rows(self, name):
        """The rows of a table, as dictionaries of strings. Raises RunError if it is damaged."""
        path = self.path / name
        if not path.exists():
            return []
        try:
            rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
            for row in rows:
                int(row["epoch"])
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise RunError(f"{path}: damaged ({error})") from error
        return rows

    def finish(self):
        """Notes in config.json that the run has ended, and the sizes of what it left."""
        last = f"e_{self.config['arguments']['epochs']}.pth.tar"
        self.config["finished"] = self.sizes | {last: self._size(last)}
        self.write_config()

    @property
    def identity(self):
        """What distinguishes the run from others; see `config.identity`."""
        config = self.config
        return identity(config["script"], config["arguments"], config["data"])

    @property
    def complete(self):
        """Whether the run has ended, and its tables and last checkpoint are still there."""
        sizes = self.config.get("finished", {})
        return bool(sizes) and all(self._size(name) >= size for name, size in sizes.items())

    def _size(self, name):
        path = self.path / name
        return path.stat().st_size if path.exists() else 0

    @property
    def dry(self):
        """Whether the run used only part of each data set (--limit-batches)."""
        return self.config["arguments"].get("limit_batches") is not None

    @property
    def kept(self):
        """{epoch: path} of the kept checkpoints, in order."""
        matches = [re.fullmatch(r"e_(\d+)\.pth\.tar", name) for name in os.listdir(self.path)]
        epochs = sorted(int(match[1]) for match in matches if match)
        return {epoch: self.path / f"e_{epoch}.pth.tar" for epoch in epochs}

    def newest_checkpoint(self):
        """The path of the latest kept checkpoint, or else of the latest state."""
        epoch = max(self.kept, default=0)
        return self._present(f"e_{epoch}.pth.tar" if epoch else LAST)

    def tested_checkpoint(self):
        """The path of the checkpoint that --test evaluates: the best model if the run saves one."""
        best = self.config["arguments"].get("save")
        return self.newest_checkpoint() if best is None else self._present(best)

    def _present(self, name):
        if not (self.path / name).is_file():
            raise RunError(f"{self.path}: has no checkpoint yet ({name})")
        return self.path / name

    def close(self):
        """Releases the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def take_lock(path):
    """Locks a file until it is released or the process ends; None if another process holds it.

    Where the file system has no locks, warns and returns a lock that locks nothing. Raises RunError
    if the file cannot be written.
    """
    lock = FileLock(path)
    with writing(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
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
    """Writes bytes to a file completely, or leaves it unchanged. Raises OSError.

    If the process is killed here, `.<name>.<pid>.part` stays until the run is next locked.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
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


def find_runs(root):
    """The runs at or below root: a list of Run, complete ones first, then the newest first.

    Of runs with the same `identity` the first one counts. Directories whose config cannot be read
    are reported on stderr and skipped.
    """
    runs = []
    for folder, _, files in os.walk(root):
        if "config.json" in files:
            try:
                runs.append(Run(folder))
            except RunError as error:
                tqdm.write(f"skipped: {error}", file=sys.stderr)
    runs.sort(key=lambda run: datetime.datetime.fromisoformat(run.config["started"]), reverse=True)
    return sorted(runs, key=lambda run: not run.complete)
