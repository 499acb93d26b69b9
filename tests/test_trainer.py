"""The trainer: updates, epochs, saved state, signals, output, TensorBoard and overflow."""

import itertools
import math
import re
import signal
import sys
import time
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam

from NetworkCreation.checkpoints import LAST
from NetworkCreation.errors import UserError
from NetworkCreation.models import build_model
from NetworkCreation.Networks import NETWORKS
from tests.conftest import WARNINGS_FAIL, make_trainer, rows
from Training import console
from Training.console import Interrupted, TrainingStopped
from Training.run_directory import Run
from Training.trainer import STREAMS, stream

BATCHES = [0, 1, 2, 3]
SCORES = {"train": {"loss": 0.25}, "validation": {"loss": 0.5}}


def test_streams_are_independent_and_reproducible():
    def draw(*arguments):
        return tuple(torch.rand(4, generator=stream(*arguments)).tolist())

    others = draw(401, "order"), draw(400, "order", 1)
    assert len({*(draw(400, name) for name in STREAMS), *others}) == len(STREAMS) + 2
    assert draw(400, "order") == draw(400, "order")


def linear_trainer(root, lr=0.1, **arguments):
    """A trainer of a linear map."""
    model = torch.nn.Linear(2, 1)
    return make_trainer(root, model, Adam(model.parameters(), lr=lr), **arguments)


def update(trainer):
    trainer.step(trainer.model(torch.ones(4, 2)).square().mean(), 4)


def last(run):
    return torch.load(run.path / LAST, weights_only=True)


def test_the_penalty_is_minimised_but_not_reported(tmp_path):
    spec = {"task": "pixels", "net_type": "nnRNN", "hidden_size": 6, "classes": 10, "layer": {}}
    model = build_model(spec).double()
    with torch.no_grad():
        model.rnn.schur.alpha.copy_(torch.tensor([0.5, 1.0, 3.0]))
    x = torch.rand(4, 3, 1).double()
    alone = torch.autograd.grad(model(x).square().mean(), model.rnn.schur.alpha)[0]
    trainer = make_trainer(tmp_path, model, SGD(model.parameters(), lr=0.0), alam=0.25)
    trainer.step(loss := model(x).square().mean(), 1)
    assert trainer.sums["loss"] == loss.item()
    expected = alone + 0.25 * 2 * torch.tensor([-0.5, 0.0, 2.0])
    torch.testing.assert_close(model.rnn.schur.alpha.grad, expected)


def test_nonfinite_values_stop_before_the_update_and_after_it(tmp_path):
    trainer = linear_trainer(tmp_path)
    weight = trainer.model.weight
    before = weight.detach().clone()
    for loss, what in (
        (weight.sum() * float("nan"), "the loss"),
        (weight.sum() * float("inf"), "the loss"),
        ((weight * 0).sqrt().sum(), "the gradient's norm"),
    ):
        with pytest.raises(TrainingStopped, match=rf"{what} is not finite.* \(epoch 1, batch 1, "):
            trainer.step(loss, 1)
        assert torch.equal(before, weight)
    trainer.optimizer = SGD(trainer.model.parameters(), lr=1e38)
    with pytest.raises(TrainingStopped, match=r"a parameter is not finite .* inf in weight"):
        trainer.step(100 * trainer.model.weight.sum(), 1)
    with pytest.raises(TrainingStopped, match="validation loss"):
        linear_trainer(tmp_path).finish_epoch({"validation": {"loss": float("nan")}})


def train(trainer, scores=SCORES, during=lambda *_: None, gains=None):
    """Trains to the end, and returns the run; during(trainer, epoch, batch): of every batch."""
    with trainer:
        for epoch in trainer.epochs():
            for batch in trainer.batches(BATCHES):
                during(trainer, epoch, batch)
                update(trainer)
            trainer.finish_epoch(scores, gains, {"as_is": {"loss": 1.0, "accuracy": 0.5}})
    return trainer.run


def interrupted(trainer, batch, before=lambda *_: None, number=signal.SIGTERM, **options):
    """Trains until a signal arrives in a batch, (epoch, batch), after before(…); the run."""

    def stop(trainer, epoch, number_of_batch):
        before(trainer, epoch, number_of_batch)
        if (epoch, number_of_batch) == batch:
            signal.raise_signal(number)

    with pytest.raises(Interrupted) as caught:
        train(trainer, during=stop, **options)
    assert caught.value.exit_code == 128 + number
    assert not isinstance(caught.value, Exception)  # which torch catches while it loads a model
    return trainer.run


