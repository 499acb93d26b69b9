"""γ, its derivatives and the Gamma module, against mpmath and against the formulas."""

import ast
import math
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import mpmath
import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from NetworkCreation import gamma_function
from NetworkCreation.gamma_function import (
    Gamma,
    combine_terms,
    gamma,
    gamma_derivatives_into,
    gamma_into,
    gamma_prime,
    gamma_terms_into,
)

SCRIPT = Path(gamma_function.__file__)
DTYPES = [torch.float32, torch.float64]
QUANTITIES = ["value", "x", "n", "s"]
BEYOND = 10**5  # where e^{−|n x|} is 0 in 500 digits and slow to compute
ULPS = 4  # "a few units in the last place", of the larger term

ORDINARY = {
    "x": [0.0, 1e-30, 1e-4, 0.3, 1.0, 7.0, 18.0, 95.0, 800.0, 1e4, 1e6],
    "n": [1e-4, 0.3, 1.0, 5.0, 110.0, 1e4],
    "s": [0.0, 0.3, 1.0, -0.7, 2.5],
}
EXTREME = {
    torch.float32: {
        "x": [0.0, 1e-44, 1e-38, 1e-20, 1.0, 1e19, 1e38, 3e38],
        "n": [1.2e-38, 1e-30, 1e-18, 1.0, 1e18, 1e30, 3.4e38],
        "s": [0.0, 0.5, 1.0],
    },
    torch.float64: {
        "x": [0.0, 5e-324, 1e-307, 1e-150, 1.0, 1e150, 1e300, 1.7e308],
        "n": [2.3e-308, 1e-200, 1e-150, 1.0, 1e150, 1e200, 1.7e308],
        "s": [0.0, 0.5, 1.0],
    },
}


def both_signs(values):
    return sorted({sign * value for value in values for sign in (-1, 1)})


def grid(values, dtype):
    """All combinations as three flat tensors; x and n of both signs, s as it is."""
    axes = (both_signs(values["x"]), both_signs(values["n"]), values["s"])
    return torch.cartesian_prod(*(torch.tensor(axis, dtype=dtype) for axis in axes)).unbind(1)


def random_points(dtype, count=150):
    """Points with |n x| from 1e-5 to 1e5 where x runs over most of what the type can hold."""
    generator = torch.Generator().manual_seed(1)
    exponent, signs = torch.rand(2, 2, count, generator=generator, dtype=torch.float64)
    reach = 25 if dtype == torch.float32 else 120
    z = 10 ** (10 * exponent[0] - 5) * torch.sign(signs[0] - 0.5)
    x = 10 ** (reach * (2 * exponent[1] - 1)) * torch.sign(signs[1] - 0.5)
    s = 3 * torch.rand(count, generator=generator, dtype=torch.float64) - 1
    return x.to(dtype), (z / x).to(dtype), s.to(dtype)


def whole_range(dtype, count=400):
    """Any x and n that the type holds; and any x, with an n that makes −115 < n x < 115."""
    generator = torch.Generator().manual_seed(2)
    bits = torch.randint(-(2**31), 2**31, (3, 2 * count), generator=generator)
    x, n, other = (
        row[row.isfinite() & (row != 0)][:count]
        for row in bits.to(torch.int32).view(torch.float32).double()
    )
    z = 230 * torch.rand(count, generator=generator, dtype=torch.float64) - 115
    x, n = torch.cat([x, other]), torch.cat([n, z / other])
    s = torch.tensor([0.0, 0.5, 1.0, -0.7, 2.5, 1e4, -1e4]).to(dtype).repeat(len(x))[: len(x)]
    held = n.to(dtype).isfinite() & (n.to(dtype) != 0)
    return x[held].to(dtype), n[held].to(dtype), s[held]


def wide_points(dtype):
    """Those of `whole_range` where x, n and n x are from 1e-30 to 1e30 in size."""
    x, n, s = whole_range(dtype)
    sizes = torch.stack([x, n, n * x]).abs()
    kept = ((sizes > 1e-30) & (sizes < 1e30)).all(dim=0)
    return x[kept], n[kept], s[kept]


