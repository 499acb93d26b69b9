"""RNN: an Elman network whose activation may learn.

a_t = U x_t + b_U + V h_{t−1} + b_V + drive_t        (B, H)
h_t = φ(a_t)                                         (B, H)
"""

import torch
from torch import nn

from NetworkCreation import time_loop
from NetworkCreation.errors import OptionError
from NetworkCreation.gamma_function import register_gain_and_saturation
from NetworkCreation.initialization import INPUT, RECURRENT, linear_map, uniform_parameter
from NetworkCreation.layer import NONLINEARITIES, RecurrentLayer, choose, unsqueeze_drive


class ElmanLayer(RecurrentLayer):
    """Base class of RNN, expRNN and nnRNN, which differ in V. State: h (B, H).

    A subclass creates the linear maps U and V, in this order, and then calls `_add_activation`.
    """

    def _add_activation(self, nonlin, n, s, learn_params, generator, **like):
        """Sets φ and adds its parameters: n and s, b, or none. Arguments and errors: see `RNN`."""
        choose("nonlin", nonlin, NONLINEARITIES)
        self.nonlin = nonlin
        if nonlin in ("gamma", "gamma2"):
            units = self.hidden_size if nonlin == "gamma2" else 1
            try:
                register_gain_and_saturation(self, units, n, s, learn_params, **like)
            except ValueError as error:
                raise OptionError("n", str(error)) from None
        if nonlin == "modrelu":
            self.b = uniform_parameter(self.hidden_size, 0.01, generator=generator, **like)

    @property
    def activation(self):
        """φ, an `Activation`, and the list of its parameters."""
        phi = NONLINEARITIES[self.nonlin]
        return phi, [getattr(self, name) for name in phi.parameters]

    def preactivation(self, x, h, drive=None):
        """a = U x + V h + drive, with the biases that U and V have, (..., B, H)."""
        return self.U(x) + self.V(h) + unsqueeze_drive(drive)

    def step(self, x_t, h, drive_t=None):
        a = self.preactivation(x_t, h, drive_t)  # (B, H)
        phi, parameters = self.activation
        return phi.function(a, *parameters)

    def recurrent_matrix(self):
        return self.V.weight.detach()

    def gains(self, x=None):
        """n and s of γ, (1,) or (H,); {} for another φ."""
        return {"n": self.n, "s": self.s} if self.nonlin in ("gamma", "gamma2") else {}

    def parameter_groups(self):
        """'gains': n and s, if they learn."""
        learned = [gain for gain in self.gains().values() if isinstance(gain, nn.Parameter)]
        return {"gains": learned} if learned else {}

    def quantities(self, x_t, before, after, drive_t=None):
        """a and h, and n and s of γ; each (B, H)."""
        gains = {name: gain.expand_as(after) for name, gain in self.gains().items()}
        return {"a": self.preactivation(x_t, before, drive_t), "h": after, **gains}

    def _run(self, x, h, drive):
        biases = [linear.bias for linear in (self.U, self.V) if linear.bias is not None]
        x, U = time_loop.joined_input(x, drive, self.U.weight)
        b = sum(biases) if biases else U.new_zeros(len(U))
        phi, parameters = self.activation
        inputs = (x, h, U, b, self.V.weight, *parameters)
        return _RNN.apply(phi, time_loop.needs_backward(*inputs), *inputs)

    def extra_repr(self):
        return f"nonlin={self.nonlin}"


class RNN(ElmanLayer):
    """The Elman network; state: h (B, H).

    nonlin: φ, a key of `NONLINEARITIES`. `gamma` has one n and s for the layer, `gamma2` one pair
    per unit; n and s are the initial values, of parameters (learn_params) or buffers. `modrelu` has
    one bias b per unit, initially U(−0.01, 0.01).
    rinit, iinit: keys of `initialization.RECURRENT` (for V) and `initialization.INPUT` (for U).
    Biases are initially U(±1/√I) for U and U(±1/√H) for V, as in torch. Raises OptionError for an
    unknown name, a size below 1 or n = 0.
    """

    def __init__(
        self, input_size, hidden_size, nonlin="gamma2", n=5.0, s=0.0, learn_params=True,
        rinit="henaff", iinit="kaiming",
        *, batch_first=False, generator=None, device=None, dtype=None,
    ):  # fmt: skip
        super().__init__(input_size, hidden_size, batch_first)
        like = {"generator": generator, "device": device, "dtype": dtype}
        recurrent = choose("rinit", rinit, RECURRENT)
        entry = choose("iinit", iinit, INPUT)
        self.U = linear_map(input_size, hidden_size, entry, **like)
        self.V = linear_map(hidden_size, hidden_size, recurrent, **like)
        self._add_activation(nonlin, n, s, learn_params, **like)


class _RNN(torch.autograd.Function):
    """All steps of an ElmanLayer: a_t = U x_t + b + V h_{t−1}, h_t = φ(a_t)."""

    @staticmethod
    @torch.no_grad()  # for torch.compile in torch 2.4
    def forward(ctx, phi, learns, x, h, U, b, V, *parameters):
        outputs = h.new_empty(*x.shape[:2], len(V))
        a = torch.empty_like(outputs) if learns and phi.from_a else outputs
        recurrent = V.t().contiguous()  # products with a view are slower
        state = h
        for first, last in time_loop.passes(outputs):
            time_loop.input_product(x[first:last], U, b, out=a[first:last])
            for a_t, h_t in zip(a[first:last].unbind(), outputs[first:last].unbind(), strict=True):
                phi.value(a_t.addmm_(state, recurrent), *parameters, out=h_t)
                state = h_t
        if learns:
            ctx.phi = phi
            ctx.save_for_backward(x, h, U, V, outputs, a, *parameters)
        ctx.set_materialize_grads(False)
        return outputs, state.clone()

    @staticmethod
    @time_loop.differentiable_once
    def backward(ctx, saved, doutputs, dstate):
        x, h, U, V, outputs, a, *parameters = saved  # a is outputs unless φ needs it
        phi, passes = ctx.phi, time_loop.passes(outputs)
        learned = any(ctx.needs_input_grad[7:])
        sums = []
        gradients = time_loop.AffineGradients(x, h, outputs, U, V, ctx.needs_input_grad[2])
        da_t = None
        for first, last in reversed(passes):
            z = a[first:last]
            slope, terms = phi.terms(z, *parameters) if learned else (phi.slope(z, *parameters), ())
            dh = torch.empty_like(z)
            da = torch.empty_like(z) if terms else dh  # terms need dL/dh
            for t in reversed(range(first, last)):
                dh_t = time_loop.hidden_gradient(t, da_t, V, doutputs, dstate, out=dh[t - first])
                da_t = time_loop.flush(torch.mul(slope[t - first], dh_t, out=da[t - first]))
            gradients.add(first, last, da)
            sums = sums or [h.new_zeros(passes[0][1], *h.shape) for _ in terms]
            for total, term in zip(sums, terms, strict=True):
                total[: last - first].addcmul_(dh, term)
        dparameters = [None] * len(parameters)
        if learned:
            sums = [total.sum_to_size(parameters[0].shape) for total in sums]
            dparameters = phi.combine(*parameters, sums)
        dstart = da_t @ V
        affine = gradients.dU, gradients.db, gradients.dW
        return None, None, gradients.dx, dstart, *affine, *dparameters
