"""The adaptive activation γ(x; n, s), its derivatives, and a module that learns n and s.

    γ(x; n, s) = (1 − s) · log(1 + e^{n x}) / n  +  s / (1 + e^{−n x})

n is the neuronal gain and s the degree of saturation (Geadah et al., arXiv 2006.12253).
The family holds the softplus (s = 0), ReLU (s = 0, n → ∞), the sigmoid (s = 1, n = 1) and the
Heaviside step (s = 1, n → ∞).

This file needs torch alone and may be copied as it is. Run as a script, it checks its own
gradients, prints how near it comes to its limits, and draws the family:

    python3 NetworkCreation/gamma_function.py
    python3 NetworkCreation/gamma_function.py --draw gamma.png
"""

import argparse

import torch
from torch import nn
from torch.nn.functional import softplus

# From here on softplus(z) is z to the last bit, in float64 too.
SOFTPLUS_IS_LINEAR = 40

# On some processors torch's log1p of a float32 vector, which softplus uses, takes ten times as long
# until the process has taken the atanh of one (seen with torch 2.14 on an AMD EPYC).
torch.atanh(torch.zeros(64))


def _value(x, n, s):
    """γ by  log(1 + e^{n x})/n = max(n x, 0)/n + log(1 + e^{−|n x|})/n.

    max(n x, 0)/n is x or 0 and is taken from x itself, so that neither a large n x overflows nor
    its rounding shows. 1 − s comes before the division, which may overflow where s = 1.
    """
    x = x.double()
    z, sign = n * x, n.sign()
    half_line = sign * (sign * x).relu_()
    rest = z.abs().neg_().exp_().log1p_()
    return (1 - s) * half_line + (1 - s) * rest / n + s * z.sigmoid_()


def derivative_x(x, n, s):
    """∂γ/∂x = (1 − s) σ + s n σ (1 − σ), with σ = σ(n x)."""
    z = n * x.double()
    sigma, complement = torch.sigmoid(z), torch.sigmoid(-z)  # 1 − σ would cancel for large z
    return (1 - s) * sigma + s * (n * (sigma * complement))


def derivatives(x, n, s):
    """∂γ/∂x as above, ∂γ/∂n = (1 − s)/n · (x σ − p) + s x σ (1 − σ), and ∂γ/∂s = σ − p.

    With z = n x and the entropy H = |z| σ(−|z|) + log(1 + e^{−|z|}), whose terms are of one sign,
    x σ − p = −H/n and σ − p = σ (1 − x) − H/n; x σ and p would cancel.
    """
    x = x.double()
    z = n * x
    size = z.abs().clamp(max=torch.finfo(z.dtype).max)  # ∞ · 0 otherwise, where n x overflows
    sigma, complement = torch.sigmoid(z), torch.sigmoid(-size)
    slope = torch.addcmul(complement, complement, complement, value=-1)  # σ (1 − σ)
    entropy = torch.addcmul(torch.log1p(torch.exp(-size)), size, complement)
    return (
        torch.addcmul((1 - s) * sigma, s, n * slope),
        torch.addcdiv(s * (x * slope), (1 - s) * entropy / n, n, value=-1),
        torch.addcdiv(sigma * (1 - x), entropy, n, value=-1),
    )


