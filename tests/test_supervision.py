"""Analyses of ANRU: supervisors, steps and regularisation; robustness; on which device."""

import functools
import math
import shutil

import numpy as np
import pytest
import torch

from NetworkCreation.gamma_function import gamma
from NetworkCreation.Networks import ANRU
from Postprocessing import analyse, networks, regularization, robustness, runs, supervisor
from Postprocessing.dynamics import push
from Postprocessing.networks import NotApplicable, Unsuitable, chains, freeze, kept_model
from Postprocessing.regularization import KINDS, concatenated, leading_exponents, systems
from Postprocessing.step_response import ends
from Postprocessing.supervisor import NOISE, exponential, fit, gain_and_saturation, holds, power
from tests.conftest import rows
from tests.layers import build, randn, seeded
from tests.toy_runs import SMALL, train
from Training.run_directory import Run
from Training.transforms import step_drive

T, B, H, M, ONSET = 12, 2, 4, 3, 5
SIZES = (0.0, 2.0)


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


def test_the_noise_differs_between_units_and_steps_and_means_are_over_110_to_199(monkeypatch):
    seen = []

    def trace(layer, x, keep):
        seen.append(x)
        t = torch.arange(200.0)[:, None, None].expand(200, 3, 2)
        return None, None, {"n": t, "s": -t}

    monkeypatch.setattr(ANRU, "trace", trace)
    layer, x = build("ANRU", inputs=1, units=2), randn(200, 3, 1)
    n, s = gain_and_saturation(layer, x, (2.0, 4.0), seeded(0))
    assert n.tolist() == [154.5, 154.5] and s.tolist() == [-154.5, -154.5]
    for size, inputs in zip((2, 4), seen, strict=True):
        torch.testing.assert_close(inputs[:, :, :1], x)
        current = inputs[:, :, 1:]
        assert (current[:100] == 0).all() and len(current[100:].unique()) == 100 * 3 * 2
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
    # a fit holds if a and b are larger than two standard errors
    assert holds(np.array([1.0, -0.5, 0]), np.array([0.4, 0.2, 9]))
    assert not holds(np.array([0.877, 0.04, 6]), np.array([3.0, 0.1, 3]))


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


def test_chains_and_streams_are_concatenated_sequences():
    x = torch.arange(7.0).expand(5, 7)[..., None] + torch.arange(5.0)[:, None, None] / 10
    chained = chains(x, 2)
    assert chained.shape == (15, 2, 1)
    torch.testing.assert_close(chained[:, 1, 0], torch.cat([x[:, 1, 0], x[:, 3, 0], x[:, 5, 0]]))
    x = torch.arange(12).view(2, 6, 1)  # sequence b is (b, b + 6)
    expected = [[0, 3], [6, 9], [1, 4], [7, 10], [2, 5], [8, 11]]
    assert concatenated(x, 2).squeeze(-1).tolist() == expected


def test_ends_are_the_onset_and_the_last_quarter_of_the_step():
    values = np.stack([np.arange(784.0), -np.arange(784.0)])
    expected = [[200, -200], [374.5, -374.5]]  # mean of 350 … 399
    np.testing.assert_array_equal(ends(values, (200, 400)), expected)


def test_the_supervisor_runs_alone():
    layer = build("ANRU")
    xi = np.array([0.2, 3.0])
    states = supervisor.supervisor_states(layer, xi, seeded(3))
    assert states.shape == (2, 400, layer.supervisor_size)
    g = torch.randn(10, 1, layer.supervisor_size, generator=seeded(3), dtype=torch.float64)
    g = g.numpy().repeat(2, axis=1)  # (starts, ξ, M)
    weights = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    for t in range(400):
        a = xi[:, None] * (t > 200)
        of_a = weights["Uag.weight"][:, 0] * a + weights["Uag.bias"]
        g = np.tanh(of_a + g @ weights["Wgg.weight"].T + weights["Wgg.bias"])
        np.testing.assert_allclose(states[:, t], g.mean(0), atol=1e-9)


