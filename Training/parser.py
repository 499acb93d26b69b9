"""The argument parser of scripts and commands: one-line errors, flags from a file, value types."""

import argparse
import contextlib
import difflib
import os
import re
import shlex
import sys
from pathlib import Path

import torch

from Training.output import printable
from Training.run_directory import HOW, MODE, RunError, is_run_file, part_of

# Flags of --test that do not describe what was trained.
EVALUATION = {*MODE, *HOW, "tf32", "save_dir", "limit_batches", "transform", "config"} - {"note"}
# Arguments of the networks and models whose flag has another name.
FLAGS = {"hidden_size": "nhid", "embedding_size": "emsize"}


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the line breaks of the description, and shows defaults other than None and False."""

    def _get_help_string(self, action):
        if action.default in (None, False, "", []):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with errors in one line and no abbreviated flags.

    After `parse_args`, `typed` is the set of arguments on the command line, `given` also has those
    that `merge` took from a file, and `command` is the whole command.
    """

    def __init__(self, script, description):
        super().__init__(
            prog=Path(script).name,
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.evaluation = set(EVALUATION)
        self._words, self._source = [], ""
        # argparse's own pattern takes -1e-3 for a flag.
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)

    def parse_args(self, args=None, namespace=None):
        self._words = sys.argv[1:] if args is None else args
        self.command = shlex.join(["python3", self.prog, *self._words])
        found, unknown = self.parse_known_args(self._words, namespace)
        if unknown:
            self.error(f"unrecognized argument {unknown[0]}{self._nearest(unknown[0])}")
        absent = object()
        parsed = argparse.Namespace(**dict.fromkeys(vars(found), absent))
        self.parse_known_args(self._words, parsed)
        self.typed = {name for name, value in vars(parsed).items() if value is not absent}
        self.given = self.typed
        return found

    def merge(self, arguments, path):
        """Parses the arguments of a file, then the command line, which takes precedence.

        arguments: {name: value}, checked like those on the command line; null means not given.
        path: the file, for errors. Raises RunError for an unknown argument.
        """
        words, actions = [], self.settable()
        for name, value in arguments.items():
            if name not in actions:
                raise RunError(f"{path}: has no argument {name}{self._nearest(name, actions)}")
            words += [] if value is None else _words(actions[name], value, path)
        self.given = self.typed | {name for name, v in arguments.items() if v is not None}
        self._source = f"{path}: "
        found, _ = self.parse_known_args([*words, *self._words])
        self._source = ""
        return found

    def words(self, name, args):
        """The words on a command line that set an argument to its value in args."""
        return _words(self.settable()[name], getattr(args, name), self.prog)

    def settable(self):
        """{name: action} of the arguments that describe a run."""
        aside = ("help", "config", *MODE)
        return {action.dest: action for action in self._actions if action.dest not in aside}

    def _nearest(self, word, choices=None):
        choices = self._option_string_actions if choices is None else choices
        near = difflib.get_close_matches(word.split("=")[0], choices, 1)
        return f": did you mean {near[0]}?" if near else ""

    def error(self, message):
        message = printable(" ".join(f"{self._source}{message}".split()))
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += self._nearest(wrong[1], re.findall(r"[\w-]+", wrong[2]))
        self.exit(2, f"{self.prog}: error: {message}\n")

    @contextlib.contextmanager
    def blame(self, flag, *errors):
        """Reports these errors as errors of the flag with this name."""
        try:
            yield
        except errors as error:
            self.error(f"argument {self.flag(flag)}: {error}")

    def flag(self, name):
        """The long flag that sets an argument, spelt as on the command line."""
        name = FLAGS.get(name, name)
        options = [o for a in self._actions if a.dest == name for o in a.option_strings]
        options = [option for option in options if option.startswith("--")]
        return next((option for option in options if option in self._words), options[0])


def _words(action, value, path):
    """The words that set a flag to a value read from JSON."""
    flags = [option for option in action.option_strings if option.startswith("--")]
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise RunError(f"{path}: {action.dest} is {value!r}, not true or false")
        return [flag for flag in flags if flag.startswith("--no-") != value][:1]
    if action.nargs is None:
        return [f"{flags[0]}={value}"]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(number, (int, float)) for number in values):
        raise RunError(f"{path}: {action.dest} is {value!r}, not a list of numbers")
    return [flags[0], *map(str, values)] if values else []


# Types of values


def _number(kind, name, allowed, check):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from None
        if not check(value):
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    return parse


FLOAT32 = torch.finfo(torch.float32)

positive_int = _number(int, "a whole number", "from 1 to 10**9", lambda v: 1 <= v <= 10**9)
not_negative_int = _number(int, "a whole number", "from 0 to 10**9", lambda v: 0 <= v <= 10**9)
seed_int = _number(int, "a whole number", "from 0 to 2**32 - 1", lambda v: 0 <= v < 2**32)
finite = _number(
    float, "a number", f"finite, at most {FLOAT32.max:.1e} in size", lambda v: abs(v) <= FLOAT32.max
)
# Beyond 1e30 a step of Adam overflows float32.
rate = _number(float, "a number", "positive and at most 1e30", lambda v: 0 < v <= 1e30)
not_negative = _number(float, "a number", "from 0 to 1e30", lambda v: 0 <= v <= 1e30)
fraction = _number(float, "a number", "from 0 to 1", lambda v: 0 <= v <= 1)
beta = _number(float, "a number", "at least 0 and below 1", lambda v: 0 <= v < 1)
gain = _number(
    float,
    "a number",
    f"from {FLOAT32.tiny:.1e} to {FLOAT32.max:.1e} in size, of either sign",
    lambda v: FLOAT32.tiny <= abs(v) <= FLOAT32.max,
)


def activation(text):
    """A name of an activation; ReLU in any spelling."""
    return "ReLU" if text.lower() == "relu" else text


def text(typed):
    """A string that can be written to a file in UTF-8."""
    try:
        typed.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{typed!r} is not text in UTF-8") from None
    return typed


def path_text(typed):
    """A string that is a valid path, whether or not the file exists."""
    try:
        os.lstat(text(typed) or ".")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"{typed!r} is not a path ({reason})") from None
    return typed


def path(typed):
    """The Path of such a string."""
    return Path(path_text(typed))


def run_file(typed):
    """A path relative to a run's directory that does not clash with the run's own files."""
    file = Path(typed)
    if file.is_absolute() or not file.name or ".." in file.parts:
        raise argparse.ArgumentTypeError(f"{typed!r} is not a file in the run's directory")
    if is_run_file(file.parts[0]):
        raise argparse.ArgumentTypeError(f"{typed} is the name of another file of a run")
    for part in file.parts:
        path_text(str(part_of(Path(part))))  # its temporary file has a longer name
    return typed