class _Gamma(torch.autograd.Function):
    """γ with the derivatives above instead of those of its parts, which are wrong at x = 0.

    Differentiable any number of times in reverse mode, once in forward mode (over reverse mode or
    under it; torch gives 0 for forward over forward), and under torch.func.vmap.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, n, s):
        return _value(x, n, s).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        inputs = ctx.saved_tensors
        if any(ctx.needs_input_grad[1:]):
            found = derivatives(*inputs)
        else:
            found = derivative_x(*inputs), None, None
        return tuple(
            (grad * derivative).to(argument.dtype) if needed else None
            for argument, derivative, needed in zip(
                inputs, found, ctx.needs_input_grad, strict=True
            )
        )

    @staticmethod
    def jvp(ctx, *tangents):
        x = ctx.saved_tensors[0]
        return sum(
            tangent * derivative
            for derivative, tangent in zip(derivatives(*ctx.saved_tensors), tangents, strict=True)
            if tangent is not None
        ).to(x.dtype)


def _operands(x, n, s):
    """x, n, s of one shape, n and s in float64; a zero n that was given as a number is refused.

    So everything is computed in float64: in float32 the rounding of n x alone would change
    e^{−|n x|} by more than 1e-6 of itself, and 1/n², s n and e^{−|n x|} leave its range. A tensor n
    becomes 0 where it is denormal and the processor flushes such numbers: it counts as the smallest
    of its sign, so that 0/0 does not arise.
    """
    if not isinstance(n, torch.Tensor):
        check_gain(n, x.dtype)
    n, s = (torch.as_tensor(value, dtype=x.dtype, device=x.device).double() for value in (n, s))
    smallest = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
    n = n + torch.copysign(smallest * (n == 0).double(), n.detach())
    return torch.broadcast_tensors(x, n, s)


def check_gain(n, dtype=None):
    """Raises ValueError where a gain n given by a person is 0 or not finite, as a dtype has it."""
    value = torch.as_tensor(n, dtype=dtype or torch.get_default_dtype())
    if not (value.isfinite() and value != 0):
        raise ValueError(f"the gain n is {n}: it must be finite and not 0, where γ has no value")


def gamma(x, n, s):
    """γ(x; n, s), element by element.

    x: tensor of any shape, floating point. n, s: numbers or tensors that broadcast with x; n ≠ 0,
    of either sign. Returns a tensor of the common shape.

    For finite arguments, 0 and denormal numbers included, value and derivatives are exact to 1e-6
    of the larger of their two terms (in float64: to a few units in its last place, of an n x that
    is rounded once), and infinite only where they are beyond the type. A tensor n that is 0 counts
    as the smallest number of its sign.
    Raises ValueError for a number n that is 0 or not finite (a tensor n is not looked at).
    """
    return _Gamma.apply(*_operands(x, n, s))


def gamma_prime(x, n, s):
    """∂γ/∂x at (x; n, s); arguments, shapes and errors as for `gamma`."""
    return derivative_x(*_operands(x, n, s)).to(x.dtype)


def gamma_into(x, n, s, out, work, scale=None):
    """γ(x; n, s) into `out`, without allocating more than a row: for a loop over time.

    x, out: of one shape; out may be x itself. n, s: tensors that broadcast with it. work: two
    tensors like out, overwritten. scale: (1 − s)/n, for a caller that has it already. Not
    differentiable. It computes in the type of x: to a few units in the last place of the larger
    term, of an n x that is rounded once, where x, n and n x are from 1e-30 to 1e30 in size or x is
    0. e^{−|n x|} below 1.2e-38 may count as 0, and what overflows on the way is infinite or NaN.
    """
    sigma, p = work
    torch.mul(x, n, out=sigma)
    softplus(sigma, 1, SOFTPLUS_IS_LINEAR, out=p)
    scale = (1 - s) / n if scale is None else scale
    torch.mul(p, scale, out=out).addcmul_(sigma.sigmoid_(), s)


def gamma_terms_into(x, n, s, dx, terms, work):
    """∂γ/∂x into `dx`, and into the three of `terms` what the other derivatives are made of.

    −H, x s n σ (1 − σ) and σ (1 − x), with the entropy H = |z| σ(−|z|) + log(1 + e^{−|z|}) and
    z = n x. They may be summed over all that shares one n and one s before `combine_terms` makes
    the derivatives of them. dx, the terms and the two tensors of `work` are shaped as x; `terms`
    may be empty, and its first the first of `work`. As exact as `gamma_into`.
    """
    exponent, complement = work  # z and then −|z|; σ(−|z|)
    torch.mul(x, n, out=exponent)
    if not terms:
        sigma = torch.sigmoid(exponent, out=complement)
        _times_slope(s * n, torch.sigmoid(_minus_size(exponent), out=exponent), out=dx)
        dx.addcmul_(sigma, 1 - s)
        return
    entropy, of_slope, of_sigma = terms
    sigma = torch.sigmoid(exponent, out=of_sigma)
    torch.sigmoid(_minus_size(exponent), out=complement)
    _times_slope(s * n, complement, out=dx)  # s n σ (1 − σ)
    # log(1 + e^{−|z|}) = −log(1 − σ(−|z|)), with neither a cancellation nor another exponential
    rest = torch.neg(complement, out=of_slope).log1p_()
    torch.addcmul(rest, complement, exponent, out=entropy)
    torch.mul(x, dx, out=of_slope)
    dx.addcmul_(sigma, 1 - s)
    sigma.addcmul_(sigma, x, value=-1)


def combine_terms(n, s, terms):
    """∂γ/∂n and ∂γ/∂s, in this order, from the terms of `gamma_terms_into` or sums of them.

    In place: the terms are overwritten.
    """
    entropy, of_slope, of_sigma = terms
    entropy.div_(n)
    return of_slope.div_(n).addcmul_(entropy, (1 - s) / n), of_sigma.add_(entropy)


def gamma_derivatives_into(x, n, s, dx, dn, ds, work):
    """∂γ/∂x into `dx`, ∂γ/∂n into `dn` and ∂γ/∂s into `ds`; companion of `gamma_into`.

    dx, dn, ds and the two tensors of `work` are shaped as x. The formulas above, with
    x σ − p = −H/n and σ − p = σ (1 − x) − H/n. As exact as `gamma_into`.
    """
    terms = work[0], dn, ds
    gamma_terms_into(x, n, s, dx, terms, work)
    combine_terms(n, s, terms)


def _minus_size(z):
    """−|z|, in place."""
    return z.copysign_(-1.0)


def _times_slope(factor, sigma, out):
    """factor · σ (1 − σ) in one pass; given σ(−|z|) for σ, it has no cancellation."""
    factor = factor.expand_as(sigma)
    return torch.ops.aten.sigmoid_backward.grad_input(factor, sigma, grad_input=out)


class Gamma(nn.Module):
    """γ with a gain n and a saturation s of its own, in the manner of `torch.nn.PReLU`.

    num_parameters: 1 (one n and one s for all features) or the number of features, on the last
    axis of the input. n, s: initial values. learnable: whether n and s are parameters or, fixed,
    buffers; both are in the state_dict. Raises ValueError for n = 0 or num_parameters < 1.

    Input and output: (..., num_parameters), or any shape for num_parameters = 1. Raises ValueError
    for another number of features.
    """

    def __init__(self, num_parameters=1, n=5.0, s=0.0, learnable=True, device=None, dtype=None):
        super().__init__()
        if num_parameters < 1:
            raise ValueError(f"num_parameters is {num_parameters}: it must be at least 1")
        register_gain_and_saturation(self, num_parameters, n, s, learnable, device, dtype)
        self.num_parameters = num_parameters
        self.learnable = learnable

    def forward(self, x):
        if self.num_parameters > 1 and x.shape[-1:] != self.n.shape:
            raise ValueError(
                f"the input has the shape {tuple(x.shape)}: it must be (..., {self.num_parameters})"
            )
        return gamma(x, self.n, self.s)

    def extra_repr(self):
        return f"num_parameters={self.num_parameters}, learnable={self.learnable}"


def register_gain_and_saturation(module, num_parameters, n, s, learnable, device, dtype):
    """Gives a module `n` and `s`, each (num_parameters,): parameters or, fixed, buffers."""
    check_gain(n, dtype)
    for name, value in (("n", n), ("s", s)):
        tensor = torch.full((num_parameters,), float(value), device=device, dtype=dtype)
        if learnable:
            module.register_parameter(name, nn.Parameter(tensor))
        else:
            module.register_buffer(name, tensor)


def check_gradients():
    """Compares first and second derivatives with finite differences; raises where they differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64).mul_(2).requires_grad_()
    for sign in (1.0, -1.0):
        n = sign * (0.2 + 3 * torch.rand(4, generator=generator, dtype=torch.float64))
        s = torch.randn(4, generator=generator, dtype=torch.float64)
        inputs = (x, n.requires_grad_(), s.requires_grad_())
        torch.autograd.gradcheck(gamma, inputs, check_forward_ad=True)
        torch.autograd.gradgradcheck(gamma, inputs)