def test_the_analyses_save_their_arrays(toy_runs):
    path = next((toy_runs / "runs/psDigits/400").glob("ANRU_*/*"))
    units = analyse.load(path, "unit_responses")
    for name, steps in (("short", 150), ("long", 300)):
        for key in (f"{name}_connected", f"{name}_isolated"):
            assert units[f"{key}_response"].shape == units[f"{key}_units"].shape == (8, steps)
            np.testing.assert_allclose(units[f"{key}_units"].mean(0), units[f"{key}_response"][-1])
            for alpha, shape in {"alpha": (), "alpha_xi": (7,), "alpha_units": (8,)}.items():
                for fit_name in ("paper", "free"):
                    assert units[f"{key}_{alpha}_{fit_name}"].shape == shape
    assert units["short_isolated_index"].shape == (8,)
    supervisors = analyse.load(path, "supervisor")
    n, s, xi, states = (supervisors[name] for name in ("n", "s", "xi", "path"))
    assert n.shape == s.shape == xi.shape == (7,) and states.shape == (10, 400, 2)
    np.testing.assert_allclose(states[0, :201], states[-1, :201])
    assert abs(states[0, 201] - states[-1, 201]).max() > 0.01


def test_other_networks_are_rejected(opened, monkeypatch):
    for name in ("unit_responses", "supervisor", "step_response", "regularization"):
        with pytest.raises(NotApplicable, match="needs an ANRU, got RNN"):
            analyse.compute(opened["gamma2"], name, {})
    module = analyse.ANALYSES["unit_responses"]
    monkeypatch.setattr(module, "trained_anru", lambda run, device: (None, build("ANRU", inputs=2)))
    with pytest.raises(Unsuitable, match="needs a network of one input, got 2"):
        analyse.compute(opened["ANRU"], "unit_responses", {}, recompute=True)


