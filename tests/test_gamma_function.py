"""γ, its derivatives and the Gamma module, compared with mpmath and with finite differences."""

import math
import re
import runpy
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import mpmath
import pytest
import torch
from mpmath import mpf
from torch.func import functional_call, jacrev, vmap

from NetworkCreation import gamma_function
from NetworkCreation.gamma_function import Gamma, gamma, gamma_prime
from tests.conftest import REPOSITORY, WARNINGS_FAIL
from tests.layers import randn, seeded

SCRIPT = Path(gamma_function.__file__)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def points(dtype):
    """Flat x, n ≠ 0 and s with finite n x: special ones, and random ones of any size."""
    generator = seeded(1)
    lowest, highest = (-44.8, 38.5) if dtype == torch.float32 else (-323, 308.2)

    def spread(low, high, count=250):
        exponent, sign = torch.rand(2, count, generator=generator, dtype=torch.float64)
        return 10 ** (low + (high - low) * exponent) * torch.sign(sign - 0.5)

    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    x = [0, smallest / 1e5, smallest, -1e-4, 0.3, -1, 7, -39, 41, 1e6, -largest / 2, largest]
    n = [-smallest / 3, smallest, 400 * smallest, -1e-4, -0.3, 1, -5, 300, 1e30, -largest]
    s = [0, 1, -2, 100, 1e4]
    special = torch.cartesian_prod(*(torch.tensor(axis, dtype=torch.float64) for axis in (x, n, s)))
    x_of_z = spread(lowest + 9.1, highest)
    x = torch.cat([spread(-2, 2), spread(lowest, highest), x_of_z])
    n = torch.cat([spread(-2, 2), spread(lowest, highest), spread(-4, 2.1) / x_of_z])  # |n x| < 126
    s = torch.tensor([*s, 0.3, 0.5, 0.999, -1e4]).double()
    s = s[torch.randint(len(s), x.shape, generator=generator)]
    x, n, s = torch.cat([special, torch.stack([x, n, s], dim=1)]).to(dtype).unbind(1)
    kept = (n != 0) & (n * x).isfinite()
    return x[kept], n[kept], s[kept]


def reference(x, n, s, smallest):
    """For each quantity f its value, the bound |f| + |x ∂f/∂x| + |n ∂f/∂n| + |s ∂f/∂s|, and
    the error if a factor below the smallest normal number is 0."""
    x, n, s = mpf(x), mpf(n), mpf(s)
    z, r = n * x, 1 - s
    size = min(abs(z), 10**4)
    exponential = mpmath.exp(-size)
    small, rest = exponential / (1 + exponential), mpmath.log1p(exponential)
    sigma = small if z < 0 else 1 - small
    d1, d2 = small * (1 - small), small * (1 - small) * (1 - 2 * sigma)  # σ' and σ''
    p = (max(z, 0) + rest) / n
    entropy = rest + size * small  # n (p − x σ), whose derivative by z is −z σ'
    dx, dn, ds = r * sigma + s * n * d1, -r * entropy / n**2 + s * x * d1, sigma - p
    dxdx_x, dxds = r * z * d1 + s * n * z * d2, n * d1 - sigma
    dndn_n = r * (2 * entropy / n**2 + x**2 * d1) + s * x * z * d2
    table = {
        "value": (r * p + s * sigma, [x * dx, n * dn, s * ds], [r / n, s]),
        "x": (dx, [dxdx_x, dxdx_x + s * n * d1, s * dxds], [r, s, s * n]),
        "n": (
            dn,
            [x * (r * x * d1 + s * d1 + s * z * d2), dndn_n, s * (entropy / n**2 + x * d1)],
            [r / n, r * (1 + abs(z)) / n**2, s, s * x],
        ),
        "s": (ds, [x * dxds, entropy / n + z * d1], [1, 1 / n]),
    }
    return {
        name: (f, abs(f) + sum(map(abs, changes)), smallest * (1 + sum(map(abs, lost))))
        for name, (f, changes, lost) in table.items()
    }


