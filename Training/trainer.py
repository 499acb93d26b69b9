"""The training loop of one run, which survives interruptions.

    with Trainer(run, args, model, optimizer, scheduler) as trainer:
        for epoch in trainer.epochs():
            for item in trainer.batches(items):
                ...
                trainer.step(loss, count)
            trainer.finish_epoch(scores)

A signal is handled between two batches, or at once during the evaluation after an epoch; the state
is then saved, so that a resumed run is bit-identical to an uninterrupted one.
"""

import math
import signal
import time

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from Training.machine import keep_memory
from Training.output import Progress
from Training.run_directory import LAST, RunError

CHART_EVERY = 10  # batches between two points of the loss within an epoch in TensorBoard
STREAMS = ("initialisation", "order", "transform", "evaluation", "gain")
STATE = ("epoch", "batch", "sums", "carry", "best")


class TrainingStopped(Exception):
    """A loss, a gradient or a parameter is not finite."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; `code` is the exit code."""

    def __init__(self, signum):
        super().__init__(signal.Signals(signum).name)
        self.code = 128 + signum


def stream(seed, name, epoch=0):
    """A random generator for one purpose, a name in `STREAMS`, and optionally one epoch.

    The streams of one seed are independent.
    """
    entropy = np.random.SeedSequence([seed, STREAMS.index(name), epoch])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)


