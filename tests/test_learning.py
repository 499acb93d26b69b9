"""That learning works: digits, with the whole training set, by the script as it stands."""

import csv

import pytest

SETTINGS = {
    "ANRU": ["--net-type", "ANRU", "--nhid", 64, "--lr", "5e-4", "--epochs", 30],
    "gamma2-RNN": ["--nonlin", "gamma2", "--nhid", 100, "--lr", "1e-3", "--epochs", 15],
}


@pytest.mark.parametrize("network", SETTINGS)
def test_digits_are_learnt(call, only_run, network):
    flags = ["--dataset", "digits", "--batch", 50, "--shuffle"]
    code, _, err = call("sMNIST_task.py", *flags, *SETTINGS[network])
    assert code == 0, err
    with (only_run() / "metrics.csv").open() as file:
        accuracies = [float(row["validation_accuracy"]) for row in csv.DictReader(file)]
    assert sum(accuracies[-5:]) / 5 >= 0.85  # single epochs differ by some percent