@cache
def points_and_references(dtype):
    tensors = points(dtype)
    smallest = torch.finfo(dtype).smallest_normal
    triples = zip(*(tensor.tolist() for tensor in tensors), strict=True)
    with mpmath.workdps(50):
        return tensors, [(triple, reference(*triple, smallest)) for triple in triples]


def gradients(inputs):
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(gamma(*inputs).sum(), inputs)


@every_dtype
@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("quantity", ["value", "x", "n", "s", "prime"])
@WARNINGS_FAIL
def test_agrees_with_mpmath(quantity, flush, dtype):
    tensors, references = points_and_references(dtype)
    limits = torch.finfo(dtype)
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor does not flush denormal numbers")
    if quantity in ("value", "prime"):
        results = {"value": gamma, "prime": gamma_prime}[quantity](*tensors)
    else:
        results = gradients(tensors)["xns".index(quantity)]
    torch.set_flush_denormal(False)
    assert results.dtype == dtype
    tolerance = 1e-6 * limits.eps / torch.finfo(torch.float32).eps
    wrong = []
    quantity = "x" if quantity == "prime" else quantity
    for (point, row), result in zip(references, results.tolist(), strict=True):
        true, bound, lost = row[quantity]
        if flush:
            lost *= 2
            if any(0 < abs(p) < limits.smallest_normal for p in point):
                continue  # taken as 0
        x, n, _ = point
        if bound > limits.max and (abs(n) < limits.smallest_normal or 2 * abs(x) > limits.max):
            continue  # an intermediate result overflows
        if abs(true) > limits.max:
            fine = math.isinf(result) and result * mpmath.sign(true) > 0
        else:
            fine = math.isfinite(result) and abs(result - true) <= tolerance * bound + lost
        if not fine:
            wrong.append(f"{point}: {result}, true {mpmath.nstr(true, 17)}")
    assert not wrong, f"{len(wrong)} of {len(references)}, first: {wrong[:3]}"


def sample(signs=(1.0, -1.0, 1.0)):
    """x (5, 3) with a row of zeros, n (3,) of these signs, and s (3,); float64."""
    like = {"generator": seeded(0), "dtype": torch.float64}
    x, n, s = 2 * torch.randn(5, 3, **like), 0.3 + 3 * torch.rand(3, **like), torch.randn(3, **like)
    x[2] = 0
    return x, n * torch.tensor(signs).double(), s


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradcheck(sign):
    x, n, s = sample([sign] * 3)
    inputs = tuple(tensor.requires_grad_() for tensor in (x[1:3], n, s))
    assert torch.autograd.gradcheck(gamma, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(gamma, inputs, check_fwd_over_rev=True)
    assert torch.autograd.gradcheck(gamma_prime, inputs, check_forward_ad=True)


@pytest.mark.parametrize("n", [1.7, -1.7])
def test_third_derivatives_are_continuous_at_0(n):
    third = jacrev(jacrev(jacrev(lambda point: gamma(*point))))
    left, at_0, right = (third(torch.tensor([x, n, 0.3]).double()) for x in (-1e-8, 0.0, 1e-8))
    assert at_0[0, 0, 0].item() == pytest.approx(-0.3 * n**3 / 8)  # s n³ σ'''
    torch.testing.assert_close(left, at_0, rtol=0, atol=1e-7)
    torch.testing.assert_close(right, at_0, rtol=0, atol=1e-7)


@pytest.mark.parametrize("batched", ["x", "n", "s", "ns", "xns"])
def test_vmap(batched):
    tensors = torch.broadcast_tensors(*sample())
    axes = tuple(0 if name in batched else None for name in "xns")
    pairs = list(zip(tensors, axes, strict=True))
    rows = [gamma(*(p if axis is None else p[i] for p, axis in pairs)) for i in range(5)]
    assert torch.equal(vmap(gamma, axes)(*tensors), torch.stack(rows))


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 1), (5, 3), (), (2, 5, 3), (0, 5, 3)])
def test_broadcasting(shape):
    x = randn(3, 5, dtype=torch.float32).t()  # not contiguous
    n, s = 1 + torch.rand(2, *shape, generator=seeded(3))
    full = [p.contiguous() for p in torch.broadcast_tensors(x, n, s)]
    assert torch.equal(gamma(x, n, s), gamma(*full))
    for gradient, expected in zip(gradients((x, n, s)), gradients(full), strict=True):
        torch.testing.assert_close(gradient, expected.sum_to_size(gradient.shape))


