"""Evaluation: loss and accuracy on images, loss and bits per character on text."""

import math

import torch
from torch.nn.functional import cross_entropy

from Training.datasets import windows
from Training.output import progress

EVALUATION_COLUMNS = 10  # batch size of validation and test text


def bits_per_character(loss):
    """Converts a mean cross-entropy from nats to bits: loss / ln 2."""
    return loss / math.log(2)


@torch.no_grad()
def evaluate_pixels(model, data, batch_size, transform=None, drive=None, limit=None):
    """Mean cross-entropy in nats and accuracy in [0, 1] over a PixelSet.

    transform: applied to each batch x (T, B, 1), if given. drive: (T,) or None, passed to the
    model. limit: maximum number of batches.
    """
    model.eval()
    loss, correct, seen = 0.0, 0, 0
    for start in progress(range(0, len(data), batch_size)[:limit], "evaluating"):
        x, labels = data.batch(slice(start, start + batch_size))
        if transform is not None:
            x = transform(x)
        logits = model(x, drive=drive)
        loss += cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(dim=1) == labels).sum().item()
        seen += len(labels)
    return loss / seen, correct / seen


@torch.no_grad()
def evaluate_text(model, text, bptt, limit=None, drive=None):
    """Mean cross-entropy in nats over all predicted symbols of text (rows, columns).

    The state is carried across windows of bptt steps. limit: maximum number of windows. drive:
    (bptt,) or None, passed to the model in every window.
    """
    model.eval()
    loss, seen, state = 0.0, 0, None
    for start, end in progress(windows(len(text), bptt)[:limit], "evaluating"):
        current = None if drive is None else drive[: end - start]
        logits, state = model(text[start:end], state, current)
        targets = text[start + 1 : end + 1].flatten()
        loss += cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
        seen += len(targets)
    return loss / seen
