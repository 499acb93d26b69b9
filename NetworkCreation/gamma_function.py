"""The adaptive activation γ(x; n, s), its derivatives, and a module that learns n and s.

    γ(x; n, s) = (1 − s) · log(1 + e^{n x}) / n  +  s / (1 + e^{−n x})

n is the neuronal gain and s the degree of saturation (Geadah et al., arXiv 2006.12253).
The family contains the softplus (s = 0), ReLU (s = 0, n → ∞), the sigmoid (s = 1, n = 1) and the
Heaviside step (s = 1, n → ∞).

This file depends on torch only and can be copied. Run as a script, it checks its gradients and
prints the distance from these limits:

    python3 NetworkCreation/gamma_function.py

In the kernels z = n x, σ = σ(z) and p = log(1 + e^z)/n, so that γ = (1 − s) p + s σ. They compute
in the dtype of x; n and s broadcast with x.
"""

import torch
from torch import nn
from torch.nn.functional import softplus

SOFTPLUS_IS_LINEAR = 40  # above it, softplus(z) = z to the last bit, in float64 too

# With AVX-512, torch's log1p loads its value at −0 under a mask that is rarely set. Until the page
# of memory with this constant has been touched, softplus takes ten times as long.
torch.log1p(torch.tensor(-0.0, device="cpu"))


def value(x, n, s, out=None):
    """γ = (1 − s) p + s σ, written to `out` if given. Autograd needs `gamma`."""
    z = x * n
    p = softplus(z, 1, SOFTPLUS_IS_LINEAR).div_(n)
    return torch.lerp(p, z.sigmoid_(), s, out=out)


def slope(x, n, s):
    """∂γ/∂x = (1 − s) σ + s n σ (1 − σ)."""
    *_, sigma, dsigma = _sigmoid(x, n)
    return torch.lerp(sigma, dsigma.mul_(n), s)


def terms(x, n, s):
    """∂γ/∂x, and the terms n (x σ − p), x σ (1 − σ) and ∂γ/∂s = σ − p of the other derivatives."""
    positive, minus_abs, small, sigma, dsigma = _sigmoid(x, n)
    rest = (-small).log1p_()  # −log(1 + e^{−|z|})
    entropy = minus_abs.mul_(small).add_(rest)  # n (x σ − p) without cancellation
    ds = rest.sub_(positive).div_(n).add_(sigma)
    return torch.lerp(sigma, dsigma * n, s), (entropy, dsigma * x, ds)


def combine(n, s, terms):
    """∂γ/∂n = (1 − s)/n · (x σ − p) + s x σ (1 − σ) and ∂γ/∂s from `terms`, or sums of them."""
    entropy, xdsigma, ds = terms
    # In this order neither 0 · ∞ nor an overflow arises where the result is finite.
    return torch.addcmul((1 - s) * (entropy / n) / n, xdsigma, s), ds


def derivatives(x, n, s):
    """∂γ/∂x, ∂γ/∂n and ∂γ/∂s."""
    dx, others = terms(x, n, s)
    return dx, *combine(n, s, others)


def _sigmoid(x, n):
    """max(z, 0), −|z|, σ(−|z|), σ and σ (1 − σ), where 1 − σ does not cancel for large z.

    At z = 0 all of them, and their derivatives of any order, are those of the branch z ≤ 0.
    torch.abs has the derivative 0 there, which would make the derivatives of σ wrong.
    """
    z = x * n
    positive = torch.relu(z)
    minus_abs = z.sub_(positive, alpha=2)
    small = torch.sigmoid(minus_abs)
    large = 1 - small
    sigma = torch.lerp(small, large, positive.sign())
    return positive, minus_abs, small, sigma, small * large


