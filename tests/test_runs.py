"""Run directories, whole writes, the state of training, and signals."""

import csv
import json
import os
import signal

import pytest
import torch

from Training import runs
from Training.runs import (
    Interrupted,
    Interruption,
    Run,
    RunError,
    TrainingState,
    TrainingStopped,
    find_runs,
    run_name,
    stream,
    write_whole,
)

CONFIG = {
    "script": "task.py",
    "arguments": {"epochs": 2, "nhid": 4},
    "model": {},
    "data": {"sha256": {"a": "1"}},
    "device": "CPU",
    "started": "2020",
}


def create(root, **changes):
    return Run.create(root, "task", 400, "RNN_hs4", CONFIG | changes)


def test_the_name_holds_what_runs_differ_in():
    assert run_name("RNN", 1e-4, 0.0, 400, "gamma2") == "RNN_lr0.0001_p0.0_hs400_gamma2"
    assert run_name("ANRU", 0.001, 0.5, 64) == "ANRU_lr0.001_p0.5_hs64"


def test_a_run_never_lies_where_another_does(tmp_path, capsys):
    paths = [create(tmp_path).path for _ in range(3)]
    assert [path.parent for path in paths] == [tmp_path / "task" / "400" / "RNN_hs4"] * 3
    date = paths[0].name
    assert [path.name for path in paths] == [date, f"{date}--1", f"{date}--2"]
    assert json.loads((paths[0] / "config.json").read_text()) == CONFIG
    assert (paths[2] / "log.txt").read_text() in capsys.readouterr().out


def test_where_it_cannot_be_written_nothing_is_left(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="file/task/400"):
        create(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "write_whole", full)
    with pytest.raises(RunError, match="No space left"):
        create(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "last.pth.tar"
    write_whole(path, b"first")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_rows_are_kept_in_full_precision_and_forgotten_after_an_epoch(tmp_path):
    run = create(tmp_path)
    for epoch in (1, 2, 3):
        run.add_row("metrics.csv", {"epoch": epoch, "loss": 0.1 * epoch, "n_mean": None})
        run.add_row("test_results.csv", {"epoch": epoch, "condition": "sin", "loss": 1 / 3})
    run.forget_after(2)
    run.close()
    with (run.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) == 0.2 and rows[0]["n_mean"] == ""
    assert float(run.rows("test_results.csv")[0]["loss"]) == 1 / 3
    run.forget_after(0)
    assert run.rows("metrics.csv") == []
    assert list(run.path.glob("events.out.*"))


def test_the_newest_checkpoint_is_that_of_the_latest_epoch(tmp_path):
    run = create(tmp_path)
    with pytest.raises(RunError, match="no checkpoint"):
        run.newest_checkpoint()
    run.save("last.pth.tar", {})
    assert run.newest_checkpoint().name == "last.pth.tar"
    for epoch in (9, 10):
        run.save(f"e_{epoch}.pth.tar", {})
    assert run.newest_checkpoint().name == "e_10.pth.tar"


def test_runs_are_found_by_their_arguments_newest_first(tmp_path, capsys):
    first = create(tmp_path, started="2021")
    second = create(tmp_path, started="2022")
    create(tmp_path, started="2023", arguments={"epochs": 2, "nhid": 5})
    create(tmp_path, started="2024", script="other.py")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"script": "ta')
    found = find_runs(tmp_path, "task.py", nhid=4)
    assert [run.path for run in found] == [second.path, first.path]
    said = capsys.readouterr().err
    assert "foreign" in said and "torn" in said
    assert find_runs(tmp_path, "task.py", nothing=1) == []


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunError, match="no run"):
            Run(path)


def test_streams_are_independent_and_repeatable():
    draws = {name: torch.rand(4, generator=stream(400, name)).tolist() for name in runs.STREAMS}
    assert len({tuple(values) for values in draws.values()}) == len(runs.STREAMS)
    again = torch.rand(4, generator=stream(400, "order")).tolist()
    assert again == draws["order"]
    for other in (stream(401, "order"), stream(400, "order", epoch=1)):
        assert torch.rand(4, generator=other).tolist() != again


