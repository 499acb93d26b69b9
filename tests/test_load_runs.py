"""Finding and loading saved runs, and the common code of the analysis commands."""

import io
import re
import shutil

import numpy as np
import pytest
import torch

import sMNIST_task
from Postprocessing import analysis
from Postprocessing.load_runs import (
    FigureError,
    layer_input,
    load_run,
    metrics_of,
    select_runs,
)
from tests.conftest import TOY
from Training.run_directory import Run, RunError

SMNIST, PTB = "sMNIST_task.py", "PTB_task.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two runs that differ in learning rate."""
    folder = tmp_path_factory.mktemp("trained")
    for lr in ("1e-3", "1e-2"):
        flags = ["--epochs", "2", "--save-freq", "1", "--lr", lr, "--save-dir", str(folder)]
        assert sMNIST_task.main([*TOY[SMNIST], *flags]) == 0
    return folder


@pytest.fixture
def two_runs(trained, tmp_path, monkeypatch):
    """A copy of these runs, below SavedModels in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "SavedModels")
    return select_runs("SavedModels")


def test_runs_are_found_by_their_arguments(two_runs):
    newest, oldest = two_runs
    assert (newest.config["arguments"]["lr"], oldest.config["arguments"]["lr"]) == (1e-2, 1e-3)
    assert [run.path for run in select_runs("SavedModels", lr=1e-3)] == [oldest.path]
    assert select_runs("SavedModels", PTB) == []
    assert len(select_runs("SavedModels", SMNIST, net_type="RNN", nhid=8)) == 2


def test_an_unknown_argument_or_folder_is_an_error(two_runs):
    with pytest.raises(RunError, match=r"no run below .* has an argument nihd"):
        select_runs("SavedModels", nihd=8)
    with pytest.raises(RunError, match="nowhere: no such directory"):
        select_runs("nowhere")


def test_half_written_and_foreign_directories_are_named_and_skipped(two_runs, capsys):
    for path in two_runs[0].path.glob("*.pth.tar"):
        path.unlink()
    foreign = two_runs[0].path.parent / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"of": "something else"}')
    capsys.readouterr()
    assert [run.path for run in select_runs("SavedModels")] == [two_runs[1].path]
    err = capsys.readouterr().err
    assert f"skipped: {foreign}" in err and f"skipped: {two_runs[0].path}" in err


def test_a_run_is_loaded_as_config_metrics_and_model(two_runs):
    run = two_runs[0]
    config, metrics, model = load_run(run.path)
    assert config == run.config
    assert metrics["epoch"].tolist() == [1, 2] and metrics["lr"].tolist() == [1e-2, 1e-2]
    assert not model.training
    saved = torch.load(run.path / "e_1.pth.tar", weights_only=True)["state_dict"]
    assert torch.equal(load_run(run.path, epoch=1).model.rnn.V.weight, saved["rnn.V.weight"])
    assert not torch.equal(model.rnn.V.weight, saved["rnn.V.weight"])
    with pytest.raises(RunError, match="epoch 7; kept epochs: 0, 1, 2"):
        load_run(run.path, epoch=7)
    with pytest.raises(RunError, match="not a run"):
        load_run(run.path.parent)


def test_a_network_without_n_and_s_has_nan_in_their_metrics(call, only_run):
    assert call(SMNIST, *TOY[SMNIST], "--net-type", "GRU", "--epochs", 1)[0] == 0
    assert np.isnan(metrics_of(Run(only_run()))["n_mean"]).all()


@pytest.mark.parametrize(("script", "shape"), [(SMNIST, (64, 5, 1)), (PTB, (12, 5, 6))])
def test_the_layer_input_comes_from_the_test_set(call, only_run, script, shape):
    assert call(script, *TOY[script], "--epochs", 1)[0] == 0
    run = Run(only_run())
    x = layer_input(run, load_run(run.path).model, 5)
    assert x.shape == shape and not x.requires_grad
    if script == SMNIST:
        from sklearn.datasets import load_digits

        order = np.random.RandomState(400).permutation(1797)
        first = load_digits().images[order[-250]].flatten() / 16
        np.testing.assert_allclose(x[:, 0, 0], first)


# The common code of the commands, with an analysis that counts its calls.


@pytest.fixture
def command():
    calls = []

    def compute(run, args):
        calls.append(run.path)
        if args.size == 3:
            raise analysis.Unsuitable("3 is too large")
        return {"values": np.full(2, args.size)}

    def run(*words):
        parser = analysis.make_parser("sizes", "The requested size.")
        parser.add_argument("--size", type=int, default=1)
        return analysis.main("sizes", parser, compute, [str(word) for word in words])

    run.calls = calls
    return run


def test_an_analysis_is_computed_once_and_recomputed_on_request(two_runs, command, capsys):
    assert command("SavedModels") == 0 and len(command.calls) == 2
    assert analysis.load(two_runs[0], "sizes")["values"].tolist() == [1, 1]
    assert command(*(run.path for run in two_runs)) == 0 and len(command.calls) == 2
    assert "recomputed" not in capsys.readouterr().err
    assert command(two_runs[0].path, "--recompute") == 0 and len(command.calls) == 3


def test_an_analysis_with_other_settings_is_recomputed(two_runs, command, capsys):
    assert command("SavedModels") == 0 and len(command.calls) == 2
    assert command(two_runs[0].path, "--size", 2) == 0 and len(command.calls) == 3
    assert "sizes.npz: stale, computed with other settings (size 1, now 2)" in (
        " ".join(capsys.readouterr().err.split())
    )
    assert analysis.load(two_runs[0], "sizes")["values"].tolist() == [2, 2]
    assert analysis.load(two_runs[1], "sizes")["values"].tolist() == [1, 1]
    with pytest.raises(FigureError) as error:  # one figure needs equal settings
        analysis.load_all({"sizes": two_runs})
    assert 'different settings:\n  1 runs: {"size": 2}\n  1 runs' in str(error.value)


def test_an_analysis_of_a_resumed_run_is_stale(two_runs, command, call, capsys):
    assert command("SavedModels") == 0 and len(command.calls) == 2
    run = two_runs[0]
    assert call(SMNIST, "--resume", run.path, "--epochs", 3)[0] == 0
    for load in (analysis.load, lambda run, name: analysis.load_all({name: two_runs})):
        with pytest.raises(RunError) as error:
            load(run, "sizes")
        assert "stale, computed from other checkpoints (epochs [0, 1, 2], now [0, 1, 2, 3])" in (
            str(error.value)
        )
        assert f"python3 -m Postprocessing.sizes {run.path}" in str(error.value)
    assert command("SavedModels") == 0 and command.calls[2:] == [run.path]
    assert "recomputed" in capsys.readouterr().err
    assert len(analysis.load_all({"sizes": two_runs})["sizes"]) == 2


def test_an_analysis_of_another_best_model_is_stale(call, only_run, command):
    assert call(PTB, *TOY[PTB], "--epochs", 1)[0] == 0
    run = Run(only_run())
    assert command(run.path) == 0
    (run.path / "model.pt").write_bytes(b"another")
    with pytest.raises(RunError, match=r"stale, computed from other checkpoints \(model\.pt"):
        analysis.load(run, "sizes")


def test_one_command_computes_all_missing_analyses(two_runs, command):
    assert command(two_runs[0].path) == 0
    with pytest.raises(FigureError) as error:
        analysis.load_all({"sizes": two_runs, "widths": two_runs})
    said = str(error.value)
    assert "sizes: missing or stale for 1 of 2 runs (about 0 s)" in said
    assert "widths: missing or stale for 2 of 2 runs, such as" in said
    folder = two_runs[0].path.parent.parent
    assert said.endswith(
        f"compute them with:\npython3 -m Postprocessing.sizes {two_runs[1].path} && \\\n"
        f"python3 -m Postprocessing.widths {folder}"
    )


def test_the_command_for_autonomous_exponents(two_runs):
    said = f"run python3 -m Postprocessing.lyapunov --autonomous {two_runs[0].path}"
    with pytest.raises(RunError, match=re.escape(said)):
        analysis.load(two_runs[0], "lyapunov_autonomous")
    with pytest.raises(FigureError, match=r"python3 -m Postprocessing\.lyapunov --autonomous "):
        analysis.load_all({"lyapunov_autonomous": two_runs})


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_an_unavailable_device_is_a_one_line_error(command, device, capsys):
    with pytest.raises(SystemExit):
        command("SavedModels", "--device", device)
    said = capsys.readouterr().err
    assert f"argument --device: cannot compute on {device}: " in said and said.count("\n") == 1


def test_unsuitable_runs_are_named_and_skipped(two_runs, command, capsys):
    assert command("SavedModels", "--size", 3) == 1 and len(command.calls) == 2
    err = capsys.readouterr().err
    assert all(f"skipped: {run.path}: 3 is too large" in err for run in two_runs)
    with pytest.raises(RunError, match=r"python3 -m Postprocessing\.sizes"):
        analysis.load(two_runs[0], "sizes")
    with pytest.raises(SystemExit) as exit:
        command("nowhere")
    assert exit.value.code == 2 and "nowhere" in capsys.readouterr().err


def test_a_damaged_analysis_is_named_and_recomputed(two_runs, command, capsys):
    run = two_runs[0]
    assert command(run.path) == 0
    path = run.path / "analysis" / "sizes.npz"
    earlier = io.BytesIO()
    np.savez(earlier, values=np.ones(2))
    damaged = (b"", b"PK\x03\x04", path.read_bytes()[:-30], earlier.getvalue())
    for number, data in enumerate(damaged, start=2):
        path.write_bytes(data)
        said = "of an earlier version" if data == damaged[-1] else "cannot be read"
        with pytest.raises(RunError, match=rf"sizes\.npz: {said}.*python3 -m"):
            analysis.load(run, "sizes")
        assert command(run.path) == 0 and len(command.calls) == number
        assert "recomputed" in capsys.readouterr().err
        assert analysis.load(run, "sizes")["values"].tolist() == [1, 1]
