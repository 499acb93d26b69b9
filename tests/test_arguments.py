"""Any values of all flags, taken from the parsers: a run starts, or one line names the flag.

The suite draws few examples; `ARGUMENT_EXAMPLES=5000 python3 -m pytest tests/test_arguments.py`
is a campaign.
"""

import argparse
import contextlib
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
from tests.conftest import TOY
from Training import datasets, runs

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
    st.text(max_size=8).filter(lambda text: "/" not in text),  # nothing is written outside
)


def values(action):
    """What may be typed after a flag, right or wrong."""
    if action.nargs == 0:
        return st.just([])
    right = [st.sampled_from([str(choice) for choice in action.choices])] if action.choices else []
    if action.default is not None and action.nargs is None:
        right.append(st.just(str(action.default)))
    return st.lists(
        st.one_of(*right, ANYTHING), min_size=action.nargs or 1, max_size=action.nargs or 1
    )


def typed(parser):
    """A few flags of a parser with their values, and the flags' names."""
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    flag = st.sampled_from(actions).flatmap(
        lambda action: st.tuples(st.sampled_from(action.option_strings), values(action))
    )
    return st.lists(flag, min_size=1, max_size=4)


def tree(folder):
    return sorted(str(path) for path in Path(folder).rglob("*"))


def started(run, state, epoch, finish=None):
    """In place of `Run.carry_out`: the first update would begin now."""
    return 0


@pytest.fixture(scope="module")
def stopped_before_the_first_update():
    """No training, no network, and each data set read once."""

    def refuse(*arguments, **options):
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Run, "carry_out", started)
        patch.setattr(runs, "_commit", lambda folder: None)
        patch.setattr(runs, "_versions", dict)
        patch.setattr("urllib.request.urlopen", refuse)
        for sets, name in ((datasets.PIXEL_SETS, "digits"), (datasets.TEXT_SETS, "pydoc")):
            patch.setitem(sets, name, once(sets[name]))
        yield


def once(load):
    """A reader of a data set that reads it the first time only."""
    kept = []

    def read(*arguments):
        if not kept:
            kept.append(load(*arguments))
        return kept[0]

    return read


def run_script(script, arguments):
    """The exit code and what was written to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = TASKS[script].main(arguments)
        except SystemExit as error:
            code = error.code
        finally:
            torch.set_flush_denormal(False)  # hypothesis draws denormal numbers
    return code, err.getvalue()


@pytest.mark.parametrize("script", TASKS)
def test_a_run_starts_or_one_line_names_the_flag(stopped_before_the_first_update, script):
    parser = TASKS[script].make_parser()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(typed(parser))
    def check(flags):
        alone = {"--resume", "--test", "--checkpoint"} & {name for name, _ in flags}
        arguments = [] if alone else [*TOY[script], "--data", "data"]
        for name, value in flags:
            arguments += [name, *value]
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            Path(folder, "here").mkdir()
            patch.chdir(Path(folder, "here"))
            Path("file").write_text("in the way")
            Path("folder").mkdir()
            before = tree(folder)
            code, err = run_script(script, arguments)
            event(f"code {code}")
            if code == 0:
                (config,) = Path(folder).rglob("config.json")
                assert json.loads(config.read_text())["arguments"]["epochs"] >= 1
                return
            assert code == 2, err
            assert re.fullmatch(r"[^\n]+\n", err) and err.startswith(f"{script}: error: ")
            options = {parser.flag(a.dest) for a in parser._actions if a.dest != "help"}
            named = [a for a in arguments if a in options or a in parser._option_string_actions]
            assert any(
                option in err
                for name in named
                for option in parser._option_string_actions[name].option_strings
            ), err
            assert tree(folder) == before

    check()
