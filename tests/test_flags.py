"""Random values of all flags of the parsers: a run starts, or a one-line error names the flag.

By default only a few examples are drawn; for many, run
`ARGUMENT_EXAMPLES=5000 python3 -m pytest tests/test_flags.py`.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import re
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import PTB_task
import sMNIST_task
from NetworkCreation.models import build_model
from NetworkCreation.Networks import NETWORKS
from tests.conftest import TOY, flags_in
from Training import datasets, flags, run_directory
from Training.trainer import Trainer

TASKS = {"sMNIST_task.py": sMNIST_task, "PTB_task.py": PTB_task}
EXAMPLES = int(os.environ.get("ARGUMENT_EXAMPLES", 60))

NUMBERS = ["0", "1", "2", "7", "-1", "-0.0", "0.5", "1.5", "1e-4", "1e-50", "1e-400", "3.4e38"]
NUMBERS += ["1e30", "1e31", "1e39", "1e300", "1e400", "-1e300", "nan", "-nan", "inf", "-inf", "1_0"]
NUMBERS += ["4294967295", "2147483647", "2147483648", "1000000000", str(10**18), str(10**30)]
NUMBERS += ["9" * 5000, "0x10", "١", "1 2"]
TEXTS = ["", " ", "é∂", "a\nb", "a\0b", "\udcff", "\ud800", "-x", "--", "=", "%s", "{}", "x" * 300]
PATHS = ["absent", "file", "folder", "file/below", "folder/new/one", "y/" * 2500, ".", ".."]
PATHS += ["/dev/null/x", "last.pth.tar", "e_1.pth.tar/x", "model.pt/", "\n"]
ANYTHING = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(PATHS),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=8).filter(lambda text: "/" not in text),  # so nothing is written elsewhere
)


def values(action):
    """Values for a flag, valid or not."""
    if action.nargs == 0:
        return st.just([])
    right = [st.sampled_from([str(choice) for choice in action.choices])] if action.choices else []
    if action.default is not None and action.nargs is None:
        right.append(st.just(str(action.default)))
    number = action.nargs if isinstance(action.nargs, int) else 1
    return st.lists(st.one_of(*right, ANYTHING), min_size=number, max_size=number)


def typed(parser):
    """A few flags of a parser, each a pair of name and values."""
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    flag = st.sampled_from(actions).flatmap(
        lambda action: st.tuples(st.sampled_from(action.option_strings), values(action))
    )
    return st.lists(flag, min_size=1, max_size=4)


def tree(folder):
    return sorted(str(path) for path in Path(folder).rglob("*"))


class Started(Exception):
    """Raised in place of the first update."""


def start(trainer):
    """Replaces `Trainer.__enter__`."""
    trainer.run.close()
    raise Started


@pytest.fixture(scope="module")
def stopped_before_the_first_update():
    """No training, no network, and each data set read once."""

    def refuse(*arguments, **options):
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__enter__", start)
        patch.setattr(run_directory, "_commit", lambda: None)
        patch.setattr(run_directory, "_versions", dict)
        patch.setattr("urllib.request.urlopen", refuse)
        for sets, name in ((datasets.PIXEL_SETS, "digits"), (datasets.TEXT_SETS, "pydoc")):
            patch.setitem(sets, name, once(sets[name]))
        yield


def once(load):
    """Wraps a reader of a data set to read it only the first time."""
    kept = []

    def read(*arguments):
        if not kept:
            kept.append(load(*arguments))
        return kept[0]

    return read


def run_script(script, line):
    """Runs a script; returns the exit code and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = TASKS[script].main(line)
        except SystemExit as error:
            code = error.code
        except Started:
            code = 0
        finally:
            torch.set_flush_denormal(False)  # hypothesis draws denormal numbers
    return code, err.getvalue()