class Trainer:
    """Trains a model and keeps its run directory.

    run: Run. args: resolved arguments. saved: the checkpoint to resume from, if any. columns: the
    names of the scores of an epoch. Raises RunError if saved is not a checkpoint of this run, or
    metrics.csv has other columns.

    The state between two batches: `epoch`, the number of finished epochs; `batch`, of finished
    batches in the current one; `sums` over those batches; `carry`, {name: tensors} that later
    batches need (the order of the samples, the hidden state); `best`, the lowest validation loss.
    """

    def __init__(self, run, args, model, optimizer, scheduler, saved=None, columns=None):
        keep_memory()  # not earlier: memory used to load the data is returned to the system
        self.run, self.args = run, args
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.generators = {name: stream(args.seed, name) for name in ("order", "transform")}
        self.epoch, self.batch, self.best = 0, 0, math.inf
        self.sums, self.carry = {}, {}
        self._signum, self._handlers, self._scoring = None, {}, False
        self._scoring_seconds = 0.0  # of the last epoch
        if saved is not None:
            self.restore(saved, columns)
        if run is not None and "resumed" in run.config:
            run.write_config()
            run.print(
                f"run: {run.path}\ndevice: {run.config['resumed'][-1]['device']}\n"
                f"resumed after {self.epoch} epochs and {self.batch} batches"
            )

    # The loop

    def epochs(self):
        """Yields the numbers of the remaining epochs, counted from 1."""
        if not (self.run.path / LAST).exists():
            for name in ("e_0.pth.tar", LAST):
                self.run.save(name, self.checkpoint())
        while self.epoch < self.args.epochs:
            yield self.epoch + 1
        self._begin_scoring()

    def batches(self, items, log_every=None, report="loss {:.4f}".format):
        """Yields the remaining `items` of this epoch, one per batch.

        log_every: number of batches between two printed lines with the mean loss, which `report`
        formats.
        """
        items = items[: self.args.limit_batches]
        self.model.train()
        self._scoring = False
        title, saved, logged = f"epoch {self.epoch + 1}", self.batch, dict(self.sums)
        charted = logged
        due = time.monotonic() + 60 * self.args.snapshot_minutes

        def state():
            return f"loss {self.mean('loss'):.4f}, run {self._time_left(len(items))} left"

        with Progress(f"{title}/{self.args.epochs}", len(items), self.batch) as bar:
            while self.batch < len(items):
                self._heed_signal()
                if time.monotonic() >= due and self.batch != saved:
                    self.run.save(LAST, self.checkpoint())
                    saved, due = self.batch, time.monotonic() + 60 * self.args.snapshot_minutes
                begun = time.perf_counter()
                yield items[self.batch]
                self.batch += 1
                self.add(seconds=time.perf_counter() - begun)
                bar.update(state)
                if self.batch % CHART_EVERY == 0:
                    mean = _mean_since(charted, self.sums)
                    step, charted = self.epoch * len(items) + self.batch, dict(self.sums)
                    self.run.add_event("batches", step, "loss_within_epoch", mean)
                if log_every and self.batch % log_every == 0:
                    seconds = self.sums["seconds"] - logged.get("seconds", 0)
                    self.run.print(
                        f"{title}, batch {self.batch}/{len(items)}: lr {self.lr:g}, "
                        f"{1000 * seconds / log_every:.0f} ms per batch, "
                        f"{report(_mean_since(logged, self.sums))}"
                    )
                    logged = dict(self.sums)
        self._begin_scoring()

    def _time_left(self, batches):
        """The time to the end of the run, h:mm:ss, for epochs of this many batches."""
        epochs = self.args.epochs - self.epoch
        each = self.sums["seconds"] / self.batch
        seconds = each * (epochs * batches - self.batch) + epochs * self._scoring_seconds
        return tqdm.format_interval(seconds)

    def order(self, count, shuffle):
        """The order of `count` samples in this epoch, (count,): 0, 1, … or a random one."""
        if shuffle and "order" not in self.carry:
            self.carry["order"] = torch.randperm(count, generator=self.generators["order"])
        return self.carry["order"] if shuffle else torch.arange(count)

    @property
    def draws(self):
        """The generator of the transforms of training batches."""
        return self.generators["transform"]

    def chance(self, probability):
        """True with this probability."""
        return torch.rand((), generator=self.draws).item() < probability

    def step(self, loss, count, **sums):
        """One step of the optimiser.

        loss: (), the mean over `count` samples. sums: further numbers to sum over the epoch.
        Raises TrainingStopped if the loss or its gradient is not finite, before any parameter
        changes, or if a parameter is not finite after the step.
        """
        self.optimizer.zero_grad()
        descended = loss
        if self.args.alam and hasattr(self.model.rnn, "penalty"):
            descended = loss + self.args.alam * self.model.rnn.penalty()
        descended.backward()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        value, norm = torch.stack([loss.detach(), norm]).tolist()
        if not math.isfinite(value + norm):
            self._explain(value, norm)
        if self.args.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.args.clip)
        self.optimizer.step()
        if not nn.utils.parameters_to_vector(parameters).isfinite().all():
            self._stop_unless_finite(dict(self.model.named_parameters()))
        self.add(loss=value * count, seen=count, gradient_norm=norm, **sums)

    def add(self, **values):
        """Adds numbers to the sums of the current epoch."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def mean(self, name):
        """The mean of a sum over the samples of this epoch so far."""
        return float(self.sums[name]) / self.sums["seen"]

    def finish_epoch(self, scores, tests=None, best=None):
        """Ends an epoch: learning rate, metrics.csv, test_results.csv, checkpoints, a line.

        scores: {column: number}, `validation_loss` among them. tests: {condition: {column:
        number}}. best: where to save the model if this is the lowest validation loss so far.
        Raises TrainingStopped if the validation loss is not finite.
        """
        self._heed_signal()
        self._scoring = False  # a signal waits until all files of the epoch are written
        loss, lr = scores["validation_loss"], self.lr
        if not math.isfinite(loss):
            raise TrainingStopped(
                f"the validation loss is not finite after epoch {self.epoch + 1}, at learning rate "
                f"{lr:g}: {self._extremes()}a lower --lr may help"
            )
        self.scheduler.step(loss)
        self._scoring_seconds = time.perf_counter() - self._scoring_begun
        row = {
            "epoch": self.epoch + 1,
            **scores,
            "gradient_norm": self.sums["gradient_norm"] / self.batch,
            "lr": lr,
            "seconds": self.sums["seconds"] + self._scoring_seconds,
        }
        improved, self.best = loss < self.best, min(self.best, loss)
        self.epoch, self.batch, self.sums, self.carry = self.epoch + 1, 0, {}, {}
        self.run.add_row("metrics.csv", row)
        for condition, result in (tests or {}).items():
            self.add_test(condition, result)
        checkpoint = self.checkpoint()
        if best is not None and improved:
            self.run.save(best, checkpoint)
        if self.keeps(self.epoch):
            self.run.save(f"e_{self.epoch}.pth.tar", checkpoint)
        self.run.save(LAST, checkpoint)
        self.run.print(f"epoch {self.epoch}/{self.args.epochs}: {in_words(row)}")

    def keeps(self, epoch):
        """Whether the checkpoint of an epoch is kept."""
        chosen = epoch % self.args.save_freq == 0 or epoch in self.args.save_epochs
        return chosen or epoch == self.args.epochs

    def add_test(self, condition, result):
        """Adds a row to test_results.csv and prints it. result: {column: number}."""
        epoch = self.epoch
        self.run.add_row("test_results.csv", {"epoch": epoch, "condition": condition, **result})
        self.run.print(f"test {condition}: {in_words(result)}")

    @property
    def lr(self):
        """The current learning rate, of the first parameter group."""
        return self.optimizer.param_groups[0]["lr"]

    # The state

    def checkpoint(self):
        """The state as a dictionary of tensors and plain values, the run's config included."""
        return {
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            **{name: getattr(self, name) for name in STATE},
            "config": self.run.config,
        }

    def restore(self, checkpoint, columns=None):
        """Restores the state from a checkpoint, and drops the rows of later epochs.

        columns: the names of the scores of an epoch.
        """
        try:
            self.model.load_state_dict(checkpoint["state_dict"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.scheduler.load_state_dict(checkpoint["scheduler"])
            for name, state in checkpoint["generators"].items():
                self.generators[name].set_state(state)
            for name in STATE:
                setattr(self, name, checkpoint[name])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RunError(f"{self.run.path / LAST}: cannot be resumed from ({reason})") from error
        if columns is not None:
            columns = ["epoch", *columns, "gradient_norm", "lr", "seconds"]
        self.run.resume_after(self.epoch, columns)

    # Interruptions

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind, error, traceback):
        self._restore_handlers()
        try:
            if isinstance(error, Interrupted):
                self.run.save(LAST, self.checkpoint())
                self.run.print(f"{error}: saved; continue with --resume {self.run.path}")
            elif isinstance(error, TrainingStopped):
                self.run.print(f"stopped: {error}; the last good state is {self.run.path / LAST}")
            elif error is None:
                self.run.print(f"done: {self.run.path}")
        finally:
            self.run.close()

    def _handle(self, signum, frame):
        self._signum = signum
        self._restore_handlers()  # a second signal acts at once, as without a handler
        if self._scoring:
            self._heed_signal()

    def _restore_handlers(self):
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _heed_signal(self):
        if self._signum is not None:
            raise Interrupted(self._signum)

    def _begin_scoring(self):
        """From here on the state is constant, so a signal may interrupt at any point."""
        self._scoring, self._scoring_begun = True, time.perf_counter()
        self._heed_signal()

    # Values that are not finite

    def _explain(self, loss, norm):
        """Raises TrainingStopped for a loss or a gradient norm that is not finite.

        If all parameters are finite the network overflowed, because a parameter is large or an n
        close to 0: the message has the largest parameter and the smallest |n|.
        """
        if not math.isfinite(loss):
            self._stop_unless_finite(self.model.state_dict())
            self._stop("the loss is", self._extremes())
        parameters = self.model.named_parameters()
        gradients = {k: p.grad for k, p in parameters if p.grad is not None and p.numel()}
        self._stop_unless_finite({f"the gradient of {k}": g for k, g in gradients.items()})
        sizes = {name: gradient.abs().max() for name, gradient in gradients.items()}
        largest = max(sizes, key=sizes.get)
        hint = f"the gradient is finite, the largest {sizes[largest]:.3g} in {largest}; "
        self._stop("the gradient's norm is", hint)

    def _extremes(self):
        """The parameters that may have made a network overflow, in words."""
        sizes = {name: t.abs() for name, t in self.model.state_dict().items() if t.numel()}
        largest = max(sizes, key=lambda name: sizes[name].max())
        said = f"all parameters are finite, the largest {sizes[largest].max():.3g} in {largest}; "
        gains = [name for name in sizes if name.endswith(".n")]
        return said + "".join(f"|n| is {sizes[n].min():.3g} or more in {n}; " for n in gains)

    def _stop_unless_finite(self, named):
        names = [name for name, tensor in named.items() if not tensor.isfinite().all()]
        if names:
            self._stop(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}")

    def _stop(self, what, hint=""):
        raise TrainingStopped(
            f"{what} not finite in epoch {self.epoch + 1}, batch {self.batch + 1}, at learning "
            f"rate {self.lr:g}: {hint}a lower --lr may help"
        )


def _mean_since(before, sums):
    """The mean loss over the samples that came to the sums since they were `before`."""
    return (sums["loss"] - before.get("loss", 0)) / (sums["seen"] - before.get("seen", 0))


def in_words(row):
    """The numbers of a row in one line; accuracies in percent, None left out."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.2%}"
        if "accuracy" in name
        else f"{name.replace('_', ' ')} {value:.5g}"
        for name, value in row.items()
        if value is not None and name != "epoch"
    )
