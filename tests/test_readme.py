"""What the documentation prints runs: Python and README's commands; other commands are parsed."""

import argparse
import importlib
import itertools
import os
import re
import runpy
import shlex
import string
import subprocess
import sys
import textwrap
from functools import partial

import matplotlib.pyplot as plt
import pytest

import PTB_task
import sMNIST_task
from tests.conftest import REPOSITORY, SMNIST, TOY, call_main, write_corpus
from tests.test_own import save_sequences
from tests.toy_runs import SMALL, few_symbols
from Training import datasets, sweep
from Training.parser import Parser
from Training.run_directory import find_runs

SCRIPTS = {"sMNIST_task.py": sMNIST_task, "PTB_task.py": PTB_task}
SMALL_RUN = ["--nhid=8", "--epochs=1", "--limit-batches=2"]
# By a flag or the program: what shortens a command of README, and a pattern that it then prints.
SHORT = {
    "--resume": (["--epochs=2"], "resumed after 1 epochs"),
    "--test": (["--limit-batches=2"], "test as_is: loss"),
    "sMNIST_task.py": (SMALL_RUN, "done: SavedModels/"),
    "PTB_task.py": ([*SMALL_RUN, "--emsize=6", "--bptt=12"], "done: SavedModels/"),
    "Training.sweep": (SMALL_RUN, r"(\d+) runs: \1 finished"),
    "Postprocessing.runs": ([], "psMNIST .* dry run"),
    "Postprocessing.report": ([], r"/report\.png"),
    "Postprocessing.analyse": (["--set", *SMALL], r": \d+ computed\n"),
    "Postprocessing.results": ([], "Of the 18 comparisons"),
    "tests.benchmarks.paper_start": (["--limit-batches=1"], "validation: loss"),
    "tests.benchmarks.run_time": (
        ["--limit-batches=2", "--command=sMNIST_task.py --dataset digits --nhid 8"],
        r"\| \d+\.\d \|",
    ),
    "tests.benchmarks.step_time": (["--help"], "--paper"),
    "pytest": (["--version"], "pytest"),
    "jupyter": (["--show-config"], "Postprocessing"),
    "tensorboard": (["--inspect"], "loss/train"),
}
SET_UP = ("venv", ".", "pip")  # make the environment
UNPARSED = (*SET_UP, "git", "jupyter", "sbatch", "flock", "timeit")
OTHERS = ["Training/CLUSTER", "Training/EXTENDING", "Postprocessing/RESULTS", "data/README"]
OTHERS += ["tests/benchmarks/README"]
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


def code(path):
    """The code in a Markdown file: pairs of an indented block and inline code, one of them empty.

    A table with "`BEGINNING` and" in its heading has the ends of commands in the last code of its
    rows; "(without `FLAG`)" before it leaves a flag out.
    """

    def complete(table):
        heading, rows = table[0].split("\n", 1)
        return heading + "\n" + re.sub(r"`(?=[^`\n]+`[^`\n]*$)", f"`{table[1]} ", rows, flags=re.M)

    text = (REPOSITORY / path).read_text(encoding="utf-8").replace("\\\n", " ").replace("``", "")
    text = re.sub(r"\|.*`(.+)` and \|(?:\n\|.*)+", complete, text)
    text = re.sub(r"(\(without `(--\w+)`\).*) \2 \S+", r"\1", text)
    found = re.findall(r"(?<=\n\n)((?: {4}.*\n|\n)+)|`([^`]+)`", text)
    return [(textwrap.dedent(block), " ".join(inline.split())) for block, inline in found]


def is_python(block):
    return re.search(r"^(from \S+ )?import", block, re.MULTILINE)


def commands(path):
    """The commands in a Markdown file: program, script or module, and arguments."""
    start = re.compile(r"(\w+=\S+ )*(python3|pip|jupyter|tensorboard|dask) |\w+_task\.py -")
    variables = {}
    for block, inline in code(path):
        if is_python(block) or block.startswith("γ"):
            continue
        if not start.match(inline) or inline.endswith("-m Training.sweep"):  # only names it
            inline = ""
        block = re.sub(r"(?s)<<'(\w+)'\n.*\n\1\n", "", block)  # a job's script
        for line in [*block.splitlines(), inline]:
            variables.update(re.findall(r'\b(\w+)="(.*?)"', line))
            line = string.Template(line).safe_substitute(variables)
            lexer = shlex.shlex(re.sub(r" > \S+", "", line), posix=True, punctuation_chars="&;")
            lexer.whitespace_split, lexer.commenters = True, "#"
            for between, words in itertools.groupby(lexer, lambda word: set(word) <= set("&;")):
                words = [w for w in words if not re.match(r"[A-Z]+=|(time|python3|-m)$", w)]
                if words and not between:
                    yield words[0], words[1:]


