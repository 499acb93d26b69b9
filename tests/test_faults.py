"""A few rounds of `tests.faults`, single faults, and no unpickling in the project."""

import re
from itertools import chain, repeat
from pathlib import Path
from unittest.mock import Mock

import pytest
from tensorboardX.event_file_writer import EventsWriter

from NetworkCreation.checkpoints import LAST
from tests.conftest import REPOSITORY, SMNIST, TOY
from tests.faults import carry_out
from tests.test_scripts import assert_same_result, metrics
from Training.config import RunError
from Training.run_directory import Run


@pytest.mark.parametrize(("kind", "rounds"), [("files", 20), ("kill", 7), ("disk", 2)])
def test_nothing_is_lost(tmp_path, kind, rounds):
    """The first seven rounds of kill have a network each."""
    failures = carry_out([kind], rounds, seed=3, folder=tmp_path)
    assert not failures, "\n".join(failures)


def test_nothing_is_unpickled():
    unsafe = re.compile(
        r"torch\.load\((?!.*weights_only=True)|allow_pickle=True|\b(dill|shelve|marshal)\b|joblib\.load|"
        r"\bpickle\.(?!UnpicklingError\b)\w+|read_pickle|from pickle|weights_only=False"
    )
    files = [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("tests/benchmarks/*.py")]
    for room in ("NetworkCreation", "Training", "Postprocessing"):
        files += (REPOSITORY / room).rglob("*.py")
    assert [file for file in files if unsafe.search(file.read_text(encoding="utf-8"))] == []
    assert unsafe.search("torch.load(path)") and unsafe.search("pickle.loads(data)")
    assert len(files) > 40


@pytest.mark.parametrize("script", TOY)
def test_a_process_that_dies_between_two_files_of_an_epoch(call, only_run, monkeypatch, script):
    """The last write of an epoch fails after the others; on resuming, all are written again."""
    arguments, save = [*TOY[script], "--epochs", 3, "--save-freq", 2], Run.save
    assert call(script, *arguments, "--save-dir", "whole")[0] == 0

    def fail(run, name, checkpoint):
        if name == LAST and checkpoint["epoch"] == 2:
            raise RunError("no space")
        save(run, name, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", fail)
        code, _, err = call(script, *arguments, "--save-dir", "torn")
    assert code == 1 and "no space" in err
    torn = only_run("torn")
    assert len(metrics(torn)) == 2 and (torn / "e_2.pth.tar").exists()
    assert call(script, "--resume", torn)[0] == 0
    assert_same_result(only_run("whole"), torn, [LAST, "e_2.pth.tar", "e_3.pth.tar"])


def test_a_run_killed_before_its_first_checkpoint(call, error_of, only_run, monkeypatch):
    """--test skips it, and --resume starts it again."""
    flags = [*TOY[SMNIST], "--epochs", 1, "--save-dir"]
    assert call(SMNIST, *flags, "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", Mock(side_effect=RunError("killed")))
        assert call(SMNIST, *flags, "torn")[0] == 1
    torn = only_run("torn")
    code, _, err = call(SMNIST, "--test", "--limit-batches", 1, "--save-dir", "torn")
    assert code == 1 and "has no checkpoint yet" in err and "no run" in err
    assert call(SMNIST, "--resume", torn)[0] == 0
    assert_same_result(only_run("whole"), torn, ["e_0.pth.tar", LAST])
    (torn / LAST).unlink()
    assert LAST in error_of(SMNIST, "--resume", torn, code=1)  # would overwrite its metrics
    assert len(metrics(torn)) == 1


def test_a_moved_directory_is_not_made_again(error_of, monkeypatch):
    save = Run.save

    def move_and_save(run, name, checkpoint):
        if name == "e_1.pth.tar":
            run.path.rename("moved")
        save(run, name, checkpoint)

    monkeypatch.setattr(Run, "save", move_and_save)
    assert "cannot be written" in error_of(SMNIST, *TOY[SMNIST], "--epochs", 1, code=1)
    assert not list(Path("SavedModels").rglob("*.tar"))


@pytest.mark.parametrize("method", ["write_event", "flush"])
def test_a_disk_that_fills_up_with_events_is_named(error_of, monkeypatch, method):
    full = OSError(28, "No space left on device")
    # the first call makes the file
    monkeypatch.setattr(EventsWriter, method, Mock(side_effect=chain([None], repeat(full))))
    error = error_of(SMNIST, *TOY[SMNIST], "--epochs", 1, code=1)
    assert "events.out: cannot be written (No space left on device)" in error