def reference(x, n, s, dtype):
    """For each quantity its true value, the error allowed in it, and what rounding adds to that.

    Allowed are a few units in the last place of the larger term, 4.8e-7 of it in float32, and the
    smallest normal number. Where n x is not exact there is the effect of rounding it once, and what
    is lost where e^{−|n x|}, or a product of σ with its complement and n, underflows.
    """
    epsilon, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    x, n, s = mpmath.mpf(x), mpmath.mpf(n), mpmath.mpf(s)
    z = n * x
    exponential = mpmath.exp(max(-BEYOND, min(BEYOND, z)))
    sigma, complement = exponential / (1 + exponential), 1 / (1 + exponential)
    p = (mpmath.log(1 + exponential) if abs(z) < BEYOND else max(z, 0)) / n
    slope = sigma * complement
    bend = slope * abs(complement - sigma)
    cut = min(sigma, complement)  # |∂(n p)/∂z| beside max(z, 0)
    terms = {  # two terms; what one unit of z changes; what one unit of a σ or e^{−|z|} changes
        "value": (
            (1 - s) * p,
            s * sigma,
            abs((1 - s) / n) * cut + abs(s) * slope,
            abs((1 - s) / n) + abs(s),
        ),
        "x": (
            (1 - s) * sigma,
            s * n * slope,
            abs(1 - s) * slope + abs(s * n) * bend,
            abs(1 - s) + abs(s * n),
        ),
        "n": (
            (1 - s) / n * (x * sigma - p),
            s * x * slope,
            abs((1 - s) / n**2 * z) * slope + abs(s * x) * bend,
            abs((1 - s) / n**2) * (1 + abs(z)) + abs(s * x) * max(1, abs(1 / n)),
        ),
        "s": (sigma, -p, slope + abs(1 / n) * cut, 1 + abs(1 / n)),
    }
    return {
        name: (
            first + second,
            ULPS * epsilon * max(abs(first), abs(second)) + tiny,
            epsilon * abs(z) * rounding + tiny * underflow,
        )
        for name, (first, second, rounding, underflow) in terms.items()
    }


POINTS = {
    "ordinary": lambda dtype: grid(ORDINARY, dtype),
    "extreme": lambda dtype: grid(EXTREME[dtype], dtype),
    "random": random_points,
    "whole": whole_range,
    "wide": wide_points,
}


@cache
def points_and_references(kind, dtype):
    """x, n, s and their references; 500 digits hold e^{−|n x|} wherever a double does."""
    points = POINTS[kind](dtype)
    triples = zip(*(tensor.tolist() for tensor in points), strict=True)
    with mpmath.workdps(500):
        return points, [reference(x, n, s, dtype) for x, n, s in triples]


def evaluate(quantity, x, n, s):
    if quantity == "value":
        return gamma(x, n, s)
    arguments = {"x": x.clone(), "n": n.clone(), "s": s.clone()}
    arguments[quantity].requires_grad_()
    return torch.autograd.grad(gamma(**arguments).sum(), arguments[quantity])[0]