def test_checkpoints_are_kept_at_the_chosen_epochs_and_saved_again_if_deleted(tmp_path):
    options = {"epochs": 7, "save_freq": 3, "save_epochs": [1, 2]}
    run = train(linear_trainer(tmp_path, **options))
    assert list(run.kept) == [0, 1, 2, 3, 6, 7] and run.complete
    before, tests = last(run)["state_dict"], rows(run, "test_results.csv")
    run.kept[7].rename(run.path / "e_best.pth.tar")  # which is not one of them
    (run.path / "test_results.csv").unlink()
    run = train(linear_trainer(tmp_path, resume=run.path, **options))
    assert run.complete and rows(run, "test_results.csv") == tests
    saved = torch.load(run.kept[7], weights_only=True)
    torch.testing.assert_close(saved["state_dict"], before, rtol=0, atol=0)


def counted(trainer, epoch, batch):
    """Makes the loss of a batch its number."""
    trainer.model.weight.data.zero_()
    trainer.model.bias.data.fill_(batch**0.5)


def test_a_log_line_has_the_mean_since_the_previous_one_also_after_a_resume(tmp_path, capsys):
    options = {"epochs": 1, "log_interval": 2}
    run = interrupted(linear_trainer(tmp_path, **options), (1, 2), before=counted)
    assert "batch 2/4" in (out := capsys.readouterr().out) and "loss 0.5000" in out
    train(linear_trainer(tmp_path, resume=run.path, **options), during=counted)
    assert "batch 4/4" in (out := capsys.readouterr().out) and "loss 2.5000" in out


def test_the_line_of_an_epoch_fits_and_aligns(tmp_path, capsys):
    gains = {"n": torch.tensor([5.0, 6.0]), "s": torch.tensor([-0.25])}
    for more in ({"accuracy": 1.0}, {"bits_per_character": 6.25}):
        scores = {"train": {"loss": 2.0} | more, "validation": {"loss": 2.5} | more}
        train(linear_trainer(tmp_path, epochs=100), scores, gains=gains)
        lines = [line for line in capsys.readouterr().out.splitlines() if line[:6] == "epoch "]
        assert len(lines) == 100 and {len(line) for line in lines} == {len(lines[0])}
        assert len(lines[0]) <= 100 and "n  5.500  s -0.250" in lines[0]


def test_progress_is_printed_in_lines_without_a_terminal(capsys, monkeypatch):
    seconds = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: seconds)
    with console.Progress(total=10, desc="epoch 1/2") as bar:
        for _ in console.Progress(range(10), desc="epoch 1/2: inner bar"):
            seconds += 25
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert 4 <= len(lines) <= 8 and all(line.startswith("epoch 1/2:") for line in lines)


def test_a_run_ends_with_the_commands_that_show_it(tmp_path, capsys, monkeypatch):
    run = train(linear_trainer(tmp_path / "with space"))
    out = capsys.readouterr().out
    assert f"Postprocessing.report '{run.path}'" in out
    assert f"tensorboard --logdir '{tmp_path / 'with space' / 'task'}'" in out
    assert "test as_is: loss 1.0000, accuracy 50.00%" in out
    monkeypatch.chdir(run.path)
    train(linear_trainer(tmp_path, resume=Path(".")))
    assert f"tensorboard --logdir '{tmp_path / 'with space' / 'task'}'" in capsys.readouterr().out


def test_a_missing_tensorboardx_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert console.entry_point(lambda argv: linear_trainer(tmp_path))() == 1
    assert "; pip install tensorboardX\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tensorboard_shows_a_run_as_one_with_curves_histograms_and_hyperparameters(tmp_path):
    gains = {"n": torch.tensor([5.0, 6.0]), "s": torch.tensor([0.0, 0.0])}
    options = {"epochs": 3, "n": 5.0, "s": 0.0, "learn_params": True}
    run = interrupted(linear_trainer(tmp_path, **options), (3, 1), gains=gains)
    train(linear_trainer(tmp_path, resume=run.path, **options), gains=gains)
    events = EventMultiplexer(size_guidance={"histograms": 0})
    events.AddRunsFromDirectory(str(tmp_path)).Reload()
    ((name, tags),) = events.Runs().items()
    assert name == f"task/400/RNN_lr0.0001_p0.0_hs4_n5_s0/{run.path.name}"
    assert {"loss/train", "loss/validation", "loss/test_as_is", "gain/n_mean"} <= {*tags["scalars"]}
    assert [event.step for event in events.Scalars(name, "loss/train")] == [1, 2, 3]
    assert [event.step for event in events.Histograms(name, "gain/n")] == [1, 2, 3]
    assert events.SummaryMetadata(name, "_hparams_/session_start_info").plugin_data.content


