"""Learning works: the unmodified script on digits, with the whole training set."""

import csv

import pytest

# Flags, and the mean validation accuracy over the last five epochs that is expected.
SETTINGS = {
    "ANRU": (["--net-type", "ANRU", "--nhid", 64, "--lr", "5e-4", "--epochs", 12], 0.65),
    "gamma2-RNN": (["--nonlin", "gamma2", "--nhid", 100, "--lr", "1e-3", "--epochs", 15], 0.85),
}


@pytest.mark.parametrize("network", SETTINGS)
def test_digits_are_learnt(call, only_run, network):
    """Chance is 0.1; single epochs vary by a few percent."""
    flags, expected = SETTINGS[network]
    code, _, err = call("sMNIST_task.py", "--dataset", "digits", "--batch", 50, "--shuffle", *flags)
    assert code == 0, err
    with (only_run() / "metrics.csv").open() as file:
        accuracies = [float(row["validation_accuracy"]) for row in csv.DictReader(file)]
    assert sum(accuracies[-5:]) / 5 >= expected
