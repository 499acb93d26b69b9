"""Both experiments again, written by hand in plain torch, against the files that a run leaves.

The loops here share only the data, the networks and the random streams with the scripts.
"""

import copy
import math
import re
import signal
from pydoc_data import topics
from statistics import fmean

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, RMSprop
from torch.testing import assert_close

import PTB_task
from NetworkCreation.checkpoints import load_model
from NetworkCreation.models import build_model
from NetworkCreation.time_loop import flush
from tests.conftest import PTB, SMNIST, TOY, rows
from tests.test_scripts import metrics
from Training.datasets import load_pixels, load_text
from Training.run_directory import Run
from Training.trainer import stream

DIGITS = ["--dataset", "digits", "--nhid", "8", "--lr", "0.01", "--no-cuda"]
PYDOC = ["--dataset", "pydoc", "--nhid", "8", "--emsize", "6", "--lr", "0.02", "--no-cuda"]
PYDOC += ["--batch_size", "100", "--bptt", "70"]


@pytest.fixture
def short_text(monkeypatch):
    """Cuts pydoc to 180 training rows of 100 columns, and 100 of 10 to validate and to test."""
    whole = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    monkeypatch.setattr(topics, "topics", {"all": whole[:20000]})


def table(run, name="metrics.csv"):
    """The rows of a table as {column: number}; conditions are words, empty columns left out."""
    return [
        {k: v if k == "condition" else float(v) for k, v in row.items() if v}
        for row in rows(Run(run), name)
    ]


def saved(run, name="last.pth.tar"):
    return torch.load(run / name, weights_only=True)


def assert_holds(row, **expected):
    """These columns of a row have these values, to the accuracy of float32."""
    assert {k: row[k] for k in expected} == pytest.approx(expected, rel=2e-5, abs=1e-6)


def gains(model):
    """The columns of n and s; none for an LSTM."""
    tensors = {k: getattr(model.rnn, k) for k in ("n", "s") if hasattr(model.rnn, k)}
    means = {f"{k}_mean": values.mean().item() for k, values in tensors.items()}
    return means | {f"{k}_std": values.std(correction=0).item() for k, values in tensors.items()}


def groups(model):
    """The parameters; weight decay does not act on n and s."""
    parameters = dict(model.named_parameters())
    exempt = [parameters.pop(name) for name in ("rnn.n", "rnn.s") if name in parameters]
    return [{"params": parameters.values()}, {"params": exempt, "weight_decay": 0}]


def update(model, optimizer, loss, clip):
    """One step of the optimiser; returns the norm of the gradient before it is clipped."""
    optimizer.zero_grad()
    loss.backward()
    norm = clip_grad_norm_(model.parameters(), math.inf if clip is None else clip)
    optimizer.step()
    return norm.item()


def uniform(generator):
    return torch.rand((), generator=generator).item()


def sine(x, frequency, amplitude):
    """x (T, B, 1) times 1 + A sin(2π f t/T)."""
    t = torch.arange(len(x)) / len(x)
    return x * (1 + amplitude * torch.sin(2 * math.pi * frequency * t)[:, None, None])


@torch.no_grad()
def score(model, part, count=None, transform=None):
    """Loss and accuracy on the first images of a part, all in one batch, in float64."""
    x, labels = part.images[:count].t()[..., None].double() / 16, part.labels[:count]
    x = x if transform is None else sine(x, *transform)
    logits = copy.deepcopy(model).double()(x)
    correct = (logits.argmax(dim=1) == labels).double()
    return {"loss": cross_entropy(logits, labels).item(), "accuracy": correct.mean().item()}


# Flags; batch size, seed, limit, shuffle, transform ratio and clip; optimiser and its options.
PIXEL_RUNS = {
    "plain": ("--batch 200", (200, 400, None, False, 0, None), Adam, {}),
    "flags": (
        "--batch 60 -p --seed 7 --limit-batches 4 --shuffle --transform-ratio 0.6 --clip 0.3 "
        "--no-adam --alpha 0.5 --weight_decay 0.05",
        (60, 7, 4, True, 0.6, 0.3),
        *(RMSprop, {"alpha": 0.5, "weight_decay": 0.05}),
    ),
}


