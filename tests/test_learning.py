"""The script trains networks that learn digits, on the whole training set."""

import csv

import torch

import sMNIST_task
from NetworkCreation.checkpoints import load_model
from Training.datasets import PIXEL_SETS, load_pixels
from Training.evaluation import evaluate_pixels
from Training.run_directory import Run

FLAGS = ["--dataset", "digits", "--batch", "50", "--shuffle", "--lr", "1e-3"]


def train(folder, *flags):
    """Trains; returns the run and the mean validation accuracy of its last four epochs."""
    assert sMNIST_task.main([*FLAGS, *flags, "--save-dir", str(folder)]) == 0
    (config,) = folder.rglob("config.json")
    with (config.parent / "metrics.csv").open() as file:
        accuracies = [float(row["validation_accuracy"]) for row in csv.DictReader(file)]
    return Run(config.parent), sum(accuracies[-4:]) / 4  # single epochs vary by a few percent


def test_an_rnn_learns_digits(tmp_path):
    _, accuracy = train(tmp_path, "--nonlin", "gamma2", "--nhid", "100", "--epochs", "10")
    assert accuracy >= 0.85


def coarse(load):
    """Wraps a loader of images to average 2 × 2 pixels: 16 steps instead of 64."""

    def smaller(*arguments):
        images, *others = load(*arguments)
        squares = images.view(-1, 4, 2, 4, 2).float().mean(dim=(2, 4))
        return squares.view(-1, 16).to(images.dtype), *others

    return smaller


def test_anru_needs_its_supervisors_and_its_recurrence_to_learn_digits(tmp_path, monkeypatch):
    monkeypatch.setitem(PIXEL_SETS, "digits", coarse(PIXEL_SETS["digits"]))
    run, accuracy = train(tmp_path, "--net-type", "ANRU", "--nhid", "64", "--epochs", "6")
    assert accuracy >= 0.7
    data = load_pixels("digits", "data", seed=400, permute=False).validation
    model, _ = load_model(run.kept[6])
    start, learnt = load_model(run.kept[0])[0].state_dict(), model.state_dict()
    for names in (("Uag", "Wgg", "Wgn", "Wgs"), ("Whh",)):  # reset to their initial values
        before = {k: v for k, v in start.items() if k.split(".")[1] in names}
        model.load_state_dict(learnt | before)
        with torch.no_grad():
            _, without = evaluate_pixels(model, data, batch_size=250)
        assert without <= accuracy - 0.1
