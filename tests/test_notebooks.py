"""Every notebook runs from top to bottom on toy runs, in any directory, and shows its figure."""

import base64
import io
import re

import matplotlib.image
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

PANELS = {"performance": (2, 2), "learning_speed": (2, 3), "dynamics": (3, 3)}
PANELS |= {"robustness": (2, 3), "regularization": (2, 4)}
SHOWN = [("psDigits", name) for name in PANELS]
SHOWN += [("pydoc", name) for name in ("performance", "learning_speed", "robustness")]
# Only this one saves its figure: redrawing it for each file takes most of a notebook's time.
SAVED = ("psDigits", "performance")
# Variables are deleted before each notebook, so that none depends on another.
BEGIN = """%reset -f
import os
for name in ("RUNS", "TASK", "FIGURES"):
    os.environ.pop(name, None)
os.environ.update({environment!r})"""
SAVE_NOTHING = """%config InlineBackend.print_figure_kwargs = {"bbox_inches": None}
from matplotlib.figure import Figure
Figure.savefig = lambda figure, path, **options: path.touch()"""


@pytest.fixture(scope="module")
def executed(toy_runs):
    """The folder of the toy runs, and {(task, notebook): executed notebook}.

    One kernel runs them all, since starting one takes seconds. Tasks other than those of `TASKS`:
    none of the runs asked for exist, or there are several tasks and none is chosen.
    """
    root, seeds, empty = (toy_runs / name for name in ("runs", "seeds", "empty"))
    empty.mkdir()
    folders = {SAVED: root} | dict.fromkeys(SHOWN, root) | {("psDigits", "adaptation"): seeds}
    folders["psDigits", "run"] = next(root.glob("psDigits/400/*_ReLU/*"))
    folders |= {("none", name): empty for name in ("dynamics", "robustness")}
    folders |= {("several", name): root for name in ("gamma_shape", "performance")}
    everything, books = nbformat.v4.new_notebook(), {}

    def add(source):
        everything.cells.append(nbformat.v4.new_code_cell(source))

    for (task, name), folder in folders.items():
        environment = {"RUNS": str(folder)}
        if task != "several":
            environment["TASK"] = "psDigits" if task == "none" else task
        if name == "gamma_shape":
            environment["FIGURES"] = str(toy_runs / "figures of gamma")
        add(BEGIN.format(environment=environment))
        source = REPOSITORY / "Postprocessing" / f"{name}.ipynb"
        books[task, name] = nbformat.read(source, as_version=4)
        for cell in books[task, name].cells:
            cell.id = f"{task}-{cell.id}"
        everything.cells += books[task, name].cells
        if (task, name) == SAVED:
            add(SAVE_NOTHING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        resources = {"metadata": {"path": str(toy_runs)}}
        NotebookClient(everything, timeout=300, allow_errors=True, resources=resources).execute()
    return toy_runs, books


def outputs(book, kind):
    """The outputs of a notebook of one type."""
    every = [output for cell in book.cells for output in cell.get("outputs", ())]
    return [output for output in every if output["output_type"] == kind]


def printed(book):
    return "".join(output.text for output in outputs(book, "stream"))


def pictures(book):
    """The images of a notebook that ran without errors, (height, width, 3) each, from 0 to 1."""
    assert outputs(book, "error") == []
    shown = [output.data for output in outputs(book, "display_data")]
    files = [io.BytesIO(base64.b64decode(d["image/png"])) for d in shown if "image/png" in d]
    return [matplotlib.image.imread(file)[..., :3] for file in files]


def check_every_panel_has_ink(picture, rows, columns):
    """Checks for colour in every panel; axes, ticks and text are grey."""
    coloured = np.ptp(picture, axis=2) > 0.1
    for i, row in enumerate(np.array_split(coloured, rows)):
        for j, panel in enumerate(np.array_split(row, columns, axis=1)):
            height, width = (size // 5 for size in panel.shape)  # excludes what its neighbours draw
            assert panel[height:-height, width:-width].sum() > 20, f"panel {i}, {j} is empty"


@pytest.mark.parametrize(("task", "name"), SHOWN)
def test_a_notebook_shows_its_figure_and_what_is_missing(name, task, executed):
    folder, books = executed
    book, (rows, columns) = books[task, name], PANELS[name]
    (picture,) = pictures(book)
    places = [(1, 2)] if name == "robustness" else []  # of the legend
    if (task, name) == ("pydoc", "robustness"):
        places.append((0, 0))  # only says that text has no brightness
    for i, j in places:
        words = np.array_split(np.array_split(picture, rows)[i], columns, axis=1)[j]
        assert (words < 0.5).any()
        words[:] = (1, 0, 0)
    check_every_panel_has_ink(picture, rows, columns)
    for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        data = (folder / "runs" / "figures" / f"{name}_{task}.{kind}").read_bytes()
        if (task, name) == SAVED:
            assert data.startswith(magic) and len(data) > 5000
    if name == "robustness":
        assert "GRU: 1 of 1 run missing" in printed(book)
    elif name != "regularization":
        assert "static: 2 of 4 runs missing; run its sweep again" in printed(book)
        # one seed has no interval
        shown = [output.data.get("text/html", "") for output in outputs(book, "display_data")]
        table = next(text for text in shown if "p_holm" in text)
        rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]
        half = [row[cells[0].index("half")] for row in cells[1:]]
        assert len(half) >= 3 and set(half) == {"NaN"}


def test_the_page_of_a_run_is_shown_and_saved(executed):
    folder, books = executed
    book = books["psDigits", "run"]
    (picture,) = pictures(book)
    check_every_panel_has_ink(picture[: len(picture) * 2 // 3], 2, 3)  # the third has one panel
    assert len(list(folder.glob("runs/psDigits/400/*_ReLU/*/report.png"))) == 1
    assert "python3 -m Postprocessing.analyse report" in printed(book)  # λ₁ is not computed


def test_the_shape_of_gamma_needs_no_runs(executed):
    folder, books = executed
    shape, overview = pictures(books["several", "gamma_shape"])
    check_every_panel_has_ink(shape, 2, 3)
    check_every_panel_has_ink(overview, 1, 3)
    saved = {path.stem for path in (folder / "figures of gamma").iterdir()}
    assert saved == {"gamma_shape", "overview"}


def test_two_seeds_of_anru_are_drawn_together(executed):
    folder, books = executed
    book = books["psDigits", "adaptation"]
    for picture, rows in zip(pictures(book), (2, 3), strict=True):
        check_every_panel_has_ink(picture, rows, 3)
    assert "n = a ξ^(−b) + c: a = " in printed(book)
    for name in ("adaptation", "fractional_order"):
        assert (folder / f"seeds/figures/{name}_psDigits.pdf").exists()


def test_without_runs_or_a_task_a_notebook_says_so_in_one_line(executed):
    folder, books = executed
    for key, message in (  # of the grid, of the networks, and of any
        (("none", "dynamics"), f"no runs of psDigits; found below {folder / 'empty'}: no runs"),
        (("none", "robustness"), f"no runs of psDigits; found below {folder / 'empty'}: no runs"),
        (("several", "performance"), "psDigits (8 runs), pydoc (7 runs)"),
    ):
        error = outputs(books[key], "error")[0]
        assert error.ename == "FigureError" and len(error.traceback) == 1
        assert message in error.evalue and ("set TASK" in error.evalue) == (key[0] == "several")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "Postprocessing").glob("*.ipynb")))
def test_notebooks_are_saved_without_outputs(path):
    book = nbformat.read(path, as_version=4)
    assert len(book.cells) >= 3
    for cell in book.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