@pytest.mark.parametrize("name", PIXEL_RUNS)
def test_smnist_equals_a_loop_by_hand(succeed, only_run, name):
    flags, (batch, seed, limit, shuffle, ratio, clip), optimizer, options = PIXEL_RUNS[name]
    flags = [*DIGITS, *flags.split(), "--epochs", 3, "--save-freq", 2]
    succeed(SMNIST, *flags)
    run, data = only_run(), load_pixels("digits", ".", seed, "-p" in flags)
    rows, tests, last = table(run), table(run, "test_results.csv"), saved(run)
    spec = last["config"]["model"]
    assert spec["layer"]["n"] == 5 + 2 * uniform(stream(seed, "gain")) and spec["layer"]["s"] == 0
    model = build_model(spec, stream(seed, "initialisation"))
    optimizer = optimizer(groups(model), lr=0.01, **options)
    order, orders, draws = torch.arange(1297), stream(seed, "order"), stream(seed, "transform")
    assert len(rows) == 3
    for epoch, row in enumerate(rows, start=1):
        if shuffle:
            order = torch.randperm(1297, generator=orders)
        losses, correct, norms = [], [], []
        for index in order.split(batch)[:limit]:
            x = data.train.images[index].t()[..., None].float() / 16  # (T, B, 1)
            labels = data.train.labels[index]
            if uniform(draws) < ratio:
                x = sine(x, 2 * uniform(draws), 0.2)
            logits = model(x)
            norms.append(update(model, optimizer, cross_entropy(logits, labels), clip))
            losses += cross_entropy(logits, labels, reduction="none").tolist()
            correct += (logits.argmax(dim=1) == labels).tolist()
        transform = (2 * uniform(stream(seed, "evaluation", epoch)), 0.5)
        count = None if limit is None else limit * batch
        expected = {
            "train": {"loss": fmean(losses), "accuracy": fmean(correct)},
            "validation": score(model, data.validation, count),
            "validation_transformed": score(model, data.validation, count, transform),
        }
        for part, scores in expected.items():
            assert_holds(row, **{f"{part}_{k}": v for k, v in scores.items()})
        assert_holds(row, epoch=epoch, lr=0.01, gradient_norm=fmean(norms), **gains(model))
        assert (run / f"e_{epoch}.pth.tar").exists() == (epoch > 1)
        if epoch > 1:
            assert_close(saved(run, f"e_{epoch}.pth.tar")["state_dict"], model.state_dict())
            as_is, changed = tests.pop(0), tests.pop(0)
            assert [as_is["condition"], changed["condition"]] == ["as_is", "sin"]
            assert_holds(as_is, epoch=epoch, **score(model, data.test, count))
            assert_holds(changed, epoch=epoch, **score(model, data.test, count, (1, 0.5)))
    assert [last[k] for k in ("epoch", "batch", "sums", "carry")] == [3, 0, {}, {}]
    assert last["best"] == min(row["validation_loss"] for row in rows) and not tests
    assert_close(last["state_dict"], model.state_dict())

    out = succeed(SMNIST, "--test", "--limit-batches", limit or 99)
    expected = [score(model, data.test, count, change)["loss"] for change in (None, (1, 0.5))]
    printed = [float(loss) for loss in re.findall(r"loss ([\d.]+), accuracy", out)]
    assert printed[:2] == pytest.approx(expected, abs=1e-4)


