"""A few rounds of `tests.faults`, single faults, and no unpickling in the project."""

import json
import re
import threading

import pytest
import torch

import PTB_task
import sMNIST_task
from NetworkCreation.checkpoints import CheckpointError, load_model
from tests.conftest import REPOSITORY, TOY, create_run
from tests.faults import carry_out
from tests.test_scripts import assert_same_result, metrics
from Training import run_directory
from Training.run_directory import LAST, Run, RunError


@pytest.mark.parametrize(("kinds", "rounds"), [(["files"], 20), (["kill", "disk"], 1)])
def test_nothing_is_lost(tmp_path, kinds, rounds):
    counts, failures = carry_out(kinds, rounds, seed=3, folder=tmp_path)
    assert not failures, "\n".join(failures)
    assert all(any(name.startswith(kind) for name in counts) for kind in kinds)


def test_nothing_is_unpickled():
    said = re.compile(
        r"torch\.load\((?!.*weights_only=True)|allow_pickle=True|\b(dill|shelve|marshal)\b|joblib\.load|"
        r"\bpickle\.(?!UnpicklingError\b)\w+|read_pickle|from pickle|weights_only=False"
    )
    files = [*REPOSITORY.glob("*.py")]
    for room in ("NetworkCreation", "Training", "Postprocessing", "tests/benchmarks"):
        files += (REPOSITORY / room).rglob("*.py")
    found = [
        f"{path}: {line.strip()}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if said.search(line)
    ]
    assert len(files) > 10 and not found
    assert said.search("torch.load(path)") and said.search("pickle.loads(data)")


@pytest.mark.parametrize("script", TOY)
def test_a_process_that_dies_between_two_files_of_an_epoch(call, only_run, monkeypatch, script):
    """The last write of an epoch fails after the others; on resuming, all are written again."""
    arguments = [*TOY[script], "--epochs", 3, "--save-freq", 2]
    assert call(script, *arguments, "--save-dir", "whole")[0] == 0
    save = Run.save

    def fail(run, name, checkpoint):
        if name == LAST and checkpoint["epoch"] == 2:
            raise RunError("no space")
        save(run, name, checkpoint)

    monkeypatch.setattr(Run, "save", fail)
    code, _, err = call(script, *arguments, "--save-dir", "torn", "--snapshot-minutes", 0)
    assert code == 1 and "no space" in err
    torn = only_run("torn")
    assert len(metrics(torn)) == 2 and (torn / "e_2.pth.tar").exists()
    (torn / ".last.pth.tar.part").write_bytes(b"left by a process that was killed")
    monkeypatch.setattr(Run, "save", save)
    assert call(script, "--resume", torn)[0] == 0
    assert_same_result(only_run("whole"), torn, ["last.pth.tar", "e_2.pth.tar", "e_3.pth.tar"])
    assert not list(torn.glob(".*"))


def test_a_run_belongs_to_one_process(call, only_run):
    script = "sMNIST_task.py"
    assert call(script, *TOY[script], "--epochs", 1)[0] == 0
    holder = Run(only_run())
    holder.lock()
    code, _, err = call(script, "--resume", only_run())
    assert code == 2 and err.count("\n") == 1 and "another process" in err
    assert call(script, "--test", "--limit-batches", 1)[0] == 0
    holder.close()
    assert call(script, "--resume", only_run())[0] == 0


def test_missing_file_locks_are_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "fcntl", None)
    run = create_run(tmp_path)
    assert "cannot be locked" in (run.path / "log.txt").read_text()


def test_runs_started_at_once_have_separate_directories(tmp_path):
    made, barrier = [], threading.Barrier(8)

    def begin():
        barrier.wait()
        made.append(create_run(tmp_path))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run.path for run in made}) == 8


