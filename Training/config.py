"""The config of a run: what it trains, on which data, with which code."""

import contextlib
import datetime
import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from NetworkCreation.errors import UserError
from Training.machine import REPOSITORY

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "tensorboardX")
# Flags that do not affect what is trained: they may change when a run is resumed, and two runs that
# differ in them alone are the same run to sweeps, to --test and to figures.
HOW = ("data", "save_dir", "cuda", "snapshot_minutes", "verbose", "log_interval", "note")
# What a command line also has, and config.json keeps elsewhere or not at all.
MODE = ("test", "sample", "checkpoint", "resume", "config", "script", "file", "command")
LARGEST_TEXT = 2**26  # bytes of a config or a table


class RunError(UserError):
    """A run directory is missing, damaged, not writable, or locked by another process."""


def describe(args, task, spec, checksums):
    """The config of a run, from which it can be repeated; arguments as for `Trainer`."""
    processor = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    return plain(
        {
            "script": args.script,
            "task": task,
            "arguments": {name: v for name, v in vars(args).items() if name not in MODE},
            "model": spec,
            "data": checksums,
            "command": args.command,
            "commit": _commit(),
            "code": _code(args.file),
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "versions": _versions(),
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if args.cuda else processor,
        }
    )


def plain(values):
    """Values as JSON returns them: tuples become lists, paths absolute strings."""
    return json.loads(json.dumps(values, default=lambda path: str(path.absolute())))


def _versions():
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _commit():
    """The commit of the code, with a + for uncommitted changes; None without git."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--exclude=*", "--abbrev=40"]
    try:
        answer = subprocess.run([*command, "--dirty=+"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _code(script):
    """A digest of the files that training depends on, committed or not."""
    patterns = ("NetworkCreation/*.py", "Training/*.py")
    files = [path for pattern in patterns for path in sorted(REPOSITORY.glob(pattern))]
    files = [path for path in [*files, script] if path.is_file()]  # not an editor's link
    contents = b"".join(path.name.encode() + path.read_bytes() for path in files)
    return hashlib.sha256(contents).hexdigest()[:16]


def run_name(args):
    """The name of the directory shared by runs with these main arguments."""
    ratio = getattr(args, "transform_ratio", 0.0)
    name = f"{args.net_type}_lr{args.lr}_p{ratio}_hs{args.nhid}"
    name += "" if args.nonlin is None else f"_{args.nonlin}"
    name += "".join(f"_{k}{v:.5g}" for k in "ns" if (v := getattr(args, k)) is not None)
    return f"{name}_static" if args.learn_params is False else name


def identity(config):
    """What distinguishes a run, as a string: its script, data, and the arguments that matter."""
    arguments = {k: v for k, v in config["arguments"].items() if k not in (*HOW, *MODE)}
    data = config["data"] if "dataset" in arguments else {}  # of a script that makes its data
    return json.dumps([config["script"], arguments, data], sort_keys=True)


def read_text(path):
    """The text of a config or a table. Raises RunError if it is missing, too large or no text."""
    try:
        if not path.is_file():
            raise RunError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size > LARGEST_TEXT:
            raise RunError(f"{path}: larger than {LARGEST_TEXT} bytes")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error


def read_config(path):
    """The config of a run. Raises RunError if path is not a run's directory."""
    try:
        config = json.loads(read_text(Path(path) / "config.json"))
        datetime.datetime.fromisoformat(config["started"])
        for name in ("script", "task", "arguments", "model", "data"):
            config[name]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: not a run, config.json is damaged ({error!r})") from error
    return config