def test_the_rate_of_smnist_follows_the_validation_loss(succeed, only_run):
    """Twenty images are learnt by heart: the training loss falls, the validation loss rises.

    The rate is divided by ten after eleven epochs without a loss lower by 0.01 %.
    """
    flags = [*DIGITS, "--batch", 20, "--limit-batches", 1, "--lr", 0.02, "--epochs", 30]
    succeed(SMNIST, *flags)
    rows, expected = table(only_run()), {}
    for column in ("validation_loss", "validation_transformed_loss", "train_loss"):
        lr, best, bad, expected[column] = 0.02, math.inf, 0, []
        for row in rows:
            expected[column].append(lr)
            improved = row[column] < best * (1 - 1e-4)
            best, bad = (row[column], 0) if improved else (best, bad + 1)
            if bad > 10:
                lr, bad = lr / 10, 0
    rates = [row["lr"] for row in rows]
    same = [column for column in expected if rates == pytest.approx(expected[column])]
    assert same == ["validation_loss"] and rates[-1] < 0.02


# Flags; clip; optimiser and its options.
TEXT_RUNS = {
    "RNN": (
        "--clip 0.5 --betas 0.5 0.9 --weight_decay 1e-3",
        *(0.5, Adam, {"betas": (0.5, 0.9), "weight_decay": 1e-3}),
    ),
    "LSTM": ("--net-type LSTM --no-adam --alpha 0.6", None, RMSprop, {"alpha": 0.6}),
}


def in_columns(text, count):
    """A text (N,) as parallel columns, (N // count, count)."""
    rows = len(text) // count
    return torch.stack([text[i * rows : (i + 1) * rows] for i in range(count)], dim=1)


@torch.no_grad()
def text_scores(model, text):
    """Loss and bits per character on ten columns of a text, read in one window, in float64."""
    text = in_columns(text, 10)
    logits, _ = copy.deepcopy(model).double()(text[:-1])
    loss = cross_entropy(logits.flatten(0, 1), text[1:].flatten()).item()
    return {"loss": loss, "bits_per_character": loss / math.log(2)}


@pytest.mark.parametrize("name", TEXT_RUNS)
def test_ptb_equals_a_loop_by_hand(succeed, only_run, short_text, name):
    flags, clip, optimizer, options = TEXT_RUNS[name]
    succeed(PTB, *PYDOC, *flags.split(), "--epochs", 3, "--save-freq", 1)
    run, data = only_run(), load_text("pydoc", ".")
    model = build_model(saved(run)["config"]["model"], stream(400, "initialisation"))
    optimizer = optimizer(groups(model), lr=0.02, **options)
    text, rows = in_columns(data.train, 100), table(run)
    assert len(rows) == 3
    for epoch, row in enumerate(rows, start=1):
        losses, norms, state = [], [], None
        for start, end in ((0, 70), (70, 140), (140, 179)):
            logits, state = model(text[start:end], state)
            logits, targets = logits.flatten(0, 1), text[start + 1 : end + 1].flatten()
            norms.append(update(model, optimizer, cross_entropy(logits, targets), clip))
            losses += cross_entropy(logits, targets, reduction="none").tolist()
            state = tuple(h.detach() for h in state) if name == "LSTM" else state.detach()
        assert_close(saved(run, f"e_{epoch}.pth.tar")["state_dict"], model.state_dict())
        expected = {f"validation_{k}": v for k, v in text_scores(model, data.validation).items()}
        expected |= {"train_loss": fmean(losses), "gradient_norm": fmean(norms)}
        expected |= {"train_bits_per_character": fmean(losses) / math.log(2)}
        assert_holds(row, epoch=epoch, lr=0.02, **expected, **gains(model))
    (tested,) = table(run, "test_results.csv")
    assert tested["condition"] == "as_is"
    assert_holds(tested, epoch=3, **text_scores(model, data.test))


@pytest.fixture
def validation_losses(short_text, monkeypatch):
    """Replaces the first losses that PTB_task.py evaluates by those put into this list."""
    losses, evaluate = [], PTB_task.evaluate_text

    def evaluate_text(*arguments, **options):
        if losses:
            return {"loss": losses.pop(0), "bits_per_character": 1.0}
        return evaluate(*arguments, **options)

    monkeypatch.setattr(PTB_task, "evaluate_text", evaluate_text)
    return losses


