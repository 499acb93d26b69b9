"""Test score on changed inputs, against the size of the change.

    python3 -m Postprocessing.robustness RUN... [--amplitudes 0 1 5]

Writes analysis/robustness.npz to each run:
    amplitudes (A,)
    sin, sin_loss (A,)     pixels only: test accuracy in [0, 1] and loss in nats under the sine
                           transform with one cycle per sequence
    step, step_loss (A,)   the same under a step drive of this size, in the step window of the
                           test; text: bits per character, with the drive in every --bptt window
    chance ()              score of a random guess: 1/classes, or log2 of the vocabulary
The network is the one that the script evaluates at the end: the newest checkpoint for pixels, the
best on validation for text. The default amplitudes are those of Geadah et al., arXiv 2006.12253.
"""

import sys

import numpy as np
from tqdm import tqdm

from NetworkCreation.checkpoints import load_model
from Postprocessing import analysis, grid
from Postprocessing.load_runs import data_set
from Training import evaluation
from Training.datasets import PixelSet, columns
from Training.flags import finite, positive_int
from Training.transforms import SinTransform, step_drive, step_window

AMPLITUDES = (0.0, 0.5, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0)


def make_parser():
    parser = analysis.make_parser("robustness", __doc__)
    flag, number = parser.add_argument, "number of test images or text windows (default: all)"
    sizes = {"metavar": "A", "default": AMPLITUDES, "help": "sizes of the sine and the step"}
    flag("--amplitudes", type=finite, nargs="+", **sizes)
    flag("--samples", type=positive_int, help=number)
    return parser


def _drive(steps, amplitude):
    return step_drive(steps, amplitude, *step_window(steps))


def pixel_scores(model, test, batch_size, amplitudes):
    """{'sin', 'sin_loss', 'step', 'step_loss': (A,)} of a classifier on a PixelSet."""
    steps = test.images.shape[1]
    found = []
    for amplitude in tqdm(amplitudes, desc="amplitudes", leave=False, disable=None):
        sine, drive = SinTransform(amplitude=amplitude), _drive(steps, amplitude)
        changed = evaluation.evaluate_pixels(model, test, batch_size, transform=sine)
        driven = evaluation.evaluate_pixels(model, test, batch_size, drive=drive)
        found.append([*changed, *driven])
    names = ("sin_loss", "sin", "step_loss", "step")
    return dict(zip(names, np.array(found).T, strict=True))


def text_scores(model, text, bptt, amplitudes, limit=None):
    """{'step', 'step_loss': (A,)} of a character model on text (rows, columns)."""
    loss = [
        evaluation.evaluate_text(model, text, bptt, limit, drive=_drive(bptt, amplitude))
        for amplitude in tqdm(amplitudes, desc="amplitudes", leave=False, disable=None)
    ]
    loss = np.array(loss)
    return {"step": evaluation.bits_per_character(loss), "step_loss": loss}


def compute(run, args):
    """The arrays of one run, listed in the module docstring."""
    saved, test = run.config["arguments"], data_set(run, args.data).test
    model, _ = load_model(run.scored_checkpoint())
    model.to(args.device)
    if grid.is_text(run):
        text = columns(test, evaluation.EVALUATION_COLUMNS, args.device)
        scores = text_scores(model, text, saved["bptt"], args.amplitudes, args.samples)
    else:
        few = slice(0, args.samples)
        test = PixelSet(test.images[few], test.labels[few], test.scale).to(args.device)
        scores = pixel_scores(model, test, saved["batch_size"], args.amplitudes)
    chance = np.array(grid.chance(run))
    return {"amplitudes": np.array(args.amplitudes), **scores, "chance": chance}


def main(argv=None):
    return analysis.main("robustness", make_parser(), compute, argv)


if __name__ == "__main__":
    sys.exit(main())
