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
from Training.console import Progress
from Training.datasets import PixelSet, columns
from Training.evaluation import EVALUATION_COLUMNS, evaluate_pixels, evaluate_text
from Training.transforms import sine, step_drive, step_window

AMPLITUDES = (0.0, 0.5, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0)


def compute(run, data, device, *, amplitudes=AMPLITUDES, samples=None):
    """The arrays listed in the module docstring.

    samples: number of test images, or windows of text; None: all.
    """
    arguments, test = run.config["arguments"], data_set(run, data).test
    model = load_model(run.path)[0].to(device)
    text, arrays = is_text(run), {"amplitudes": amplitudes}
    if text:
        rows, steps = columns(test, EVALUATION_COLUMNS, device), arguments["bptt"]
    else:
        few, steps = slice(0, samples), test.images.shape[1]
        test = PixelSet(test.images[few].to(device), test.labels[few].to(device), test.scale)
    for amplitude in Progress(amplitudes, desc="amplitudes", leave=False):
        drive = step_drive(steps, amplitude, *step_window(steps))
        if text:
            result = evaluate_text(model, rows, steps, samples, drive=drive)
            arrays.setdefault("step", []).append(result["bits_per_character"])
            continue
        transform = sine(steps, amplitude=amplitude)
        for name, change in {"sin": {"transform": transform}, "step": {"drive": drive}}.items():
            result = evaluate_pixels(model, test, arguments["batch_size"], **change)
            arrays.setdefault(name, []).append(result["accuracy"])
    return {name: np.array(values) for name, values in arrays.items()}
