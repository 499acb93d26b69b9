"""Fault injection: damages runs and files, and checks that nothing is lost.

    python3 -m tests.faults --rounds 20 --only kill --keep DIR

kill: a run is stopped at random times, by SIGKILL, SIGTERM or SIGINT, and resumed until it is done;
it must be bit-identical to an uninterrupted run. disk: a full disk or a moved directory; the run
must end with an error that names a file, and resume from its last checkpoint. files: a damaged file
is read; this must be an error in one line, with the name of the file, or do no harm. together:
several processes use the same directory.

The exit code is 1 if anything failed.
"""

import contextlib
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path
from unittest import mock

import torch

from NetworkCreation.checkpoints import LAST, load_model
from NetworkCreation.errors import UserError
from NetworkCreation.Networks import NETWORKS
from tests.conftest import MAINS, PTB, SMNIST, TOY, call_main, only_run_below, write_corpus
from tests.forks import Fork
from tests.test_scripts import assert_same_result
from Training import datasets
from Training.datasets import columns, load_text
from Training.parser import Parser
from Training.run_directory import TABLES
from Training.trainer import Trainer

OF_TASK = {SMNIST: ["-p", "--shuffle", "--transform-ratio", "0.5", "--batch", "10"], PTB: []}
# Every network with one script and then with the other.
CASES = [
    (list(TOY)[(number + turn) % 2], ["--net-type", name])
    for turn in range(2)
    for number, name in enumerate(NETWORKS)
]
SNAPSHOTS = ("0", "0.002")  # minutes
SIZE = ["--limit-batches", "5", "--epochs", "3", "--save-freq", "2"]
READING_SECONDS = 30
MEMORY = 2**32  # bytes for reading damaged files


class Hang(BaseException):
    """Reading takes too long. A BaseException: an Exception might be caught as an error."""


