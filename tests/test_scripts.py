"""Both scripts as a user runs them, at toy size: output files, --resume, --test, errors."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import PTB_task
import sMNIST_task
from NetworkCreation.checkpoints import load_model
from NetworkCreation.models import build_model
from NetworkCreation.Networks import NETWORKS as LAYERS
from tests.conftest import PTB, REPOSITORY, SMNIST, TOY, data_root, rows, write_corpus
from tests.forks import Fork
from Training import console, datasets
from Training.run_directory import Run, find_runs
from Training.trainer import Trainer

COMMAND = [sys.executable, str(REPOSITORY / SMNIST)]


def metrics(run):
    """The rows of metrics.csv without `seconds`, which differs between runs."""
    return [row | {"seconds": None} for row in rows(Run(run), "metrics.csv")]


def results(run):
    return rows(Run(run), "test_results.csv")


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
    state["sums"].pop("seconds", None)
    del state["config"], state["marks"], state["tables"]  # whose rows have times
    return state


def assert_same_result(first, second, names):
    assert metrics(first) == metrics(second) and results(first) == results(second)
    for name in names:
        assert equal(checkpoint(first, name), checkpoint(second, name)), name


NETWORKS = [
    (SMNIST, "--net-type ANRU"),
    (SMNIST, "-p --shuffle"),  # n is drawn
    (SMNIST, "--nonlin gamma --n -2.5 --no-learn_params"),
    (SMNIST, "--nonlin ReLU --rinit random --iinit xavier"),
    (SMNIST, "--net-type LSTM"),
    (PTB, "--net-type ANRU --rinit cayley"),
    (PTB, "--nonlin modrelu --no-adam --alpha 0.9"),
    (PTB, "--nonlin gamma2 --tied --emsize 8 --weight_decay 1e-4"),
    (PTB, "--net-type GRU"),
    (SMNIST, "--net-type expRNN --nonlin ReLU"),
    (SMNIST, "--net-type EURNN --capacity 3"),
    (PTB, "--net-type nnRNN --betas 0 0.9 --clip 10"),
]


@pytest.mark.parametrize(("script", "flags"), NETWORKS)
def test_every_network_trains_saves_its_files_and_is_repeated(succeed, only_run, script, flags):
    """Repeated bit for bit from its config."""
    flags = [*TOY[script], *flags.split(), "--epochs", 2, "--save-freq", 1]
    out = succeed(script, *flags, "--save-dir", "first")
    run = only_run("first")
    assert results(run) and list(run.glob("events.out.*")) and (run / "log.txt").read_text() == out
    assert len(metrics(run)) == 2 and all(float(row["train_loss"]) > 0 for row in metrics(run))
    model, saved = load_model(run / "e_2.pth.tar")
    assert saved == {k: v for k, v in Run(run).config.items() if k != "finished"}
    first, _ = load_model(run / "e_1.pth.tar")
    for name, parameter in first.named_parameters():
        assert not torch.equal(parameter, model.get_parameter(name)), name
    succeed(script, "--config", run / "config.json", "--save-dir", "again")
    again = only_run("again")
    assert_same_result(run, again, ["e_0.pth.tar", "e_2.pth.tar", "last.pth.tar"])
    assert Run(run).identity == Run(again).identity


@pytest.mark.parametrize(
    ("script", "flags", "number"),
    [
        (SMNIST, "--shuffle --transform-ratio 0.5 --save-freq 1 -p", signal.SIGTERM),
        (PTB, "--net-type LSTM", signal.SIGINT),
    ],
)
def test_an_interrupted_run_resumes_bit_for_bit(call, only_run, monkeypatch, script, flags, number):
    arguments = [*TOY[script], *flags.split(), "--limit-batches", 14, "--epochs", 2]
    assert call(script, *arguments, "--save-dir", "whole")[0] == 0
    step = Trainer.step

    def step_and_signal(trainer, *arguments, **sums):
        step(trainer, *arguments, **sums)
        if trainer.batch == 9:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step_and_signal)
        assert call(script, *arguments, "--save-dir", "torn")[0] == 128 + number
    torn = only_run("torn")
    assert (checkpoint(torn)["epoch"], checkpoint(torn)["batch"]) == (0, 10)
    code, out, err = call(script, "--resume", torn)
    assert code == 0 and "resumed after 0 epochs" in out, err
    names = ["last.pth.tar", "e_2.pth.tar"]
    assert_same_result(only_run("whole"), torn, names + ["model.pt"] * (script == PTB))


@pytest.mark.parametrize("script", TOY)
def test_a_run_can_be_given_more_epochs(succeed, only_run, error_of, script):
    for number, folder in ((2, "whole"), (1, "short")):
        succeed(script, *TOY[script], "--epochs", number, "--save-dir", folder)
    whole, short = only_run("whole"), only_run("short")
    for more in (["--epochs", 2], []):  # the second time there is nothing to do
        succeed(script, "--resume", short, *more)
        assert metrics(short) == metrics(whole) and equal(checkpoint(short), checkpoint(whole))
    assert "--epochs" in error_of(script, "--resume", short, "--epochs", 1)


@pytest.mark.parametrize("script", TOY)
def test_a_nonfinite_loss_ends_the_run(call, only_run, script):
    code, out, _ = call(script, *TOY[script], "--nonlin", "relu", "--epochs", 2, "--lr", "1e30")
    assert code == 1 and "not finite" in out and "(epoch 1, batch" in out
    run = only_run()
    assert checkpoint(run)["epoch"] == 0 and not Run(run).complete
    assert all(value.isfinite().all() for value in checkpoint(run)["state_dict"].values())


@pytest.mark.parametrize("net_type", LAYERS)
def test_smnist_is_tested_as_in_training_and_under_a_step_drive(succeed, only_run, net_type):
    flags = ["--net-type", net_type, "--save-dir", os.getcwd(), "--transform", "step"]
    trained = succeed(SMNIST, *TOY[SMNIST], *flags, "--epochs", 2, "--batch", 20)
    out = succeed(SMNIST, "--test", "--limit-batches", 3, *flags)
    assert f"{only_run('.') / 'e_2.pth.tar'}, after 2 of 2 epochs, a dry run" in out
    tests = re.findall("^test .*", out, re.MULTILINE)
    assert tests[:2] == re.findall("^test .*", trained, re.MULTILINE)
    assert tests[1].startswith("test step: loss") and tests[2].startswith("test drive: loss")


def test_complete_runs_are_tested_and_dry_runs_only_if_asked(succeed, error_of, tmp_path):
    flags = ["--dataset", "digits", "--epochs", 1, "--nhid", 4]
    for more in ([], ["--limit-batches", 1]):
        succeed(SMNIST, *flags, *more)
    (complete,) = [run for run in find_runs(tmp_path) if not run.dry]
    newer = complete.path.with_name("newer")  # as if killed at once
    newer.mkdir()
    config = complete.config | {"started": "2100-01-01T00:00:00+00:00"}
    del config["finished"]
    (newer / "config.json").write_text(json.dumps(config))
    shutil.copyfile(complete.path / "e_0.pth.tar", newer / "last.pth.tar")
    out = succeed(SMNIST, "--test", "--nhid", 4)
    assert f"{complete.path.name}/e_1.pth.tar, after 1 of 1 epochs\n" in out
    out = succeed(SMNIST, "--test", "--checkpoint", newer / "last.pth.tar")
    assert "after 0 of 1 epochs" in out
    assert "no run with nhid 5" in error_of(SMNIST, "--test", "--nhid", 5, code=1)


def test_a_run_given_more_epochs_is_complete_once_they_are_tested(call, only_run, monkeypatch):
    assert call(PTB, *TOY[PTB], "--epochs", 1)[0] == 0 and Run(only_run()).complete
    with monkeypatch.context() as patch:
        patch.setattr(PTB_task, "load_model", lambda path: signal.raise_signal(signal.SIGTERM))
        assert call(PTB, "--resume", only_run(), "--epochs", 2)[0] == 143
    assert not Run(only_run()).complete
    assert call(PTB, "--resume", only_run())[0] == 0 and Run(only_run()).complete
    assert [row["epoch"] for row in results(only_run())] == ["1", "2"]


def test_checkpoints_that_do_not_match_the_flags_are_rejected(succeed, only_run, error_of):
    succeed(SMNIST, *TOY[SMNIST], "--epochs", 1)
    path = only_run() / "e_1.pth.tar"
    Path("cut.pth.tar").write_bytes(path.read_bytes()[:3000])
    saved = torch.load(path, weights_only=True)
    foreign = {"script": SMNIST, "arguments": {"epochs": 1}}
    torch.save(saved | {"config": foreign}, "foreign.pth.tar")
    (only_run() / "last.pth.tar").write_bytes(b"")
    for script, flags, what in [
        (SMNIST, ["--test", "--checkpoint", path, "--net-type", "LSTM"], "--net-type"),
        (SMNIST, ["--test", "--checkpoint", path, "--nhid", 9], "--nhid"),
        (SMNIST, ["--test", "--checkpoint", path, "-p"], "--permute"),
        (SMNIST, ["--test", "--checkpoint", "cut.pth.tar"], "cut.pth.tar"),
        (SMNIST, ["--test", "--checkpoint", "foreign.pth.tar"], "foreign.pth.tar"),
        (SMNIST, ["--test", "--checkpoint", "/dev/zero"], "/dev/zero"),
        (PTB, ["--test", "--checkpoint", path], "e_1.pth.tar"),
        (PTB, ["--resume", only_run()], SMNIST),
        (SMNIST, ["--resume", only_run()], "last.pth.tar"),
    ]:
        assert what in error_of(script, *flags, code=1)


def test_the_papers_checkpoint_is_tested_with_flags(succeed, error_of, tmp_path):
    spec = {"task": "pixels", "net_type": "RNN", "hidden_size": 8, "classes": 10}
    spec["layer"] = {"nonlin": "gamma", "n": 2.0, "s": 0.0}
    model = build_model(spec, torch.Generator().manual_seed(0))
    path = tmp_path / "e_99.pth.tar"
    torch.save({"state_dict": model.state_dict(), "optimizer": {}, "epoch": 99}, path)
    flags = ["--test", "--checkpoint", path, "--dataset", "digits", "--nonlin", "gamma"]
    assert "test as_is" in succeed(SMNIST, *flags, "--nhid", 8, "--n", 1)
    err = error_of(SMNIST, *flags, "--nhid", 9, code=1)
    assert "e_99.pth.tar" in err and "9 units" in err
    state = {name: value for name, value in model.state_dict().items() if name[-2:] != ".n"}
    torch.save({"state_dict": state, "optimizer": {}, "epoch": 99}, path)
    assert "has no n and s" in error_of(SMNIST, *flags, "--nhid", 8, code=1)


def test_the_data_of_a_run_are_found_again(succeed, only_run, tmp_path):
    write_corpus(tmp_path / "own" / "pennchar", b"a b _ c\nd e f\n" * 200)
    write_corpus(tmp_path / "other" / "pennchar", b"a b _ c\nd e f f f\n" * 200)
    flags = [*TOY[PTB], "--dataset", "ptb", "--any-corpus", "--epochs", 1]
    succeed(PTB, *flags, "--data", "own")
    tested = [PTB, "--test", "--checkpoint", only_run() / "model.pt"]
    assert succeed(*tested) != succeed(*tested, "--data", "other")
    succeed(PTB, "--test", "--limit-batches", 3)
    (tmp_path / "own").rename(tmp_path / "moved")
    assert "warning" not in succeed(PTB, "--test", "--limit-batches", 3, "--data", "moved")
    (tmp_path / "other").rename(tmp_path / "own")
    datasets._loaded_checksums.cache_clear()
    assert "own: not the data that this run was trained on\n" in succeed(*tested)


def test_typed_flags_override_a_config(tmp_path, succeed, only_run):
    parse = sMNIST_task.parse
    succeed(SMNIST, *TOY[SMNIST], "--epochs", 1)

    def merged(content, *words):
        path = tmp_path / "c.json"
        path.write_text(json.dumps(content), encoding="utf-8-sig")
        return parse(["--config", str(path), *words])[0]

    of_run = Run(only_run()).config
    args = merged(of_run, "--lr", "0.5", "--seed", "401")
    assert args.lr == 0.5 and args.random and args.n == parse(["--seed", "401"])[0].n
    args = merged(of_run, "--n", "3")
    assert (args.n, args.s, args.random) == (3.0, 0.0, False)
    args = merged(of_run, "--net-type", "LSTM")
    assert args.net_type == "LSTM" and args.n is args.nonlin is args.rinit is None
    assert merged(of_run, "--nonlin", "relu").n is None
    of_run["arguments"]["data"] = str(tmp_path)
    assert merged(of_run).data == tmp_path and merged(of_run, "--data", "x").data == Path("x")
    args = merged({"n": -1e-3, "save_epochs": [3, 4], "permute": True, "clip": None})
    assert (args.n, args.random, args.save_epochs, args.permute) == (-1e-3, False, [3, 4], True)


WRONG = [
    ({"nhdi": 5}, "no argument nhdi: did you mean nhid?"),
    ({"nhid": 2.5}, "argument --nhid: invalid whole number"),
    ({"net_type": "LSTM", "rinit": "henaff"}, "argument --rinit: applies to --net-type"),
    ({"alpha": 0.5}, "argument --alpha: applies to --adam False"),
    ({"permute": "yes"}, "argument -p/--permute/--no-permute: ignored explicit argument 'yes'"),
    ({"n": 3, "random": True}, "argument --random: contradicts --n 3"),
    ({"script": "PTB_task.py", "arguments": {"bptt": 9}}, "c.json: of a run of PTB_task.py"),
    ({"resume": "run", "lr": 1}, "c.json: resume cannot be set in a file"),
    ([1], "not a JSON object"),
    ({"arguments": [1]}, "not a JSON object"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_an_invalid_config_is_a_one_line_error(call, tmp_path, content, message):
    (tmp_path / "c.json").write_text(json.dumps(content))
    code, _, err = call(SMNIST, "--config", "c.json")
    assert code in (1, 2) and err.count("\n") == 1 and message in err


def test_n_is_drawn_and_s_is_0_unless_they_are_given():
    drawn = sMNIST_task.parse([])[0].n
    assert 5 <= drawn < 7
    cases = {"": (drawn, 0), "--random": (drawn, 0), "--n 2.5": (2.5, 0), "--s 0.25": (drawn, 0.25)}
    for flags, expected in cases.items():
        args, _ = sMNIST_task.parse(flags.split())
        assert (args.n, args.s) == expected
    assert PTB_task.parse([])[0].n == 2.5 and PTB_task.parse([])[0].s == 0


def test_fixed_n_and_s_do_not_change(succeed, only_run):
    flags = ["--gain", 2.5, "--saturation", 0.5, "--no-learn-params", "--epochs", 1]
    assert "n = 2.5, s = 0.5 at the start, fixed" in succeed(SMNIST, *TOY[SMNIST], *flags)
    (row,) = metrics(only_run())
    assert [float(row[name]) for name in ("n_mean", "n_std", "s_mean")] == [2.5, 0.0, 0.5]


# One row per kind of mistake; some with a part of the message.
BAD = {
    SMNIST: """
        --nhid 0; --nhid 2.5; --lr nan; --transform-ratio 1.5; --n 0; --s inf; --seed 4294967296
        --nonlin gama; --random --n 1; --n 1 --nonlin ReLU
        --rinit henaff --capacity 2 --net-type GRU; --rinit xavier --net-type expRNN
        --nhid 7 --net-type nnRNN; --betas 0.9 1; --checkpoint x.pth.tar
        --resume x --nhid 3; --resume x --save-dir y; --nhi 5
        --learning-rate 1: did you mean --lr?; --hidden-size 8: did you mean --nhid?
        --device cuda: did you mean --cuda?; --gpu: did you mean --cuda?
        --sed=1: did you mean --seed?
        --net-type LSTM --rinit cayley --capacity 2: --capacity: applies to --net-type EURNN
    """,
    PTB: "--tied; --betas 0.0 0.9 --no-adam; --any-corpus; --save a/b.pt; --save last.pth.tar",
}
BAD = [(script, row) for script in BAD for row in re.split("[;\n]", BAD[script].strip())]


@pytest.mark.parametrize(("script", "row"), BAD)
def test_bad_input_is_a_one_line_error_and_leaves_nothing(call, tmp_path, script, row):
    flags, _, message = row.partition(": ")
    flags = flags.split()
    code, _, err = call(script, *([] if {"--resume", "--nhi"} & {*flags} else TOY[script]), *flags)
    assert code in (1, 2) and err.startswith(f"{script}: error: ") and err.count("\n") == 1
    given = {word.split("=")[0] for word in flags}
    assert given & {*re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", err)}, err
    assert message in err and not list(tmp_path.iterdir())


def test_a_missing_directory_data_or_run_is_one_line(call, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=OSError("no network")))
    (tmp_path / "file").write_text("in the way")
    for script in TOY:
        for flags in (
            ["--data", tmp_path / "data"],
            ["--resume", "absent"],
            ["--config", "absent"],
            ["--test"],
            ["--test", "--checkpoint", "absent.pth.tar"],
            [*TOY[script], "--save-dir", "file/in/the/way"],
        ):
            code, _, err = call(script, *flags)
            assert code == 1 and err.startswith(f"{script}: error: "), err
            assert err.splitlines()[-1] == err.splitlines()[0] or "--dataset" in err
        assert not (tmp_path / "SavedModels").exists()


def test_running_out_of_memory_names_the_flags_that_lower_it(error_of, monkeypatch):
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
    monkeypatch.setattr(sMNIST_task, "build_model", Mock(side_effect=error))
    message = error_of(SMNIST, *TOY[SMNIST], code=1)
    assert "out of memory; lower --batch_size or --nhid" in message


def test_long_flags_accept_both_spellings():
    words = ["--batch-size=7", "--weight-decay", "0.5", "--save_freq", "3", "--no-learn-params"]
    args, given = sMNIST_task.parse(["--net_type", "rnn", *words])
    assert (args.batch_size, args.weight_decay, args.save_freq) == (7, 0.5, 3)
    assert args.learn_params is False and given >= {"batch_size", "learn_params"}


def with_closed_streams(main, words, full):
    for descriptor in (1, 2):
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)
    if not full:
        sys.stdout = sys.stderr = None  # as Python sets them if they were closed
    return main(words)


@pytest.mark.parametrize("full", [True, False])
def test_a_full_or_closed_standard_output_does_not_end_a_run(tmp_path, only_run, full):
    words = [*TOY[SMNIST], "--epochs", "1"]
    process = Fork(with_closed_streams, sMNIST_task.main, words, full, folder=tmp_path)
    assert process.finish()[0] == 0
    assert "done: " in (only_run() / "log.txt").read_text()


def test_help_shows_every_default_in_any_encoding(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as exit:
        PTB_task.main(["--help"])
    text = out.buffer.getvalue().decode()
    assert exit.value.code == 0 and "one learned \\u03b3" in text
    words = " ".join(text.split())
    assert "initial degree of saturation s (RNN, expRNN, nnRNN) (default: 0.0)" in words
    assert "(default: 400)" in words and "orthogonal networks:" in words


def test_a_script_in_its_own_process(only_run, tmp_path):
    command = [*COMMAND, *TOY[SMNIST], "--epochs", "1", "--note", "a remark"]
    out = subprocess.check_output(command, cwd=tmp_path, stderr=subprocess.STDOUT, text=True)
    assert "\ndone: SavedModels/" in out and "%|" not in out
    assert Run(only_run()).config["arguments"]["note"] == "a remark"
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import sMNIST_task, PTB_task"
    before = {*tmp_path.iterdir()}
    assert subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path) == b""
    assert {*tmp_path.iterdir()} == before


def test_ctrl_c_during_the_imports_ends_without_a_traceback(tmp_path):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*COMMAND, "--help"], cwd=tmp_path, **pipes)
    maps = f"/proc/{process.pid}/maps"
    while process.poll() is None and "libtorch" not in open(maps).read():  # noqa: SIM115
        pass
    process.send_signal(signal.SIGINT)
    out = process.communicate()[0]
    assert process.returncode == -signal.SIGINT and "Traceback" not in out


def test_an_error_of_the_program_is_not_hidden():
    main = console.entry_point(Mock(side_effect=RuntimeError("a mistake of ours")))
    with pytest.raises(RuntimeError, match="of ours"):
        main([])


def test_real_mnist_end_to_end(succeed, only_run):
    flags = ["--data", data_root("mnist"), "-p", "--nhid", 8, "--epochs", 1, "--limit-batches", 1]
    succeed(SMNIST, *flags, "--batch", 20)
    assert only_run().parents[2].name == "psMNIST"
    assert "test drive: loss" in succeed(SMNIST, "--test", "-p", "--limit-batches", 1)


@pytest.mark.parametrize("net_type", ["RNN", "nnRNN"])
def test_real_pennchar_is_learnt(succeed, only_run, net_type):
    flags = ["--data", data_root("pennchar"), "--net-type", net_type, "--nhid", 64, "--emsize", 32]
    flags += ["--batch_size", 32, "--bptt", 50, "--lr", "3e-3"]
    succeed(PTB, *flags, "--limit-batches", 40, "--epochs", 2)
    assert only_run().parents[2].name == "PTB"
    first, second = (float(row["validation_bits_per_character"]) for row in metrics(only_run()))
    assert second < first < math.log2(50)


def test_the_orthogonal_learning_rate_is_scheduled_with_the_main_one(succeed, only_run):
    flags = ["--net-type", "nnRNN", "--lr_orth", 1e-4, "--Tdecay", 0.25, "--weight_decay", 0.5]
    # a rate so high that the validation loss rises
    succeed(PTB, *TOY[PTB], *flags, "--lr", 0.5, "--epochs", 4)
    rates = [float(row["lr"]) for row in metrics(only_run())]
    main, orthogonal, T_group = checkpoint(only_run())["optimizer"]["param_groups"]
    assert main["lr"] == T_group["lr"] < rates[0] == 0.5
    assert orthogonal["lr"] / 1e-4 == main["lr"] / 0.5
    assert [g["weight_decay"] for g in (main, orthogonal, T_group)] == [0.5, 0.0, 0.25]
    model, config = load_model(only_run() / "e_4.pth.tar")
    assert [len(g["params"]) for g in (orthogonal, T_group)] == [1, 1]
    assert len(main["params"]) == len(list(model.parameters())) - 2
    expected = {"nonlin": "modrelu", "rinit": "henaff", "iinit": "kaiming", "ostep_method": "exp"}
    assert config["model"]["layer"] == expected


@pytest.mark.parametrize("script", TOY)
def test_every_flag_has_an_effect(succeed, only_run, script):
    """A run that differs in one flag ends with different weights."""
    cases = {
        "expRNN": ["--lr_orth 1e-3", "--ostep_method cayley", "--rinit cayley", "--clip 1e-9"],
        "nnRNN": ["--alam 10", "--Tdecay 1", "--betas 0 0.9"],
        "EURNN": ["--capacity 1", "--lr_orth 1e-3", "--iinit xavier"],
    }
    for net_type, differing in cases.items():
        weights = {}
        for flags in ("", *differing):
            base = [*TOY[script], "--net-type", net_type, "--epochs", 1, "--lr_orth", "1e-2"]
            succeed(script, *base, *flags.split(), "--save-dir", net_type + flags)
            state = checkpoint(only_run(net_type + flags), "e_1.pth.tar")["state_dict"]
            weights[flags] = [v for n, v in state.items() if n.startswith("rnn.")]
        for flags in differing:
            assert not equal(weights[""], weights[flags]), (net_type, flags)