def assert_agrees(name, found, points, references, rounds=True):
    """rounds: whether `found` was computed in its own type, with an n x that is rounded."""
    largest = torch.finfo(found.dtype).max
    wrong = []
    for x, n, s, value, both in zip(
        *(tensor.tolist() for tensor in (*points, found)), references, strict=True
    ):
        true, allowed, rounding = both[name]
        if abs(true) > largest:
            fine = math.isinf(value) and value * mpmath.sign(true) > 0
        else:
            fine = math.isfinite(value) and abs(value - true) <= allowed + rounds * rounding
        if not fine:
            wrong.append(f"x={x} n={n} s={s}: {value}, true {mpmath.nstr(true, 17)}")
    assert not wrong, f"{len(wrong)} of {len(references)}, first: {wrong[:3]}"


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, dtype) for kind in ("ordinary", "extreme", "random") for dtype in DTYPES]
    + [("whole", torch.float32)],
)
@pytest.mark.parametrize("quantity", [*QUANTITIES, "prime"])
def test_agrees_with_mpmath(quantity, kind, dtype):
    points, references = points_and_references(kind, dtype)
    found = gamma_prime(*points) if quantity == "prime" else evaluate(quantity, *points)
    assert found.dtype == dtype
    name = "x" if quantity == "prime" else quantity
    assert_agrees(name, found, points, references, rounds=dtype == torch.float64)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_agrees_with_mpmath_where_denormal_numbers_are_flushed(quantity):
    """A denormal x is 0 then, and a denormal n the smallest of its sign; no value is NaN."""
    points, references = points_and_references("whole", torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormal numbers")
    try:
        found = evaluate(quantity, *points)
    finally:
        torch.set_flush_denormal(False)
    assert not found.isnan().any()
    x, n, _ = points
    normal = ((x.abs() >= tiny) & (n.abs() >= tiny)).nonzero().flatten()
    assert len(normal) < len(x)
    kept = [references[i] for i in normal]
    assert_agrees(quantity, found[normal], [p[normal] for p in points], kept, rounds=False)


@pytest.mark.parametrize("flush", [False, True])
def test_a_gain_of_zero_is_finite_nowhere_but_at_s_1(flush):
    """What training sees of an n that was driven to 0: infinity, so that it stops."""
    n, s = torch.tensor([0.0, -0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1e4, 1.0])
    torch.set_flush_denormal(flush)
    inputs = with_gradients(torch.full((4,), 2.0), n, s)
    value = gamma(*inputs)
    gradients = torch.autograd.grad(value.sum(), inputs)
    torch.set_flush_denormal(False)
    assert value.tolist() == [math.inf, -math.inf, -math.inf, 0.5]
    assert gradients[1].isinf().tolist() == [True, True, True, False]


@pytest.mark.parametrize("name", "xns")
def test_forward_mode_is_reverse_mode_at_any_x_and_n(name):
    (x, n, s), _ = points_and_references("whole", torch.float32)
    arguments = {"x": x, "n": n, "s": s}
    with torch.autograd.forward_ad.dual_level():
        arguments[name] = torch.autograd.forward_ad.make_dual(arguments[name], torch.ones_like(x))
        found = torch.autograd.forward_ad.unpack_dual(gamma(**arguments)).tangent
    assert torch.equal(found, evaluate(name, x, n, s))


@every_dtype
@pytest.mark.parametrize("kind", ["ordinary", "random", "wide"])
@pytest.mark.parametrize("in_place", [False, True])
def test_gamma_into_agrees_with_mpmath(kind, dtype, in_place):
    points, references = points_and_references(kind, dtype)
    x, n, s = (p.clone() for p in points)
    out = x if in_place else torch.full_like(x, math.nan)
    gamma_into(x, n, s, out, torch.full((2, len(x)), math.nan, dtype=dtype))
    assert_agrees("value", out, points, references)


@every_dtype
@pytest.mark.parametrize("kind", ["ordinary", "random", "wide"])
def test_gamma_derivatives_into_agrees_with_mpmath(kind, dtype):
    points, references = points_and_references(kind, dtype)
    dx, dn, ds, *work = torch.full((5, len(points[0])), math.nan, dtype=dtype)
    gamma_derivatives_into(*points, dx, dn, ds, work)
    for name, derivative in zip("xns", (dx, dn, ds), strict=True):
        assert_agrees(name, derivative, points, references)


@every_dtype
@pytest.mark.parametrize("kind", ["ordinary", "random", "wide"])
@pytest.mark.parametrize("count", [3, 0])
def test_gamma_terms_into_agrees_with_mpmath(kind, dtype, count):
    points, references = points_and_references(kind, dtype)
    dx, first, second, *terms = torch.full((6, len(points[0])), math.nan, dtype=dtype)
    gamma_terms_into(*points, dx, terms[:count], (first, second))
    assert_agrees("x", dx, points, references)
    if count:
        for name, derivative in zip("ns", combine_terms(*points[1:], terms), strict=True):
            assert_agrees(name, derivative, points, references)


def test_terms_may_be_summed_before_they_are_combined():
    x, n, s = sample(sign=0.0)
    dx, first, second, *terms = torch.full((6, *x.shape), math.nan, dtype=x.dtype)
    gamma_terms_into(x, n, s, dx, terms, (first, second))
    found = combine_terms(n, s, [term.sum(0) for term in terms])
    expected = list(formulas(x, n, s).values())[1:]
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, right.sum(0))


