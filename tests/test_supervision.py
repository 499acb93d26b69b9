"""ANRU's supervisors under noise, under a step and alone, and the commands that save them."""

import numpy as np
import pytest
import torch

from NetworkCreation.Networks import ANRU
from Postprocessing import analyse
from Postprocessing.networks import NotApplicable, Unsuitable, chains
from Postprocessing.step_response import along, ends
from Postprocessing.supervisor import (
    NOISE,
    exponential,
    fit,
    gain_and_saturation,
    holds,
    plane,
    power,
    supervisor_states,
)
from tests.layers import build, randn, seeded
from Training.run_directory import Run


def test_a_gain_that_does_not_read_the_supervisor_is_its_bias():
    layer = build("ANRU", inputs=1)
    torch.nn.init.zeros_(layer.Wgn.weight)
    n, s = gain_and_saturation(layer, randn(200, 2, 1), (1.0, 30.0), seeded(0))
    np.testing.assert_allclose(n, layer.Wgn.bias.item())
    assert s[0] != s[1]
    trace = along(layer, randn(20, 2, 1), torch.linspace(-1, 1, 20))
    np.testing.assert_allclose(trace["n"], layer.Wgn.bias.item())
    assert len(np.unique(trace["s"].mean(axis=(1, 2)))) == 20


def test_without_memory_n_and_s_are_expectations_over_the_noise():
    layer = build("ANRU", inputs=1, units=20)
    for name in ("Uxh.weight", "Uxh.bias", "Whh.weight", "Whh.bias", "Wgg.weight"):
        torch.nn.init.zeros_(layer.get_parameter(name))
    xi = (0.5, 1.0, 4.0)
    n, s = gain_and_saturation(layer, randn(200, 40, 1), xi, seeded(0))
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    for i, size in enumerate(xi):
        a = torch.tensor(size * nodes)
        with torch.no_grad():
            g = torch.tanh(layer.Uag(a[:, None]) + layer.Wgg.bias)
            expected = [
                (torch.tensor(weights) @ values) / np.sqrt(2 * np.pi)
                for values in (layer.gain(g), layer.saturation(g))
            ]
        # 72,000 draws; the ten steps after the onset, or those before, would increase the error
        np.testing.assert_allclose([n[i], s[i]], expected, atol=5e-3)


def test_the_noise_differs_between_units_and_steps(monkeypatch):
    seen, trace = [], ANRU.trace

    def watched(self, x, **options):
        seen.append(x)
        return trace(self, x, **options)

    monkeypatch.setattr(ANRU, "trace", watched)
    layer, x = build("ANRU", inputs=1, units=2), randn(200, 3, 1)
    gain_and_saturation(layer, x, (2.0, 4.0), seeded(0))
    for size, inputs in zip((2, 4), seen, strict=True):
        torch.testing.assert_close(inputs[:, :, :1], x)
        current = inputs[:, :, 1:]
        assert (current[:100] == 0).all()
        assert len(current[100:].unique()) == 100 * 3 * 2
        assert current[100:].std().item() == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(
    ("curve", "true"), [(power, (0.36, 0.4, 5.7)), (exponential, (-0.15, 0.26, 0.02))]
)
def test_the_fits_recover_the_parameters_and_their_errors(curve, true):
    xi = np.array(NOISE)
    np.testing.assert_allclose(fit(curve, xi, curve(xi, *true))[0], true, rtol=1e-5)
    rng = np.random.default_rng(0)
    noisy = [fit(curve, xi, curve(xi, *true) + rng.normal(size=7) * 1e-3) for _ in range(100)]
    fitted, errors = np.stack(noisy, axis=1)
    np.testing.assert_allclose(np.sqrt((errors**2).mean(0)), fitted.std(0), rtol=0.3)


@pytest.mark.parametrize("b", [-2.0, -0.05, 0.05, 1.5])
@pytest.mark.parametrize("curve", [power, exponential])
def test_the_fit_finds_the_global_minimum(curve, b):
    rng, xi = np.random.default_rng(1), np.array(NOISE)
    b = b if curve is power else b / 10
    for _ in range(3):
        values = curve(xi, rng.normal(), b, 6) + 0.01 * rng.normal(size=7)
        (a, fitted, c), _ = fit(curve, xi, values)
        least = ((curve(xi, a, fitted, c) - values) ** 2).sum()
        for other in np.linspace(-2.9, 2.9, 100):
            design = np.stack([curve(xi, 1, other, 0), np.ones(7)], axis=1)
            best, *_ = np.linalg.lstsq(design, values, rcond=None)
            assert least <= ((design @ best - values) ** 2).sum() * (1 + 1e-9)


