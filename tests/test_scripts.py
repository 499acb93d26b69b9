"""Both scripts as a user runs them, at toy size: output files, --resume, --test, errors."""

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch

import PTB_task
import sMNIST_task
from NetworkCreation.checkpoints import load_model
from NetworkCreation.models import build_model
from NetworkCreation.Networks import NETWORKS as LAYERS
from Postprocessing import grid
from tests.conftest import REPOSITORY, TOY, flags_in
from tests.forks import Fork
from Training import datasets
from Training.run_directory import MODE, Run, plain
from Training.trainer import Trainer

SCRIPTS = list(TOY)
MAIN = {"sMNIST_task.py": sMNIST_task.main, "PTB_task.py": PTB_task.main}


def metrics(run):
    """The rows of metrics.csv without `seconds`, which differs between runs."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def results(run):
    with (run / "test_results.csv").open() as file:
        return list(csv.DictReader(file))


def equal(a, b):
    """Bitwise equality of nested dictionaries and sequences."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def checkpoint(run, name="last.pth.tar"):
    """A checkpoint without the times and paths, which differ between runs."""
    state = torch.load(run / name, weights_only=True)
    del state["config"]
    state["sums"].pop("seconds", None)
    return state


def assert_same_result(first, second, names):
    assert metrics(first) == metrics(second)
    assert results(first) == results(second)
    for name in names:
        assert equal(checkpoint(first, name), checkpoint(second, name)), name


NETWORKS = [
    ("sMNIST_task.py", ["--net-type", "ANRU"]),
    ("sMNIST_task.py", ["--nonlin", "gamma", "-p"]),
    ("sMNIST_task.py", ["--nonlin", "ReLU", "--rinit", "random", "--iinit", "xavier"]),
    ("sMNIST_task.py", ["--net-type", "LSTM"]),
    ("PTB_task.py", ["--net-type", "ANRU", "--rinit", "cayley"]),
    ("PTB_task.py", ["--nonlin", "modrelu", "--no-adam", "--alpha", "0.9"]),
    ("PTB_task.py", ["--nonlin", "relu", "--tied", "--emsize", "8", "--weight_decay", "1e-4"]),
    ("PTB_task.py", ["--net-type", "GRU"]),
    ("sMNIST_task.py", ["--net-type", "expRNN", "--nonlin", "ReLU"]),
    ("sMNIST_task.py", ["--net-type", "EURNN", "--capacity", "3"]),
    ("PTB_task.py", ["--net-type", "nnRNN", "--betas", "0.0", "0.9", "--clip", "10"]),
]


@pytest.mark.parametrize(("script", "flags"), NETWORKS)
def test_every_network_trains_and_saves_its_files(call, only_run, script, flags):
    code, out, err = call(script, *TOY[script], *flags, "--epochs", 2, "--save-freq", 1)
    assert code == 0, err
    run = only_run()
    left = {path.name for path in run.iterdir()}
    assert left >= {"config.json", "log.txt", "metrics.csv", "test_results.csv", "last.pth.tar"}
    assert left >= {"e_1.pth.tar", "e_2.pth.tar"} and list(run.glob("events/*/events.out.*"))
    assert (run / "log.txt").read_text() == out
    config = json.loads((run / "config.json").read_text())
    assert config["arguments"]["epochs"] == 2 and config["arguments"]["seed"] == 400
    assert len(metrics(run)) == 2 and all(float(row["train_loss"]) > 0 for row in metrics(run))
    model, saved = load_model(run / "e_2.pth.tar")
    assert saved == config
    first, _ = load_model(run / "e_1.pth.tar")
    for name, parameter in first.named_parameters():
        assert not torch.equal(parameter, model.get_parameter(name)), name


def interrupted(main, words, number):
    """Runs a script that receives a signal in its tenth batch."""
    step = Trainer.step

    def step_and_signal(trainer, *arguments, **sums):
        step(trainer, *arguments, **sums)
        if trainer.batch == 9:
            os.kill(os.getpid(), number)

    Trainer.step = step_and_signal
    return main(words)