def test_the_rate_of_ptb_is_halved_without_progress(succeed, only_run, validation_losses):
    """Also a tiny rate, after a tiny or no change, and after a halving in the epoch before."""
    losses = [3, 2.99999, 3.1, 3.2, 2.99999, 2.9, 3, 1]
    validation_losses += losses
    succeed(PTB, *PYDOC, "--lr", 1e-8, "--epochs", 8)
    rows = table(only_run())
    assert [row["validation_loss"] for row in rows] == losses
    halved = [row["lr"] / 1e-8 for row in rows]
    assert halved == pytest.approx([1, 1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 8, 1 / 16])
    assert saved(only_run())["optimizer"]["param_groups"][0]["lr"] == rows[-1]["lr"]


def test_the_best_model_is_tested_after_resuming(succeed, only_run, validation_losses):
    """The second epoch is the best; the fourth, after a resume, is better than the third only."""
    validation_losses += [2, 1, 3]
    succeed(PTB, *PYDOC, "--save-freq", 1, "--save", "best.pt", "--epochs", 3)
    run, text = only_run(), load_text("pydoc", ".").test
    expected = text_scores(load_model(run / "e_2.pth.tar")[0], text)
    validation_losses += [1.5]
    succeed(PTB, "--resume", run, "--epochs", 4)
    assert saved(run, "best.pt")["epoch"] == 2 and saved(run)["best"] == 1
    assert [row["lr"] for row in table(run)] == [0.02, 0.02, 0.02, 0.01]
    for epoch, row in zip((3, 4), table(run, "test_results.csv"), strict=True):
        assert_holds(row, epoch=epoch, **expected)
    for flags in ([], ["--checkpoint", run / "best.pt"], ["--nonlin", "gamma"]):
        loss = float(re.search(r"loss ([\d.]+)", succeed(PTB, "--test", *flags))[1])
        assert loss == pytest.approx(expected["loss"], abs=1e-4)


@pytest.fixture
def interrupts():
    """Makes SIGINT a KeyboardInterrupt, as in a script."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("script", TOY)
@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_while_files_are_written(call, only_run, monkeypatch, interrupts, script, signals):
    """One waits until all files of the epoch are written, a second one acts at once."""
    flags = [*TOY[script], "--epochs", 2, "--save-freq", 1]
    assert call(script, *flags, "--save-dir", "whole")[0] == 0
    add_row, left = Run.add_row, [signal.SIGINT] * signals

    def add_and_interrupt(run, name, row):
        add_row(run, name, row)
        while left and name == "metrics.csv":
            signal.raise_signal(left.pop())

    monkeypatch.setattr(Run, "add_row", add_and_interrupt)
    assert call(script, *flags, "--save-dir", "torn")[0] == 130
    run, waited = only_run("torn"), signals == 1
    assert len(metrics(run)) == 1 and saved(run)["epoch"] == waited
    last_file = "model.pt" if script == PTB else "test_results.csv"
    assert (run / "e_1.pth.tar").exists() == (run / last_file).exists() == waited
    assert call(script, "--resume", run)[0] == 0
    assert metrics(run) == metrics(only_run("whole"))


@pytest.mark.parametrize("script", TOY)
def test_an_unfinished_epoch_is_not_a_result(call, only_run, monkeypatch, interrupts, script):
    step = Adam.step

    def step_and_interrupt(*arguments, **options):
        step(*arguments, **options)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Adam, "step", step_and_interrupt)
    assert call(script, *TOY[script], "--epochs", 1)[0] == 130
    run = only_run()
    assert (saved(run)["epoch"], saved(run)["batch"]) == (0, 1)
    code, out, err = call(script, "--test", "--checkpoint", run / "last.pth.tar")
    assert code == 0 and "within an epoch" in out, err
    assert not (run / "test_results.csv").exists()


def test_only_gradients_below_1e_30_are_flushed():
    kept = torch.tensor([1.0, 1e-18, 1e-29, -1e-29, 2e-30])
    assert torch.equal(flush(kept.clone()), kept)
    assert flush(torch.tensor([1e-31, -1e-36])).tolist() == [0, 0]