def test_means_are_over_steps_110_to_199(monkeypatch):
    def trace(layer, x, keep):
        t = torch.arange(200.0)[:, None, None].expand(200, 2, 3)
        return None, None, {"n": t, "s": -t}

    monkeypatch.setattr(ANRU, "trace", trace)
    layer = build("ANRU", 1, 3)
    n, s = gain_and_saturation(layer, torch.zeros(200, 2, 1, dtype=torch.float64), (1.0,))
    assert n == [154.5] and s == [-154.5]


def test_chains_are_concatenated_sequences():
    x = torch.arange(7.0).expand(5, 7)[..., None] + torch.arange(5.0)[:, None, None] / 10
    chained = chains(x, 2)
    assert chained.shape == (15, 2, 1)
    torch.testing.assert_close(chained[:, 1, 0], torch.cat([x[:, 1, 0], x[:, 3, 0], x[:, 5, 0]]))


def test_a_fit_holds_if_it_is_larger_than_two_standard_errors():
    assert holds(np.array([1.0, -0.5, 0]), np.array([0.4, 0.2, 9]))
    assert not holds(np.array([0.877, 0.04, 6]), np.array([3.0, 0.1, 3]))


def test_ends_are_the_onset_and_the_last_quarter_of_the_step():
    values = np.stack([np.arange(784.0), -np.arange(784.0)])
    expected = [[200, -200], [374.5, -374.5]]  # mean of 350 … 399
    np.testing.assert_array_equal(ends(values, (200, 400)), expected)


def test_the_supervisor_runs_alone():
    layer = build("ANRU")
    xi = np.array([0.2, 3.0])
    states = supervisor_states(layer, xi, seeded(3))
    assert states.shape == (2, 400, layer.supervisor_size)
    g = torch.randn(10, 1, layer.supervisor_size, generator=seeded(3), dtype=torch.float64)
    g = g.numpy().repeat(2, axis=1)  # (starts, ξ, M)
    Uag, b_ag, Wgg, b_gg = (
        layer.get_parameter(name).detach().numpy()
        for name in ("Uag.weight", "Uag.bias", "Wgg.weight", "Wgg.bias")
    )
    for t in range(400):
        a = xi[:, None] * (t > 200)
        g = np.tanh(Uag[:, 0] * a + b_ag + g @ Wgg.T + b_gg)
        np.testing.assert_allclose(states[:, t], g.mean(0), atol=1e-9)


def test_the_plane_has_the_largest_variance():
    states = np.random.default_rng(0).normal(size=(4, 30, 5)) * [3, 0.1, 2, 0.1, 0.1] + 7
    pca, path = plane(states)
    assert path.shape == (4, 30, 2)
    points = states.reshape(-1, 5) - states.reshape(-1, 5).mean(0)
    values, vectors = np.linalg.eigh(points.T @ points)
    np.testing.assert_allclose(pca.explained_variance_ratio_, values[:2:-1] / values.sum())
    np.testing.assert_allclose(
        np.abs(path.reshape(-1, 2)), np.abs(points @ vectors[:, :2:-1]), atol=1e-10
    )


def test_the_analyses_save_their_arrays(toy_runs):
    path = next((toy_runs / "runs/psDigits/400").glob("ANRU_*/*"))
    units = analyse.load(path, "unit_responses")
    for name, steps in (("short", 150), ("long", 300)):
        for connectivity in ("connected", "isolated"):
            key = f"{name}_{connectivity}"
            assert units[f"{key}_response"].shape == units[f"{key}_units"].shape == (8, steps)
            np.testing.assert_allclose(units[f"{key}_units"].mean(0), units[f"{key}_response"][-1])
            for fit_name in ("paper", "free"):
                assert units[f"{key}_alpha_{fit_name}"].shape == ()
                assert units[f"{key}_alpha_xi_{fit_name}"].shape == (7,)
                assert units[f"{key}_alpha_units_{fit_name}"].shape == (8,)
    assert units["short_isolated_index"].shape == (8,)
    supervisors = analyse.load(path, "supervisor")
    n, s, xi, states = (supervisors[name] for name in ("n", "s", "xi", "path"))
    assert n.shape == s.shape == xi.shape == (7,) and states.shape == (10, 400, 2)
    np.testing.assert_allclose(states[0, :201], states[-1, :201])
    assert abs(states[0, 201] - states[-1, 201]).max() > 0.01


def test_other_networks_are_rejected(toy_runs, monkeypatch):
    relu, anru = (
        Run(next((toy_runs / "runs/psDigits/400").glob(name))) for name in ("*_ReLU/*", "ANRU_*/*")
    )
    for name in ("unit_responses", "supervisor", "step_response", "regularization"):
        with pytest.raises(NotApplicable, match="needs an ANRU, got RNN"):
            analyse.compute(relu, name, {})
    module = analyse.ANALYSES["unit_responses"]
    monkeypatch.setattr(module, "trained_anru", lambda run, device: (None, build("ANRU", inputs=2)))
    with pytest.raises(Unsuitable, match="needs a network of one input, got 2"):
        analyse.compute(anru, "unit_responses", {}, recompute=True)
