"""That learning works: digits, with the whole training set, by the script as it stands."""

import csv

import pytest

SETTINGS = {
    "ANRU": ["--net-type", "ANRU", "--nhid", 64, "--epochs", 25],
    "gamma2-RNN": ["--net-type", "RNN", "--nonlin", "gamma2", "--nhid", 100, "--epochs", 15],
}


@pytest.mark.parametrize("network", SETTINGS)
def test_digits_are_learnt(call, only_run, network):
    flags = ["--dataset", "digits", "--lr", "1e-3", "--batch", 50, "--shuffle"]
    code, _, err = call("sMNIST_task.py", *flags, *SETTINGS[network])
    assert code == 0, err
    with (only_run() / "test_results.csv").open() as file:
        as_is = next(csv.DictReader(file))
    assert as_is["condition"] == "as_is" and float(as_is["accuracy"]) >= 0.85
