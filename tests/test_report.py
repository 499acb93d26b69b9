"""The page of a run and the overview, on toy runs."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from Postprocessing import analyse, plots, report, runs
from tests.conftest import PTB, SMNIST
from tests.toy_runs import OF_PAGE, train
from Training.run_directory import RunError

TRAINED = {
    "heterogeneous": (SMNIST, "-p --nonlin gamma2 --n 5 --s 0.5 --save-freq 1"),
    "ANRU": (SMNIST, "-p --net-type ANRU"),
    "LSTM": (SMNIST, "-p --net-type LSTM --seed 401"),
    "homogeneous": (PTB, "--nonlin gamma"),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The table of the `TRAINED` runs, of two epochs each, indexed by network; analysed."""
    root = tmp_path_factory.mktemp("runs")
    for name, (script, flags) in TRAINED.items():
        train(root / name, script, "--epochs", "2", *flags.split())
    assert analyse.main(["report", str(root), "--set", *OF_PAGE]) == 0
    return runs.load(root).set_index("network", drop=False).rename_axis(None)


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


def titled(figure):
    """The panels of a figure, {title: axes}."""
    titles = {ax.get_title(loc="left").split("$  ")[-1]: ax for ax in figure.axes}
    return {title: ax for title, ax in titles.items() if title}


LEARNING = {"loss", "accuracy", "gradient_norm"}
DYNAMICS = {"lyapunov", "norm", "spectrum"}
PANELS = {
    "heterogeneous": LEARNING | DYNAMICS | {"n", "s", "sin", "step"},
    "ANRU": LEARNING | DYNAMICS | {"n", "s", "sin", "step", "n_t", "s_t", "h_t"},
    "LSTM": LEARNING | DYNAMICS - {"spectrum"} | {"sin", "step"},  # no single recurrent matrix
    "homogeneous": {"bits_per_character", "gradient_norm", "n", "s", "step"} | DYNAMICS,
}


@pytest.mark.parametrize("names", [["homogeneous"], ["heterogeneous", "ANRU", "LSTM"]])
def test_every_applicable_panel_has_ink_and_a_title(table, names):
    chosen = table.loc[names]
    gathered = [report.gather(run) for _, run in chosen.iterrows()]
    assert [set(panels) for panels in gathered] == [PANELS[name] for name in names]
    figure = report.draw(chosen)
    panels = titled(figure)
    circles = sum("spectrum" in panels for panels in gathered)
    assert len(panels) == len(set().union(*gathered)) - 1 + circles
    assert min(ink(figure)) > 0.002
    caption = figure.get_supxlabel()
    assert caption.count("\n") <= 2 and "8 units; 2 epochs; seed 40" in caption
    assert figure.texts[-1].get_window_extent().x1 < figure.bbox.x1
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[-4:] == ["validation", "training", "test", "chance"]
    if len(names) == 1:
        assert legend.get_title().get_text() == "pydoc: homogeneous, seed 400" and len(texts) == 4
    else:
        assert texts[:3] == ["heterogeneous, seed 400", "ANRU, seed 400", "LSTM, seed 401"]
        colours = [handle.get_color() for handle in legend.get_lines()[:3]]
        assert colours == [plots.COLOURS[name] for name in names]
        limits = {ax.get_xlim() for title, ax in panels.items() if title in names}
        assert len(limits) == 1  # equal circles


def test_a_page_shows_the_numbers_of_the_run(table):
    run = table.loc["heterogeneous"]
    panels = titled(report.draw(table.loc[["heterogeneous"]]))
    path = Path(run["path"])
    metrics, tests = (runs.read_csv(path / name) for name in ("metrics.csv", "test_results.csv"))
    validation, training, test, _ = panels["accuracy"].lines
    np.testing.assert_array_equal(validation.get_ydata(), metrics["validation_accuracy"])
    np.testing.assert_array_equal(training.get_ydata(), metrics["train_accuracy"])
    expected = tests.loc[tests["condition"] == "as_is", "accuracy"]
    np.testing.assert_array_equal(test.get_ydata(), expected)
    line = panels["saturation"].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [0.5, *metrics["s_mean"]])
    low, high = panels["saturation"].get_ylim()
    assert high - low < 0.2  # fitted to what s does
    assert list(panels["oscillating brightness"].lines[0].get_xdata()) == [0, 1, 10]
    start, end = panels["recurrent matrix"].collections
    model = torch.load(path / "e_2.pth.tar", weights_only=True)["state_dict"]
    expected = np.linalg.eigvals(model["rnn.V.weight"].numpy())
    np.testing.assert_allclose(np.sort(end.get_offsets()[:, 0]), np.sort(expected.real), atol=1e-5)
    np.testing.assert_allclose(np.hypot(*start.get_offsets().T), 1, atol=1e-5)  # orthogonal
    constant = metrics.assign(n_mean=5.0, s_mean=0.5)
    assert report.gains(run.copy(), constant, None) == {}  # a constant has no panel
    without_0 = SimpleNamespace(panels={"n_t": ({1.0: [5, 6]}, (0, 1))}, colour="k")
    assert len(report.draw_steps(plt.figure().add_subplot(), [without_0], "n_t").lines) == 1


@pytest.fixture
def copied(table, tmp_path):
    """Copies the heterogeneous run without some of its files; returns the path of the copy."""

    def copy(*without):
        path = tmp_path / "psDigits/400/RNN/copy"
        ignored = shutil.ignore_patterns("report.*", *without)
        return shutil.copytree(table.loc["heterogeneous", "path"], path, ignore=ignored)

    return copy


def test_the_command_saves_the_page_and_names_what_is_missing(copied, tmp_path, call, error_of):
    path = copied("analysis")
    flags = ["--output", str(tmp_path / "a.page.png")]
    code, out, err = call(report.main, path, *flags)
    command = f"cd {analyse.REPOSITORY} && python3 -m Postprocessing.analyse report {path}"
    assert code == 0 and err.endswith(f"{command}\n")
    paths = [tmp_path / f"a.page.{kind}" for kind in ("png", "pdf")]
    assert out.split() == [str(path) for path in paths]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and paths[1].is_file()
    assert set(report.gather(runs.load(path).iloc[0])) == LEARNING | {"n", "s"}
    (path / "metrics.csv").unlink()
    assert f"{path}: has no epoch yet" in error_of(report.main, path, *flags)


def test_runs_that_cannot_be_drawn_are_a_one_line_error(table, copied, tmp_path, call, error_of):
    root = Path(table["path"].iloc[0]).parents[4]
    for words, reason in (
        ([root], "a page has runs of one task, got psDigits, pydoc"),
        ([tmp_path / "empty"], "no runs at or below"),
        ([root, "--where", "lr > 1"], "argument --where: lr > 1: no run matches"),
    ):
        assert reason in error_of(report.main, *words)
    code, _, err = call(report.main, stale := copied("e_1.*"))
    _, command, last = err.splitlines()  # the command computes all that is stale
    assert code == 2 and "lyapunov.npz: stale" in last and command.endswith(f"report {stale}")
    assert len({*report.labels(table), *report.labels(table[[True] * 2 + [False] * 2])}) == 4
    many = len(plots.PALETTE)
    with pytest.raises(RunError, match=f"at most {many} runs fit on a page, got {many + 1}"):
        report.colours_of(["LSTM"] * (many + 1))
    same = report.colours_of(["LSTM"] * many)
    assert len(set(same)) == many and same[0] == plots.COLOURS["LSTM"]