def run(program, arguments):
    """Runs a command; returns or exits with its code; a script or module runs in this process."""
    if program in ("jupyter", "tensorboard"):
        done = subprocess.run([program, *arguments], stdout=subprocess.PIPE, text=True)
        print(done.stdout)
        return done.returncode
    start = runpy.run_path if program.endswith(".py") else runpy.run_module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        start(program, run_name="__main__")


def shortened(arguments, flags):
    """Arguments with these flags in place of the same ones, as a sweep takes each only once."""
    names = {flag.split("=")[0] for flag in flags}
    pairs = itertools.pairwise(["", *arguments])
    return [w for before, w in pairs if not {before, w.split("=")[0]} & names] + flags


@pytest.fixture
def checkout(tmp_path, monkeypatch, in_this_process):
    """Enters a folder like the repository, with toy data in place of MNIST and Penn Treebank."""
    for name in (*SCRIPTS, "Postprocessing"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    save_sequences(tmp_path / "FILE.npz")
    (tmp_path / "hosts.txt").touch()
    write_corpus(tmp_path / "DIR", b"l a _ l u\n" * 100)
    digits, any_text = datasets.PIXEL_SETS["digits"], datasets.TEXT_SETS["ptb"]
    pydoc = few_symbols(datasets.TEXT_SETS["pydoc"])

    def ptb(root, any_corpus):
        if any_corpus:
            return any_text(root, any_corpus)
        return pydoc(root, any_corpus)[0], "PTB", datasets.PENNCHAR_SHA256

    monkeypatch.setitem(
        datasets.PIXEL_SETS, "mnist", lambda root: (*digits(root)[:-1], datasets.MNIST_SHA256)
    )
    monkeypatch.setitem(datasets.TEXT_SETS, "ptb", ptb)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])
    monkeypatch.chdir(tmp_path)


def test_the_commands_of_the_readme_run(checkout):
    failures = []
    for program, arguments in commands("README.md"):
        kind = next((flag for flag in ("--resume", "--test") if flag in arguments), program)
        line = shlex.join([program, *arguments])
        if kind not in SHORT:
            failures += [f"{line}: how is it shortened? SHORT has no {kind}"] * (kind not in SET_UP)
            continue
        flags, pattern = SHORT[kind]
        if "RUN" in arguments:
            saved = find_runs("SavedModels")
            own = [r for r in saved if r.config["script"] == program] or saved
            arguments = [str(own[0].path) if word == "RUN" else word for word in arguments]
        with plt.rc_context():
            code, out, err = call_main(partial(run, program), *shortened(arguments, flags))
        if code or not re.search(pattern, out + err):
            failures.append(f"{line}: exit code {code}, no {pattern!r} in\n{out}{err}")
    assert not failures, "\n\n".join(failures)


def parse_only(parser, *arguments):
    _, unknown = parser.parse_known_args(*arguments)
    sys.exit(f"unrecognized {unknown}" if unknown else 0)


def parse(program, arguments):
    """Parses the arguments of a command without running it; exits if they are wrong."""
    if program in SCRIPTS:
        SCRIPTS[program].parse(arguments)
    elif program == "Training.sweep":
        parser, args, lists, common = sweep.parse(arguments)
        sweep.combinations(parser, args.script, lists, common)
    elif program == "dask":
        command = importlib.import_module(f"distributed.cli.dask_{arguments[0]}").main
        command.make_context(arguments[0], arguments[1:])
    elif program not in UNPARSED:
        with pytest.MonkeyPatch.context() as patch:
            for kind in (argparse.ArgumentParser, Parser):
                patch.setattr(kind, "parse_args", parse_only)
            run(program, arguments)


@pytest.mark.parametrize("path", OTHERS)
def test_the_commands_elsewhere_are_parsed(path, checkout):
    for program, arguments in commands(f"{path}.md"):
        code, _, err = call_main(partial(parse, program), *arguments)
        assert not code, f"{shlex.join([program, *arguments])}: {code}, {err}"


# Python


def test_python_runs_as_printed(call):
    assert call(SMNIST, *TOY[SMNIST], "--epochs", 1)[0] == 0
    trace, adding = {}, {}
    blocks = [block for block, _ in code("Training/EXTENDING.md") if is_python(block)]
    for block, names in zip(blocks, (trace, adding), strict=True):
        exec(block, names)
    assert trace["quantities"]["n"].shape == (64, 10, 8)
    assert sum(adding["losses"][-50:]) / 50 < 0.08  # half of what a constant has
