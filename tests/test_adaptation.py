"""Adaptation and robustness: analyses of toy runs against the runs' own files and models."""

import shutil

import numpy as np
import pytest
import torch

import PTB_task
import sMNIST_task
from Postprocessing import (
    adaptation,
    analysis,
    jacobian_norm,
    lyapunov,
    mutual_information,
    robustness,
)
from Postprocessing.load_runs import layer_input, load_run, metrics_of
from tests.conftest import TOY
from Training.evaluation import bits_per_character
from Training.run_directory import Run

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


def main(module, path, *flags):
    name = module.__name__.split(".")[-1]
    code = analysis.main(name, module.make_parser(), module.compute, [str(path), *flags])
    return code, analysis.load(Run(path), name)


@pytest.mark.parametrize("name", RUNS)
def test_adaptation_matches_the_run(paths, name):
    path, anru = paths[name], name == "ANRU"
    code, found = main(adaptation, path, "--size", "2", "9", "--units", "3", "--sequences", "4")
    assert code == 0
    run, (_, metrics, model) = Run(path), load_run(path)
    for name in ("n_mean", "n_std", "s_mean", "s_std"):
        np.testing.assert_array_equal(found[name], metrics[name])
    np.testing.assert_array_equal(found["metrics_epochs"], metrics_of(run)["epoch"])
    if hasattr(model.rnn, "n"):
        assert list(found["epochs"]) == list(run.kept)
        assert found["n"].shape == (len(run.kept), model.rnn.n.numel())
        np.testing.assert_array_equal(found["s"][-1], model.rnn.s.detach())
        np.testing.assert_allclose(found["n"][1:].mean(axis=1), metrics["n_mean"], rtol=1e-6)
    else:
        assert "n" not in found

    x, drives = layer_input(run, model, 4), torch.from_numpy(found["drive"])
    assert list(found["sizes"]) == [2, 9] and drives.shape == (2, len(x))
    assert [set(drive.tolist()) for drive in drives] == [{0.0, 2.0}, {0.0, 9.0}]
    assert list(found["units"]) == [0, 4, 7]
    names = ("a", "n", "s", "h") if "n_as_is" in found else ("a", "h")
    with torch.no_grad():
        h = [model.rnn(x, drive=drive)[0].numpy() for drive in (None, *drives)]
    for condition, expected in (("as_is", h[0]), ("driven", np.stack(h[1:]))):
        close = {"rtol": 1e-4, "atol": 1e-5}
        of_first, everything = expected[..., 0, [0, 4, 7]], (-2, -1)  # sequences and units
        np.testing.assert_allclose(found[f"h_{condition}"], of_first, **close)
        for statistic in ("mean", "std"):
            value = getattr(expected, statistic)(axis=everything)
            np.testing.assert_allclose(found[f"h_{condition}_{statistic}"], value, **close)
        for name in names:
            assert found[f"{name}_{condition}_mean"].shape == expected.shape[:-2]
    start = drives[0].argmax()
    for name in names:
        before, after = found[f"{name}_as_is"], found[f"{name}_driven"]
        np.testing.assert_array_equal(before[:start], after[0, :start])
        np.testing.assert_array_equal(before[:start], after[1, :start])
        shift = np.abs(after[:, start] - before[start]).max(axis=1)
        assert 0 < shift[0] < shift[1]
    assert ("n_as_is" in found) == anru


@pytest.mark.parametrize("name", RUNS)
def test_robustness_starts_at_the_score_of_the_run(paths, monkeypatch, name):
    # up to the last step: a barely trained network forgets an earlier drive
    monkeypatch.setattr(robustness, "step_window", lambda steps: (steps // 2, steps // 2))
    path = paths[name]
    text = ["--samples", "3"] if name == "text" else []  # as its --limit-batches
    code, found = main(robustness, path, "--amplitudes", "0", "30", *text)
    assert code == 0
    results = {row["condition"]: row for row in Run(path).rows("test_results.csv")}
    saved = results["best" if text else "as_is"]
    assert found["step_loss"][0] == pytest.approx(float(saved["loss"]), rel=1e-6)
    assert found["step_loss"][1] != found["step_loss"][0]
    if text:
        np.testing.assert_allclose(found["step"], bits_per_character(found["step_loss"]))
        assert "sin" not in found
        assert found["chance"] == pytest.approx(np.log2(load_run(path).model.decoder.out_features))
    else:
        assert found["chance"] == 0.1
        assert found["sin"][0] == found["step"][0] == float(saved["accuracy"])
        assert found["sin_loss"][1] != found["sin_loss"][0]


def test_robustness_under_the_transform_of_the_test(paths):
    path = paths["gamma2"]
    _, found = main(robustness, path, "--amplitudes", "0.5")
    saved = [row for row in Run(path).rows("test_results.csv") if row["condition"] == "sin"]
    assert found["sin"][0] == float(saved[-1]["accuracy"])
    assert found["sin_loss"][0] == pytest.approx(float(saved[-1]["loss"]), rel=1e-6)


@pytest.mark.parametrize("module", [adaptation, robustness])
def test_existing_results_are_recomputed_on_request(paths, tmp_path, module):
    without = shutil.ignore_patterns("analysis")
    path = shutil.copytree(paths["gamma2"], tmp_path / "run", ignore=without)
    assert main(module, path)[0] == 0
    (file,) = (path / "analysis").iterdir()
    first = file.stat().st_mtime_ns
    assert main(module, path)[0] == 0 and file.stat().st_mtime_ns == first
    assert main(module, path, "--recompute")[0] == 0 and file.stat().st_mtime_ns > first


def test_every_analysis_runs_on_the_requested_device(paths):
    """A tensor on the meta device has no values, so reading a result there fails."""
    for path in (str(paths["gamma2"]), str(paths["text"])):
        for module in (adaptation, jacobian_norm, lyapunov, mutual_information, robustness):
            with pytest.raises((NotImplementedError, RuntimeError), match="meta tensor"):
                module.main([path, "--device", "meta"])
