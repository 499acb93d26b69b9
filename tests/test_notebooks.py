"""Every notebook runs from top to bottom on toy runs, in any directory, and shows its figure."""

import base64
import functools
import io
import itertools
import json

import matplotlib.image
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import PTB_task
import sMNIST_task
from Postprocessing import adaptation, jacobian_norm, lyapunov, mutual_information, robustness
from tests.conftest import REPOSITORY
from Training import datasets

pytestmark = pytest.mark.xdist_group("notebooks")  # they share the toy runs and a kernel

PANELS = {"performance": (2, 2), "learning_speed": (2, 3), "dynamics": (3, 3)}
PANELS |= {"robustness": (2, 3)}
COMMON = ["--nhid", "8", "--lr", "1e-2", "--epochs", "2", "--save-freq", "2"]
SHOWN = {"psDigits": list(PANELS), "pydoc": ["performance", "learning_speed", "robustness"]}
TASKS = {
    "psDigits": (sMNIST_task, ["--dataset", "digits", "-p", "--batch", "20"]),
    "pydoc": (
        PTB_task,
        ["--dataset", "pydoc", "--emsize", "6", "--batch_size", "16", "--bptt", "12"],
    ),
}
SETTINGS = [["gamma", "--no-learn_params"], ["gamma"], ["gamma2"]]


