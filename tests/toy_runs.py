"""Analysed toy runs of both tasks, created once for the notebooks and the commands."""

import functools
import json
import shutil

import pytest

import PTB_task
import sMNIST_task
from Postprocessing import analyse
from tests.conftest import MAINS, TOY, only_run_below
from Training import datasets

COMMON = "--nhid=8 --lr=1e-2 --epochs=2 --save-freq=1"
TASKS = {
    "psDigits": (sMNIST_task, "--dataset=digits -p --batch=20"),
    "pydoc": (PTB_task, "--dataset=pydoc --emsize=6 --batch_size=16 --bptt=12"),
}
SETTINGS = ["--nonlin=gamma --no-learn_params", "--nonlin=gamma", "--nonlin=gamma2"]
CELLS = ["--n=1 --s=0", "--n=5 --s=0.5"]  # a grid of 2 n × 2 s without two of its cells
NETWORKS = {"psDigits": ["--net-type=ANRU", "--nonlin=ReLU"], "pydoc": ["--net-type=ANRU"]}
# Small settings of the analyses of a run's page, and of all.
OF_PAGE = ["lyapunov.chains=2", "lyapunov.steps=64", "jacobian.times=8"]
OF_PAGE += ["robustness.amplitudes=[0,1,10]", "robustness.samples=5"]
SMALL = ["robustness.amplitudes=[0,1]", "robustness.samples=50", "lyapunov.steps=16"]
SMALL += ["jacobian.sequences=1", "jacobian.times=2", "mutual_information.samples=50"]
SMALL += ["mutual_information.times=1", "supervisor.sequences=2", "step_response.sequences=2"]
SMALL += ["regularization.streams=3", "regularization.sizes=[0,5]", "regularization.draws=1"]
SMALL += ["regularization.steps=50"]
NEEDED = {  # the analyses of the runs that figures show, by an expression that selects them
    "psDigits": {
        "setting in ('static', 'homogeneous', 'heterogeneous')": ["dynamics", "robustness"],
        "network in ('ANRU', 'ReLU')": ["robustness", "adaptation", "regularization"],
    },
    "pydoc": {"not dry": ["robustness"]},
}


def train(folder, script, *flags):
    """Trains a run of the size of `TOY`, the only one below a new folder; returns its path."""
    words = [*TOY[script], "--epochs", "1", *flags, "--save-dir", str(folder)]
    assert MAINS[script](words) == 0
    return only_run_below(folder)


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
        return [symbols[:2000] for symbols in parts], name, checksums

    return part


def make_toy_runs(task, root):
    """Trains and analyses the grid of `CELLS` and the `NETWORKS`."""
    script, flags = TASKS[task]
    grid = [f"{setting} {cell}" for setting in SETTINGS for cell in CELLS]
    for own in grid + NETWORKS[task]:
        words = f"{COMMON} {flags} {own}".split()
        assert script.main([*words, "--save-dir", str(root)]) == 0
    for where, names in NEEDED[task].items():
        assert analyse.main([*names, str(root / task), "--where", where, "--set", *SMALL]) == 0


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
