"""What a model is worth: loss and accuracy on images, loss and bits per character on text."""

import math

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from Training.datasets import windows

EVALUATION_COLUMNS = 10  # of the validation and the test text


def bits_per_character(loss):
    """A mean cross-entropy in nats as bits: loss / ln 2."""
    return loss / math.log(2)


def adapted(row):
    """The n and s of a row of metrics.csv in words; nothing for a network that has none."""
    if row["n_mean"] is None:
        return ""
    return ", n {n_mean:.3f} ± {n_std:.3f}, s {s_mean:.3f} ± {s_std:.3f}".format(**row)


@torch.no_grad()
def evaluate_pixels(model, data, batch_size, transform=None, drive=None, limit=None, check=None):
    """Mean cross-entropy in nats and accuracy in [0, 1] over a PixelSet.

    transform: applied to every batch x (T, B, 1), None for as it is. drive: (T,) or None, given to
    the model. limit: stop after so many batches, and divide by the samples seen. check: called
    after every batch, to stop by an exception.
    """
    model.eval()
    loss, correct, seen = 0.0, 0, 0
    starts = range(0, len(data), batch_size)[:limit]
    for start in tqdm(starts, desc="evaluating", leave=False, disable=None):
        x, labels = data.batch(slice(start, start + batch_size))
        if transform is not None:
            x = transform(x)
        logits = model(x, drive=drive)
        loss += cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(dim=1) == labels).sum().item()
        seen += len(labels)
        if check is not None:
            check()
    return loss / seen, correct / seen


@torch.no_grad()
def evaluate_text(model, text, bptt, limit=None, check=None, drive=None):
    """Mean cross-entropy in nats over all predicted symbols of text (rows, columns).

    The state is carried from window to window of bptt steps. limit and check as above. drive:
    (bptt,) or None, given to the model in every window.
    """
    model.eval()
    loss, seen, state = 0.0, 0, None
    for start, end in tqdm(
        windows(len(text), bptt)[:limit], desc="evaluating", leave=False, disable=None
    ):
        current = None if drive is None else drive[: end - start]
        logits, state = model(text[start:end], state, current)
        targets = text[start + 1 : end + 1].flatten()
        loss += cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
        seen += len(targets)
        if check is not None:
            check()
    return loss / seen
