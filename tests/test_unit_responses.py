"""Responses of ANRU's units to a step: the protocol, the fractional order, the adaptive index."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from Postprocessing.unit_responses import (
    PROTOCOLS,
    TRIALS,
    XI,
    adaptive_index,
    fit_errors,
    fractional_derivative,
    response_orders,
    responses,
    step_target,
    unit_layer,
    unit_orders,
)
from tests.layers import build, seeded

FINE = np.linspace(0, 1, 1001)
T_SHORT, T_LONG = np.arange(150), np.arange(300)
DRIVEN = {"short": (T_SHORT > 50) & (T_SHORT < 101), "long": (T_LONG > 101) & (T_LONG < 202)}
WINDOWS = {"short": slice(40, 110), "long": slice(80, 220)}


def steps(name):
    """The driven steps times each ξ, (X, L)."""
    return np.array(XI)[:, None] * DRIVEN[name]


@pytest.mark.parametrize("order", [-1, -0.4, 0, 0.3, 0.5, 1, 1.7])
@pytest.mark.parametrize(("length", "periods"), [(150, 20), (151, 3)])
def test_the_derivative_of_a_sine_is_a_shifted_sine(order, length, periods):
    omega = 2 * math.pi * periods / length
    t = np.arange(length)
    expected = omega**order * np.sin(omega * t + math.pi * order / 2)
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-12 * max(1, omega**order))
    close(fractional_derivative(np.sin(omega * t), order), expected)
    h = np.random.default_rng(0).normal(size=(2, 3, length))  # along the last axis; no mean
    along = fractional_derivative(h + 5, order)
    close(along[1, 2], fractional_derivative(h[1, 2], order))
    close(along.mean(-1), 0)


@pytest.mark.parametrize("gain", [1, 2])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_integrated_step_has_the_order_of_its_integral(name, gain):
    h = gain * fractional_derivative(steps(name), -0.3)
    for order in np.append(*response_orders(h, XI, PROTOCOLS[name], free=True, orders=FINE)):
        assert order == pytest.approx(0.3, abs=1e-9)
    # that of a unit may be negative; the base of its target, which D^α h lacks, shifts it slightly
    for order in (-0.5, 0.5):
        unit = gain * fractional_derivative(30.0 * DRIVEN[name], -order)
        (alpha,) = unit_orders(unit[None], 30.0, PROTOCOLS[name], free=True)
        assert alpha == pytest.approx(order, abs=0.05)
    if gain == 2 and name == "short":  # the paper's fit takes the gain for a derivative
        step = gain * steps(name)
        assert response_orders(step, XI, PROTOCOLS[name], orders=FINE)[0] == pytest.approx(0.188)


def papers_errors(h, name, xi, base, orders):
    """The paper's loop: mean squared errors of D^α h (L,) for each α."""
    t, errors = np.arange(len(h)), []
    width = {"short": 25, "long": 50}[name]
    for alpha in orders:
        f = np.fft.fftfreq(len(t), d=1)
        H = np.array([0 if f_k == 0 else (1j * 2 * np.pi * f_k) ** alpha for f_k in f])
        y = np.fft.ifft(H * np.fft.fft(h)).real
        target = np.where(np.abs(t - len(t) / 2) < width, base + xi, base)
        errors.append(np.mean((y - y[25] - target)[WINDOWS[name]] ** 2))
    return errors


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_protocols_and_orders_match_the_papers_loops(name):
    protocol = PROTOCOLS[name]
    assert (protocol.noise, TRIALS) == ({"short": 0.1, "long": 5.0}[name], 5)
    aligned = step_target(protocol, np.array(XI), aligned=True)
    np.testing.assert_array_equal(aligned, steps(name))
    rng, orders = np.random.default_rng(1), np.linspace(0, 1, 100)
    h = steps(name) + rng.normal(size=steps(name).shape).cumsum(-1)
    pairs = zip(XI[1:], h[1:], strict=True)
    errors = np.array([papers_errors(signal, name, xi, 0.0, orders) for xi, signal in pairs])
    alpha, alphas = response_orders(h, XI, PROTOCOLS[name])
    assert alpha == orders[errors.sum(0).argmin()]
    np.testing.assert_array_equal(alphas, orders[errors.argmin(1)])

    orders = np.linspace(-1, 1, 100)  # of units, to one step and with the base 0.8
    units = np.array([DRIVEN[name] * size for size in (0.3, 1.0, 3.0)]) + 0.1 * h[:3]
    expected = [orders[np.argmin(papers_errors(unit, name, 1.0, 0.8, orders))] for unit in units]
    np.testing.assert_array_equal(unit_orders(units, 1.0, PROTOCOLS[name]), expected)
    without = [orders[np.argmin(papers_errors(unit, name, 1.0, 0.0, orders))] for unit in units]
    assert expected != without


def test_the_free_gain_is_the_least_squares_solution():
    h = np.random.default_rng(2).normal(size=(3, 150))
    target = step_target(PROTOCOLS["short"], np.array([1.0, 5.0, 30.0]), base=0.8, aligned=True)
    errors = fit_errors(h, target, slice(40, 110), [0.25], free=True)
    for i in range(3):
        y = fractional_derivative(h[i], 0.25)
        y = (y - y[25])[40:110]
        _, residual, *_ = np.linalg.lstsq(y[:, None], target[i, 40:110], rcond=None)
        assert errors[0, i] == pytest.approx(residual[0] / 70)
    silent = fit_errors(np.zeros(150), target[0], slice(40, 110), [0.25], free=True)
    assert silent[0] == pytest.approx((target[0, 40:110] ** 2).mean())


def test_the_adaptive_index_compares_the_two_windows():
    h = np.full((4, 150), 7.0)
    h[:, 100:115], h[:, 134:149] = 3, 1
    h[1, 134:149] = 9
    h[2, 134:149] = -3  # sums to 0
    h[3, 134:149] = -5
    np.testing.assert_allclose(adaptive_index(h), [0.5, -0.5, 0, 0])


@pytest.mark.parametrize("isolated", [False, True])
def test_the_responses_match_the_equations(isolated):
    layer = build("ANRU", inputs=1)
    protocol = PROTOCOLS["short"]._replace(steps=60, noise=0.3)
    units, W = unit_layer(layer, isolated), layer.Whh.weight
    changed = {"Uxh.weight": layer.Uxh.weight[:, 0].diag()}
    changed |= {"Whh.weight": W.diag().diag()} if isolated else {}
    torch.testing.assert_close(units.state_dict(), layer.state_dict() | changed, rtol=0, atol=0)
    h_all = responses(units, protocol, (0.0, 2.0), 3, seeded(5))
    generator = seeded(5)
    x = 0.8 + 0.1 * torch.randn(3, 1, layer.hidden_size, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, 3, 2, layer.hidden_size, generator=generator, dtype=torch.float64)
    drive = torch.zeros(60, 3, 2).double()
    drive[51:101, :, 1] = 2.0
    h, _ = units.loop((x + 0.3 * noise).flatten(1, 2), drive=drive.flatten(1))
    np.testing.assert_allclose(h_all.transpose(3, 0, 1, 2), h.detach().view(60, 3, 2, -1))