def test_a_run_killed_before_its_first_checkpoint(call, only_run, monkeypatch):
    """--test skips it, and --resume starts it again."""
    script = "sMNIST_task.py"
    assert call(script, *TOY[script], "--epochs", 1, "--save-dir", "whole")[0] == 0

    def die(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", die)
    assert call(script, *TOY[script], "--epochs", 1, "--save-dir", "whole/again")[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(only_run("whole/again").parents[5])
    killed, flags = only_run("whole/again"), ["--test", "--limit-batches", 1]
    code, out, err = call(script, *flags, "--save-dir", "whole")
    assert code == 0 and "checkpoint: whole/sDigits" in out, err
    assert err.startswith("skipped: ") and err.count("\n") == 1 and "no checkpoint" in err
    code, _, err = call(script, *flags, "--save-dir", "whole/again")
    assert code == 2 and "no run" in err
    assert call(script, "--resume", killed)[0] == 0
    (whole,) = (path.parent for path in killed.parents[4].glob("sDigits/*/*/*/config.json"))
    assert_same_result(whole, killed, ["e_0.pth.tar", "last.pth.tar"])
    (killed / "last.pth.tar").unlink()
    code, _, err = call(script, "--resume", killed)  # would overwrite its metrics
    assert code == 2 and "last.pth.tar" in err


def test_config_and_checkpoint_must_belong_to_one_run(call, only_run):
    script = "sMNIST_task.py"
    assert call(script, *TOY[script], "--epochs", 1)[0] == 0
    path = only_run() / "config.json"
    config = json.loads(path.read_text())
    for name, value in (("lr", 2e-3), ("lr", "x"), ("nhid", 8.5), ("epochs", None), ("lq", 1)):
        path.write_text(json.dumps(config | {"arguments": config["arguments"] | {name: value}}))
        code, _, err = call(script, "--resume", only_run())
        assert code == 2 and err.count("\n") == 1 and "config.json" in err, name
    path.write_text(json.dumps(config))
    rows, last = (only_run() / "metrics.csv").read_text(), only_run() / "last.pth.tar"
    checkpoint = torch.load(last, weights_only=True)
    for text, epoch in (("epoch\n", 1), (rows, 10**9)):
        (only_run() / "metrics.csv").write_text(text)
        torch.save(checkpoint | {"epoch": epoch}, last)
        code, _, err = call(script, "--resume", only_run())
        assert code == 2 and "metrics.csv" in err


def test_a_flipped_bit_and_a_network_too_large_are_detected(call, only_run, tmp_path):
    script = "sMNIST_task.py"
    assert call(script, *TOY[script], "--epochs", 1)[0] == 0
    sound = only_run() / "e_1.pth.tar"
    checkpoint = torch.load(sound, weights_only=True)
    data = bytearray(sound.read_bytes())
    weights = checkpoint["state_dict"]["lin.weight"].numpy().tobytes()
    data[data.index(weights)] ^= 1
    path = tmp_path / "flipped.pth.tar"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"flipped\.pth\.tar.*checksum"):
        load_model(path)
    data = bytearray(sound.read_bytes())
    directory = data.index(b"PK\x01\x02")  # of the archive
    for place, value in ((directory + 10, 8), (30, 0xFF)):  # compressed; the first part's name
        damaged = data.copy()
        damaged[place] = value
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"flipped\.pth\.tar.*damaged"):
            load_model(path)
    for name, size in (("hidden_size", 10**9), ("classes", 10**9)):
        changed = checkpoint["config"] | {"model": checkpoint["config"]["model"] | {name: size}}
        torch.save(checkpoint | {"config": changed}, path)
        with pytest.raises(CheckpointError, match="parameters, the file"):
            load_model(path)


def test_a_missing_best_model_is_named_at_the_end(call, monkeypatch):
    script = "PTB_task.py"
    load = PTB_task.load_best

    def lose(path):
        path.unlink()
        return load(path)

    monkeypatch.setattr(PTB_task, "load_best", lose)
    code, _, err = call(script, *TOY[script], "--epochs", 1)
    assert code == 1 and err.count("\n") == 1 and "model.pt" in err


def test_a_moved_directory_is_not_recreated(call, only_run, monkeypatch, tmp_path):
    script = "sMNIST_task.py"
    evaluate = sMNIST_task.evaluate_pixels

    def remove(*arguments, **options):
        if not (tmp_path / "gone").exists():
            only_run().rename(tmp_path / "gone")
        return evaluate(*arguments, **options)

    monkeypatch.setattr(sMNIST_task, "evaluate_pixels", remove)
    code, _, err = call(script, *TOY[script], "--epochs", 1, "--snapshot-minutes", 0)
    assert code == 1 and err.count("\n") == 1 and "cannot be" in err
    assert not list((tmp_path / "SavedModels").rglob("*.tar"))
    load_model(tmp_path / "gone" / "last.pth.tar")