@pytest.mark.parametrize(
    ("script", "flags", "number"),
    [
        (
            "sMNIST_task.py",
            ["--shuffle", "--transform-ratio", "0.5", "--save-freq", "1", "-p"],
            signal.SIGTERM,
        ),
        ("PTB_task.py", ["--net-type", "LSTM"], signal.SIGINT),
        ("PTB_task.py", ["--net-type", "nnRNN"], signal.SIGINT),
        ("PTB_task.py", ["--net-type", "EURNN"], signal.SIGINT),
    ],
)
def test_an_interrupted_run_resumes_bit_for_bit(call, tmp_path, only_run, script, flags, number):
    arguments = [*TOY[script], *flags, "--limit-batches", 14, "--epochs", 2]
    assert call(script, *arguments, "--save-dir", "whole")[0] == 0
    words = [str(word) for word in (*arguments, "--save-dir", "torn")]
    code, *printed = Fork(interrupted, MAIN[script], words, number, folder=tmp_path).finish()
    assert code == 128 + number, printed
    torn = only_run("torn")
    assert (checkpoint(torn)["epoch"], checkpoint(torn)["batch"]) == (0, 10)
    code, out, err = call(script, "--resume", torn)
    assert code == 0, err
    names = ["last.pth.tar", "e_2.pth.tar"]
    assert_same_result(only_run("whole"), torn, names + ["model.pt"] * (script == "PTB_task.py"))
    assert "resumed after 0 epochs" in out


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_can_be_given_more_epochs(call, only_run, script):
    assert call(script, *TOY[script], "--epochs", 2, "--save-dir", "whole")[0] == 0
    assert call(script, *TOY[script], "--epochs", 1, "--save-dir", "short")[0] == 0
    short = only_run("short")
    assert call(script, "--resume", short, "--epochs", 2)[0] == 0
    assert metrics(short) == metrics(only_run("whole"))
    assert equal(checkpoint(short), checkpoint(only_run("whole")))
    assert json.loads((short / "config.json").read_text())["arguments"]["epochs"] == 2
    before = checkpoint(short)
    assert call(script, "--resume", short)[0] == 0
    assert equal(before, checkpoint(short)) and len(metrics(short)) == 2
    code, _, err = call(script, "--resume", short, "--epochs", 1)
    assert code == 2 and "--epochs" in err


