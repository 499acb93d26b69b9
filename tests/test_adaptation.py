"""Robustness and ANRU's response to steps: analyses of toy runs against their files and models."""

import numpy as np
import pytest
import torch

import PTB_task
import sMNIST_task
from Postprocessing import analyse, robustness
from Postprocessing.networks import kept_model, layer_input
from tests.conftest import TOY
from Training.run_directory import Run
from Training.transforms import step_drive

PIXELS = ["--epochs", "2", "--save-freq", "1", *TOY["sMNIST_task.py"]]
TEXT = ["--epochs", "1", *TOY["PTB_task.py"]]
RUNS = {
    "gamma2": (sMNIST_task, [*PIXELS, "--nonlin", "gamma2"]),
    "ANRU": (sMNIST_task, [*PIXELS, "--net-type", "ANRU"]),
    "LSTM": (sMNIST_task, [*PIXELS, "--net-type", "LSTM"]),
    "text": (PTB_task, TEXT),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """{name: directory} of the trained `RUNS`."""
    found = {}
    for name, (script, flags) in RUNS.items():
        folder = tmp_path_factory.mktemp(name)
        assert script.main([*flags, "--save-dir", str(folder)]) == 0
        (config,) = folder.rglob("config.json")
        found[name] = config.parent
    return found


def compute(path, name, **settings):
    assert analyse.compute(Run(path), name, settings, recompute=True)
    return analyse.load(path, name)


def test_the_response_to_steps_is_that_of_the_layer(paths):
    settings = {"sizes": [0.0, 2.0, 9.0], "units": 3, "sequences": 4}
    found = compute(paths["ANRU"], "step_response", **settings)
    run = Run(paths["ANRU"])
    model = kept_model(run)
    x = layer_input(run, model, 4).double()
    first, end = found["window"]
    assert list(found["units"]) == [0, 4, 7] and (first, end) == (16, 32)
    layer = model.rnn.double()
    for i, size in enumerate(settings["sizes"]):
        drive = step_drive(len(x), size, first, end - first)
        with torch.no_grad():
            h = layer(x, drive=drive)[0].numpy()  # (T, S, H)
        np.testing.assert_allclose(found["h"][i], h.mean(axis=(1, 2)), atol=1e-9)
        np.testing.assert_allclose(found["h_units"][i], h[:, 0, [0, 4, 7]], atol=1e-9)
        state = layer.initial_state(4)
        with torch.no_grad():
            for t, x_t in enumerate(x):
                state = layer.step(x_t, state, drive[t])
                assert found["n"][i, t] == pytest.approx(layer.gain(state[1]).mean().item())
                assert found["s"][i, t] == pytest.approx(layer.saturation(state[1]).mean().item())
    changed = np.flatnonzero(found["s"][2] != found["s"][0])
    assert changed[0] == first
    assert found["epochs"].tolist() == [0, 1, 2] and found["n_kept"].shape == (3, 8)
    assert found["n_kept"][-1].mean() == pytest.approx(found["n"][0].mean(), rel=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_robustness_starts_at_the_score_of_the_run(paths, monkeypatch, name):
    # up to the last step: a barely trained network forgets an earlier drive
    monkeypatch.setattr(robustness, "step_window", lambda steps: (steps // 2, steps // 2))
    few = {"samples": 3} if name == "text" else {}  # as its --limit-batches
    found = compute(paths[name], "robustness", amplitudes=[0.0, 30.0], **few)
    results = {row["condition"]: row for row in Run(paths[name]).rows("test_results.csv")}
    if name == "text":
        saved = float(results["as_is"]["bits_per_character"])
        assert found["step"][0] == pytest.approx(saved, rel=1e-6)
        assert found["step"][1] != found["step"][0] and "sin" not in found
    else:
        saved = float(results["as_is"]["accuracy"])
        assert found["sin"][0] == found["step"][0] == saved


def test_robustness_under_the_transform_of_the_test(paths):
    found = compute(paths["gamma2"], "robustness", amplitudes=[0.5])
    rows = Run(paths["gamma2"]).rows("test_results.csv")
    saved = [row for row in rows if row["condition"] == "sin"]
    assert found["sin"][0] == float(saved[-1]["accuracy"])


def test_every_analysis_runs_on_the_requested_device(paths):
    """A tensor on the meta device has no values, so reading a result there fails."""
    for path in (paths["ANRU"], paths["text"]):
        for name in ("jacobian", "lyapunov", "mutual_information", "robustness"):
            with pytest.raises((NotImplementedError, RuntimeError), match="meta tensor"):
                analyse.compute(Run(path), name, {}, device=torch.device("meta"))