PIXELS = ["sMNIST_task.py", "--epochs", "2", "--save-freq", "1"]
RUNS = {
    "gamma2": [*PIXELS, "--nonlin", "gamma2"],
    "ANRU": [*PIXELS, "--net-type", "ANRU"],
    "text": ["PTB_task.py"],
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """{name: trained run} of `RUNS`."""
    return {name: Run(train(tmp_path_factory.mktemp(name), *words)) for name, words in RUNS.items()}


def compute(run, name, **settings):
    assert analyse.compute(run, name, settings, recompute=True)
    return analyse.load(run.path, name)


def test_the_response_to_steps_is_that_of_the_layer(opened):
    run, settings = opened["ANRU"], {"sizes": [0.0, 2.0, 9.0], "units": 3, "sequences": 4}
    saved = compute(run, "step_response", **settings)
    model = kept_model(run)
    x = networks.layer_input(run, model, 4).double()
    first, end = saved["window"]
    assert list(saved["units"]) == [0, 4, 7] and (first, end) == (16, 32)
    layer = model.rnn.double()
    for i, size in enumerate(settings["sizes"]):
        drive = step_drive(len(x), size, first, end - first)
        with torch.no_grad():
            h = layer(x, drive=drive)[0].numpy()  # (T, S, H)
        np.testing.assert_allclose(saved["h"][i], h.mean(axis=(1, 2)), atol=1e-9)
        np.testing.assert_allclose(saved["h_units"][i], h[:, 0, [0, 4, 7]], atol=1e-9)
        state = layer.initial_state(4)
        with torch.no_grad():
            for t, x_t in enumerate(x):
                state = layer.step(x_t, state, drive[t])
                assert saved["n"][i, t] == pytest.approx(layer.gain(state[1]).mean().item())
                assert saved["s"][i, t] == pytest.approx(layer.saturation(state[1]).mean().item())
    changed = np.flatnonzero(saved["s"][2] != saved["s"][0])
    assert changed[0] == first
    assert saved["n_end"].shape == (8,)
    assert saved["n_end"].mean() == pytest.approx(saved["n"][0].mean())


@pytest.mark.parametrize("name", RUNS)
def test_robustness_has_the_scores_of_the_run(opened, monkeypatch, name):
    # up to the last step: a barely trained network forgets an earlier drive
    monkeypatch.setattr(robustness, "step_window", lambda steps: (steps // 2, steps // 2))
    few = {"samples": 3} if name == "text" else {}  # as its --limit-batches
    saved = compute(opened[name], "robustness", amplitudes=[0.0, 0.5, 30.0], **few)
    tested = {row["condition"]: row for row in rows(opened[name], "test_results.csv")}
    if name == "text":
        score = float(tested["as_is"]["bits_per_character"])
        assert saved["step"][0] == pytest.approx(score, rel=1e-6)
        assert saved["step"][2] != saved["step"][0] and "sin" not in saved
    else:
        score = float(tested["as_is"]["accuracy"])
        assert saved["sin"][0] == saved["step"][0] == score
        assert saved["sin"][1] == float(tested["sin"]["accuracy"])  # of amplitude 0.5


def test_every_analysis_runs_on_the_requested_device(opened):
    """A tensor on the meta device has no values, so reading a result there fails."""
    for run in (opened["ANRU"], opened["text"]):
        for name in ("jacobian", "lyapunov", "mutual_information", "robustness"):
            with pytest.raises((NotImplementedError, RuntimeError), match="meta tensor"):
                analyse.compute(run, name, {}, device=torch.device("meta"))


def make_layer():
    layer = freeze(ANRU(1, H, M, generator=seeded(0)))
    layer.Wgn.bias.fill_(2.0)  # if γ is steep, rounding dominates the smallest exponents
    layer.Wgs.bias.fill_(0.3)
    return layer


def step(system, now, state):
    """The state of a system after a step."""
    return system.advance(now, state, state.new_empty(*state.shape, 0))[0]


@pytest.mark.parametrize("name", ["adaptive", "frozen"])
def test_the_tangents_of_a_system_are_those_of_its_step(name):
    system = systems(make_layer(), randn(T, B, 1), SIZES, ONSET)[name]
    state, tangents = system.state, randn(*system.state.shape, 2)
    for now in system.inputs:
        expected = push(functools.partial(step, system, now), state, tangents)
        torch.testing.assert_close(system.advance(now, state, tangents), expected)
        state = expected[0]


def test_the_frozen_network_holds_n_and_s_from_the_onset_on():
    layer, x = make_layer(), randn(T, B, 1)
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
    system = systems(make_layer(), randn(T, B, 1), SIZES, ONSET)["frozen"]
    first, second = leading_exponents(system, ONSET, T, draws=2)
    assert first.ne(second).all()
    torch.testing.assert_close(leading_exponents(system, ONSET, T, draws=1)[0], first)


def test_the_root_mean_square_of_huge_values_is_finite():
    h = torch.tensor([[3e200, 4e200], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([math.sqrt(12.5) * 1e200, 0], dtype=torch.float64)
    torch.testing.assert_close(regularization.root_mean_square(h), expected)


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
        analyse.compute(Run(anru), "regularization", {"steps": 50, "streams": 400})


def test_too_few_or_too_short_sequences_are_named(toy_runs, monkeypatch):
    run = Run(next((toy_runs / "runs/psDigits/400").glob("ANRU_*/*")))
    for module, reason in ((supervisor, "needs 200 steps"), (regularization, "8 steps are too")):
        monkeypatch.setattr(module, "layer_input", lambda *_: torch.ones(8, 3, 1))
        with pytest.raises(Unsuitable, match=reason):
            module.compute(run, None, "cpu")


def test_a_diverging_network_is_left_out_not_asked_for(toy_runs, tmp_path, monkeypatch, capsys):
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