class _Gamma(torch.autograd.Function):
    """γ with the derivatives above; those of its parts are wrong at x = 0.

    Differentiable any number of times in reverse mode, once in forward mode, and under vmap. (For
    forward over forward mode torch gives 0.)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, n, s):
        return value(x, n, s)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad
        slopes = derivatives(*inputs) if any(needed[1:]) else (slope(*inputs), None, None)
        return tuple(grad * d if need else None for d, need in zip(slopes, needed, strict=True))

    @staticmethod
    def jvp(ctx, *tangents):
        pairs = zip(derivatives(*ctx.saved_tensors), tangents, strict=True)
        return sum(tangent * d for d, tangent in pairs if tangent is not None)


def _operands(x, n, s):
    """x, n and s of one shape and dtype, after the check of a gain that is a number."""
    if not isinstance(n, torch.Tensor):
        check_gain(n, x.dtype)
    n, s = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (n, s))
    return torch.broadcast_tensors(x, n, s)


def check_gain(n, dtype=None):
    """Raises ValueError if the gain n is 0 or not finite in this dtype (None: the default)."""
    converted = torch.as_tensor(n, dtype=dtype or torch.get_default_dtype(), device="cpu")
    if not (converted.isfinite() and converted != 0):
        raise ValueError(f"the gain n is {n}: it must be finite and not 0")


def gamma(x, n, s):
    """γ(x; n, s), element by element.

    x: floating-point tensor of any shape. n, s: numbers or tensors that broadcast with x; n ≠ 0,
    of either sign. Returns a tensor of the common shape, with the dtype of x.

    If s and n x are finite, γ and each derivative f are accurate to a few units in the last place
    of |f| + |x ∂f/∂x| + |n ∂f/∂n| + |s ∂f/∂s|, unless this sum overflows. Denormal values may be
    flushed to zero. For normal n and finite 2 x nothing is NaN.
    Raises ValueError if n is a number that is 0 or not finite (a tensor n is not checked).
    """
    return _Gamma.apply(*_operands(x, n, s))


def gamma_prime(x, n, s):
    """∂γ/∂x at (x; n, s); arguments, shapes and errors as for `gamma`."""
    return slope(*_operands(x, n, s))


class Gamma(nn.Module):
    """γ with its own gain n and saturation s; modelled on `torch.nn.PReLU`, but features are last.

    num_parameters: 1 (one n and one s for all features) or the number of features. n, s: initial
    values. learnable: whether n and s are parameters or buffers; both are in the state_dict.
    Input and output: (..., num_parameters), or any shape if num_parameters is 1.
    Raises ValueError for n = 0 or an input with another number of features.
    """

    def __init__(self, num_parameters=1, n=5.0, s=0.0, learnable=True, device=None, dtype=None):
        super().__init__()
        register_gain_and_saturation(self, num_parameters, n, s, learnable, device, dtype)
        self.num_parameters = num_parameters
        self.learnable = learnable

    def forward(self, x):
        if self.num_parameters > 1 and x.shape[-1:] != self.n.shape:
            shape = tuple(x.shape)
            raise ValueError(f"the input must be (..., {self.num_parameters}), got {shape}")
        return gamma(x, self.n, self.s)

    def extra_repr(self):
        return f"num_parameters={self.num_parameters}, learnable={self.learnable}"


def register_gain_and_saturation(module, num_parameters, n, s, learnable, device, dtype):
    """Gives a module `n` and `s`, each (num_parameters,): parameters if learnable, else buffers."""
    check_gain(n, dtype)
    for name, initial in (("n", n), ("s", s)):
        tensor = torch.full((num_parameters,), float(initial), device=device, dtype=dtype)
        if learnable:
            module.register_parameter(name, nn.Parameter(tensor))
        else:
            module.register_buffer(name, tensor)


def main():
    """Compares the gradients with finite differences and prints the distance from the limits."""
    s, x = torch.linspace(-1, 2, 4).double(), torch.linspace(-3, 3, 12).double().view(3, 4)
    for n in (s + 1.5, -s - 1.5):
        inputs = tuple(tensor.clone().requires_grad_() for tensor in (x, n, s))
        torch.autograd.gradcheck(gamma, inputs, check_forward_ad=True)
        torch.autograd.gradgradcheck(gamma, inputs)
    print("gradients: equal to finite differences (first and second order, n of both signs)")
    print("largest distance of γ from its limits, −5 ≤ x ≤ 5:")
    print(f"{'n':>7}  {'|γ(x; n, 0) − ReLU|':>20}  {'|γ(x; n, 1) − step|, |x| ≥ 0.01':>32}")
    x = torch.linspace(-5, 5, 10001, dtype=torch.float64)
    away = x[x.abs() >= 0.01]
    for n in (1, 10, 100, 1000, 10000):
        relu = (gamma(x, n, 0) - torch.relu(x)).abs().max()
        step = (gamma(away, n, 1) - (away > 0).double()).abs().max()
        print(f"{n:7d}  {relu:20.2e}  {step:32.2e}")


if __name__ == "__main__":
    main()
