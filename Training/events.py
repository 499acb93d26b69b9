"""What TensorBoard shows of a run: curves, histograms and hyperparameters.

One event file per process. It is written at once: tensorboardX's own `SummaryWriter` hands events
to a thread, and waits for it forever if the disk is full.
"""

import time

from NetworkCreation.errors import UserError
from Training.run_directory import writing


def require_tensorboard():
    """Raises UserError if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401 — slow to import, only needed here
    except ImportError as error:
        raise UserError(f"{error}; pip install tensorboardX") from error


class Events:
    """The event file of one process in the directory of a run.

    A process that resumes a run may write points again; they have the same values.
    """

    def __init__(self, folder):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._summary, self._proto = summary, event_pb2
        # Two files of the same second and host would have the same name.
        suffix = f".{time.time_ns()}"
        self._path = folder / "events.out"
        with writing(self._path):
            self._file = event_file_writer.EventsWriter(str(folder / "events"), suffix)

    def scalars(self, values, step):
        """Adds a point to each chart; values: {'group/name': number or None}."""
        for tag, value in values.items():
            if value is not None:
                self._write(step, summary=self._summary.scalar(tag, float(value)))

    def histograms(self, values, step):
        """Adds the distributions of these tensors, {'group/name': tensor}."""
        for tag, value in values.items():
            if value.isfinite().all():
                summary = self._summary.histogram(
                    tag, value.detach().cpu().numpy().ravel(), bins="auto"
                )
                self._write(step, summary=summary)

    def hyperparameters(self, arguments):
        """Makes the run a row of the HPARAMS page; arguments: {name: value}.

        Without an experiment's summary, which TensorBoard would take from one run alone, the page
        has the arguments and scores of all runs.
        """
        plain = {
            name: value if isinstance(value, (int, float)) else str(value)
            for name, value in arguments.items()
            if value is not None
        }
        _, start, end = self._summary.hparams(plain, {})
        self._write(0, summary=start)
        self._write(0, summary=end)

    def flush(self):
        with writing(self._path):
            self._file.flush()

    def close(self):
        with writing(self._path):
            self._file.close()

    def _write(self, step, **content):
        event = self._proto.Event(wall_time=time.time(), step=step, **content)
        with writing(self._path):
            self._file.write_event(event)