@every_dtype
def test_numbers_in_place_of_tensors(dtype):
    x = torch.linspace(-3, 3, 7, dtype=dtype).requires_grad_()
    tensors = torch.tensor([-2.0], dtype=dtype), torch.tensor([0.25], dtype=dtype)
    assert torch.equal(gamma(x, -2, 0.25), gamma(x, *tensors))
    assert torch.equal(gamma_prime(x, -2, 0.25), gamma_prime(x, *tensors))
    assert gamma(x, -2, 0.25).dtype == gamma(x, *(p.double() for p in tensors)).dtype == dtype
    gamma(x, -2, 0.25).sum().backward()  # n and s have no gradient
    assert torch.equal(x.grad, gamma_prime(x, -2, 0.25))
    assert gamma(x[0], -2, 0.25).shape == ()


@pytest.mark.parametrize("n", [0, -0.0, math.inf, math.nan, 1e-50, -1e300])
def test_a_gain_that_is_0_or_not_finite_in_its_dtype_is_rejected(n):
    x = torch.ones(3)
    for call in (partial(gamma, x), partial(gamma_prime, x), Gamma):
        with pytest.raises(ValueError, match=re.escape(f"gain n is {n}")):
            call(n=n, s=0.5)
    if n and abs(n) < math.inf:
        assert gamma(x.double(), n, 1.0).isfinite().all()


@pytest.mark.parametrize("num_parameters", [1, 4])
@pytest.mark.parametrize("learnable", [True, False])
def test_module(num_parameters, learnable):
    module = Gamma(num_parameters, n=-2.0, s=0.25, learnable=learnable)
    state = module.state_dict()
    expected = {"n": [-2.0] * num_parameters, "s": [0.25] * num_parameters}
    assert {name: values.tolist() for name, values in state.items()} == expected
    assert {name for name, _ in module.named_parameters()} == ({"n", "s"} if learnable else set())
    x = randn(3, 2, 4, dtype=torch.float32)
    assert torch.equal(module(x), gamma(x, -2.0, 0.25)) and module(x).requires_grad == learnable
    other = Gamma(num_parameters, learnable=not learnable)
    other.load_state_dict(state)
    assert torch.equal(other(x), module(x))
    if num_parameters == 4:  # features are on the last axis
        n, s = randn(2, 4, seed=1, dtype=torch.float32)
        outputs = functional_call(module, {"n": n, "s": s}, (x,))
        columns = [gamma(x[..., i], n[i].item(), s[i].item()) for i in range(4)]
        torch.testing.assert_close(outputs, torch.stack(columns, dim=-1))
        with pytest.raises(ValueError, match=r"4.*\(2, 1\)"):
            module(torch.ones(2, 1))


def test_the_file_needs_only_torch_and_checks_itself(tmp_path, monkeypatch, capsys):
    text = SCRIPT.read_text(encoding="utf-8")
    assert set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.M)) == {"torch"}
    copy = shutil.copy(SCRIPT, tmp_path / "copied.py")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(copy), run_name="__main__")
    assert "gradients: equal to finite differences" in capsys.readouterr().out


def test_importing_makes_softplus_fast():
    """Without the log1p(−0) of the module it takes ten times as long where there is AVX-512."""
    code = """
import timeit, torch
from NetworkCreation import gamma_function
z = torch.linspace(-9, 9, 12800)
def time():
    return min(timeit.repeat(lambda: torch.nn.functional.softplus(z), number=10, repeat=20))
before = time()
torch.full((64,), -0.0).log1p_()
print(before / time())
"""
    assert float(subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY)) < 4
