"""The page of a run, the table of runs and the overview, on toy runs."""

import csv
import functools
import io
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import PTB_task
import sMNIST_task
from Postprocessing import diagram, jacobian_norm, plots, report, runs
from Postprocessing.load_runs import metrics_of
from tests.conftest import TOY
from Training import datasets
from Training.run_directory import Run, RunError

SMNIST, PTB = "sMNIST_task.py", "PTB_task.py"
TRAINED = {
    "gamma2": (SMNIST, ["-p", "--nonlin", "gamma2", "--n", "5", "--s", "0.5", "--save-freq", "1"]),
    "ANRU": (SMNIST, ["-p", "--net-type", "ANRU"]),
    "LSTM": (SMNIST, ["-p", "--net-type", "LSTM", "--seed", "401"]),
    "text": (PTB, []),
}
LEARNING = ["loss", "accuracy", "gradient_norm", "lr"]
DYNAMICS = ["lyapunov", "jacobian_norm", "spectrum"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of the `TRAINED` runs, of two epochs each."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.TEXT_SETS, "pydoc", functools.cache(datasets.TEXT_SETS["pydoc"]))
        for script, flags in TRAINED.values():
            main = {SMNIST: sMNIST_task.main, PTB: PTB_task.main}[script]
            assert main([*TOY[script], *flags, "--epochs", "2", "--save-dir", str(root)]) == 0
        yield root


@pytest.fixture(scope="module")
def trained(root):
    """{name: Run} of `TRAINED`."""
    paths = sorted(root.rglob("config.json"), key=lambda path: path.stat().st_mtime)
    return dict(zip(TRAINED, [Run(path.parent) for path in paths], strict=True))


@pytest.fixture(autouse=True)
def style(monkeypatch):
    with plt.rc_context():
        plots.use_style()
        plt.rcParams["figure.dpi"] = plt.rcParams["savefig.dpi"] = 60
        monkeypatch.setattr(plots, "use_style", lambda: None)
        yield
    plt.close("all")


def ink(figure):
    """The fraction of non-white pixels in each of a figure's axes."""
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[:, :, :3]
    shares = []
    for ax in figure.axes:
        left, bottom, right, top = ax.get_window_extent().extents.round().astype(int)
        inside = image[len(image) - top + 3 : len(image) - bottom - 3, left + 3 : right - 3]
        shares.append((inside < 250).any(axis=2).mean())
    return shares


def letters(figure):
    return [title for ax in figure.axes if (title := ax.get_title(loc="left"))]


@pytest.fixture(scope="module")
def analysed(trained):
    """`trained`, with quick analyses of gamma2 and text."""
    few = {"lyapunov": ["--chains", "2", "--steps", "64"], "jacobian_norm": ["--every", "8"]}
    few["robustness"] = ["--amplitudes", "0", "1", "10", "--samples", "5"]
    for name, module in report.ANALYSES.items():
        runs = [str(trained[name].path) for name in ("gamma2", "text")]
        assert module.main([*runs, *few[name]]) == 0
    return trained


FOUND = {
    "gamma2": {*LEARNING, "n", "s", *DYNAMICS, "sin", "step"},
    "ANRU": {*LEARNING, "n", "s", "spectrum", "n_t", "s_t", "h_t"},
    "LSTM": {*LEARNING, "spectrum"},
    "text": {"bits_per_character", "gradient_norm", "lr", "n", "s", *DYNAMICS, "step"},
}


@pytest.mark.parametrize("names", [["text"], ["gamma2", "ANRU", "LSTM"]])
def test_every_applicable_panel_has_ink(analysed, names):
    pictured = [report.gather(analysed[name]) for name in names]
    assert [set(one.found) for one in pictured] == [FOUND[name] for name in names]
    figure = report.draw(pictured)
    count = len(set().union(*(one.found for one in pictured)))
    count += len(names) - 1  # several spectra have a panel each
    assert letters(figure) == list("abcdefghijklmnopqrst"[:count])
    assert min(ink(figure)) > 0.002
    caption, (legend,) = figure.get_supxlabel(), figure.legends
    assert caption.startswith("pydoc: gamma-RNN" if names == ["text"] else "psDigits: gamma2-RNN, ")
    assert f"8 units; 2 epochs; {len(names)} run" in caption
    said = [text.get_text() for text in legend.get_texts()]
    if len(names) > 1:
        assert said == ["gamma2-RNN seed=400", "ANRU seed=400", "LSTM seed=401"]
        colours = [handle.get_color() for handle in legend.get_lines()]
        assert colours == [plots.COLOURS[name.split()[0]] for name in said]


def test_the_caption_names_what_the_legend_leaves_out(trained, monkeypatch):
    runs = [trained["gamma2"], trained["LSTM"]]
    monkeypatch.setitem(runs[1].config["arguments"], "lr", 0.5)
    figure = report.draw([report.gather(run) for run in runs])
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["gamma2-RNN seed=400", "LSTM seed=401"]
    assert "The networks also differ in lr." in " ".join(figure.get_supxlabel().split())


def test_a_page_shows_the_numbers_of_the_run(analysed):
    run = analysed["gamma2"]
    figure = report.draw([report.gather(run)])
    axes = {letter: ax for ax in figure.axes if (letter := ax.get_title(loc="left"))}
    validation, training, test, _ = axes["b"].lines
    metrics, rows = metrics_of(run), run.rows("test_results.csv")
    np.testing.assert_array_equal(validation.get_ydata(), metrics["validation_accuracy"])
    np.testing.assert_array_equal(training.get_ydata(), metrics["train_accuracy"])
    tested = [float(row["accuracy"]) for row in rows if row["condition"] == "as_is"]
    np.testing.assert_array_equal(test.get_ydata(), tested)
    model = torch.load(run.kept[2], weights_only=True)["state_dict"]
    ends = [line.get_ydata()[-1] for line in axes["e"].lines[:8]]
    np.testing.assert_array_equal(ends, model["rnn.n"])
    assert axes["e"].get_ylim()[0] < 0 and axes["f"].get_ylim()[1] > 1
    start, end = axes["i"].lines
    expected = np.linalg.eigvals(model["rnn.V.weight"].numpy())
    np.testing.assert_allclose(np.sort(end.get_xdata()), np.sort(expected.real), atol=1e-5)
    radius = np.hypot(start.get_xdata(), start.get_ydata())
    np.testing.assert_allclose(radius, 1, atol=1e-5)  # orthogonal at the start
    assert list(axes["j"].lines[0].get_xdata()) == [0, 1, 10]
    assert [list(axes[k].lines[1].get_ydata()) for k in "jk"] == [[0.1, 0.1]] * 2  # chance


def test_steps_change_the_response_of_anru_from_their_onset(analysed):
    found = report.responses(analysed["ANRU"])
    for values in found.values():
        assert list(values) == [0, 1, 5, 20]
        for size in (1, 5, 20):
            changed = np.flatnonzero(values[size] != values[0])
            assert changed[0] == 16  # the window of 64 steps is 16 to 32
    sizes = [found["h_t"][size][16] for size in (0, 1, 5, 20)]
    assert sizes == sorted(sizes)


@pytest.fixture
def copied(trained, tmp_path):
    """Copies the gamma2 run without some of its files; returns the copy."""

    def copy(*without):
        path = tmp_path / "psDigits/400/RNN/copy"
        ignored = shutil.ignore_patterns("analysis", "report.*", *without)
        return Run(shutil.copytree(trained["gamma2"].path, path, ignore=ignored))

    return copy


def test_the_command_computes_what_is_missing_and_saves_the_page(copied, monkeypatch, capsys):
    run = copied()
    monkeypatch.setattr(report, "ANALYSES", {"jacobian_norm": jacobian_norm})
    monkeypatch.setattr(plots, "save", lambda figure, *where: [where])
    assert report.main([str(run.path)]) == 0
    said = capsys.readouterr()
    assert f"computing jacobian_norm of {run.path}" in said.err
    assert said.out == f"{('report', run.path)}\n"
    assert "jacobian_norm" in report.gather(run).found
    report.compute([run])
    assert "computing" not in capsys.readouterr().err


def test_a_run_in_progress_shows_its_curves(copied, tmp_path, capsys, monkeypatch):
    run = copied("e_1.*", "e_2.*", "test_results.csv")
    report.compute([run])
    assert not (run.path / "analysis").exists()
    assert list(report.gather(run).found) == LEARNING
    monkeypatch.setattr(report, "compute", None)
    flags = ["--no-compute", "--output", str(tmp_path / "a.page.png")]
    assert report.main([str(run.path), *flags]) == 0
    paths = [tmp_path / f"a.page.{kind}" for kind in ("png", "pdf")]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and paths[1].is_file()
    (run.path / "metrics.csv").unlink()
    with pytest.raises(SystemExit):
        report.main([str(run.path), *flags])
    assert f"{run.path}: has no epoch yet" in capsys.readouterr().err


def test_a_stale_analysis_is_a_one_line_error(copied, capsys):
    run = copied()
    assert jacobian_norm.main([str(run.path), "--sequences", "1", "--every", "64"]) == 0
    (run.path / "e_1.pth.tar").unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        report.main([str(run.path), "--no-compute"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "jacobian_norm.npz: stale, computed from other" in said
    assert said.endswith(f"; run python3 -m Postprocessing.jacobian_norm {run.path}\n")


def test_runs_that_do_not_fit_on_a_page_are_rejected(root, trained, tmp_path):
    with pytest.raises(RunError, match="of one task, got psDigits, pydoc"):
        report.runs_at([root])
    with pytest.raises(RunError, match="no runs found"):
        report.runs_at([tmp_path])
    with pytest.raises(RunError, match="at most 8 runs fit on a page, got 9"):
        report.colours([trained["LSTM"]] * 9)
    assert [run.path for run in report.runs_at([root], newest=True)] == [trained["text"].path]
    same = report.colours([trained["LSTM"]] * 8)
    assert len(set(same)) == 8 and same[0] == plots.COLOURS["LSTM"]


def test_the_table_lists_the_runs_with_their_differences(
    root, trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(root.parent)
    assert runs.main([root.name]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    columns = ["task", "network", "seed", "epochs", "validation", "test", "hours", "path"]
    assert header.split() == columns
    assert [line.split()[:2] for line in lines] == [
        ["psDigits", "ANRU"],
        ["psDigits", "LSTM"],
        ["psDigits", "gamma2-RNN"],
        ["pydoc", "gamma-RNN"],
    ]
    assert all(line[header.index("path") :].startswith(f"{root.name}/p") for line in lines)
    assert header.index("path") < 80 and " bpc " in lines[-1]

    assert runs.main([str(root), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for row, name in zip(rows, ("ANRU", "LSTM", "gamma2", "text"), strict=True):
        run, metrics = trained[name], metrics_of(trained[name])
        assert row["path"] == str(run.path) and row["epochs"] == row["of"] == "2"
        kind, best = row["score"], max if row["score"] == "accuracy" else min
        assert float(row["validation"]) == best(metrics[f"validation_{kind}"])
        last = [r for r in run.rows("test_results.csv") if r["condition"] in ("as_is", "best")][-1]
        assert float(row["test"]) == float(last[kind])
        assert float(row["hours"]) == pytest.approx(metrics["seconds"].sum() / 3600)
    assert [row["seed"] for row in rows] == ["400", "401", "400", ""]
    with pytest.raises(SystemExit):
        runs.main([str(tmp_path)])
    assert f"no runs below {tmp_path}" in capsys.readouterr().err


def test_a_run_that_has_just_started_is_listed(trained, tmp_path, capsys):
    path = tmp_path / "psDigits/400/RNN/copy"
    path.mkdir(parents=True)
    shutil.copy(trained["LSTM"].path / "config.json", path)
    assert runs.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [
        *("psDigits", "LSTM", "0/2", "0.00", str(path))
    ]


def test_the_diagram_is_drawn():
    figure = diagram.draw()
    assert [ax.get_title("left") for ax in figure.axes] == ["", "c", "d"]
    assert min(ink(figure)) > 0.02