def limits(gains=(1, 10, 100, 1000, 10000)):
    """The largest distance of γ from its limits on −5 ≤ x ≤ 5, a row a gain.

    Returns a list of (n, max |γ(x; n, 0) − ReLU(x)|, max |γ(x; n, 1) − Heaviside(x)| where
    |x| ≥ 0.01).
    """
    x = torch.linspace(-5, 5, 10001, dtype=torch.float64)
    away = x[x.abs() >= 0.01]
    return [
        (
            n,
            (gamma(x, n, 0.0) - torch.relu(x)).abs().max().item(),
            (gamma(away, n, 1.0) - (away > 0).double()).abs().max().item(),
        )
        for n in gains
    ]


def draw_family(path):
    """Draws γ and ∂γ/∂x for three ways through the family into an image file."""
    import matplotlib.pyplot as plt  # needed here alone, and slow to import

    x = torch.linspace(-4, 4, 801)
    ways = {
        "s = 0, n grows: softplus to ReLU": [(n, 0.0) for n in (0.5, 1, 2, 5, 20)],
        "n = 1, s grows: softplus to sigmoid": [(1.0, s) for s in (0, 0.25, 0.5, 0.75, 1)],
        "s = 1, n grows: sigmoid to step": [(n, 1.0) for n in (0.5, 1, 2, 5, 20)],
    }
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True, layout="constrained")
    for column, (title, pairs) in enumerate(ways.items()):
        for index, (n, s) in enumerate(pairs):
            colour = plt.colormaps["viridis"](index / len(pairs))
            axes[0, column].plot(x, gamma(x, n, s), color=colour, label=f"n = {n}, s = {s}")
            axes[1, column].plot(x, gamma_prime(x, n, s), color=colour)
        axes[0, column].set(title=title, ylabel="γ(x; n, s)")
        axes[1, column].set(xlabel="x", ylabel="∂γ/∂x")
        axes[0, column].legend(fontsize="small")
    figure.savefig(path)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Check and draw the activation γ(x; n, s).")
    parser.add_argument("--draw", metavar="FILE", help="draw the family into an image file")
    args = parser.parse_args(argv)
    check_gradients()
    print("gradients: equal to finite differences (first and second order, n of both signs)")
    x = torch.linspace(-5, 5, 10001, dtype=torch.float64)
    print(f"max |γ(x; 1, 1) − sigmoid|: {(gamma(x, 1, 1) - torch.sigmoid(x)).abs().max():.1e}")
    print(f"{'n':>7}  {'|γ(x; n, 0) − ReLU|':>20}  {'|γ(x; n, 1) − step|, |x| ≥ 0.01':>32}")
    for n, relu, step in limits():
        print(f"{n:7d}  {relu:20.2e}  {step:32.2e}")
    if args.draw:
        draw_family(args.draw)
        print(f"drawn: {args.draw}")


if __name__ == "__main__":
    main()
