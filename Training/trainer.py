"""Training loop of one run, with checkpoints and exact resume.

    with Trainer(args, task, model, spec, optimizer, scheduler, checksums) as trainer:
        for epoch in trainer.epochs():
            for item in trainer.batches(items):
                ...
                trainer.step(loss, count)
            trainer.finish_epoch(scores)

A signal is handled between two batches, or at once during the evaluation after an epoch; the state
is then saved, so that a resumed run is bit-identical to an uninterrupted one.
"""

import math
import shlex
import signal
import time

import numpy as np
import torch
from torch import nn

from NetworkCreation.checkpoints import LAST, read_checkpoint
from Training import evaluation
from Training.config import HOW, RunError, describe
from Training.console import Interrupted, Progress, TrainingStopped
from Training.events import Events
from Training.machine import keep_memory
from Training.run_directory import TABLES, Run

CHART_EVERY = 10  # batches between two points of the loss within an epoch in TensorBoard
STREAMS = ("initialisation", "order", "transform", "evaluation", "gain", "test")
STATE = ("epoch", "batch", "sums", "marks", "carry", "best")


def stream(seed, name, epoch=0):
    """A random generator for a purpose in `STREAMS` and an epoch; all of a seed are independent."""
    entropy = np.random.SeedSequence([seed, STREAMS.index(name), epoch])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)


