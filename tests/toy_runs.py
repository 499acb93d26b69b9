"""Analysed toy runs of both tasks, created once for the notebooks and the commands."""

import functools
import itertools
import json
import shutil

import pytest

import PTB_task
import sMNIST_task
from Postprocessing import analyse
from Training import datasets

COMMON = ["--nhid", "8", "--lr", "1e-2", "--epochs", "2", "--save-freq", "2"]
TASKS = {
    "psDigits": (sMNIST_task, ["--dataset", "digits", "-p", "--batch", "20"]),
    "pydoc": (
        PTB_task,
        ["--dataset", "pydoc", "--emsize", "6", "--batch_size", "16", "--bptt", "12"],
    ),
}
SETTINGS = [["gamma", "--no-learn_params"], ["gamma"], ["gamma2"]]
# Small settings of regularization, and of the analyses.
FEW = {"steps": 50, "streams": 3, "draws": 1, "sizes": [0, 5]}
SMALL = ["robustness.amplitudes=[0,1]", "robustness.samples=50", "lyapunov.steps=16"]
SMALL += ["jacobian.sequences=1", "jacobian.times=2", "mutual_information.samples=50"]
SMALL += ["mutual_information.times=1", "supervisor.sequences=2", "step_response.sequences=2"]
SMALL += ["regularization.streams=3", "regularization.sizes=[0,5]", "regularization.draws=1"]
SMALL += ["regularization.steps=50"]
NEEDED = {"psDigits": ("dynamics", "robustness", "adaptation", "regularization")}
NEEDED["pydoc"] = ("robustness",)


def few_images(load):
    """Wraps a loader of images to keep only the first 300."""

    def part(*arguments):
        images, labels, scale, _, test_size, checksums = load(*arguments)
        return images[:300], labels[:300], scale, [200, 50, 50], test_size, checksums

    return part


def few_symbols(load):
    """Wraps a loader of a text to keep only the first 2,000 symbols of each part."""

    @functools.cache
    def part(*arguments):
        parts, name, checksums = load(*arguments)
        return [one[:2000] for one in parts], name, checksums

    return part


def make_toy_runs(task, root):
    """Trains and analyses a grid with one cell missing, and the figures' networks but the GRU."""
    script, flags = TASKS[task]
    runs = [
        ["--nonlin", *setting, "--n", gain, "--s", saturation]
        for setting in SETTINGS
        for gain, saturation in itertools.product(("1", "5"), ("0", "0.5"))
        if (gain, saturation) != ("5", "0.5")
    ]
    runs += [["--net-type", "ANRU"], ["--net-type", "LSTM"], ["--nonlin", "ReLU"]]
    for own in runs:
        assert script.main([*COMMON, *flags, "--save-dir", str(root), *own]) == 0
    assert analyse.main([*NEEDED[task], str(root / task), "--set", *SMALL]) == 0


def make(folder):
    """The toy runs of every task in folder/runs; in folder/seeds, the ANRU copied as two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.PIXEL_SETS, "digits", few_images(datasets.PIXEL_SETS["digits"]))
        patch.setitem(datasets.TEXT_SETS, "pydoc", few_symbols(datasets.TEXT_SETS["pydoc"]))
        for task in TASKS:
            make_toy_runs(task, folder / "runs")
    (anru,) = (folder / "runs/psDigits/400").glob("ANRU_*/*")
    for seed in (400, 401):
        copy = folder / f"seeds/psDigits/{seed}/ANRU/run"
        shutil.copytree(anru, copy)
        config = json.loads((copy / "config.json").read_text())
        config["arguments"]["seed"] = seed
        (copy / "config.json").write_text(json.dumps(config))
    return folder