@pytest.mark.parametrize(
    "x, n, s, expected",
    [
        (0.0, 2.0, 0.0, math.log(2) / 2),
        (0.0, -2.0, 0.0, -math.log(2) / 2),
        (0.0, 4.0, 1.0, 0.5),
        (math.log(3), 1.0, 0.5, (math.log(4) + 0.75) / 2),
        (math.log(3), -1.0, 0.5, (-math.log(4 / 3) + 0.25) / 2),
    ],
)
def test_by_hand(x, n, s, expected):
    assert gamma(torch.tensor(x, dtype=torch.float64), n, s).item() == pytest.approx(expected)


def sample(seed=0, features=3, sign=1.0, dtype=torch.float64):
    """x (5, features) with a row of zeros, n of one sign or (sign 0) of both, and s."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(5, features, generator=generator, dtype=dtype)
    x[2] = 0
    n = 0.3 + 3 * torch.rand(features, generator=generator, dtype=dtype)
    signs = torch.tensor([1.0, -1.0], dtype=dtype).repeat(features)[:features]
    s = torch.randn(features, generator=generator, dtype=dtype)
    return x, n * (sign or signs), s


def with_gradients(*tensors):
    return tuple(tensor.clone().requires_grad_() for tensor in tensors)


def formulas(x, n, s):
    """The three derivatives as section 2 of the design writes them."""
    sigma = 1 / (1 + torch.exp(-n * x))
    p = torch.log(1 + torch.exp(n * x)) / n
    return {
        "x": (1 - s) * sigma + s * n * sigma * (1 - sigma),
        "n": (1 - s) / n * (x * sigma - p) + s * x * sigma * (1 - sigma),
        "s": sigma - p,
    }


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_gradient_equals_formula(sign):
    x, n, s = sample(sign=sign)
    inputs = with_gradients(x, n, s)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).double()
    found = torch.autograd.grad((weight * gamma(*inputs)).sum(), inputs)
    expected = formulas(x, n, s)
    torch.testing.assert_close(found[0], weight * expected["x"])
    torch.testing.assert_close(found[1], (weight * expected["n"]).sum(0))
    torch.testing.assert_close(found[2], (weight * expected["s"]).sum(0))
    torch.testing.assert_close(gamma_prime(x, n, s), expected["x"])


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_gradcheck(sign):
    inputs = with_gradients(*sample(sign=sign))
    assert torch.autograd.gradcheck(gamma, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(gamma, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradcheck_of_gamma_prime(sign):
    assert torch.autograd.gradcheck(
        gamma_prime, with_gradients(*sample(sign=sign)), check_forward_ad=True
    )


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_gradient_of_some_arguments(wanted):
    points = sample(sign=0.0)
    everything = with_gradients(*points)
    expected = torch.autograd.grad(gamma(*everything).sum(), everything)
    some = tuple(p.clone().requires_grad_(i in wanted) for i, p in enumerate(points))
    gamma(*some).sum().backward()
    for i, argument in enumerate(some):
        if i in wanted:
            torch.testing.assert_close(argument.grad, expected[i])
        else:
            assert argument.grad is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [5.0, -5.0])
def test_second_derivatives_are_finite_where_n_x_is_large(n, dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([-largest, -1e4, -100.0, 0.0, 100.0, 1e4, largest], dtype=dtype)
    inputs = with_gradients(x, torch.tensor(n, dtype=dtype), torch.tensor(0.5, dtype=dtype))
    first = torch.autograd.grad(gamma(*inputs).sum(), inputs, create_graph=True)
    for derivative in first[:2]:
        for second in torch.autograd.grad(derivative.sum(), inputs, retain_graph=True):
            assert second.isfinite().all()


@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("mode", ["torch.func", "forward_ad"])
def test_forward_mode(mode, argument):
    points = sample(sign=0.0)
    tangent = torch.randn(
        points[argument].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    expected = formulas(*points)["xns"[argument]] * tangent
    if mode == "torch.func":

        def along(value):
            return gamma(*points[:argument], value, *points[argument + 1 :])

        primal, found = jvp(along, (points[argument],), (tangent,))
    else:
        with torch.autograd.forward_ad.dual_level():
            arguments = list(points)
            arguments[argument] = torch.autograd.forward_ad.make_dual(points[argument], tangent)
            primal, found = torch.autograd.forward_ad.unpack_dual(gamma(*arguments))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(primal, gamma(*points))


def test_jvp_in_all_arguments_is_the_sum():
    points = sample(sign=-1.0)
    tangents = tuple(torch.full_like(p, 1.0 + i) for i, p in enumerate(points))
    expected = formulas(*points)
    _, found = jvp(gamma, points, tangents)
    torch.testing.assert_close(found, expected["x"] + 2 * expected["n"] + 3 * expected["s"])


@pytest.mark.parametrize("in_dims", [(0, None, None), (1, 0, 0), (None, 0, 0), (1, None, 0)])
def test_vmap(in_dims):
    points = sample(sign=0.0, features=4)
    if in_dims == (1, None, 0):
        points = (points[0], torch.tensor(-1.5, dtype=torch.float64), points[2])
    size = next(p.shape[d] for p, d in zip(points, in_dims, strict=True) if d is not None)
    rows = [
        gamma(*(p if d is None else p.select(d, i) for p, d in zip(points, in_dims, strict=True)))
        for i in range(size)
    ]
    torch.testing.assert_close(vmap(gamma, in_dims)(*points), torch.stack(rows))


def test_vmap_of_grad():
    x, n, s = sample(sign=0.0)
    x, n, s = x.flatten(), n.repeat(5), s.repeat(5)
    found = vmap(grad(gamma, argnums=(0, 1, 2)))(x, n, s)
    for derivative, expected in zip(found, formulas(x, n, s).values(), strict=True):
        torch.testing.assert_close(derivative, expected)


@pytest.mark.parametrize("jacobian", [jacfwd, jacrev])
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_jacobian(jacobian, argument):
    x, n, s = sample(sign=0.0)
    x = x[1]
    expected = torch.diag(formulas(x, n, s)["xns"[argument]])
    torch.testing.assert_close(jacobian(gamma, argnums=argument)(x, n, s), expected)


def test_hessian():
    x, n, s = sample(sign=0.0)
    sigma = torch.sigmoid(n * x[0])
    slope = sigma * (1 - sigma)
    expected = (1 - s) * n * slope + s * n**2 * slope * (1 - 2 * sigma)
    found = hessian(lambda row: gamma(row, n, s).sum())(x[0])
    torch.testing.assert_close(found, torch.diag(expected))


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 1), (5, 3), ()])
def test_broadcasting(shape):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 3, generator=generator)
    n = 1 + torch.rand(shape, generator=generator)
    s = torch.rand(shape, generator=generator)
    found_inputs, full_inputs = with_gradients(x, n, s), with_gradients(x, *2 * [x])
    with torch.no_grad():
        full_inputs[1].copy_(n.expand(5, 3))
        full_inputs[2].copy_(s.expand(5, 3))
    found, full = gamma(*found_inputs), gamma(*full_inputs)
    assert torch.equal(found, full)
    found.sum().backward()
    full.sum().backward()
    torch.testing.assert_close(found_inputs[0].grad, full_inputs[0].grad)
    for argument in (1, 2):
        expected = full_inputs[argument].grad.sum_to_size(shape)
        torch.testing.assert_close(found_inputs[argument].grad, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_in_place_of_tensors(dtype):
    x = torch.linspace(-3, 3, 7, dtype=dtype).requires_grad_()
    tensors = torch.tensor([-2.0], dtype=dtype), torch.tensor([0.25], dtype=dtype)
    assert torch.equal(gamma(x, -2, 0.25), gamma(x, *tensors))
    assert torch.equal(gamma_prime(x, -2, 0.25), gamma_prime(x, *tensors))
    assert gamma(x, -2, 0.25).dtype == dtype
    found = torch.autograd.grad(gamma(x, -2, 0.25).sum(), x)[0]
    assert torch.equal(found, gamma_prime(x, -2, 0.25))


@pytest.mark.parametrize("features", [1, 3])
def test_broadcasting_of_the_versions_into_tensors(features):
    x, n, s = sample(sign=0.0)
    n, s = n[:features], s[:features]
    out, dx, dn, ds, *work = torch.full((6, *x.shape), math.nan, dtype=x.dtype)
    gamma_into(x, n, s, out, work)
    gamma_derivatives_into(x, n, s, dx, dn, ds, work)
    torch.testing.assert_close(out, gamma(x, n, s))
    for found, expected in zip((dx, dn, ds), formulas(x, n, s).values(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 4, 3)])
def test_any_shape_of_x(shape):
    x = torch.ones(shape)
    assert gamma(x, 1.0, 1.0).shape == shape
    assert torch.equal(gamma(x, 1.0, 1.0), torch.sigmoid(x))


def test_the_smaller_x_broadcasts_too():
    n = torch.tensor([[1.0], [-2.0]])
    expected = torch.stack([gamma(torch.ones(3), 1.0, 0.5), gamma(torch.ones(3), -2.0, 0.5)])
    assert torch.equal(gamma(torch.ones(3), n, 0.5), expected)


def test_strides_do_not_matter():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(4)).t()
    assert torch.equal(gamma(x, 2.0, 0.5), gamma(x.contiguous(), 2.0, 0.5))


def test_arguments_stay_as_they_were():
    points = sample(sign=0.0)
    copies = tuple(p.clone() for p in points)
    gamma(*points)
    gamma_prime(*points)
    assert all(torch.equal(p, copy) for p, copy in zip(points, copies, strict=True))


@pytest.mark.parametrize("function", [gamma, gamma_prime])
@pytest.mark.parametrize("n", [0, 0.0, -0.0, math.inf, -math.inf, math.nan])
def test_refuses_gain_without_value(function, n):
    with pytest.raises(ValueError, match=f"gain n is {n}"):
        function(torch.ones(3), n, 0.5)


@pytest.mark.parametrize("n", [0, 0.0, math.inf, math.nan])
@pytest.mark.parametrize("learnable", [True, False])
def test_module_refuses_gain_without_value(n, learnable):
    with pytest.raises(ValueError, match=f"gain n is {n}"):
        Gamma(n=n, learnable=learnable)


@pytest.mark.parametrize("num_parameters", [0, -3])
def test_module_refuses_size(num_parameters):
    with pytest.raises(ValueError, match=str(num_parameters)):
        Gamma(num_parameters)


@pytest.mark.parametrize("n", [0.5, 5.0, 300.0])
def test_limit_softplus_and_relu(n):
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    found = gamma(x, n, 0.0)
    softplus = torch.logaddexp(n * x, torch.zeros_like(x)) / n
    torch.testing.assert_close(found, softplus, rtol=1e-12, atol=0)
    distance = found - torch.relu(x)
    assert (distance >= 0).all()
    assert distance.max().item() == pytest.approx(math.log(2) / n)  # reached at x = 0


@pytest.mark.parametrize("n", [1.0, 30.0, 1000.0])
def test_limit_sigmoid_and_step(n):
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    found = gamma(x, n, 1.0)
    torch.testing.assert_close(found, 1 / (1 + torch.exp(-n * x)), rtol=1e-12, atol=0)
    distance = (found - torch.heaviside(x, torch.tensor(0.5).double())).abs()
    assert (distance <= torch.exp(-n * x.abs()) * (1 + 1e-12) + 1e-15).all()


def test_negative_gain_mirrors():
    """γ(x; −n, 0) = −γ(−x; n, 0), which tends to min(x, 0), and γ(x; −n, 1) = γ(−x; n, 1)."""
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    assert torch.equal(gamma(x, -3.0, 0.0), -gamma(-x, 3.0, 0.0))
    assert torch.equal(gamma(x, -3.0, 1.0), gamma(-x, 3.0, 1.0))
    torch.testing.assert_close(gamma(x, -1e6, 0.0), x.clamp(max=0), rtol=0, atol=1e-6)


def test_s_mixes_linearly():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    ends = gamma(x, 2.0, 0.0), gamma(x, 2.0, 1.0)
    for s in (-1.0, 0.25, 3.0):
        torch.testing.assert_close(gamma(x, 2.0, s), (1 - s) * ends[0] + s * ends[1])


@pytest.mark.parametrize("num_parameters", [1, 4])
@pytest.mark.parametrize("learnable", [True, False])
def test_module(num_parameters, learnable):
    module = Gamma(num_parameters, n=-2.0, s=0.25, learnable=learnable)
    state = module.state_dict()
    assert set(state) == {"n", "s"}
    assert torch.equal(state["n"], torch.full((num_parameters,), -2.0))
    assert torch.equal(state["s"], torch.full((num_parameters,), 0.25))
    assert {name for name, _ in module.named_parameters()} == ({"n", "s"} if learnable else set())
    assert {name for name, _ in module.named_buffers()} == (set() if learnable else {"n", "s"})
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), gamma(x, -2.0, 0.25))
    assert module(x).requires_grad == learnable


def test_module_defaults():
    module = Gamma()
    assert (module.n.tolist(), module.s.tolist()) == ([5.0], [0.0])
    assert all(parameter.requires_grad for parameter in (module.n, module.s))


def test_module_features_are_on_the_last_axis():
    module = Gamma(2).requires_grad_(False)
    module.n.copy_(torch.tensor([1.0, -3.0]))
    module.s.copy_(torch.tensor([0.0, 1.0]))
    x = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
    columns = gamma(x[..., 0], 1.0, 0.0), gamma(x[..., 1], -3.0, 1.0)
    assert torch.equal(module(x), torch.stack(columns, dim=-1))


def test_module_dtype():
    module = Gamma(3, dtype=torch.float64, device="cpu")
    assert module.n.dtype == module.s.dtype == torch.float64
    assert module(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("learnable", [True, False])
def test_module_state_moves_to_another(learnable):
    source = Gamma(3, n=2.0, s=0.7, learnable=True)
    target = Gamma(3, learnable=learnable)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.n, source.n)
    assert torch.equal(target.s, source.s)


@pytest.mark.parametrize("num_parameters", [1, 3])
def test_module_learns_the_activation_it_is_shown(num_parameters):
    x = torch.linspace(-3, 3, 61, dtype=torch.float64).unsqueeze(1).expand(61, 3)
    wanted_n = torch.tensor([1.0, 2.0, 3.0][:num_parameters], dtype=torch.float64)
    wanted_s = torch.tensor([0.2, 0.5, 0.8][:num_parameters], dtype=torch.float64)
    module = Gamma(num_parameters, n=1.5, s=0.4, dtype=torch.float64)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        (module(x) - gamma(x, wanted_n, wanted_s)).square().mean().backward()
        optimiser.step()
    torch.testing.assert_close(module.n.detach(), wanted_n, rtol=0, atol=0.02)
    torch.testing.assert_close(module.s.detach(), wanted_s, rtol=0, atol=0.02)


def test_module_under_functional_call():
    x, n, s = sample(sign=0.0)
    found = functional_call(Gamma(3, dtype=torch.float64), {"n": n, "s": s}, (x,))
    assert torch.equal(found, gamma(x, n, s))


def run_script(script, folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env=environment | {"PYTHONIOENCODING": "utf-8", "MPLBACKEND": "Agg"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def test_script_draws_from_another_directory(tmp_path):
    pytest.importorskip("matplotlib")
    result = run_script(SCRIPT, tmp_path, "--draw", "family.png")
    assert result.returncode == 0, result.stderr
    assert "family.png" in result.stdout
    assert (tmp_path / "family.png").read_bytes().startswith(b"\x89PNG")


def test_copy_of_the_file_runs_alone(tmp_path):
    copy = shutil.copy(SCRIPT, tmp_path / "copied.py")
    result = run_script(copy, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "gradients" in result.stdout
    assert [path.name for path in tmp_path.glob("*.png")] == []


def test_file_imports_torch_alone():
    imported = set()
    for statement in ast.parse(SCRIPT.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            imported.add(statement.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch"}


def test_finite_where_only_the_softplus_part_overflows():
    x = torch.tensor([3e38, 3.4e38])
    tiny = 1.2e-38
    assert torch.allclose(gamma(x, tiny, 1.0), torch.sigmoid(tiny * x))
    assert gamma(x, tiny, 0.5).isfinite().all()


@pytest.mark.parametrize("n", [1e-50, 1e300, -1e300])
def test_a_gain_that_its_type_cannot_hold_is_refused(n):
    with pytest.raises(ValueError, match=re.escape(str(n))):
        gamma(torch.ones(2), n, 0.0)
    with pytest.raises(ValueError, match=re.escape(str(n))):
        Gamma(n=n)
    assert gamma(torch.ones(2, dtype=torch.float64), n, 1.0).isfinite().all()


def test_module_refuses_another_number_of_features():
    with pytest.raises(ValueError, match=r"\(2, 1\).*3"):
        Gamma(3)(torch.ones(2, 1))
