"""Console output: lines on standard output and stderr, and progress through batches."""

import contextlib
import os
import sys
import time

from tqdm import tqdm

SECONDS = 60  # between two lines of progress


class OutputError(Exception):
    """Standard output or stderr cannot be written; further output is lost."""


def printable(text):
    """The text with control characters escaped, except newlines: it may be from a foreign file."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def say(text):
    """Prints a line, above a progress bar if there is one. Raises OutputError."""
    with writing(sys.stdout):
        tqdm.write(text)


def report(text):
    """Prints a line to stderr, unless stderr is closed or full."""
    with contextlib.suppress(OutputError), writing(sys.stderr):
        tqdm.write(text, file=sys.stderr)


@contextlib.contextmanager
def writing(stream):
    """Flushes standard output or stderr after the block. Raises OutputError if that fails."""
    try:
        yield
        stream.flush()
    except OSError as error:
        # Flushing what is left in the buffer would fail again when Python exits.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        name = {"<stdout>": "standard output"}.get(stream.name, stream.name)
        raise OutputError(f"{name}: cannot be written ({error.strerror})") from error


class Progress:
    """Progress through `total` batches, of which `done` are finished.

    On a terminal, a bar; elsewhere, such as in a file, a line on stderr once a minute.
    """

    def __init__(self, title, total, done=0, leave=True):
        self.title, self.total, self.done = title, total, done
        self.bar = tqdm(total=total, initial=done, desc=title, leave=leave, disable=None)
        self._begun = self._written = time.monotonic()
        self._first = done

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def update(self, state=lambda: ""):
        """Counts a batch. state: function that returns further text to show."""
        self.done += 1
        if not self.bar.disable:
            self.bar.set_postfix_str(state(), refresh=False)
            self.bar.update()
        elif (now := time.monotonic()) >= self._written + SECONDS:
            self._written = now
            each = (now - self._begun) / (self.done - self._first)
            words = [
                f"{self.title}, batch {self.done}/{self.total}: {1000 * each:.0f} ms per batch",
                f"{tqdm.format_interval(each * (self.total - self.done))} left",
                state(),
            ]
            report(", ".join(filter(None, words)))


def progress(items, title):
    """Yields the items and shows the progress through them."""
    with Progress(title, len(items), leave=False) as shown:
        for item in items:
            yield item
            shown.update()