def test_an_interrupted_evaluation_is_repeated(call, only_run, monkeypatch):
    """A signal between an epoch's last batch and its files neither loses nor repeats anything."""
    script, arguments = "sMNIST_task.py", [*TOY["sMNIST_task.py"], "--epochs", 2, "--shuffle"]
    assert call(script, *arguments, "--save-dir", "whole")[0] == 0
    evaluate = sMNIST_task.evaluate_pixels

    def interrupt(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal should have ended the evaluation")

    monkeypatch.setattr(sMNIST_task, "evaluate_pixels", interrupt)
    assert call(script, *arguments, "--save-dir", "torn")[0] == 143
    monkeypatch.setattr(sMNIST_task, "evaluate_pixels", evaluate)
    torn = only_run("torn")
    assert checkpoint(torn)["batch"] == 3
    assert call(script, "--resume", torn)[0] == 0
    assert_same_result(only_run("whole"), torn, ["last.pth.tar", "e_2.pth.tar"])


def test_rows_written_after_the_last_checkpoint_are_dropped(call, only_run):
    script = "sMNIST_task.py"
    assert call(script, *TOY[script], "--epochs", 2, "--save-freq", 1)[0] == 0
    run = only_run()
    expected = metrics(run)
    (run / "last.pth.tar").write_bytes((run / "e_1.pth.tar").read_bytes())
    assert call(script, "--resume", run)[0] == 0
    assert metrics(run) == expected and len(results(run)) == 4


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_nonfinite_loss_ends_the_run(call, only_run, script):
    nonlin = {"sMNIST_task.py": "ReLU", "PTB_task.py": "relu"}[script]
    flags = ["--nonlin", nonlin, "--epochs", 2, "--lr", "1e30"]
    code, out, _ = call(script, *TOY[script], *flags)
    assert code == 1 and "not finite in epoch 1, batch" in out
    run = only_run()
    assert checkpoint(run)["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint(run)["state_dict"].values())


def test_smnist_is_scored_from_its_checkpoint(call, only_run):
    script = "sMNIST_task.py"
    assert call(script, *TOY[script], "--epochs", 2, "--transform", "step")[0] == 0
    (as_is, step) = results(only_run())
    flags = ["--test", "--dataset", "digits", "--limit-batches", 3]
    code, out, err = call(script, *flags, "--transform", "step", "--nhid", 8)
    assert code == 0, err
    assert f"checkpoint: {only_run().relative_to(only_run().parents[4]) / 'e_2.pth.tar'}" in out
    assert f"as is: loss {float(as_is['loss']):.4f}, accuracy {float(as_is['accuracy']):.2%}" in out
    assert f"(step): loss {float(step['loss']):.4f}" in out
    assert "step drive of size 1 at 16 for 16: loss" in out
    assert call(script, "--test", "--checkpoint", only_run() / "e_2.pth.tar")[0] == 0


@pytest.mark.parametrize("net_type", LAYERS)
def test_every_network_is_scored_under_the_step_drive(call, monkeypatch, net_type):
    script, drives = "sMNIST_task.py", []
    assert call(script, *TOY[script], "--net-type", net_type, "--epochs", 1)[0] == 0
    evaluate = sMNIST_task.evaluate_pixels

    def record(*arguments, drive=None, **options):
        drives.append(drive)
        return evaluate(*arguments, drive=drive, **options)

    monkeypatch.setattr(sMNIST_task, "evaluate_pixels", record)
    flags = ["--test", "--limit-batches", 3, "--net-type", net_type]
    assert call(script, *flags)[0] == 0
    assert drives[:2] == [None, None]
    assert drives[2].tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32


def test_the_newest_run_with_the_given_arguments_is_scored(call):
    script = "sMNIST_task.py"
    for seed in (1, 2):
        for nhid in (4, 8):
            call(script, *TOY[script], "--nhid", nhid, "--seed", seed, "--epochs", 1)
    _, out, _ = call(script, "--test", "--seed", 1)
    assert "SavedModels/sDigits/1/RNN_lr0.001_p0.0_hs8" in out
    _, out, _ = call(script, "--test", "--nhid", 4)
    assert "SavedModels/sDigits/2/RNN_lr0.001_p0.0_hs4" in out


def test_ptb_is_scored_by_its_best_model(call, only_run):
    script = "PTB_task.py"
    assert call(script, *TOY[script], "--epochs", 2)[0] == 0
    (row,) = results(only_run())
    said = f"loss {float(row['loss']):.4f}, {float(row['bits_per_character']):.4f} bits"
    for flags in ([], ["--checkpoint", only_run() / "model.pt"], ["--nonlin", "gamma"]):
        code, out, err = call(script, "--test", "--limit-batches", 3, *flags)
        assert code == 0 and said in out, err


def test_ptb_saves_its_best_model_at_the_given_path(call, only_run, tmp_path):
    script = "PTB_task.py"
    assert call(script, *TOY[script], "--epochs", 1, "--save", "best/one.pt")[0] == 0
    run = only_run()
    assert (run / "best" / "one.pt").exists() and not (run / "model.pt").exists()
    assert call(script, "--test")[0] == 0
    assert [row["condition"] for row in results(run)] == ["best", "test_as_is"]
    # A foreign config.json might name any file; runs of earlier versions name one outside.
    path, last = run / "config.json", run / "last.pth.tar"
    config, state = json.loads(path.read_text()), torch.load(last, weights_only=True)
    for save in ("log.txt", str(tmp_path / "elsewhere.pt"), "../../other.pt"):
        config["arguments"]["save"] = state["config"]["arguments"]["save"] = save
        path.write_text(json.dumps(config))
        torch.save(state, last)
        code, _, err = call(script, "--resume", run, "--epochs", 2)
        assert code == 2 and "config.json: argument --save" in err and err.count("\n") == 1


def test_a_run_given_more_epochs_is_complete_once_they_are_evaluated(call, only_run, monkeypatch):
    script, load = "PTB_task.py", PTB_task.load_best
    assert call(script, *TOY[script], "--epochs", 1)[0] == 0
    run = Run(only_run())
    assert run.complete

    def interrupt(path):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PTB_task, "load_best", interrupt)
    assert call(script, "--resume", run.path, "--epochs", 2)[0] == 143
    run = Run(run.path)
    assert run.kept.keys() == {0, 1, 2} and not run.complete
    assert call(script, "--test")[0] == 0
    assert [row["epoch"] for row in results(run.path)] == ["1", "2"] and not run.complete
    monkeypatch.setattr(PTB_task, "load_best", load)
    assert call(script, "--resume", run.path)[0] == 0
    assert run.complete
    assert grid.score(run) == float(results(run.path)[-1]["bits_per_character"])
    assert results(run.path)[-1]["epoch"] == "2"


@pytest.mark.parametrize("script", SCRIPTS)
def test_changes_of_machine_on_resuming_are_recorded(call, only_run, monkeypatch, script):
    assert call(script, *TOY[script], "--epochs", 2, "--save-dir", "whole")[0] == 0
    assert call(script, *TOY[script], "--epochs", 1)[0] == 0
    run, path = only_run(), only_run() / "config.json"
    first, last = json.loads(path.read_text()), run / "last.pth.tar"
    state = torch.load(last, weights_only=True)
    # as if it had been trained on a GPU
    foreign = {**first, "device": "\x1b[31mGPU", "commit": "other"}
    foreign["versions"] = first["versions"] | {"torch": "1.0"}
    foreign["arguments"] = state["config"]["arguments"] = first["arguments"] | {"cuda": True}
    path.write_text(json.dumps(foreign))
    torch.save(state, last)
    if not torch.cuda.is_available():
        assert call(script, "--resume", run)[0] == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    anew = ["--no-cuda", "--data", "elsewhere", "--note", "moved", "--snapshot-minutes", 1]
    code, out, err = call(script, "--resume", run, "--epochs", 2, *anew)
    assert code == 0, err
    assert "warning: device was \\x1b[31mGPU, is CPU" in out and "\x1b" not in out
    assert "7 threads); commit was other, is" in out and "torch was 1.0, is" in out
    assert metrics(run) == metrics(only_run("whole"))
    config = json.loads(path.read_text())
    assert config["arguments"]["note"] == "moved" and config["threads"] == 1
    assert config["arguments"]["data"].endswith("/elsewhere") and not config["arguments"]["cuda"]
    (part,) = config["resumed"]
    assert part["threads"] == 7 and "--resume" in part["command"]
    assert part["arguments"]["epochs"] == 2 and part["versions"] == first["versions"]
    code, out, err = call(script, "--resume", run, "--note", "again")
    assert code == 0 and "warning" not in out, err
    assert len(json.loads(path.read_text())["resumed"]) == 2
    code, _, err = call(script, "--resume", run, "--lr", 1)
    assert code == 2 and "--lr" in err


def test_other_columns_are_rejected_before_training(call, only_run):
    script = "sMNIST_task.py"
    assert call(script, *TOY[script], "--epochs", 1)[0] == 0
    path = only_run() / "metrics.csv"
    path.write_text(path.read_text().replace("gradient_norm", "norm"))
    code, _, err = call(script, "--resume", only_run(), "--epochs", 2)
    assert code == 2 and "metrics.csv: has other columns" in err
    assert checkpoint(only_run())["epoch"] == 1


def other_digits(root, load=datasets.PIXEL_SETS["digits"]):
    *parts, checksums = load(root)
    return *parts, {name: "0" * 64 for name in checksums}


def test_results_of_test_are_added_to_the_run(call, only_run, tmp_path, monkeypatch):
    script = "sMNIST_task.py"
    assert call(script, *TOY[script], "--epochs", 1)[0] == 0
    run, own = only_run(), results(only_run())
    code, out, err = call(script, "--test", "--batch", 250, "-v", "--transform", "lin")
    assert code == 0 and "lin.weight: (10, 8)" in out, err
    kept = results(run)
    assert kept[:2] == own and out.endswith(f"added to {run / 'test_results.csv'}\n")
    names = ["test_as_is", "test_lin", "test_step_drive"]
    assert [row["condition"] for row in kept[2:]] == names
    for row in kept[2:]:
        assert f"loss {float(row['loss']):.4f}, accuracy {float(row['accuracy']):.2%}" in out
    assert call(script, "--test", "--batch", 250, "--transform", "lin")[0] == 0
    assert results(run) == kept
    code, out, _ = call(script, "--test", "--limit-batches", 1)
    assert code == 0 and "not added to test_results.csv: --limit-batches" in out
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "PIXEL_SETS", {"digits": other_digits})
        code, out, _ = call(script, "--test")
    assert code == 0 and "not added to test_results.csv" in out and "used other data" in out
    holder = Run(run)
    holder.lock()
    code, out, _ = call(script, "--test")
    assert code == 0 and "not added to test_results.csv" in out and "another process" in out
    holder.close()
    (tmp_path / "copy.pth.tar").write_bytes((run / "e_1.pth.tar").read_bytes())
    code, out, _ = call(script, "--test", "--checkpoint", tmp_path / "copy.pth.tar")
    assert code == 0 and "added to" not in out and results(run) == kept