def test_the_events_of_a_saved_epoch_are_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("Training.trainer.CHART_EVERY", 2)
    trainer = linear_trainer(tmp_path, epochs=3)
    for epoch in trainer.epochs():
        for batch in trainer.batches(BATCHES):
            counted(trainer, epoch, batch)
            update(trainer)
        trainer.finish_epoch(SCORES, {"n": torch.tensor([5.0, 6.0])})
        if epoch == 2:  # as if it were killed here
            break
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    ((name, tags),) = events.Runs().items()
    assert {"loss/train", "gain/n_mean", "training/lr"} <= {*tags["scalars"]}
    assert tags["histograms"] == ["gain/n"]
    within = events.Scalars(name, "loss/within_epoch")
    assert [event.step for event in within] == [2, 4, 6, 8]
    assert [event.value for event in within] == pytest.approx([0.5, 2.5, 0.5, 2.5])
    trainer.events.close()


def test_other_code_data_or_machine_on_resuming(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("Training.config.REPOSITORY", tmp_path)
    (tmp_path / "Training").mkdir()
    (tmp_path / "Training" / ".#open.py").symlink_to("of.an.editor")
    run = train(linear_trainer(tmp_path))
    run.config |= {"code": "0" * 16, "commit": "old", "device": "GPU"}
    run.write_config()
    train(linear_trainer(tmp_path, resume=run.path, note="moved"))
    out = capsys.readouterr().out
    assert "warning: this run was begun with other code (commit old, now" in out
    assert "other device (device GPU, now CPU" in out
    train(linear_trainer(tmp_path, resume=run.path))
    assert "warning" not in capsys.readouterr().out
    run.config["data"] = {"a": "2"}
    run.write_config()
    with pytest.raises(UserError, match="the data of this run differ"):
        linear_trainer(tmp_path, resume=run.path)


def test_snapshot_minutes_limits_saving_within_an_epoch(tmp_path, monkeypatch):
    seconds, save = 0.0, create_autospec(Run.save, side_effect=Run.save)
    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    monkeypatch.setattr(Run, "save", save)

    def wait(trainer, epoch, batch):
        nonlocal seconds
        seconds += 15

    for minutes, expected in ((0, [0, 1, 2, 3, 0, 0]), (0.5, [0, 2, 0, 0]), (10, [0, 0, 0])):
        save.reset_mock()
        train(linear_trainer(tmp_path, epochs=1, snapshot_minutes=minutes), during=wait)
        saved = [call.args[1:] for call in save.call_args_list]
        assert [state["batch"] for name, state in saved if name == LAST] == expected, minutes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_batch(tmp_path, capsys, number):
    before = signal.getsignal(number)
    run = interrupted(linear_trainer(tmp_path), (1, 2), number=number)
    assert signal.getsignal(number) is before and last(run)["batch"] == 3
    train(linear_trainer(tmp_path, resume=run.path))
    assert signal.getsignal(number) is before
    assert f"--resume={run.path}" in capsys.readouterr().out


@pytest.mark.parametrize("scoring", [False, True])
def test_a_sigterm_interrupts_scoring_and_a_second_one_is_ignored(tmp_path, monkeypatch, scoring):
    trainer, before, save = linear_trainer(tmp_path), signal.getsignal(signal.SIGTERM), Run.save
    done, scored, batches = len(BATCHES) if scoring else 1, [], []

    def save_during_another(*arguments):
        signal.raise_signal(signal.SIGTERM)
        save(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted), trainer:
        for _ in trainer.epochs():
            patch.setattr(Run, "save", save_during_another)
            for _ in trainer.batches(BATCHES):
                if not scoring:
                    signal.raise_signal(signal.SIGTERM)
                update(trainer)
            signal.raise_signal(signal.SIGTERM)
            scored.append(SCORES)
    assert not scored and last(trainer.run)["batch"] == done
    assert signal.getsignal(signal.SIGTERM) is before
    trainer = linear_trainer(tmp_path, resume=trainer.run.path)
    run = train(trainer, during=lambda _, *place: batches.append(place))
    assert batches == [*itertools.product([1, 2], BATCHES)][done:]
    assert [row["epoch"] for row in rows(run, "metrics.csv")] == ["1", "2"]


def classifier(root, net_type, lr=1e-3, dtype=torch.float32, optimizer=Adam, units=4, **layer):
    """A trainer of a small pixel classifier."""
    spec = {"task": "pixels", "net_type": net_type, "hidden_size": units, "classes": 10}
    model = build_model(spec | {"layer": layer}, torch.Generator().manual_seed(0)).to(dtype)
    trainer = make_trainer(root, model, optimizer(model.parameters(), lr=lr))
    trainer.batch = 6
    return trainer


def classify(trainer, size=1.0):
    """One update on an input of this size, in the parameters' dtype."""
    x = size * torch.linspace(0, 1, 18).view(6, 3, 1).to(next(trainer.model.parameters()))
    trainer.step(cross_entropy(trainer.model(x), torch.arange(3)), 3)


def stays_finite(trainer, size=1.0):
    """Makes some updates; if not, the error names the epoch, the batch and a parameter."""
    try:
        for _ in range(4):
            classify(trainer, size)
    except TrainingStopped as stopped:
        assert "(epoch 1, batch 7, learning rate" in (message := str(stopped))
        assert "not finite" in message
        assert any(name in message for name in trainer.model.state_dict()), message
        return False
    assert all(map(math.isfinite, trainer.sums.values()))
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    return True


@WARNINGS_FAIL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("net_type", NETWORKS)
def test_results_are_finite_or_the_error_names_the_cause(tmp_path, net_type, dtype):
    for lr in (1e-3, 1.0, 1e10, 1e30):
        for size in (0.0, 1.0, 1e30):
            stays_finite(classifier(tmp_path, net_type, lr, dtype), size)


@WARNINGS_FAIL
@pytest.mark.parametrize("nonlin", ["gamma", "gamma2"])
@pytest.mark.parametrize("s", [0.0, 0.5, 1.0])
def test_n_near_0_and_up_to_10000(tmp_path, nonlin, s):
    """A small n may explode, since log(2)/n is added at every step."""
    for n in (1e4, 1.0, 1e-3, 1e-6, 1e-30, 1.2e-38, -1e-30, -1e-6, -1e-3, -1.0, -1e4):
        finite = stays_finite(classifier(tmp_path, "RNN", nonlin=nonlin, n=n, s=s))
        assert finite or abs(n) < 1, n


@pytest.mark.parametrize("s", [0.0, 0.5])
def test_an_n_of_0_is_named(tmp_path, s):
    """With a gradient equal to n, one step of SGD at rate 1 leads to exactly 0."""
    trainer = classifier(tmp_path, "RNN", 1.0, optimizer=SGD, nonlin="gamma", n=2.0, s=s)
    trainer.step(trainer.model.rnn.n.square().sum() / 2, 1)
    assert trainer.model.rnn.n.item() == 0
    with pytest.raises(TrainingStopped, match=re.escape("smallest |n| 0 in rnn.n")):
        classify(trainer)


def test_the_largest_parameter_or_gradient_is_named(tmp_path):
    trainer = classifier(tmp_path, "RNN", nonlin="ReLU")
    message = r"the gradient's norm is not finite .* largest gradient 1e\+30 in lin\.bias"
    with pytest.raises(TrainingStopped, match=message):
        trainer.step(1e30 * trainer.model.lin.bias.sum(), 1)
    trainer.model.rnn.V.weight.data.fill_(1e30)
    with pytest.raises(TrainingStopped, match=r"the loss is .* largest parameter 1e\+30 in rnn\.V"):
        classify(trainer)
    # an EURNN of one unit has a parameter without elements: no pair of units to rotate
    trainer = classifier(tmp_path, "EURNN", units=1)
    for factor, message in ((math.inf, "the loss is"), (1e30, "the gradient's norm is")):
        outputs = trainer.model(torch.ones(2, 1, 1)).sum() + trainer.model.rnn.theta.sum()
        with pytest.raises(TrainingStopped, match=message):
            trainer.step(factor * (outputs + 1), 1)