def make_state(lr=0.1):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return TrainingState(model, optimizer, scheduler, {"order": stream(1, "order")})


def test_the_state_comes_back_from_its_checkpoint(tmp_path):
    state = make_state()
    for _ in range(3):
        state.update(state.model(torch.ones(4, 2)).square().mean())
        state.add(loss=0.1, seen=4)
    state.batch, state.carry = 3, {"order": torch.arange(4)}
    state.generators["order"].manual_seed(77)
    torch.save(state.checkpoint(CONFIG), tmp_path / "state")
    other = make_state(lr=0.7)
    like = ({"loss": 0.0, "seen": 0}, {"order": torch.arange(4)})
    other.restore(torch.load(tmp_path / "state", weights_only=True), *like)
    assert (other.batch, other.sums, other.lr) == (3, {"loss": 0.1 + 0.1 + 0.1, "seen": 12}, 0.1)
    assert torch.equal(other.carry["order"], torch.arange(4))
    for one in (state, other):
        one.update(one.model(torch.ones(4, 2)).square().mean())
    assert torch.equal(state.model.weight, other.model.weight)
    draws = [torch.rand(3, generator=one.generators["order"]) for one in (state, other)]
    assert torch.equal(*draws)


def test_update_returns_the_gradients_norm():
    state = make_state()
    weight = state.model.weight.detach().clone()
    loss, norm = state.update(3 * state.model.weight.sum() + 4 * state.model.bias.sum())
    assert norm == pytest.approx((9 + 9 + 16) ** 0.5)
    assert not torch.equal(weight, state.model.weight)
    assert loss == pytest.approx(
        3 * weight.sum().item() + 4 * (state.model.bias.item() + 0.1), abs=1e-5
    )


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda model: model.weight.sum() * float("nan"), "the loss"),
        (lambda model: model.weight.sum() * float("inf"), "the loss"),
        (lambda model: (model.weight * 0).sqrt().sum(), "the gradient of weight"),
    ],
)
def test_what_is_not_finite_stops_before_the_parameters_change(loss, said):
    state = make_state()
    before = state.model.weight.detach().clone()
    with pytest.raises(TrainingStopped, match=rf"{said} is not finite in epoch 1, batch 1"):
        state.update(loss(state.model))
    assert torch.equal(before, state.model.weight)


def test_a_parameter_or_a_validation_loss_that_is_not_finite_stops():
    state = make_state()
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=1e38)
    with pytest.raises(TrainingStopped, match="weight is not finite"):
        state.update(100 * state.model.weight.sum())
    with pytest.raises(TrainingStopped, match="validation loss"):
        make_state().finish_epoch(float("nan"))


def test_finish_epoch_follows_the_validation_loss():
    state = make_state()
    for loss, best in ((1.0, 1.0), (0.5, 0.5), (0.7, 0.5)):
        state.add(loss=1.0)
        state.batch = 5
        state.finish_epoch(loss)
        assert (state.best, state.batch, state.sums) == (best, 0, {})
    assert state.epoch == 3 and state.lr == pytest.approx(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_check(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        interruption.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted) as caught:
            interruption.check()
    assert caught.value.code == 128 + number and signal.getsignal(number) is before


def test_carry_out_saves_and_gives_the_signals_code(tmp_path, capsys):
    run, state = create(tmp_path), make_state()

    def epoch(check):
        state.batch += 1
        if state.batch == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        check()

    assert run.carry_out(state, epoch, 10) == 143
    assert torch.load(run.path / "last.pth.tar", weights_only=True)["batch"] == 3
    assert f"--resume {run.path}" in capsys.readouterr().out


def test_carry_out_keeps_the_last_good_state(tmp_path):
    run, state = create(tmp_path), make_state()

    def epoch(check):
        state.batch += 1
        raise TrainingStopped("the loss is not finite")

    assert run.carry_out(state, epoch, 10) == 1
    assert torch.load(run.path / "last.pth.tar", weights_only=True)["batch"] == 0
    assert "not finite" in (run.path / "log.txt").read_text()