CONFIGURED = [
    ("sMNIST_task.py", ["-p", "--shuffle", "--save-freq", "1"]),  # n drawn by --random
    ("sMNIST_task.py", ["--nonlin", "gamma", "--n", "-2.5", "--no-learn_params"]),
    ("PTB_task.py", ["--net-type", "nnRNN", "--betas", "0", "0.9", "--note=-x"]),
    ("PTB_task.py", ["--nonlin", "gamma2", "--no-adam", "--tied", "--emsize", "8"]),
]


@pytest.mark.parametrize(("script", "flags"), CONFIGURED)
def test_a_run_is_repeated_from_its_config_bit_for_bit(call, only_run, script, flags):
    assert call(script, *TOY[script], *flags, "--epochs", 2, "--save-dir", "first")[0] == 0
    first = only_run("first")
    code, _, err = call(script, "--config", first / "config.json", "--save-dir", "again")
    assert code == 0, err
    again = only_run("again")
    assert_same_result(first, again, ["e_0.pth.tar", "e_2.pth.tar"])
    one, other = (json.loads((run / "config.json").read_text()) for run in (first, again))
    for config in (one, other):
        config["arguments"] |= {"save_dir": None, "note": None}
    assert one["arguments"] == other["arguments"] and one["model"] == other["model"]


def test_typed_flags_override_a_config(tmp_path):
    parse = sMNIST_task.parse

    def merged(found, *words):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(found), encoding="utf-8-sig")
        return parse(["--config", str(path), *words])[1]

    of_run = {
        "script": "sMNIST_task.py",
        "arguments": plain({k: v for k, v in vars(parse([])[1]).items() if k not in MODE}),
    }
    args = merged(of_run, "--lr", "0.5", "--seed", "401")
    assert args.lr == 0.5 and args.random and args.n == parse(["--seed", "401"])[1].n
    args = merged(of_run, "--n", "3")
    assert (args.n, args.s, args.random) == (3.0, 0.0, False)
    args = merged(of_run, "--net-type", "LSTM")
    assert args.net_type == "LSTM" and args.n is args.nonlin is args.rinit is None
    assert merged(of_run, "--nonlin", "relu").n is None
    args = merged({"n": 2, "gain": -1e-3, "save_epochs": [3, 4], "permute": True, "clip": None})
    assert (args.n, args.random, args.save_epochs, args.permute) == (-1e-3, False, [3, 4], True)


