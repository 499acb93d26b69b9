"""The argument parser of scripts and commands: one-line errors, suggestions, types of values."""

import argparse
import difflib
import re
import sys

from NetworkCreation.errors import UserError

# What people type from habit, and the flag that it is here.
SYNONYMS = {
    "--learning-rate": "--lr",
    "--hidden-size": "--nhid",
    "--device": "--cuda",
    "--gpu": "--cuda",
    "--cpu": "--no-cuda",
    "--model": "--net-type",
    "--activation": "--nonlin",
    "--optimizer": "--no-adam",
    "--output-dir": "--save-dir",
}


# Types of values


def _number(kind, words, allowed):
    def parse(text):
        value = kind(text)
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"{text} is not {words}")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]  # in argparse's errors
    return parse


positive_int = _number(int, "at least 1", lambda v: v >= 1)
seed_int = _number(int, "from 0 to 2**32 - 1", lambda v: 0 <= v < 2**32)
positive = _number(float, "positive and finite", lambda v: 0 < v < float("inf"))
not_negative = _number(float, "at least 0 and finite", lambda v: 0 <= v < float("inf"))
fraction = _number(float, "from 0 to 1", lambda v: 0 <= v <= 1)
beta = _number(float, "at least 0 and below 1", lambda v: 0 <= v < 1)
finite = _number(float, "finite", lambda v: abs(v) < float("inf"))
gain = _number(float, "finite and not 0", lambda v: 0 < abs(v) < float("inf"))


def one_of(choices):
    """The type of a name among these; upper and lower case are alike."""
    by_lower_case = {name.lower(): name for name in choices}
    return lambda text: by_lower_case.get(text.lower(), text)


# The parser


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the line breaks of the description, and shows defaults other than None and False."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default in ("", []):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with errors in one line, no abbreviations, and - or _ in a long flag."""

    def __init__(self, prog, description):
        super().__init__(
            prog=prog, description=description, formatter_class=_Formatter, allow_abbrev=False
        )
        # argparse's own pattern takes -1e-3 for a flag.
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)

    def parse_args(self, args=None, namespace=None):
        words = [self._spelling(word) for word in (sys.argv[1:] if args is None else args)]
        arguments, unknown = self.parse_known_args(words, namespace)
        if unknown:
            flag = unknown[0].split("=")[0].replace("_", "-")
            suggestion = _suggestion(SYNONYMS.get(flag, flag), self._option_string_actions, 0.75)
            self.error(f"unrecognized argument {unknown[0]}{suggestion}")
        return arguments

    def _spelling(self, word):
        """A long flag as the parser knows it; any other word as it is."""
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or flag in self._option_string_actions:
            return word
        spellings = {option.replace("_", "-"): option for option in self._option_string_actions}
        return spellings.get(flag.replace("_", "-"), flag) + equals + value

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def option(self, name):
        """The long flag that sets an argument. Raises UserError if there is none."""
        options = {action.dest: action.option_strings for action in self._actions}
        if name not in options:
            raise UserError(f"no argument {name}{_suggestion(name, options)}")
        return next(option for option in options[name] if option.startswith("--"))

    def words(self, arguments):
        """The words of a command line that set these arguments, {name: value}, except None."""
        line = []
        for name, value in arguments.items():
            flag = self.option(name)
            if value is True:
                line.append(flag)
            elif value is False:
                negative = f"--no-{flag[2:]}"
                line += [negative] if negative in self._option_string_actions else []
            elif isinstance(value, list):
                line += [flag, *map(str, value)] if value else []
            elif value is not None:
                line.append(f"{flag}={value}")
        return line

    def is_flag(self, word):
        """Whether a word is a flag rather than a value such as -1."""
        return word.startswith("-") and not self._negative_number_matcher.match(word)

    def repeated(self, words):
        """The first flag among these words that was set before, under any name; else None."""
        seen = set()
        for word in words:
            action = self._option_string_actions.get(self._spelling(word).split("=")[0])
            if action in seen:
                return word.split("=")[0]
            seen |= {action} - {None}
        return None


def _suggestion(name, names, cutoff=0.6):
    near = difflib.get_close_matches(name, names, 1, cutoff)
    return f": did you mean {near[0]}?" if near else ""
