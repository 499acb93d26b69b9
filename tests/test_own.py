"""What a user adds: a network, an activation, data, a text and a task."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sMNIST_task
from NetworkCreation.checkpoints import load_model, newest_checkpoint
from NetworkCreation.errors import UserError
from NetworkCreation.initialization import RECURRENT, linear_map, torch_default
from NetworkCreation.layer import NONLINEARITIES, Activation, RecurrentLayer, unsqueeze_drive
from NetworkCreation.Networks import NETWORKS
from Postprocessing import analyse, report, runs
from tests import copy_memory_task
from tests.conftest import PTB, REPOSITORY, SMNIST, TOY, rows, write_corpus
from tests.toy_runs import OF_PAGE
from Training import datasets, once, sweep
from Training.datasets import load_pixels
from Training.run_directory import Run


class MGU(RecurrentLayer):
    """The minimal gated unit.

        f_t = σ(Wf [x_t, h_{t−1}])
        h_t = (1 − f_t) ∘ h_{t−1} + f_t ∘ tanh(W x_t + V (f_t ∘ h_{t−1}) + drive_t)

    State: h (B, H) and the steps so far (B, 1). n and s are unused. Source: arXiv 1603.09420.
    """

    def __init__(self, input_size, hidden_size, n=1, s=0, rinit="henaff", generator=None, **like):
        super().__init__(input_size, hidden_size)
        like["generator"] = generator
        self.Wf = linear_map(input_size + hidden_size, hidden_size, torch_default, **like)
        self.W = linear_map(input_size, hidden_size, torch_default, **like)
        self.V = linear_map(hidden_size, hidden_size, RECURRENT[rinit], **like)

    def state_shapes(self, batch):
        return [(batch, self.hidden_size), (batch, 1)]

    def step(self, x_t, state, drive_t=None):
        h, count = state
        f = torch.sigmoid(self.Wf(torch.cat([x_t, h], dim=1)))
        candidate = torch.tanh(self.W(x_t) + self.V(f * h) + unsqueeze_drive(drive_t))
        return (1 - f) * h + f * candidate, count + 1


def analyse_and_draw():
    """The panels of the runs below SavedModels, analysed and drawn."""
    assert analyse.main(["report", "SavedModels", "--set", *OF_PAGE]) == 0
    assert report.main(["SavedModels"]) == 0
    return [report.gather(run) for _, run in runs.load("SavedModels").iterrows()]


def test_a_network_and_an_activation_need_one_line(succeed, error_of, in_this_process, monkeypatch):
    monkeypatch.setitem(NETWORKS, "MGU", MGU)
    flags = [*TOY[SMNIST], "--net-type", "MGU", "--rinit", "cayley", "--epochs", 2]
    succeed(sweep.main, REPOSITORY / SMNIST, "--seed", 1, 2, "--", *flags)
    table = runs.load("SavedModels")
    assert in_this_process == [0, 0] and list(table["network"]) == ["MGU", "MGU"]
    assert list(table["rinit"]) == ["cayley", "cayley"] and table["nonlin"].isna().all()
    path = table["path"][0]
    succeed(SMNIST, "--resume", path, "--epochs", 3)
    assert len(rows(Run(path), "metrics.csv")) == 3
    out = succeed(SMNIST, "--test", "--net-type", "mgu", "--limit-batches", 3)
    assert out.count("accuracy") == 3
    assert "--iinit: applies to" in error_of(SMNIST, "--net-type", "MGU", "--iinit", "xavier")
    assert ", MGU)" in " ".join(sMNIST_task.make_parser().format_help().split())
    for panels in analyse_and_draw():
        assert {"accuracy", "lyapunov", "norm", "sin", "step"} <= panels.keys()
        assert "spectrum" not in panels  # it has no recurrent_matrix
    outputs, _, traced = load_model(path)[0].rnn.trace(torch.rand(5, 2, 1))
    assert outputs.shape == (5, 2, 8) and torch.equal(traced["h"], outputs)
    monkeypatch.setitem(NONLINEARITIES, "softsign", Activation(nn.functional.softsign))
    for flags in (["--net-type", "MGU", "--s", 0.5], ["--nonlin", "softsign"]):
        succeed(PTB, *TOY[PTB], *flags, "--epochs", 1)
    assert list(Path("SavedModels").glob("pydoc/400/MGU_*_n2.5_s0.5"))


def save_sequences(path, samples=60, **arrays):
    """A file of 3 classes, labelled 2, 5 and 9: ramps of three slopes on two inputs, with noise."""
    random = np.random.default_rng(0)
    y = random.choice([2, 5, 9], samples)
    x = random.normal(y[:, None, None] * np.linspace(0, 1, 12)[:, None], 1, (samples, 12, 2))
    np.savez(path, **{"x": x, "y": y} | arrays)
    return path


def test_sequences_in_a_file_are_trained_on(succeed, error_of, tmp_path):
    first = save_sequences(tmp_path / "ramps.npz", 400)
    second = save_sequences(tmp_path / "other.npz", x=np.ones((60, 12, 2)))
    flags = ["--dataset", "npz", "--nhid", 8, "--lr", 0.01, "--epochs", 2, "-p", "--batch", 20]
    for path in (first, second):
        succeed(SMNIST, *flags, "--data", path)
    table = runs.load("SavedModels")
    assert list(table["task"]) == ["psRamps", "psOther"] and table["chance"].eq(1 / 3).all()
    run, words = Run(table["path"][0]), [*flags, "--data", first]
    args, _ = sMNIST_task.parse(list(map(str, words)))
    assert run.config["model"]["classes"] == 3 and run.config["model"]["inputs"] == 2
    assert once.identity_of(args) == run.identity
    tested = [SMNIST, "--test", "--dataset", "npz", "--data"]
    for path in (first, second):
        assert f"ps{path.stem.title()}" in succeed(*tested, path)
    # more chains than there are test sequences
    small = ["lyapunov.steps=12", "lyapunov.chains=99", "jacobian.times=2"]
    small += ["mutual_information.times=1"]
    assert analyse.main(["dynamics", "robustness", str(run.path), "--set", *small]) == 0
    save_sequences(first, x=np.ones((60, 12)))
    datasets._loaded_checksums.cache_clear()
    assert once.identity_of(args) != run.identity
    error = error_of(SMNIST, "--test", "--checkpoint", newest_checkpoint(run.path), code=1)
    assert "has 2 inputs and 3 classes, but" in error and "1 and 3" in error
    assert "no run with dataset npz, data" in error_of(*tested, first, code=1)  # it has changed
    wrong = error_of(SMNIST, "--dataset", "digits", "--data", first, code=1)
    assert f"{first} needs --dataset npz" in wrong


def test_the_parts_of_a_file(tmp_path):
    pixels = np.arange(60 * 4, dtype=np.uint8).reshape(60, 4)
    path = save_sequences(tmp_path / "MNIST.npz", x=pixels)
    data = load_pixels("npz", path, 3, False)
    order = np.random.RandomState(3).permutation(60)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [48, 6, 6]
    assert np.array_equal(data.test.images, pixels[order[54:]]) and data.name == "sMNIST.npz"
    x, _ = data.train.batch(slice(0, 48))
    assert x.shape == (4, 48, 1) and x.max() == 1 and data.train.scale == pixels[order[:48]].max()
    assert set(data.train.labels.tolist()) == {0, 1, 2}
    for split in (np.repeat([1, 0, 2], 20), np.repeat(["validation", "train", "test"], 20)):
        data = load_pixels("npz", save_sequences(path, x=pixels, split=split), 3, False)
        assert np.array_equal(data.validation.images, pixels[:20])
        assert np.array_equal(data.test.images, pixels[40:])
        order = 20 + np.random.RandomState(3).permutation(20)
        assert np.array_equal(data.train.images, pixels[order])
    x = np.array([[-3, 1], [300, 0]] * 30, dtype=">i2")
    data = load_pixels("npz", save_sequences(path, x=x), 3, False)
    assert data.train.scale == 300 and data.train.images.min() == -3
    x = x.astype(np.float16)
    assert load_pixels("npz", save_sequences(path, x=x), 3, False).train.scale == 1


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.ones(60)}, r"x must be \(N, T\) or \(N, T, I\), got \(60,\)"),
        ({"x": np.ones((60, 0))}, r"x must be .* got \(60, 0\)"),
        ({"x": np.ones((60, 2), complex)}, "x must be numbers, got complex128"),
        ({"x": np.array([[None] * 2] * 60)}, "not a file of arrays"),
        ({"x": np.full((60, 2), 1e300)}, "not finite in float32"),
        ({"y": np.ones(60)}, "y must be integers, got float64"),
        ({"y": np.ones(60, int)}, "two classes or more, got only 1"),
        ({"y": np.arange(59)}, r"y must be \(60,\) like x, got \(59,\)"),
        ({"split": np.arange(60)}, "split must be 0, 1, 2 or train, validation, test, got 0, 1,"),
        ({"split": np.zeros(60, int)}, "train, validation, test need a sample each"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, arrays, reason):
    path = save_sequences(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=rf"bad\.npz: .*{reason}"):
        load_pixels("npz", path, 1, False)


def test_what_is_no_file_of_arrays_is_named(tmp_path, error_of):
    (tmp_path / "text.npz").write_text("no arrays")
    np.savez(tmp_path / "only.npz", x=np.ones((3, 2)))
    for data, reason in (("text.npz", "not a file"), ("only.npz", "no array y"), (".", "FILE.npz")):
        assert reason in error_of(SMNIST, "--dataset", "npz", "--data", data, code=1)


def test_a_text_of_ones_own_is_trained_on_and_written(succeed, error_of, tmp_path):
    write_corpus(tmp_path / "songs", b"l a _ l a\nl u _ l u\n" * 100)
    flags = [*TOY[PTB], "--dataset", "ptb", "--any-corpus", "--data", "songs", "--epochs", 1]
    succeed(PTB, *flags)
    assert runs.load("SavedModels")["task"].tolist() == ["songs"]
    tested = ["--test", "--limit-batches", 3, "--sample", 80]
    written = [succeed(PTB, *tested).split("\n", 2)[2] for _ in range(2)]
    assert written[0] == written[1] and len(written[0]) == 81 and set(written[0]) == set("alu \n")
    assert "--sample: requires --test" in error_of(PTB, "--sample", 3)
    assert "songs has a text of its own" in error_of(PTB, "--data", "songs", code=1)


def test_a_task_is_one_script(in_this_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--delay=3", "--nhid=8", "--batches=4", "--epochs=2", "--lr=1e-2", "--n=3"]
    assert sweep.main([copy_memory_task.__file__, "--seed", "1", "2", "--", *flags]) == 0
    table = runs.load("SavedModels")
    assert in_this_process == [0, 0] and set(table["task"]) == {"copy"} and table["finished"].all()
    assert table["score"].eq("error").all() and table["chance"].eq(7 / 8).all()
    best = runs.curves(table).groupby("path")["validation_error"].min()
    assert list(table["best_validation"]) == list(best[table["path"]])
    assert runs.in_words(table)["test"].str.fullmatch(r"\d\.\d{3} error").all()
    for panels in analyse_and_draw():
        assert {"loss", "error", "n", "s"} <= panels.keys()
    assert copy_memory_task.main(["--test", "--seed", "1"]) == 0
    with monkeypatch.context() as patch:  # interrupted after the batches of an epoch
        patch.setattr(copy_memory_task, "evaluate", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert copy_memory_task.main([*flags, "--seed=3"]) == 143
    assert once.main([copy_memory_task.__file__, *flags, "--seed=3"]) == 0
    x, target = copy_memory_task.draw(4, 2, torch.Generator())
    assert torch.equal(x[:10], target[-10:]) and len(x) == 24 and (x[10:] >= 8).all()