WRONG = [
    ({"nhdi": 5}, "has no argument nhdi: did you mean nhid?"),
    ({"test": True}, "has no argument test"),
    ({"nhid": 2.5}, "argument --nhid: '2.5' is not a whole number"),
    ({"nonlin": "gama"}, "did you mean gamma?"),
    ({"net_type": "LSTM", "rinit": "henaff"}, "argument --rinit: applies to --net-type"),
    ({"alpha": 0.5}, "argument --alpha: requires --no-adam"),
    ({"betas": ["--test", "-p"]}, "betas is ['--test', '-p'], not a list of numbers"),
    ({"permute": "yes"}, "permute is 'yes', not true or false"),
    ({"script": "PTB_task.py", "arguments": {}}, "of a run of PTB_task.py"),
    ({"\x1b[31m": 1}, "has no argument \\x1b[31m"),
    ([1], "not a JSON object"),
]


@pytest.mark.parametrize(("found", "said"), WRONG)
def test_an_invalid_config_is_a_one_line_error(call, tmp_path, found, said):
    (tmp_path / "c.json").write_text(json.dumps(found))
    code, _, err = call("sMNIST_task.py", "--config", "c.json")
    assert code == 2 and err.count("\n") == 1 and said in err


def with_full_standard_output(main, words):
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    return main(words)


def test_a_full_standard_output_loses_no_run(tmp_path, only_run):
    words = [*TOY["sMNIST_task.py"], "--epochs", "1"]
    process = Fork(with_full_standard_output, sMNIST_task.main, words, folder=tmp_path)
    code, _, err = process.finish()
    assert code == 0 and err.count("\n") == 1
    assert "standard output: cannot be written (No space left on device)" in err
    assert "done: " in (only_run() / "log.txt").read_text()


