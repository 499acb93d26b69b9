"""What a person sees of the way through a set: a bar on a terminal, lines elsewhere."""

import sys
import time

from tqdm import tqdm

SECONDS = 60  # between two lines


class Progress:
    """The way through `total` batches, from `done` of them on.

    On a terminal a bar. Elsewhere, such as in a file, a line on stderr at most once a minute, and
    none for what takes less than one.
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

    def update(self, say=str):
        """After a batch. say: function that returns what else to show."""
        self.done += 1
        if not self.bar.disable:
            self.bar.set_postfix_str(say(), refresh=False)
            self.bar.update()
        elif (now := time.monotonic()) >= self._written + SECONDS:
            self._written = now
            each = (now - self._begun) / (self.done - self._first)
            words = [
                f"{self.title}, batch {self.done}/{self.total}: {1000 * each:.0f} ms per batch",
                f"{tqdm.format_interval(each * (self.total - self.done))} left",
                say(),
            ]
            print(", ".join(filter(None, words)), file=sys.stderr, flush=True)


def progress(items, title):
    """Yields the items and shows the way through them."""
    with Progress(title, len(items), leave=False) as shown:
        for item in items:
            yield item
            shown.update()
