"""Regularisation: adaptive and frozen exponents of hand-made ANRUs, and the command."""

import functools
import math
import shutil

import numpy as np
import pytest
import torch

from NetworkCreation.gamma_function import gamma
from NetworkCreation.Networks import ANRU
from Postprocessing import analyse, regularization, runs
from Postprocessing.dynamics import push
from Postprocessing.lyapunov import lyapunov_exponents
from Postprocessing.networks import Unsuitable, freeze
from Postprocessing.regularization import (
    KINDS,
    concatenated,
    leading_exponents,
    root_mean_square,
    systems,
)
from tests.toy_runs import FEW, SMALL
from Training.run_directory import Run

T, B, H, M, ONSET = 12, 2, 4, 3, 5
SIZES = (0.0, 2.0)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make_layer():
    layer = freeze(ANRU(1, H, M, generator=torch.Generator().manual_seed(0)))
    layer.Wgn.bias.fill_(2.0)  # if γ is steep, rounding dominates the smallest exponents
    layer.Wgs.bias.fill_(0.3)
    return layer


def step(system, now, state):
    """The state of a system after a step."""
    return system.advance(now, state, state.new_empty(*state.shape, 0))[0]


def supervisor_log_determinants(layer, x, drive):
    """Σ over units of log |det ∂g_t/∂g_{t−1}|, (T, B): g_t = tanh(Wgg g_{t−1} + …)."""
    _, _, trace = layer.trace(x, drive=drive, keep=("g",))
    slopes = (1 - trace["g"] ** 2).log().sum((-2, -1))
    return slopes + layer.hidden_size * torch.linalg.slogdet(layer.Wgg.weight)[1]


def test_freezing_a_constant_supervisor_removes_only_its_exponents():
    layer, x = make_layer(), draw(T, B, 1)
    layer.Wgn.weight.zero_()
    layer.Wgs.weight.zero_()
    both = systems(layer, x, SIZES, ONSET)
    adaptive = lyapunov_exponents(*both["adaptive"], H * (M + 1), ONSET).sum(1)
    frozen = lyapunov_exponents(*both["frozen"], H, ONSET).sum(1)
    for i, size in enumerate(SIZES):
        drive = torch.zeros(T, B)
        drive[ONSET:] = size
        expected = supervisor_log_determinants(layer, x, drive)[ONSET:].mean(0)
        difference = (adaptive - frozen).view(len(SIZES), B)[i]
        torch.testing.assert_close(difference, expected)


@pytest.mark.parametrize("name", ["adaptive", "frozen"])
def test_the_tangents_of_a_system_are_those_of_its_step(name):
    system = systems(make_layer(), draw(T, B, 1), SIZES, ONSET)[name]
    state, tangents = system.state, draw(*system.state.shape, 2)
    for now in system.inputs:
        expected = push(functools.partial(step, system, now), state, tangents)
        torch.testing.assert_close(system.advance(now, state, tangents), expected)
        state = expected[0]


def test_the_frozen_network_holds_n_and_s_from_the_onset_on():
    layer, x = make_layer(), draw(T, B, 1)
    both = systems(layer, x, SIZES, ONSET)
    for i, size in enumerate(SIZES):
        drive = size * (torch.arange(T) >= ONSET).double()
        outputs, _, trace = layer.trace(x, drive=drive)
        states = {name: system.state for name, system in both.items()}
        h = outputs[ONSET - 1]
        for t in range(T):
            for name, system in both.items():
                states[name] = step(system, system.inputs[t], states[name])
            adaptive, frozen = (states[k].view(len(SIZES), B, -1)[i, :, :H] for k in both)
            torch.testing.assert_close(adaptive, outputs[t])
            expected = outputs[t]
            if t >= ONSET:
                n, s = trace["n"][ONSET - 1], trace["s"][ONSET - 1]
                expected = h = gamma(layer.preactivation(x[t], h, drive[t]), n, s)
            torch.testing.assert_close(frozen, expected)
    assert not torch.allclose(adaptive, frozen)


def test_every_draw_has_its_own_directions():
    system = systems(make_layer(), draw(T, B, 1), SIZES, ONSET)["frozen"]
    first, second = leading_exponents(system, ONSET, T, draws=2)
    assert first.ne(second).all()
    torch.testing.assert_close(leading_exponents(system, ONSET, T, draws=1)[0], first)


def test_streams_are_concatenated_sequences():
    x = torch.arange(12).view(2, 6, 1)  # sequence b is (b, b + 6)
    expected = [[0, 3], [6, 9], [1, 4], [7, 10], [2, 5], [8, 11]]
    assert concatenated(x, 2).squeeze(-1).tolist() == expected


def test_the_root_mean_square_of_huge_values_is_finite():
    h = torch.tensor([[3e200, 4e200], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([math.sqrt(12.5) * 1e200, 0], dtype=torch.float64)
    torch.testing.assert_close(root_mean_square(h), expected)


def test_the_analysis_saves_its_arrays(toy_runs):
    anru = next((toy_runs / "runs/psDigits/400").glob("ANRU_*/*"))
    saved = analyse.load(anru, "regularization")
    assert saved["since"].tolist() == [0, 4, 8, 12, 16] and saved["onset"] == 16
    for name in KINDS:
        assert saved[name].shape == (2, 1, 3)  # (X, R, S)
        assert saved[f"{name}_since"].shape == (4, 2, 1, 6)  # 66 steps: 2 of 64 steps in a row
        assert saved[f"{name}_h"].shape == (66, 2)
        # ξ and sequences: all different
        assert len(np.unique(saved[f"{name}_since"])) == saved[f"{name}_since"].size
    adaptive, frozen = saved["adaptive_h"], saved["frozen_h"]
    np.testing.assert_allclose(adaptive[:16], frozen[:16])
    np.testing.assert_array_equal(adaptive[:16, 0], adaptive[:16, 1])
    assert (adaptive[16:, 0] != adaptive[16:, 1]).all()
    with pytest.raises(Unsuitable, match="400 streams need 800 test sequences, got"):
        analyse.compute(Run(anru), "regularization", FEW | {"streams": 400})


def test_a_frozen_network_that_diverges_is_left_out_and_not_asked_for(
    toy_runs, tmp_path, monkeypatch, capsys
):
    shutil.copytree(toy_runs / "seeds/psDigits", tmp_path / "psDigits")
    table = runs.load(tmp_path)
    remaining, diverging = table["path"]
    monkeypatch.setattr(regularization, "frozen_step", lambda layer, now, h, tangents: (h / 0, h))
    command = ["regularization", diverging, "--set", *SMALL, "regularization.steps=40"]
    for count in ("1 not applicable", "1 up to date"):
        assert analyse.main(command) == 0
        assert f"regularization: {count}\n" in capsys.readouterr().out
    loaded = analyse.load_all({"regularization": table}, "regularization")
    assert list(loaded["regularization"]) == [remaining]
    reason = f"regularization leaves out {diverging}: the state is not finite after 1 steps"
    assert reason in capsys.readouterr().out
    with pytest.raises(analyse.FigureError, match="every run diverges"):
        analyse.load_all({"regularization": table[1:]}, "regularization")
    assert analyse.scalars([diverging]).filter(like="regularization").empty
