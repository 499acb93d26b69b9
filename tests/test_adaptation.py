"""Robustness and ANRU's response to steps: analyses of toy runs against their files and models."""

import numpy as np
import pytest
import torch

from Postprocessing import analyse, robustness
from Postprocessing.networks import kept_model, layer_input
from tests.conftest import rows
from tests.toy_runs import train
from Training.run_directory import Run
from Training.transforms import step_drive

PIXELS = ["sMNIST_task.py", "--epochs", "2", "--save-freq", "1"]
RUNS = {
    "gamma2": [*PIXELS, "--nonlin", "gamma2"],
    "ANRU": [*PIXELS, "--net-type", "ANRU"],
    "text": ["PTB_task.py"],
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """{name: trained run} of `RUNS`."""
    return {name: Run(train(tmp_path_factory.mktemp(name), *words)) for name, words in RUNS.items()}


def compute(run, name, **settings):
    assert analyse.compute(run, name, settings, recompute=True)
    return analyse.load(run.path, name)


def test_the_response_to_steps_is_that_of_the_layer(opened):
    run, settings = opened["ANRU"], {"sizes": [0.0, 2.0, 9.0], "units": 3, "sequences": 4}
    saved = compute(run, "step_response", **settings)
    model = kept_model(run)
    x = layer_input(run, model, 4).double()
    first, end = saved["window"]
    assert list(saved["units"]) == [0, 4, 7] and (first, end) == (16, 32)
    layer = model.rnn.double()
    for i, size in enumerate(settings["sizes"]):
        drive = step_drive(len(x), size, first, end - first)
        with torch.no_grad():
            h = layer(x, drive=drive)[0].numpy()  # (T, S, H)
        np.testing.assert_allclose(saved["h"][i], h.mean(axis=(1, 2)), atol=1e-9)
        np.testing.assert_allclose(saved["h_units"][i], h[:, 0, [0, 4, 7]], atol=1e-9)
        state = layer.initial_state(4)
        with torch.no_grad():
            for t, x_t in enumerate(x):
                state = layer.step(x_t, state, drive[t])
                assert saved["n"][i, t] == pytest.approx(layer.gain(state[1]).mean().item())
                assert saved["s"][i, t] == pytest.approx(layer.saturation(state[1]).mean().item())
    changed = np.flatnonzero(saved["s"][2] != saved["s"][0])
    assert changed[0] == first
    assert saved["epochs"].tolist() == [0, 1, 2] and saved["n_kept"].shape == (3, 8)
    assert saved["n_kept"][-1].mean() == pytest.approx(saved["n"][0].mean(), rel=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_robustness_has_the_scores_of_the_run(opened, monkeypatch, name):
    # up to the last step: a barely trained network forgets an earlier drive
    monkeypatch.setattr(robustness, "step_window", lambda steps: (steps // 2, steps // 2))
    few = {"samples": 3} if name == "text" else {}  # as its --limit-batches
    saved = compute(opened[name], "robustness", amplitudes=[0.0, 0.5, 30.0], **few)
    tested = {row["condition"]: row for row in rows(opened[name], "test_results.csv")}
    if name == "text":
        score = float(tested["as_is"]["bits_per_character"])
        assert saved["step"][0] == pytest.approx(score, rel=1e-6)
        assert saved["step"][2] != saved["step"][0] and "sin" not in saved
    else:
        score = float(tested["as_is"]["accuracy"])
        assert saved["sin"][0] == saved["step"][0] == score
        assert saved["sin"][1] == float(tested["sin"]["accuracy"])  # of amplitude 0.5


def test_every_analysis_runs_on_the_requested_device(opened):
    """A tensor on the meta device has no values, so reading a result there fails."""
    for run in (opened["ANRU"], opened["text"]):
        for name in ("jacobian", "lyapunov", "mutual_information", "robustness"):
            with pytest.raises((NotImplementedError, RuntimeError), match="meta tensor"):
                analyse.compute(run, name, {}, device=torch.device("meta"))