def test_help_is_printed_in_an_encoding_without_greek(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as exit:
        PTB_task.main(["--help"])
    assert exit.value.code == 0 and b"one learned \\u03b3" in out.buffer.getvalue()


def test_the_papers_checkpoint_is_scored_with_flags(call, tmp_path):
    spec = {"task": "pixels", "net_type": "RNN", "hidden_size": 8, "classes": 10}
    spec["layer"] = {"nonlin": "gamma", "n": 2.0, "s": 0.0}
    model = build_model(spec, torch.Generator().manual_seed(0))
    path = tmp_path / "e_99.pth.tar"
    torch.save({"state_dict": model.state_dict(), "optimizer": {}, "epoch": 99}, path)
    flags = ["--test", "--checkpoint", path, "--dataset", "digits", "--nonlin", "gamma"]
    code, out, err = call("sMNIST_task.py", *flags, "--nhid", 8, "--gain", 1)
    assert code == 0 and "test as is" in out, err
    code, _, err = call("sMNIST_task.py", *flags, "--nhid", 9)
    assert code == 2 and "e_99.pth.tar" in err and "9 units" in err


def test_random_draws_n_and_is_the_default(call, tmp_path):
    script = "sMNIST_task.py"
    cases = {
        "default": [],
        "random": ["--random"],
        "gain": ["--gain", 2.5],
        "saturation": ["--saturation", 0.25],
        "neither": ["--no-random"],
    }
    found = {}
    for name, flags in cases.items():
        assert call(script, *TOY[script], *flags, "--epochs", 1, "--save-dir", name)[0] == 0
        (path,) = (tmp_path / name).rglob("config.json")
        layer = json.loads(path.read_text())["model"]["layer"]
        found[name] = (layer["n"], layer["s"])
    assert 5 <= found["default"][0] < 7 and found["default"][1] == 0
    assert found["random"] == found["default"]
    assert found["gain"] == (2.5, 1.0)
    assert found["saturation"] == (1.0, 0.25)
    assert found["neither"] == (1.0, 1.0)


def test_fixed_n_and_s_do_not_change(call, only_run):
    script = "sMNIST_task.py"
    flags = ["--gain", 2.5, "--saturation", 0.5, "--no-learn_params", "--epochs", 1]
    assert call(script, *TOY[script], *flags)[0] == 0
    (row,) = metrics(only_run())
    assert [float(row[name]) for name in ("n_mean", "n_std", "s_mean")] == [2.5, 0.0, 0.5]
    model, _ = load_model(only_run() / "e_1.pth.tar")
    assert model.rnn.n.tolist() == [2.5] * 8


BAD = {
    "sMNIST_task.py": [
        ["--nhid", "0"],
        ["--batch", "-1"],
        ["--epochs", "0"],
        ["--save-freq", "0"],
        ["--limit-batches", "0"],
        ["--nhid", "2.5"],
        ["--lr", "0"],
        ["--lr", "-1"],
        ["--lr", "nan"],
        ["--lr", "inf"],
        ["--transform-ratio", "1.5"],
        ["--transform-ratio", "nan"],
        ["--gain", "0"],
        ["--gain", "inf"],
        ["--saturation", "nan"],
        ["--seed", "-1"],
        ["--seed", "4294967296"],
        ["--nonlin", "tanh"],
        ["--net-type", "CNN"],
        ["--dataset", "cifar"],
        ["--rinit", "zeros"],
        ["--random", "--gain", "1"],
        ["--random", "--saturation", "1"],
        ["--learn_params", "--nonlin", "ReLU"],
        ["--no-learn_params", "--nonlin", "ReLU"],
        ["--gain", "1", "--nonlin", "ReLU"],
        ["--nonlin", "gamma", "--net-type", "LSTM"],
        ["--rinit", "henaff", "--net-type", "GRU"],
        ["--rinit", "xavier", "--net-type", "expRNN"],
        ["--nhid", "7", "--net-type", "nnRNN"],
        ["--nonlin", "gamma2", "--net-type", "EURNN"],
        ["--gain", "1", "--net-type", "EURNN"],
        ["--gain", "1", "--net-type", "expRNN"],
        ["--capacity", "0", "--net-type", "EURNN"],
        ["--capacity", "2", "--net-type", "RNN"],
        ["--ostep_method", "householder", "--net-type", "expRNN"],
        ["--ostep_method", "exp", "--net-type", "EURNN"],
        ["--lr_orth", "0", "--net-type", "expRNN"],
        ["--lr_orth", "1e-4", "--net-type", "LSTM"],
        ["--betas", "0.9", "1"],
        ["--betas", "-0.1", "0.9"],
        ["--betas", "0.9"],
        ["--clip", "0"],
        ["--clip", "nan"],
        ["--checkpoint", "x.pth.tar"],
        ["--resume", "x", "--nhid", "3"],
        ["--resume", "absent"],
        ["--test"],
        ["--test", "--checkpoint", "absent.pth.tar"],
        ["--save-dir", "file/in/the/way"],
        ["--nhi", "5"],
        ["--alpha", "0.9"],
        ["--betas", "0.0", "0.9", "--no-adam"],
        ["--save-epochs", "0"],
        ["--n", "-1e-39"],
        ["--config", "absent"],
        ["--resume", "x", "--config", "y"],
    ],
    "PTB_task.py": [
        ["--emsize", "0"],
        ["--bptt", "0"],
        ["--batch_size", "0"],
        ["--log-interval", "0"],
        ["--weight_decay", "-1"],
        ["--n", "0"],
        ["--s", "inf"],
        ["--tied"],
        ["--alpha", "0.9"],
        ["--alpha", "2", "--no-adam"],
        ["--betas", "0.0", "0.9", "--no-adam"],
        ["--alam", "-1", "--net-type", "nnRNN"],
        ["--alam", "1e-4", "--net-type", "expRNN"],
        ["--Tdecay", "inf", "--net-type", "nnRNN"],
        ["--Tdecay", "1e-5", "--net-type", "ANRU"],
        ["--rinit", "normal", "--net-type", "nnRNN"],
        ["--nonlin", "tanh", "--net-type", "EURNN"],
        ["--n", "2", "--net-type", "nnRNN"],
        ["--learn_params", "--nonlin", "tanh"],
        ["--n", "2", "--nonlin", "relu"],
        ["--any-corpus"],
        ["--save", "last.pth.tar"],
        ["--save", ".last.pth.tar.part"],
        ["--save", "../model.pt"],
        ["--save", "/absent/model.pt"],
        ["--save", "events"],
        ["--save", "x" * 252],
        ["--save", f"below/{'x' * 252}"],
        ["--save", "."],
        ["--batch_size", "1000000"],
        ["--resume", "absent"],
        ["--test"],
        ["--save-dir", "file/in/the/way"],
    ],
}


@pytest.mark.parametrize(
    ("script", "flags"), [(script, flags) for script in SCRIPTS for flags in BAD[script]]
)
def test_bad_input_is_a_one_line_error_and_leaves_nothing(call, tmp_path, script, flags):
    (tmp_path / "file").write_text("in the way")
    base = [] if {"--resume", "--dataset", "--nhi"} & set(flags) else TOY[script]
    code, _, err = call(script, *base, *flags)
    assert code == 2
    assert err.startswith(f"{script}: error: ") and err.count("\n") == 1
    assert flags_in(err) & {*flags}, err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_gpu_is_an_error(call, script):
    code, _, err = call(script, *TOY[script], "-g")
    assert code == 2 and "GPU" in err


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_data_are_an_error_and_leave_nothing(call, tmp_path, monkeypatch, script):
    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    code, _, err = call(script, "--data", tmp_path / "data")
    assert code == 2 and "--dataset" in err and err.count("\n") == 1
    assert not (tmp_path / "SavedModels").exists()


def test_checkpoints_that_do_not_match_the_flags_are_rejected(call, only_run, tmp_path):
    script = "sMNIST_task.py"
    assert call(script, *TOY[script], "--epochs", 1)[0] == 0
    path = only_run() / "e_1.pth.tar"
    (tmp_path / "cut.pth.tar").write_bytes(path.read_bytes()[:3000])
    for flags, said in [
        (["--checkpoint", path, "--net-type", "LSTM"], "--net-type"),
        (["--checkpoint", path, "--nhid", 9], "--nhid"),
        (["--checkpoint", path, "-p"], "--permute"),
        (["--checkpoint", tmp_path / "cut.pth.tar"], "cut.pth.tar"),
    ]:
        code, _, err = call(script, "--test", *flags)
        assert code == 2 and said in err and err.count("\n") == 1
    code, _, err = call("PTB_task.py", "--test", "--checkpoint", path)
    assert code == 2 and "e_1.pth.tar" in err
    code, _, err = call("PTB_task.py", "--resume", only_run())
    assert code == 2 and "sMNIST_task.py" in err
    (only_run() / "last.pth.tar").write_bytes(b"")
    code, _, err = call(script, "--resume", only_run())
    assert code == 2 and "last.pth.tar" in err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_printed_in_any_directory(start, script):
    process = start(script, "--help")
    out = process.communicate()[0]
    assert process.returncode == 0
    for flag in ("--cuda, --no-cuda", "--seed", "--resume", "--checkpoint", "(default: 400)"):
        assert flag in out


def test_one_process_trains_and_another_scores(start, only_run):
    script = "sMNIST_task.py"
    process = start(script, *TOY[script], "--epochs", 1, "--note", "a remark")
    out = process.communicate()[0]
    assert process.returncode == 0, out
    assert out.splitlines()[-1].startswith("done: SavedModels/") and "%|" not in out
    assert json.loads((only_run() / "config.json").read_text())["arguments"]["note"] == "a remark"
    process = start(script, "--test", "--note", "a remark", "--limit-batches", 1)
    out = process.communicate()[0]
    assert process.returncode == 0 and "test" in out, out


def test_importing_a_script_does_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import sMNIST_task, PTB_task"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_real_mnist_end_to_end(call, mnist_root, only_run):
    flags = ["--data", mnist_root, "-p", "--nhid", 8, "--epochs", 1, "--limit-batches", 1]
    code, _, err = call("sMNIST_task.py", *flags, "--batch", 20)
    assert code == 0, err
    assert only_run().parents[2].name == "psMNIST"
    code, out, err = call(
        "sMNIST_task.py", "--test", "-p", "--data", mnist_root, "--limit-batches", 1
    )
    assert code == 0 and "step drive of size 1 at 200 for 200" in out, err


def test_real_pennchar_end_to_end(call, pennchar_root, only_run):
    flags = ["--data", pennchar_root, "--nhid", 8, "--epochs", 1, "--limit-batches", 1]
    code, _, err = call("PTB_task.py", *flags)
    assert code == 0, err
    assert only_run().parents[2].name == "PTB"


# The orthogonal networks


ORTHOGONAL = [
    ("sMNIST_task.py", ["--net-type", "expRNN", "--nonlin", "gamma2", "--clip", "0.5"]),
    ("sMNIST_task.py", ["--net-type", "nnRNN", "--ostep_method", "cayley", "--alam", "0.5"]),
    ("sMNIST_task.py", ["--net-type", "EURNN", "--capacity", "3", "--betas", "0.5", "0.9"]),
    ("PTB_task.py", ["--net-type", "expRNN", "--rinit", "random", "--weight_decay", "1e-3"]),
    ("PTB_task.py", ["--net-type", "nnRNN", "--Tdecay", "0.1", "--betas", "0", "0.9"]),
    ("PTB_task.py", ["--net-type", "EURNN", "--lr_orth", "1e-3", "--no-adam"]),
]


@pytest.mark.parametrize(("script", "flags"), ORTHOGONAL)
def test_a_resumed_run_is_bit_identical(call, only_run, script, flags):
    assert call(script, *TOY[script], *flags, "--epochs", 2, "--save-dir", "whole")[0] == 0
    assert call(script, *TOY[script], *flags, "--epochs", 1, "--save-dir", "short")[0] == 0
    whole, short = only_run("whole"), only_run("short")
    code, _, err = call(script, "--resume", short, "--epochs", 2)
    assert code == 0, err
    assert metrics(short) == metrics(whole)
    for name in ["last.pth.tar", "e_2.pth.tar"]:
        assert equal(checkpoint(whole, name), checkpoint(short, name)), name
    code, out, err = call(script, "--test", "--checkpoint", short / "e_2.pth.tar")
    assert code == 0 and "test" in out, err
    assert short.parent.name.endswith("gamma2" if "gamma2" in flags else "modrelu")


def test_the_orthogonal_learning_rate_is_scheduled_with_the_main_one(call, only_run):
    flags = ["--net-type", "nnRNN", "--lr_orth", 1e-4, "--Tdecay", 0.25, "--weight_decay", 0.5]
    # a rate so high that the validation loss rises
    flags = [*TOY["PTB_task.py"], *flags, "--lr", 0.5, "--epochs", 4]
    assert call("PTB_task.py", *flags)[0] == 0
    rates = [float(row["lr"]) for row in metrics(only_run())]
    main, orthogonal, T_group = checkpoint(only_run())["optimizer"]["param_groups"]
    assert main["lr"] == T_group["lr"] < rates[0] == 0.5
    assert orthogonal["lr"] / 1e-4 == main["lr"] / 0.5
    assert [g["weight_decay"] for g in (main, orthogonal, T_group)] == [0.5, 0.0, 0.25]
    model, config = load_model(only_run() / "e_4.pth.tar")
    assert [len(g["params"]) for g in (orthogonal, T_group)] == [1, 1]
    assert len(main["params"]) == len(list(model.parameters())) - 2
    assert config["model"]["layer"] == {
        "nonlin": "modrelu",
        "rinit": "henaff",
        "iinit": "kaiming",
        "ostep_method": "exp",
    }


@pytest.mark.parametrize("script", TOY)
def test_every_flag_has_an_effect(call, tmp_path, script):
    """A run that differs in one flag ends with different weights."""
    cases = {
        "expRNN": ["--lr_orth 1e-3", "--ostep_method cayley", "--rinit cayley", "--clip 1e-9"],
        "nnRNN": ["--alam 10", "--Tdecay 1", "--betas 0 0.9"],
        "EURNN": ["--capacity 1", "--lr_orth 1e-3", "--iinit xavier"],
    }
    for net_type, differing in cases.items():
        found = []
        for number, flags in enumerate(["", *differing]):
            folder = f"{net_type}{number}"
            base = [*TOY[script], "--net-type", net_type, "--epochs", 1, "--lr_orth", "1e-2"]
            assert call(script, *base, *flags.split(), "--save-dir", folder)[0] == 0
            (path,) = (tmp_path / folder).rglob("e_1.pth.tar")
            state = torch.load(path, weights_only=True)["state_dict"]
            found.append([v for n, v in state.items() if n.startswith("rnn.")])
        for number, other in enumerate(found[1:]):
            assert not equal(found[0], other), (net_type, differing[number])


def test_a_run_older_than_the_flags_can_be_resumed(call, only_run):
    script = "sMNIST_task.py"
    assert call(script, *TOY[script], "--epochs", 2, "--save-dir", "whole")[0] == 0
    assert call(script, *TOY[script], "--epochs", 1)[0] == 0
    path, last = only_run() / "config.json", only_run() / "last.pth.tar"
    config, checkpoint = json.loads(path.read_text()), torch.load(last, weights_only=True)
    new = ("capacity", "lr_orth", "ostep_method", "alam", "Tdecay", "betas", "clip")
    for name in (*new, "snapshot_minutes"):
        del config["arguments"][name], checkpoint["config"]["arguments"][name]
    renamed = {"n": "gain", "s": "saturation", "batch_size": "batch"}
    for one in (config["arguments"], checkpoint["config"]["arguments"]):
        one |= {old: one.pop(new) for new, old in renamed.items()}
    path.write_text(json.dumps(config))
    torch.save(checkpoint, last)
    code, _, err = call(script, "--resume", only_run(), "--epochs", 2)
    assert code == 0, err
    assert metrics(only_run()) == metrics(only_run("whole"))


@pytest.mark.parametrize("net_type", ["expRNN", "nnRNN", "EURNN"])
def test_real_pennchar_is_learnt(call, pennchar_root, only_run, net_type):
    flags = ["--data", pennchar_root, "--net-type", net_type, "--nhid", 64, "--emsize", 32]
    flags += ["--batch_size", 32, "--bptt", 50, "--lr", "3e-3", "--lr_orth", "3e-4"]
    code, _, err = call("PTB_task.py", *flags, "--limit-batches", 40, "--epochs", 2)
    assert code == 0, err
    first, second = (float(row["validation_bits_per_character"]) for row in metrics(only_run()))
    assert second < first < math.log2(50)


def test_the_data_of_a_run_are_found_again(call, tmp_path):
    flags = [*TOY["PTB_task.py"], "--dataset", "ptb", "--any-corpus", "--epochs", 1]
    (tmp_path / "own" / "pennchar").mkdir(parents=True)
    for name in datasets.PENNCHAR_SHA256:
        (tmp_path / "own" / "pennchar" / name).write_text("a b _ c\nd e f\n" * 200)
    assert call("PTB_task.py", *flags, "--data", "own")[0] == 0
    code, out, err = call("PTB_task.py", "--test")
    assert code == 0 and "added to" in out, err
    (tmp_path / "own").rename(tmp_path / "moved")
    code, out, err = call("PTB_task.py", "--test", "--data", "moved")
    assert code == 0 and "added to" in out, err
