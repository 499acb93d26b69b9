"""What TensorBoard shows of a run: curves, histograms and hyperparameters.

One event file per process. It is written at once: tensorboardX's own `SummaryWriter` hands events
to a thread, and waits for it forever if the disk is full.
"""

import time

import torch

from Training.run_directory import writing


class Events:
    """The event file of one process in the directory of a run. Raises RunError."""

    def __init__(self, folder):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._summary, self._event, self._path = summary, event_pb2.Event, folder / "events.out"
        # Two files of the same second and host would have the same name.
        suffix = f".{time.time_ns()}"
        with writing(self._path):
            self._file = event_file_writer.EventsWriter(str(folder / "events"), suffix)

    def add(self, step, values):
        """Adds points to charts, and distributions of tensors; values: {'group/name': value}."""
        for tag, value in values.items():
            if not isinstance(value, torch.Tensor):
                self._write(step, self._summary.scalar(tag, float(value)))
            elif value.isfinite().all():
                array = value.detach().cpu().numpy().ravel()
                self._write(step, self._summary.histogram(tag, array, bins="auto"))

    def hyperparameters(self, arguments):
        """Makes the run a row of the HPARAMS page; arguments: {name: value}."""
        given = {name: value for name, value in arguments.items() if value is not None}
        plain = {k: v if isinstance(v, (int, float)) else str(v) for k, v in given.items()}
        # The first, an experiment's summary, would limit the page to the columns of one run.
        for summary in self._summary.hparams(plain, {})[1:]:
            self._write(0, summary)

    def flush(self):
        with writing(self._path):
            self._file.flush()

    def close(self):
        with writing(self._path):
            self._file.close()

    def _write(self, step, summary):
        with writing(self._path):
            self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