def execute(name, folder, monkeypatch, **environment):
    """Runs a notebook in a kernel of its own, its parameters set as environment variables."""
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    book = nbformat.read(REPOSITORY / "Postprocessing" / f"{name}.ipynb", as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return book


def rewrite(path, **arguments):
    """Changes the saved arguments of a run."""
    config = json.loads(path.read_text())
    config["arguments"] |= arguments
    path.write_text(json.dumps(config))


def few_images(load):
    """A loader of images that keeps only the first of them."""

    def part(*arguments):
        images, labels, scale, _, test_size, checksums = load(*arguments)
        return images[:300], labels[:300], scale, [200, 50, 50], test_size, checksums

    return part


def few_symbols(load):
    """A loader of a text that keeps only the first symbols of each part."""

    @functools.cache
    def part(*arguments):
        parts, name, checksums = load(*arguments)
        return [one[:2000] for one in parts], name, checksums

    return part


def make_toy_runs(task, root):
    """Analysed runs of a task: over a grid with one missing cell, and of networks but the GRU."""
    script, flags = TASKS[task]
    runs = [
        ["--nonlin", *setting, "--n", gain, "--s", saturation]
        for setting in SETTINGS
        for gain, saturation in itertools.product(("1", "5"), ("0", "0.5"))
        if (gain, saturation) != ("5", "0.5")
    ]
    runs += [["--net-type", "ANRU"], ["--net-type", "LSTM"], ["--nonlin", "ReLU"]]
    for own in runs:
        assert script.main([*COMMON, *flags, "--save-dir", str(root), *own]) == 0
    commands = [
        (adaptation, "ANRU_*", []),
        (robustness, "*", ["--amplitudes", "0", "1", "--samples", "50"]),
    ]
    if "dynamics" in SHOWN[task]:
        commands += [
            (lyapunov, "RNN_*_gamma*", ["--steps", "16"]),
            (jacobian_norm, "RNN_*_gamma*", ["--sequences", "1", "--every", "32"]),
            (mutual_information, "RNN_*_gamma*", ["--samples", "50", "--times", "8"]),
        ]
    for command, pattern, few in commands:
        assert command.main([*map(str, (root / task / "400").glob(pattern)), *few]) == 0


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The folder of the toy runs, and {(notebook, task): executed notebook}.

    One kernel runs all of them, its variables deleted before each: starting one takes seconds.
    """
    folder = tmp_path_factory.mktemp("notebooks")
    root, empty = folder / "runs", folder / "empty"
    empty.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.PIXEL_SETS, "digits", few_images(datasets.PIXEL_SETS["digits"]))
        patch.setitem(datasets.TEXT_SETS, "pydoc", few_symbols(datasets.TEXT_SETS["pydoc"]))
        for task in TASKS:
            make_toy_runs(task, root)
    wanted = {(name, task): root for task, names in SHOWN.items() for name in names}
    wanted |= {("gamma_shape", None): root, ("performance", "several"): root}
    wanted |= {("dynamics", "none"): empty, ("robustness", "none"): empty}
    everything, books = nbformat.v4.new_notebook(), {}
    for (name, task), runs in wanted.items():
        environment = {"RUNS": str(runs), **({"TASK": task} if task in TASKS else {})}
        if task == "none":
            environment["TASK"] = "psDigits"
        if name == "gamma_shape":
            environment["FIGURES"] = str(folder / "asked for")
        setting = (
            f"%reset -f\nimport os\nfor name in ('RUNS', 'TASK', 'FIGURES'):\n"
            f"    os.environ.pop(name, None)\nos.environ.update({environment!r})"
        )
        everything.cells.append(nbformat.v4.new_code_cell(setting))
        source = REPOSITORY / "Postprocessing" / f"{name}.ipynb"
        books[name, task] = nbformat.read(source, as_version=4)
        for cell in books[name, task].cells:
            cell.id = f"{task}-{cell.id}"
        everything.cells += books[name, task].cells
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(everything, timeout=300, allow_errors=True, resources=resources).execute()
    return folder, books


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
    """Axes, ticks and words are grey: what is drawn in a panel has at least one colour."""
    coloured = np.ptp(picture, axis=2) > 0.1
    for i, row in enumerate(np.array_split(coloured, rows)):
        for j, panel in enumerate(np.array_split(row, columns, axis=1)):
            height, width = (size // 5 for size in panel.shape)  # without what its neighbours draw
            assert panel[height:-height, width:-width].sum() > 20, f"panel {i}, {j} is empty"


@pytest.mark.parametrize(("task", "name"), [(k, name) for k in SHOWN for name in SHOWN[k]])
def test_a_notebook_shows_its_finished_figure(name, task, executed):
    folder, books = executed
    assert outputs(books[name, task], "error") == []
    (picture,) = pictures(books[name, task])
    rows, columns = PANELS[name]
    if (name, task) == ("robustness", "pydoc"):  # text has no brightness: panel a says so
        first = picture[: len(picture) // rows, : picture.shape[1] // columns]
        assert (first < 0.5).any()
        picture[: len(picture) // rows, : picture.shape[1] // columns] = (1, 0, 0)
    check_every_panel_has_ink(picture, rows, columns)
    for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        data = (folder / "runs" / "figures" / f"{name}_{task}.{kind}").read_bytes()
        assert data.startswith(magic) and len(data) > 5000


def test_an_empty_panel_is_found():
    from Postprocessing import plots

    figure, axes = plots.panels(1, 2, caption="a caption")
    axes[0, 0].plot([0, 1], color="C1")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    with pytest.raises(AssertionError, match="panel 0, 1 is empty"):
        check_every_panel_has_ink(matplotlib.image.imread(file)[..., :3], 1, 2)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_missing_is_said(task, executed):
    _, books = executed
    for name in set(SHOWN[task]) - {"robustness"}:  # 2 n × 2 s without (5, 0.5)
        assert "static 3 runs, 1 cells missing" in printed(books[name, task])
        assert "static: 1 missing, about" in printed(books[name, task])
    assert "GRU: 1 missing" in printed(books["robustness", task])


def test_paired_differences_are_printed_with_their_interval(executed):
    _, books = executed
    for name in ("performance", "learning_speed", "dynamics"):
        found = [line for line in printed(books[name, "psDigits"]).splitlines() if " − " in line]
        found = [line for line in found if "below the spread" not in line]
        assert len(found) >= 3
        assert all("(3 cells)" in line and "[" in line for line in found)


def test_the_shape_of_gamma_needs_no_runs(executed):
    folder, books = executed
    (picture,) = pictures(books["gamma_shape", None])
    check_every_panel_has_ink(picture, 2, 3)
    assert (folder / "asked for" / "gamma_shape.png").stat().st_size > 5000


@pytest.mark.parametrize("name", ["dynamics", "robustness"])  # the grid, the networks
def test_without_runs_a_notebook_says_which_command_makes_them(name, executed):
    _, books = executed
    error = outputs(books[name, "none"], "error")[0]
    assert error.ename == "FigureError" and len(error.traceback) == 1
    assert "python3 -m Training.sweep sMNIST_task.py" in error.evalue


def test_of_several_tasks_one_is_to_be_chosen(executed):
    _, books = executed
    error = outputs(books["performance", "several"], "error")[0]
    assert "set TASK" in error.evalue and "psDigits (12 runs), pydoc (12 runs)" in error.evalue


@pytest.mark.parametrize("path", sorted((REPOSITORY / "Postprocessing").glob("*.ipynb")))
def test_notebooks_are_kept_without_outputs(path):
    book = nbformat.read(path, as_version=4)
    assert len(book.cells) >= 3
    for cell in book.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