class Trainer:
    """Trains a model in a new run directory, or continues the run that --resume names.

    args: resolved arguments. task: name of the task, the folder of its runs. spec: the model's, for
    checkpoints. checksums: of the data. Raises RunError if the directory cannot be written, or the
    run to resume is damaged, locked or a different one.

    The state between two batches: `epoch`, the number of finished epochs; `batch`, of finished
    batches in the current one; `sums` over those batches; `marks`, what the sums were when a loss
    was last printed or charted; `carry`, {name: tensors} that later batches need (the order of the
    samples, the hidden state); `best`, the lowest validation loss.
    """

    def __init__(self, args, task, model, spec, optimizer, scheduler, checksums):
        import tensorboardX  # noqa: F401 — if it is missing, no directory is created

        keep_memory()  # not earlier: memory used to load the data is returned to the system
        self.args, self.model, self.optimizer, self.scheduler = args, model, optimizer, scheduler
        self.generators = {name: stream(args.seed, name) for name in ("order", "transform")}
        self.draws = self.generators["transform"]  # of training batches
        self.epoch, self.batch, self.best = 0, 0, math.inf
        self.sums, self.marks, self.carry = {}, {}, {}
        self._signum, self._handlers, self._scoring = None, {}, False
        config = describe(args, task, spec, checksums)
        if args.resume is None:
            self.run = Run.create(args, config)
        else:
            self.run = Run(args.resume)
            self.run.resume(config)
            self._restore()
        self.events = Events(self.run.path)
        lines = [f"run: {self.run.path}", f"device: {config['device']}"]
        if None not in (args.n, args.s):
            learned = "learned" if args.learn_params else "fixed"
            lines.append(f"n = {args.n:.5g}, s = {args.s:.5g} at the start, {learned}")
        if args.resume is not None:
            lines.append(f"resumed after {self.epoch} epochs and {self.batch} batches")
        if args.verbose:
            lines += [f"{name}: {tuple(p.shape)}" for name, p in model.named_parameters()]
        self.run.print("\n".join(lines))

    # The loop

    def epochs(self):
        """Yields the numbers of the remaining epochs, counted from 1."""
        # The start of a new run, or a checkpoint that was deleted.
        if self.batch == 0 and self.keeps(self.epoch) and self.epoch not in self.run.kept:
            self.run.save(f"e_{self.epoch}.pth.tar", self.checkpoint())
        if not (self.run.path / LAST).exists():
            self._save()
        while self.epoch < self.args.epochs:
            yield self.epoch + 1
        self._begin_scoring()

    def batches(self, items):
        """Yields the remaining `items` of this epoch, one per batch."""
        items = items[: self.args.limit_batches]
        log_every = min(self.args.log_interval or math.inf, 10 if self.args.verbose else math.inf)
        self.model.train()
        self._scoring = False
        title = f"epoch {self.epoch + 1}/{self.args.epochs}"
        saved = time.monotonic()
        with Progress(desc=title, total=len(items), initial=self.batch) as bar:
            while self.batch < len(items):
                self._heed_signal()
                begun = time.perf_counter()
                yield items[self.batch]
                self.batch += 1
                self.add(seconds=time.perf_counter() - begun)
                bar.set_postfix_str(f"loss {self.mean('loss'):.4f}", refresh=False)
                bar.update()
                if self.batch % CHART_EVERY == 0:
                    step = self.epoch * len(items) + self.batch
                    self.events.add(step, {"loss/within_epoch": self._since("chart")[0]})
                if self.batch % log_every == 0:
                    loss, seconds = self._since("log")
                    self.run.print(
                        f"{title}, batch {self.batch}/{len(items)}: lr {self.lr:g}, "
                        f"{1000 * seconds:.0f} ms per batch, loss {loss:.4f}"
                    )
                minutes = (time.monotonic() - saved) / 60
                if minutes >= self.args.snapshot_minutes and self.batch < len(items):
                    self._save()
                    saved = time.monotonic()
        self._begin_scoring()

    def _since(self, mark):
        """The mean loss, and the seconds per batch, since `mark` was last set; sets it anew."""
        now = [*map(self.sums.get, ("loss", "seen", "seconds")), self.batch]
        changes = np.subtract(now, self.marks.get(mark, 0))
        self.marks[mark] = now
        return changes[0] / changes[1], changes[2] / changes[3]

    def order(self, count, shuffle):
        """The order of `count` samples in this epoch, (count,): 0, 1, … or a random one."""
        if shuffle and "order" not in self.carry:
            self.carry["order"] = torch.randperm(count, generator=self.generators["order"])
        return self.carry["order"] if shuffle else torch.arange(count)

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
        penalty = self.args.alam * self.model.rnn.penalty() if self.args.alam else 0
        (loss + penalty).backward()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        value, norm = torch.stack([loss.detach(), norm]).tolist()
        if not math.isfinite(value + norm):
            self._stop("the loss" if not math.isfinite(value) else "the gradient's norm")
        if self.args.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.args.clip)
        self.optimizer.step()
        if not nn.utils.parameters_to_vector(parameters).isfinite().all():
            self._stop("a parameter")
        self.add(loss=value * count, seen=count, gradient_norm=norm, **sums)

    def add(self, **values):
        """Adds numbers to the sums of the current epoch."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def mean(self, name):
        """The mean of a sum over the samples of this epoch so far."""
        return float(self.sums[name]) / self.sums["seen"]

    def finish_epoch(self, scores, gains=None, tests=None, best=None):
        """Ends an epoch: learning rate, metrics.csv, test_results.csv, checkpoints, a line.

        scores: {"train": {"loss": …, …}, "validation": {"loss": …, …}, …}. gains: {"n": tensor,
        "s": tensor}, or empty. tests: {condition: {score: number}}, if the test set was scored.
        best: where to save the model if this is the lowest validation loss so far.
        Raises TrainingStopped if the validation loss is not finite.
        """
        self._heed_signal()
        self._scoring = False  # a signal waits until all files of the epoch are written
        loss, lr = scores["validation"]["loss"], self.lr
        if not math.isfinite(loss):
            self._stop("the validation loss")
        self.scheduler.step(loss)
        statistics = {
            "gradient_norm": self.sums["gradient_norm"] / self.batch,
            "lr": lr,
            "seconds": self.sums["seconds"] + time.perf_counter() - self._scoring_begun,
        }
        spread = evaluation.gain_statistics(gains or {})
        named = {f"{part}_{k}": v for part, score in scores.items() for k, v in score.items()}
        improved, self.best = loss < self.best, min(self.best, loss)
        self.epoch, self.batch = self.epoch + 1, 0
        self.sums, self.marks, self.carry = {}, {}, {}
        self.run.add_row("metrics.csv", {"epoch": self.epoch, **named, **spread, **statistics})
        charts = {f"{k}/{part}": v for part, score in scores.items() for k, v in score.items()}
        charts |= {f"gain/{name}": value for name, value in spread.items() if value is not None}
        charts |= {f"training/{name}": value for name, value in statistics.items()}
        if self.keeps(self.epoch):
            charts |= {f"gain/{name}": tensor for name, tensor in (gains or {}).items()}
        self.events.add(self.epoch, charts)
        for condition, result in (tests or {}).items():
            self.add_test(condition, result)
        if best is not None and improved:
            self.run.save(best, self.checkpoint())
        if self.keeps(self.epoch):
            self.run.save(f"e_{self.epoch}.pth.tar", self.checkpoint())
        self._save()
        self.run.print(
            f"epoch {self.epoch:{len(str(self.args.epochs))}}/{self.args.epochs}  "
            f"{evaluation.epoch_line(scores, spread, statistics)}"
        )

    def keeps(self, epoch):
        """Whether the checkpoint of an epoch is kept."""
        chosen = epoch % self.args.save_freq == 0 or epoch in self.args.save_epochs
        return chosen or epoch == self.args.epochs

    def add_test(self, condition, result):
        """Adds a row to test_results.csv. result: {score: number}."""
        self._scoring = False  # a signal waits
        self.run.add_row("test_results.csv", {"epoch": self.epoch, "condition": condition} | result)
        self.events.add(self.epoch, {f"{k}/test_{condition}": v for k, v in result.items()})
        self.run.print(evaluation.test_line(condition, result))

    @property
    def tested(self):
        """Whether the test set has been scored after the last epoch."""
        return f"\n{self.epoch}," in self.run.tables["test_results.csv"]

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
            "tables": self.run.tables,
            "config": self.run.config,
        }

    def _save(self):
        """Saves last.pth.tar, and before it the events that a resumed run does not write again."""
        self.events.flush()
        self.run.save(LAST, self.checkpoint())

    def _restore(self):
        """Restores the state and the tables from last.pth.tar."""
        path = self.run.path / LAST
        if path.exists():
            checkpoint = read_checkpoint(path)
            try:
                self.model.load_state_dict(checkpoint["state_dict"])
                self.optimizer.load_state_dict(checkpoint["optimizer"])
                self.scheduler.load_state_dict(checkpoint["scheduler"])
                for name, generator in self.generators.items():
                    generator.set_state(checkpoint["generators"][name])
                for name in STATE:
                    setattr(self, name, checkpoint[name])
                for name in TABLES:
                    self.run.write_table(name, checkpoint["tables"][name])
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise RunError(f"{path}: cannot be resumed from ({error})") from error
        elif (self.run.path / "metrics.csv").exists():
            raise RunError(f"{path}: no such file; without it the run cannot be resumed")

    # Interruptions

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.getsignal(number)
            signal.signal(number, self._handle)
        return self

    def __exit__(self, kind, error, traceback):
        self._scoring = False  # from here on a signal waits
        path = shlex.quote(str(self.run.path))
        try:
            if isinstance(error, Interrupted):
                self._save()
                self.run.print(f"{error}: saved; continue with --resume={path}")
            elif isinstance(error, TrainingStopped):
                self.run.print(f"stopped: {error}; the last good state is {self.run.path / LAST}")
            elif error is None:
                arguments = self.run.config["arguments"].items()
                self.events.hyperparameters({k: v for k, v in arguments if k not in HOW})
                self._save()
                self.run.finish()
                folder = self.run.path.absolute().parents[:3][-1]  # of the task
                self.run.print(
                    f"done: {self.run.path}\n"
                    f"a page of pictures: python3 -m Postprocessing.report {path}\n"
                    f"curves: tensorboard --logdir {shlex.quote(str(folder))}"
                )
        finally:
            self.events.close()
            self.run.close()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _handle(self, signum, frame):
        self._signum = signum
        # A second Ctrl-C has its default effect. A second SIGTERM is ignored: at the end of a job,
        # a batch system may send one to the run and one to its parent, which passes it on.
        signal.signal(signal.SIGINT, self._handlers[signal.SIGINT])
        if self._scoring:
            self._scoring = False
            self._heed_signal()

    def _heed_signal(self):
        if self._signum is not None:
            raise Interrupted(self._signum)

    def _begin_scoring(self):
        """Parameters are final until the next batch: signals may interrupt at once."""
        self._scoring, self._scoring_begun = True, time.perf_counter()
        self._heed_signal()

    def _stop(self, name):
        raise TrainingStopped(
            f"{name} is not finite (epoch {self.epoch + 1}, batch {self.batch + 1}, learning rate "
            f"{self.lr:g}, {evaluation.extremes(self.model)}); a lower --lr may help"
        )
