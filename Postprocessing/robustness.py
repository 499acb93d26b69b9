"""Test score on changed inputs, against the size of the change.

Saved:
    amplitudes (A,)
    sin (A,)     pixels only: test accuracy in [0, 1] under the sine transform with one cycle per
                 sequence
    step (A,)    the same under a step drive of this size, in the step window of the test; text:
                 bits per character, with the drive in every --bptt window
The network is the one that the script evaluates at the end: the newest checkpoint for pixels, the
best on validation for text. The default amplitudes are those of Geadah et al., arXiv 2006.12253.
"""

import numpy as np

from NetworkCreation.checkpoints import load_model
from Postprocessing.networks import data_set, is_text
from Training import evaluation
from Training.console import Progress
from Training.datasets import PixelSet, columns
from Training.transforms import SinTransform, step_drive, step_window

AMPLITUDES = (0.0, 0.5, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0)


def _drive(steps, amplitude):
    return step_drive(steps, amplitude, *step_window(steps))


def pixel_scores(model, test, batch_size, amplitudes):
    """{'sin', 'step': accuracies (A,)} of a classifier on a PixelSet."""
    steps = test.images.shape[1]
    scores = {"sin": [], "step": []}
    for amplitude in Progress(amplitudes, desc="amplitudes", leave=False):
        changes = {
            "sin": {"transform": SinTransform(amplitude=amplitude)},
            "step": {"drive": _drive(steps, amplitude)},
        }
        for name, change in changes.items():
            result = evaluation.evaluate_pixels(model, test, batch_size, **change)
            scores[name].append(result["accuracy"])
    return {name: np.array(values) for name, values in scores.items()}


def text_scores(model, text, bptt, amplitudes, limit=None):
    """{'step': bits per character (A,)} of a character model on text (rows, columns)."""
    results = [
        evaluation.evaluate_text(model, text, bptt, limit, drive=_drive(bptt, amplitude))
        for amplitude in Progress(amplitudes, desc="amplitudes", leave=False)
    ]
    return {"step": np.array([result["bits_per_character"] for result in results])}


def compute(run, data, device, *, amplitudes=AMPLITUDES, samples=None):
    """The arrays listed in the module docstring.

    samples: number of test images, or windows of text; None: all.
    """
    arguments, test = run.config["arguments"], data_set(run, data).test
    model = load_model(run.tested_checkpoint())[0].to(device)
    if is_text(run):
        text = columns(test, evaluation.EVALUATION_COLUMNS, device)
        scores = text_scores(model, text, arguments["bptt"], amplitudes, samples)
    else:
        few = slice(0, samples)
        test = PixelSet(test.images[few], test.labels[few], test.scale).to(device)
        scores = pixel_scores(model, test, arguments["batch_size"], amplitudes)
    return {"amplitudes": np.array(amplitudes), **scores}