@pytest.mark.parametrize("script", TASKS)
def test_a_run_starts_or_an_error_names_the_flag(stopped_before_the_first_update, script):
    parser = TASKS[script].make_parser()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(typed(parser))
    def check(typed_flags):
        alone = {"--resume", "--test", "--checkpoint"} & {name for name, _ in typed_flags}
        line = [] if alone else [*TOY[script], "--data", "data"]
        for name, value in typed_flags:
            line += [name, *value]
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            Path(folder, "here").mkdir()
            patch.chdir(Path(folder, "here"))
            Path("file").write_text("in the way")
            Path("folder").mkdir()
            before = tree(folder)
            code, err = run_script(script, line)
            event(f"code {code}")
            if code == 0:
                (config,) = Path(folder).rglob("config.json")
                assert json.loads(config.read_text())["arguments"]["epochs"] >= 1
                return
            assert code == 2, err
            assert re.fullmatch(r"[^\n]+\n", err) and err.startswith(f"{script}: error: ")
            known = parser._option_string_actions
            names = {o for word in line if word in known for o in known[word].option_strings}
            assert flags_in(err) & names, err
            assert tree(folder) == before

    check()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sMNIST_task.py", ["--nhid", "1000000000"]),
        ("sMNIST_task.py", ["--nhid", "300000", "--net-type", "LSTM"]),
        ("sMNIST_task.py", ["--capacity", "1000000000", "--net-type", "EURNN"]),
        ("PTB_task.py", ["--emsize", "1000000000"]),
        ("PTB_task.py", ["--nhid", "1000000000"]),
    ],
)
def test_a_network_too_large_for_memory_is_rejected(
    stopped_before_the_first_update, tmp_path, monkeypatch, script, words
):
    monkeypatch.chdir(tmp_path)
    code, err = run_script(script, [*TOY[script], *words])
    assert code == 2 and err.count("\n") == 1
    assert re.search(rf"argument {words[0]}: {words[1]} needs at least \S+ GB of memory", err)
    assert tree(tmp_path) == []


@pytest.mark.parametrize(("batch", "fits"), [(50000, False), (100, True)])
def test_the_memory_of_a_batch_is_counted(monkeypatch, batch, fits):
    """psMNIST with 400 units: two float32 per unit and step, 251 MB for 100 images."""
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10**6}.get)
    parser = sMNIST_task.make_parser()
    args = parser.parse_args(["--batch", str(batch)])
    build = functools.partial(build_model, sMNIST_task.model_spec(args, 10), device="meta")
    err = io.StringIO()
    refused = contextlib.nullcontext() if fits else pytest.raises(SystemExit)
    with contextlib.redirect_stderr(err), refused:
        flags.check_network(parser, args, torch.device("cpu"), build, 784 * batch)
    assert ("argument --batch: 50000 needs at least 125 GB" in err.getvalue()) == (not fits)


OWNERS = {
    "--capacity 3": ["EURNN"],
    "--lr_orth 1e-3": ["expRNN", "nnRNN", "EURNN"],
    "--ostep_method exp": ["expRNN", "nnRNN"],
    "--alam 0.1": ["nnRNN"],
    "--Tdecay 0.1": ["nnRNN"],
    "--rinit henaff": ["RNN", "ANRU", "expRNN", "nnRNN"],
    "--iinit kaiming": ["RNN", "ANRU", "expRNN", "nnRNN", "EURNN"],
    "--nonlin modrelu": ["RNN", "expRNN", "nnRNN", "EURNN"],
    "--betas 0.9 0.99": list(NETWORKS),
    "--clip 3": list(NETWORKS),
}


@pytest.mark.parametrize("script", TASKS)
def test_a_flag_of_other_networks_is_rejected(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for typed_flag, owners in OWNERS.items():
        for net_type in NETWORKS:
            line = ["--net-type", net_type, *typed_flag.split(), "--test"]
            code, err = run_script(script, [*TOY[script], *line])
            assert code == 2 and err.count("\n") == 1
            if net_type in owners:
                assert "--test: no run with" in err
            else:
                said = f"argument {typed_flag.split()[0]}: applies to --net-type "
                assert said in err and f", not to {net_type}\n" in err
                names = err.split(said)[1].split(", not to")[0].split(", ")
                assert names == owners


@pytest.mark.parametrize("script", TASKS)
def test_both_scripts_accept_each_others_spellings(script):
    parse = TASKS[script].parse
    line = ["--n", "2", "--saturation", "0.5", "--batch_size", "7", "--nonlin", "gamma"]
    other = ["--gain", "2", "--s", "0.5", "--batch", "7", "--nonlin", "gamma"]
    assert vars(parse(line)[1]) == vars(parse(other)[1])
    for spelling in ("relu", "ReLU"):
        assert parse(["--nonlin", spelling])[1].nonlin == "ReLU"
    orthogonal = ["--net-type", "expRNN"]
    assert parse([*orthogonal, "--lr-orth", "1e-3"])[1].lr_orth == 1e-3
    assert parse([*orthogonal, "--lr_orth", "1e-3"])[1].nonlin == "modrelu"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nhdi", "5"], "did you mean --nhid?"),
        (["--nonlin", "gama"], "did you mean gamma?"),
        (["--net-type", "LSMT"], "did you mean LSTM?"),
        (["--batchsize=3"], "did you mean --batch_size?"),
    ],
)
def test_a_misspelling_gets_a_suggestion(words, said):
    for script in TASKS:
        code, err = run_script(script, words)
        assert code == 2 and said in err and err.count("\n") == 1
