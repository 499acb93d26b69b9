"""Every notebook runs from top to bottom on toy runs, in any directory."""

import functools
import itertools

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import PTB_task
import sMNIST_task
from Postprocessing import adaptation, jacobian_norm, lyapunov, mutual_information, robustness
from tests.conftest import REPOSITORY, TOY
from Training import datasets

pytestmark = pytest.mark.xdist_group("notebooks")  # they share the toy runs

NOTEBOOKS = ["performance", "learning_speed", "dynamics", "robustness"]
COMMON = {
    "psDigits": ("sMNIST_task.py", ["-p"]),
    "pydoc": ("PTB_task.py", []),
}


def execute(name, folder, monkeypatch, **environment):
    """Runs a notebook with its parameters set as environment variables."""
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    book = nbformat.read(REPOSITORY / "Postprocessing" / f"{name}.ipynb", as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return book


def printed(book):
    return "".join(
        output.text for cell in book.cells for output in cell.get("outputs", ()) if "text" in output
    )


def make_toy_runs(task, root, monkeypatch):
    """Analysed runs of a task: over a grid with one missing cell, and of each network."""
    monkeypatch.setitem(datasets.TEXT_SETS, "pydoc", functools.cache(datasets.TEXT_SETS["pydoc"]))
    script, more = COMMON[task]
    common = [*TOY[script], *more, "--epochs", "2", "--save-freq", "1", "--save-dir", str(root)]
    settings = [["gamma", "--no-learn_params"], ["gamma"], ["gamma2"]]
    runs = [
        ["--nonlin", *setting, "--n", gain, "--s", saturation]
        for setting in settings
        for gain, saturation in itertools.product(("1", "5"), ("0", "0.5"))
        if (gain, saturation) != ("5", "0.5")
    ]
    runs += [["--net-type", name] for name in ("ANRU", "LSTM", "GRU")]
    runs += [["--nonlin", "ReLU"]]
    main = {"sMNIST_task.py": sMNIST_task.main, "PTB_task.py": PTB_task.main}[script]
    for flags in runs:
        assert main([*common, *flags]) == 0
    assert lyapunov.main([str(root), "--steps", "64"]) == 0
    assert mutual_information.main([str(root), "--samples", "200"]) == 0
    for command in (jacobian_norm, adaptation, robustness):
        assert command.main([str(root)]) == 0


@pytest.mark.parametrize("task", COMMON)
def test_the_notebooks_draw_their_figures(task, tmp_path, monkeypatch):
    root, figures = tmp_path / "runs", tmp_path / "figures"
    make_toy_runs(task, root, monkeypatch)
    for name in NOTEBOOKS:
        book = execute(name, tmp_path, monkeypatch, RUNS=root, TASK=task, FIGURES=figures)
        for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
            data = (figures / f"{name}_{task}.{kind}").read_bytes()
            assert data.startswith(magic) and len(data) > 5000
        if name != "robustness":  # 2 n × 2 s without (5, 0.5)
            assert "static 3 runs, 1 cells missing" in printed(book)


def test_the_shape_of_gamma_needs_no_runs(tmp_path, monkeypatch):
    execute("gamma_shape", tmp_path, monkeypatch, FIGURES=tmp_path)
    assert (tmp_path / "gamma_shape.png").stat().st_size > 5000


@pytest.mark.parametrize("name", ["dynamics", "robustness"])  # the grid, the networks
def test_without_runs_a_notebook_says_which_command_makes_them(name, tmp_path, monkeypatch):
    with pytest.raises(CellExecutionError, match=r"python3 (-m Training\.sweep )?sMNIST_task\.py"):
        execute(name, tmp_path, monkeypatch, RUNS=tmp_path, TASK="psDigits", FIGURES=tmp_path)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "Postprocessing").glob("*.ipynb")))
def test_notebooks_are_kept_without_outputs(path):
    book = nbformat.read(path, as_version=4)
    assert len(book.cells) > 3
    for cell in book.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
