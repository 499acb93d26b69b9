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
from tests.toy_runs import TASKS

PANELS = {"performance": (2, 2), "learning_speed": (2, 3), "dynamics": (3, 3)}
PANELS |= {"robustness": (2, 3), "regularization": (2, 4)}
SHOWN = {"psDigits": list(PANELS), "pydoc": ["performance", "learning_speed", "robustness"]}
# Only this one saves its figure: redrawing it for each file takes most of a notebook's time.
SAVED = ("performance", "psDigits")
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
    """The folder of the toy runs, and {(notebook, task): executed notebook}.

    One kernel runs them all, since starting one takes seconds.
    """
    root, seeds, empty = (toy_runs / name for name in ("runs", "seeds", "empty"))
    empty.mkdir()
    wanted = {SAVED: root}
    wanted |= {(name, task): root for task, names in SHOWN.items() for name in names}
    wanted |= {("adaptation", "psDigits"): seeds}
    (lstm,) = root.glob("psDigits/400/LSTM_*/*")
    wanted |= {("run", "psDigits"): lstm}
    wanted |= {("gamma_shape", None): root, ("performance", "several"): root}
    wanted |= {("dynamics", "none"): empty, ("robustness", "none"): empty}
    everything, books = nbformat.v4.new_notebook(), {}

    def add(source):
        everything.cells.append(nbformat.v4.new_code_cell(source))

    for (name, task), runs in wanted.items():
        environment = {"RUNS": str(runs), **({"TASK": task} if task in TASKS else {})}
        if task == "none":
            environment["TASK"] = "psDigits"
        if name == "gamma_shape":
            environment["FIGURES"] = str(toy_runs / "asked for")
        add(BEGIN.format(environment=environment))
        source = REPOSITORY / "Postprocessing" / f"{name}.ipynb"
        books[name, task] = nbformat.read(source, as_version=4)
        for cell in books[name, task].cells:
            cell.id = f"{task}-{cell.id}"
        everything.cells += books[name, task].cells
        if (name, task) == SAVED:
            add(SAVE_NOTHING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        resources = {"metadata": {"path": str(toy_runs)}}
        NotebookClient(everything, timeout=300, allow_errors=True, resources=resources).execute()
    return toy_runs, books


def outputs(book, kind):
    found = [output for cell in book.cells for output in cell.get("outputs", ())]
    return [output for output in found if output["output_type"] == kind]


def printed(book):
    return "".join(output.text for output in outputs(book, "stream"))


def pictures(book):
    """The images that a notebook shows, (height, width, 3) each, from 0 to 1."""
    data = [o.data["image/png"] for o in outputs(book, "display_data") if "image/png" in o.data]
    return [matplotlib.image.imread(io.BytesIO(base64.b64decode(one)))[..., :3] for one in data]


def check_every_panel_has_ink(picture, rows, columns):
    """Checks for colour in every panel; axes, ticks and text are grey."""
    coloured = np.ptp(picture, axis=2) > 0.1
    for i, row in enumerate(np.array_split(coloured, rows)):
        for j, panel in enumerate(np.array_split(row, columns, axis=1)):
            height, width = (size // 5 for size in panel.shape)  # excludes what its neighbours draw
            assert panel[height:-height, width:-width].sum() > 20, f"panel {i}, {j} is empty"


@pytest.mark.parametrize(("task", "name"), [(k, name) for k in SHOWN for name in SHOWN[k]])
def test_a_notebook_shows_its_figure(name, task, executed):
    folder, books = executed
    assert outputs(books[name, task], "error") == []
    (picture,) = pictures(books[name, task])
    rows, columns = PANELS[name]
    if (name, task) == ("robustness", "pydoc"):  # panel a only says that text has no brightness
        first = picture[: len(picture) // rows, : picture.shape[1] // columns]
        assert (first < 0.5).any()
        picture[: len(picture) // rows, : picture.shape[1] // columns] = (1, 0, 0)
    check_every_panel_has_ink(picture, rows, columns)
    for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        data = (folder / "runs" / "figures" / f"{name}_{task}.{kind}").read_bytes()
        if (name, task) == SAVED:
            assert data.startswith(magic) and len(data) > 5000


def test_the_page_of_a_run_is_shown_and_saved(executed):
    folder, books = executed
    assert outputs(books["run", "psDigits"], "error") == []
    (picture,) = pictures(books["run", "psDigits"])
    check_every_panel_has_ink(picture[: len(picture) * 2 // 3], 2, 3)  # the third has one panel
    assert len(list(folder.glob("runs/psDigits/400/LSTM_*/*/report.png"))) == 1


def test_an_empty_panel_is_found():
    from Postprocessing import plots

    figure, axes = plots.panels(("one", "two"), 2, caption="a caption")
    axes[0, 0].plot([0, 1], color="C1")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    with pytest.raises(AssertionError, match="panel 0, 1 is empty"):
        check_every_panel_has_ink(matplotlib.image.imread(file)[..., :3], 1, 2)


@pytest.mark.parametrize("task", TASKS)
def test_missing_runs_are_reported(task, executed):
    _, books = executed
    for name in set(SHOWN[task]) - {"robustness", "regularization"}:
        said = printed(books[name, task])  # a grid of 2 n × 2 s without (5, 0.5)
        assert "static: 1 of 4 runs missing; run its sweep again" in said
    assert "GRU: 1 of 1 run missing" in printed(books["robustness", task])


def test_one_seed_has_no_interval(executed):
    _, books = executed
    for name in ("performance", "learning_speed", "dynamics"):
        shown = [o.data for o in outputs(books[name, "psDigits"], "display_data")]
        table, *_ = [data["text/html"] for data in shown if "p_holm" in data.get("text/html", "")]
        header, *rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in (header, *rows)]
        half = [row[cells[0].index("half")] for row in cells[1:]]
        assert len(half) >= 3 and set(half) == {"NaN"}


def test_the_shape_of_gamma_needs_no_runs(executed):
    folder, books = executed
    shape, overview = pictures(books["gamma_shape", None])
    check_every_panel_has_ink(shape, 2, 3)
    check_every_panel_has_ink(overview, 1, 3)
    saved = {path.stem for path in (folder / "asked for").iterdir()}
    assert saved == {"gamma_shape", "overview"}


def test_two_seeds_of_anru_are_drawn_together(executed):
    folder, books = executed
    book = books["adaptation", "psDigits"]
    assert outputs(book, "error") == []
    assert "n = a ξ^(−b) + c: a = " in printed(book)
    first, second = pictures(book)
    check_every_panel_has_ink(first, 2, 3)
    check_every_panel_has_ink(second, 3, 3)
    for name in ("adaptation", "fractional_order"):
        assert (folder / f"seeds/figures/{name}_psDigits.pdf").exists()


@pytest.mark.parametrize("name", ["dynamics", "robustness"])  # the grid, the networks
def test_without_runs_a_notebook_says_so_in_one_line(name, executed):
    folder, books = executed
    error = outputs(books[name, "none"], "error")[0]
    assert error.ename == "FigureError" and len(error.traceback) == 1
    assert f"no runs of psDigits; found below {folder / 'empty'}: no runs" in error.evalue


def test_several_tasks_require_a_choice(executed):
    _, books = executed
    error = outputs(books["performance", "several"], "error")[0]
    assert "set TASK" in error.evalue and "psDigits (12 runs), pydoc (12 runs)" in error.evalue


@pytest.mark.parametrize("path", sorted((REPOSITORY / "Postprocessing").glob("*.ipynb")))
def test_notebooks_are_saved_without_outputs(path):
    book = nbformat.read(path, as_version=4)
    assert len(book.cells) >= 3
    for cell in book.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
