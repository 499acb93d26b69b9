"""The process of a script: errors in one line, exit codes, standard output, progress."""

import contextlib
import functools
import os
import signal
import sys

import torch
from tqdm import tqdm

from NetworkCreation.errors import OptionError, UserError


class TrainingStopped(Exception):
    """A loss, a gradient or a parameter is not finite."""

    exit_code = 1


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception, which torch and tqdm catch in places."""

    def __init__(self, signum):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


def entry_point(main):
    """Decorates the main of a script or command: errors in one line, and exit codes."""

    @functools.wraps(main)
    def run(argv=None):
        torch.set_flush_denormal(True)  # before the first parallel operation: threads inherit it
        with (
            contextlib.redirect_stdout(_Stream(sys.stdout)),
            contextlib.redirect_stderr(_Stream(sys.stderr)),
        ):
            try:
                return main(argv)
            except (UserError, ModuleNotFoundError, MemoryError, OSError, RuntimeError) as error:
                message = _message(error)
                if message is None:
                    raise
                script = os.path.basename(main.__globals__["__file__"])
                print(f"{script}: error: {message}", file=sys.stderr)
                return getattr(error, "exit_code", 1)
            except (TrainingStopped, Interrupted) as stopped:  # the trainer has said so
                return stopped.exit_code
            except KeyboardInterrupt:  # where SIGINT has Python's own handler
                return 128 + signal.SIGINT

    return run


def _message(error):
    """The one line that says what went wrong; None for an error of the program."""
    if isinstance(error, OptionError):
        return f"argument --{'nhid' if error.name == 'hidden_size' else error.name}: {error}"
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; pip install {error.name}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    no_memory = (MemoryError, torch.cuda.OutOfMemoryError)
    if isinstance(error, no_memory) or "can't allocate memory" in str(error):
        return "out of memory; lower --batch_size or --nhid, and for text --bptt or --emsize"
    return None


class _Stream:
    """Standard output or stderr; it discards everything once it is closed or its disk is full."""

    def __init__(self, stream):
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")  # γ where the encoding has none

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            with open(os.devnull, "w") as nowhere:  # or Python's exit would fail on the buffer
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def flush(self):
        pass  # each write is flushed


class _Lines:
    """A file for tqdm that prints each state of a bar as a line on stderr."""

    def write(self, text):
        if line := text.replace("\x1b[A", "").strip():  # tqdm moves up from an inner bar
            print(line, file=sys.stderr)

    def flush(self):
        pass


class Progress(tqdm):
    """tqdm's progress bar; a line on stderr once a minute where that is not a terminal."""

    def __init__(self, *arguments, **options):
        if not sys.stderr.isatty():
            minute = dict.fromkeys(("delay", "mininterval", "maxinterval"), 60)
            options |= {"file": _Lines(), "leave": False, "ascii": True, **minute}
        super().__init__(*arguments, **options)

    def __del__(self):
        """Closes nothing: a signal may have ended `__init__` before there was a bar to close."""
