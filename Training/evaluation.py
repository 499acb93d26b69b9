"""Scores of images and of text, statistics of n and s, extreme values; in words."""

import math

import torch
from torch.nn.functional import cross_entropy

from Training.console import Progress
from Training.datasets import windows

EVALUATION_COLUMNS = 10  # batch size of validation and test text


@torch.no_grad()
def evaluate_pixels(model, data, batch_size, transform=None, drive=None, limit=None):
    """The scores of a PixelSet: mean cross-entropy in nats, accuracy in [0, 1].

    transform: (T, 1, 1) or None, multiplies each batch x (T, B, 1). drive: (T,) or None, passed to
    the model. limit: maximum number of batches.
    """
    model.eval()
    loss, correct, seen = 0.0, 0, 0
    batches = range(0, len(data), batch_size)[:limit]
    for start in Progress(batches, desc="evaluating", leave=False):
        x, labels = data.batch(slice(start, start + batch_size))
        if transform is not None:
            x = x * transform.to(x)
        logits = model(x, drive=drive)
        loss += cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(dim=1) == labels).sum().item()
        seen += len(labels)
    return {"loss": loss / seen, "accuracy": correct / seen}


@torch.no_grad()
def evaluate_text(model, text, bptt, limit=None, drive=None):
    """The scores of a text (rows, columns): mean cross-entropy in nats, and in bits.

    The state is carried across windows of bptt steps. limit: maximum number of windows. drive:
    (bptt,) or None, passed to the model in every window.
    """
    model.eval()
    loss, seen, state = 0.0, 0, None
    for start, end in Progress(windows(len(text), bptt)[:limit], desc="evaluating", leave=False):
        current = None if drive is None else drive[: end - start]
        logits, state = model(text[start:end], state, current)
        targets = text[start + 1 : end + 1].flatten()
        loss += cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
        seen += len(targets)
    return text_scores(loss / seen)


def text_scores(loss):
    """The scores of a text with this mean cross-entropy in nats."""
    return {"loss": loss, "bits_per_character": loss / math.log(2)}


def gain_statistics(gains):
    """Mean and standard deviation of {"n": tensor, "s": tensor}, {"n_mean": …}; None if empty."""
    statistics = {}
    for name in ("n", "s"):
        values = gains[name].cpu().double() if name in gains else None
        statistics[f"{name}_mean"] = None if values is None else values.mean().item()
        statistics[f"{name}_std"] = None if values is None else values.std(correction=0).item()
    return statistics


def epoch_line(scores, gains, statistics):
    """The main numbers of an epoch in one line; losses and scores of training/validation."""
    parts = []
    for name, train in scores["train"].items():
        validation = scores["validation"].get(name, math.nan)
        if "accuracy" in name:
            parts.append(f"{name} {100 * train:5.1f}/{100 * validation:5.1f} %")
        else:
            label = "bits" if name == "bits_per_character" else name
            parts.append(f"{label} {train:6.4f}/{validation:6.4f}")
    parts += [f"{k} {gains[f'{k}_mean']:6.3f}" for k in "ns" if gains[f"{k}_mean"] is not None]
    parts.append(f"lr {statistics['lr']:7.2g}")
    return "  ".join([*parts, f"{statistics['seconds']:6.1f} s"])


def test_line(condition, result):
    """The scores of the test set under a condition, {score: number}, in one line."""
    numbers = [
        f"{name.replace('_', ' ')} {value:{'.2%' if 'accuracy' in name else '.4f'}}"
        for name, value in result.items()
    ]
    return f"test {condition}: {', '.join(numbers)}"


def extremes(model):
    """The largest parameter and gradient and the smallest |n|, in words; inf stands for NaN too."""
    state, words = model.state_dict(), []
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for kind, tensors in (("parameter", state), ("gradient", gradients)):
        sizes = {name: t.abs().nan_to_num(math.inf, math.inf) for name, t in tensors.items()}
        sizes = {name: size.max().item() for name, size in sizes.items() if size.numel()}
        if sizes:
            name = max(sizes, key=sizes.get)
            words.append(f"largest {kind} {sizes[name]:.3g} in {name}")
    gains = {name: n.abs().min() for name, n in state.items() if name.endswith(".n")}
    return ", ".join(words + [f"smallest |n| {n:.3g} in {name}" for name, n in gains.items()])