def train(script, arguments, limit):
    """Runs a script; limit: the maximum size in bytes of the files that it writes, or None."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in a process of its own
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return MAINS[script](arguments)


def start(script, *arguments, limit=None):
    """Starts a script in its own process."""
    return Fork(train, script, [str(a) for a in arguments], limit)


def until_it_runs(process):
    """Waits for the line that precedes training, or for the end of the process."""
    line, out = re.compile("^(device:|resumed).*\n", re.MULTILINE), Path(process.out.name)
    while not line.search(out.read_text(encoding="utf-8")) and not process.ended:
        time.sleep(0.01)


def flags_of(case):
    script, flags = case
    return [*TOY[script], *SIZE, *OF_TASK[script], *flags]


def undisturbed(folder, case):
    """An uninterrupted run and its training time in seconds; made once per folder."""
    place = folder / "_".join([case[0], *case[1]])
    if not place.exists():
        process = start(case[0], *flags_of(case), "--save-dir", place)
        until_it_runs(process)
        begun = time.monotonic()
        code, _, err = process.finish()
        assert code == 0, err
        (place / "seconds").write_text(str(time.monotonic() - begun))
    return only_run_below(place), float((place / "seconds").read_text())


def assert_nothing_lost(whole, torn):
    """The same files, with bit-identical rows and checkpoints."""
    names, left = (
        sorted(path.name for path in run.iterdir() if not path.name.startswith("events"))
        for run in (whole, torn)
    )
    assert left == names, f"files {left}, not {names}"
    assert_same_result(whole, torn, [name for name in names if name.endswith((".tar", ".pt"))])


def kill_round(folder, number, draw):
    """A run is stopped up to four times and resumed each time."""
    case = CASES[number % len(CASES)]
    whole, seconds = undisturbed(folder / "whole", case)
    place = folder / f"kill{number}"
    new = [*flags_of(case), "--save-dir", place, "--snapshot-minutes", draw.choice(SNAPSHOTS)]
    process = start(case[0], *new)
    for _ in range(draw.randint(1, 4)):
        stops = [signal.SIGKILL] * 4 + [signal.SIGTERM]
        if draw.random() < 0.9:
            until_it_runs(process)
            stops.append(signal.SIGINT)  # earlier, the server of the forks exits with code 1
        time.sleep(draw.uniform(0, seconds))
        ended = process.ended
        stop = draw.choice(stops)
        process.send_signal(stop)
        code, _, err = process.finish()
        if not ended:
            assert code in (0, -stop, 128 + stop) and "Traceback" not in err, f"{code} {err}"
        begun = any(place.rglob("config.json"))
        process = start(case[0], *(["--resume", only_run_below(place)] if begun else new))
    code, _, err = process.finish()
    assert code == 0, err
    assert_nothing_lost(whole, only_run_below(place))
    shutil.rmtree(place)


def disk_round(folder, number, draw):
    """The size of files is limited, or the directory is moved while the run writes to it."""
    case = CASES[number % len(CASES)]
    whole, seconds = undisturbed(folder / "whole", case)
    place, script = folder / f"disk{number}", case[0]
    arguments = [*flags_of(case), "--save-dir", place, "--snapshot-minutes", "0"]
    if (number + number // len(CASES)) % 2 == 0:
        limit = draw.randint(0, (whole / LAST).stat().st_size)
        code, _, err = start(script, *arguments, limit=limit).finish()
        assert code == 1 and err.count("\n") == 1, f"{code} {err}"
        assert "cannot be written (File too large)" in err and str(place) in err, err
        if not any(place.rglob(LAST)):
            return
        run = only_run_below(place)
    else:
        process = start(script, *arguments)
        until_it_runs(process)
        time.sleep(draw.uniform(0, seconds))
        gone, run = only_run_below(place), folder / f"disk{number}_kept"
        ended = process.ended
        gone.rename(run)
        if draw.random() < 0.5:
            gone.write_text("in the way")
        code, _, err = process.finish()
        if not ended and code:
            assert code == 1 and err.count("\n") == 1, f"{code} {err}"
            assert "cannot be" in err and str(gone) in err, err
        assert not gone.is_dir()
    code, _, err = start(script, "--resume", run).finish()
    assert code == 0, err
    assert_nothing_lost(whole, run)
    shutil.rmtree(place)
    shutil.rmtree(run, ignore_errors=True)


def together_round(folder, number, draw):
    """Eight runs start at once; two processes resume the same run."""
    place, script = folder / f"together{number}", draw.choice(list(TOY))
    small = [*TOY[script], "--epochs", "1", "--save-dir", place]
    codes = [process.finish()[0] for process in [start(script, *small) for _ in range(8)]]
    assert codes == [0] * 8 and len(list(place.rglob("config.json"))) == 8, codes
    run = draw.choice(list(place.rglob("config.json"))).parent
    first = start(script, "--resume", run, "--epochs", "100000")
    until_it_runs(first)
    code, _, err = start(script, "--resume", run).finish()
    assert code == 75 and err.count("\n") == 1 and "another process" in err, err
    first.send_signal(signal.SIGKILL)
    first.finish()
    shutil.rmtree(place)


def sound_files(folder):
    """Creates intact files: a run of each task, interrupted in its second epoch, and data."""
    step = Trainer.step

    def interrupted(trainer, *arguments, **sums):
        step(trainer, *arguments, **sums)
        if (trainer.epoch, trainer.batch) == (1, 1):
            signal.raise_signal(signal.SIGTERM)

    for script in TOY:
        flags = [*TOY[script], *OF_TASK[script], "--epochs", 2, "--save-freq", 1]
        with mock.patch.object(Trainer, "step", interrupted):
            code, _, err = call_main(MAINS[script], *flags, "--save-dir", folder / "runs")
        assert code == 143, err
        only_run_below(folder / "runs").rename(folder / script)
        shutil.rmtree(folder / "runs")
    write_corpus(folder / "pennchar", "a b _ c\nd é f\n".encode() * 40)


class Evil:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def damage_bytes(data, draw):
    """Bytes with a part cut, flipped, overwritten, removed or inserted, or entirely other bytes."""
    size = len(data)
    at = draw.choice([0, 1, 4, 16, size // 2, size - 1, size - 22, draw.randrange(size + 1)])
    at, length = max(0, min(at, size - 1)), draw.choice([1, 4, 64, 4096])
    before, after = data[:at], data[at + length :]
    flipped, places = bytearray(data), draw.choice([[at], [at], draw.choices(range(size), k=20)])
    for place in places:
        flipped[place] ^= 1 << draw.randrange(8)
    over = draw.choice([b"\0", b"\xff", b"9"]) * length
    other = [b"", b"\0" * size, b"\xff\xfe", b"[" * 100000, b"{}", b"null", draw.randbytes(size)]
    kinds = [before, *[bytes(flipped)] * 3, before + over + after, before + after]
    return draw.choice([*kinds, before + draw.randbytes(length) + data[at:], draw.choice(other)])


def damage_checkpoint(path, draw, marker):
    """Writes an intact file that is foreign, contains code, or belongs to another network."""
    kind = draw.random()
    if kind < 0.1:
        path.write_bytes(pickle.dumps({"state_dict": Evil(marker)}))
    elif kind < 0.2:
        torch.save({"state_dict": {"a": Evil(marker)}}, path)
    elif kind < 0.25:
        parts = zipfile.ZipFile(path).infolist()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # gigabytes in a few MB
            for part in parts:
                archive.writestr(part.filename, bytes(2**20) * 64)
    else:
        checkpoint = torch.load(path, weights_only=True)
        if kind < 0.6:
            state = checkpoint["state_dict"]
            name = draw.choice(list(state))
            other = [torch.cat([state[name].flatten()] * 2), torch.zeros(3, 5), torch.zeros(())]
            state[name] = draw.choice(other)
        elif kind < 0.85:
            del checkpoint[draw.choice(list(checkpoint))]
        else:
            checkpoint = draw.choice([[], None, 1, "text", {}, {"state_dict": []}, torch.ones(2)])
        torch.save(checkpoint, path)


def files_round(folder, number, draw):
    """Damages one file and reads it as the project does."""
    sound = folder / "sound"
    if not sound.exists():
        sound_files(sound)
    place, marker = folder / "damaged", folder / "executed"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(sound, place)
    script = draw.choice(list(TOY))
    kind = draw.choice([*[LAST, "tested checkpoint"] * 2, "config.json", *TABLES, "text"])
    tested = {SMNIST: "e_1.pth.tar", PTB: "model.pt"}[script]
    path = place / script / {"tested checkpoint": tested}.get(kind, kind)
    if kind == "text":
        path = place / "pennchar" / draw.choice(list(datasets.PENNCHAR_SHA256))
    if not path.exists():  # test_results.csv, which PTB writes at the end
        path.write_text("epoch,condition,loss,bits_per_character\n1,as_is,1.5,2.1\n")
    before = path.read_bytes()
    if path.suffix in (".tar", ".pt") and draw.random() < 0.6:
        damage_checkpoint(path, draw, marker)
        if draw.random() < 0.2:
            (other,) = {*TOY} - {script}
            shutil.copyfile(place / other / LAST, path)
    else:
        path.write_bytes(damage_bytes(before, draw))
    if path.read_bytes() == before:
        return
    signal.alarm(READING_SECONDS)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, limits[1]))
    try:
        error = read(kind, path, script)
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_DATA, limits)
    if error is not None and kind != "config.json":  # its values become flags, which are named
        assert path.name in error, f"{error!r} does not name {path.name}"
    assert "out of memory" not in (error or ""), error
    assert not marker.exists(), "code was executed"


def read(kind, path, script):
    """The error message for a damaged file; None if it does no harm."""
    if kind == "text":
        try:
            text = load_text("ptb", path.parents[1], any_corpus=True)
            streams = text.train, text.validation, text.test
            for stream, name in zip(streams, datasets.PENNCHAR_SHA256, strict=True):
                columns(stream, 10, name=name)
            return None
        except UserError as error:
            return str(error)
    if kind in ("tested checkpoint", LAST):
        with contextlib.suppress(UserError):
            load_model(path)
        # Names the data set: a checkpoint without a config is taken for one of the paper's code.
        arguments = ["--checkpoint", path, "--limit-batches", 1, *TOY[script][:2]]
        error = error_line(script, "--test", *arguments)
        if kind != LAST:
            return error
    return error_line(script, "--resume", path.parent)


def error_line(script, *flags):
    """The error of a script; None if it succeeds, or stops at a value that is not finite."""
    code, _, err = call_main(MAINS[script], *flags)
    if code == 0 or (code == 1 and not err):
        return None
    assert code in (1, 2) and err.count("\n") == 1, f"{code}\n{err}"
    return err


ROUNDS = dict(kill=kill_round, disk=disk_round, files=files_round, together=together_round)


def carry_out(kinds, rounds, seed, folder):
    """Runs rounds of each kind; returns the tracebacks of failures."""
    failures = []

    def hang(signum, frame):
        raise Hang(f"after {READING_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    for kind in kinds:
        for number in range(rounds):
            draw = random.Random(f"{seed} {kind} {number}")
            try:
                ROUNDS[kind](folder, number, draw)
            except (Exception, Hang):  # any exception is a failure
                failures.append(f"{kind} round {number}: {traceback.format_exc()}")
                print(failures[-1], file=sys.stderr, flush=True)
                if (folder / "damaged").exists():
                    shutil.copytree(folder / "damaged", folder / f"failed_{kind}_{number}")
    signal.signal(signal.SIGALRM, before)
    return failures


def main(argv=None):
    parser = Parser("python3 -m tests.faults", __doc__)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each kind")
    parser.add_argument("--only", nargs="+", choices=ROUNDS, default=list(ROUNDS), help="kinds")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all files in this folder")
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        failures = carry_out(args.only, args.rounds, args.seed, folder.resolve())
    print(f"{args.rounds} rounds of {', '.join(args.only)}: {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
