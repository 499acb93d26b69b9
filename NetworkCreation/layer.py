"""Base class of the recurrent layers: how a layer is called, and what their constructors share.

Letters: T time, B batch, I input, H main units.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from NetworkCreation import gamma_function, initialization
from NetworkCreation.time_loop import Embedded


class OptionError(ValueError):
    """A constructor argument has a value that is not allowed; `name` is that of the argument."""

    def __init__(self, name, message):
        super().__init__(message)
        self.name = name


def choose(name, value, choices):
    """choices[value]. Raises OptionError, with the allowed values, if there is no such key."""
    if value not in choices:
        raise OptionError(name, f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return choices[value]


def check_sizes(**sizes):
    """Raises OptionError for the first size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise OptionError(name, f"{name} must be at least 1, got {value}")


def modrelu(a, bias, out=None):
    """sign(a) · max(|a| + bias, 0) of a real a. Source: Arjovsky et al., arXiv 1511.06464."""
    return torch.mul(a.sign(), a.abs().add_(bias).relu_(), out=out)


class Activation(NamedTuple):
    """φ(a), for a step of a layer and for its fast loop.

    function(a, *parameters) is differentiable. The other functions serve the loop, where autograd
    is off: value(a, *parameters, out) writes φ(a) into `out`; slope(z, *parameters) returns φ'(a),
    a new tensor, with z = a if `from_a`, else z = φ(a). terms(z, *parameters) returns the slope and
    the terms of the derivatives by the parameters; combine(*parameters, terms) computes these
    derivatives from the terms, or from sums of them.
    """

    function: Callable
    value: Callable
    slope: Callable
    terms: Callable | None = None
    combine: Callable | None = None
    parameters: tuple[str, ...] = ()
    from_a: bool = False


GAMMA = Activation(
    gamma_function.gamma,
    gamma_function.value,
    gamma_function.slope,
    gamma_function.terms,
    gamma_function.combine,
    parameters=("n", "s"),
    from_a=True,
)


def _relu(a, out=None):
    return torch.threshold(a, 0, 0, out=out)


def _modrelu_terms(h, b):
    sign = h.sign()  # of a, and 0 below the threshold
    return sign.abs(), (sign,)


def _identity(a, out=None):
    return a if out is None else out.copy_(a)


NONLINEARITIES = {
    "gamma": GAMMA,
    "gamma2": GAMMA,
    "ReLU": Activation(_relu, _relu, torch.sign),
    "tanh": Activation(torch.tanh, torch.tanh, lambda h: 1 - h * h),
    "sigmoid": Activation(torch.sigmoid, torch.sigmoid, lambda h: h * (1 - h)),
    "modrelu": Activation(
        modrelu,
        modrelu,
        lambda h, b: h.sign().abs(),
        _modrelu_terms,
        lambda b, terms: terms,
        parameters=("b",),
    ),
    "none": Activation(_identity, _identity, torch.ones_like),
}


def empty_linear(inputs, outputs, bias=True, device=None, dtype=None):
    """`torch.nn.Linear` without initial values, as `torch.nn.utils.skip_init` makes it."""
    linear = nn.Linear(inputs, outputs, bias, device="meta", dtype=dtype)
    device = torch.device("cpu" if device is None else device)
    return linear if device.type == "meta" else linear.to_empty(device=device)


def linear_map(
    inputs, outputs, initialise, bias=True, *, generator=None, device=None, dtype=None, **options
):
    """A linear map: weight (outputs, inputs) by `initialise`, bias U(±1/√inputs) as in torch."""
    linear = empty_linear(inputs, outputs, bias, device, dtype)
    initialise(linear.weight, generator, **options)
    if bias:
        initialization.uniform(linear.bias, generator, bound=inputs**-0.5)
    return linear


def modrelu_bias(units, generator=None, device=None, dtype=None):
    """The bias of the modReLU, a parameter (units,), U(−0.01, 0.01) at the start."""
    bias = torch.empty(units, device=device, dtype=dtype)
    return nn.Parameter(initialization.uniform(bias, generator, bound=0.01))


def random_angles(count, generator=None, device=None, dtype=None):
    """A parameter (count,), U(0, 2π) at the start."""
    angles = torch.empty(count, device=device, dtype=dtype)
    return nn.Parameter(initialization.uniform(angles, generator, bound=math.pi).add_(math.pi))


def column(drive):
    """A drive (), (B,) or (T, B) with an axis for the units; 0 for no drive."""
    return 0.0 if drive is None else drive.unsqueeze(-1)


class RecurrentLayer(nn.Module):
    """Base class of the recurrent layers: calling, tracing, and checks of the input.

    A layer is called as `torch.nn.RNN` is,

        outputs, state = layer(x, state=None, drive=None)

    with x (T, B, I), outputs (T, B, H), and drive (T,), (T, B) or None: a current that is added
    to the pre-activation of every unit. x may be a `time_loop.Embedded`. A state is one tensor or
    a tuple of tensors, the hidden state h (B, H) first.

    A network defines `state_shapes`, `step`, `quantities` and `_run`. `like` in its constructor
    stands for the keywords generator (of the initial values; None: torch's own), device and dtype.
    Raises OptionError for a size below 1.
    """

    def __init__(self, input_size, hidden_size):
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size

    def state_shapes(self, batch):
        """The shapes of the state's tensors for this batch size."""
        raise NotImplementedError

    def step(self, x_t, state, drive_t=None):
        """The state after one step: x_t (B, I), drive_t (), (B,) or None."""
        raise NotImplementedError

    def quantities(self, x_t, before, after, drive_t=None):
        """The quantities of one step that analyses need, by name."""
        raise NotImplementedError

    def _run(self, x, state, drive):
        """The fast path: `forward` after the checks."""
        raise NotImplementedError

    def parameters_apart(self):
        """The parameters that an optimiser treats differently, {name of the group: list}."""
        return {}

    def initial_state(self, batch):
        """The state before the first step: zeros, of the dtype and on the device of the layer."""
        like = next(self.parameters())
        return _joined([like.new_zeros(shape) for shape in self.state_shapes(batch)])

    def forward(self, x, state=None, drive=None):
        """The outputs of all steps and the state after the last.

        x: (T, B, I), or `Embedded`. state: as the layer returns it, or None for zeros. drive:
        (T,), (T, B) or None. Returns outputs (T, B, H) and the state. Raises ValueError for
        another shape.
        Differentiable once, in reverse mode; use `loop` for second derivatives, forward mode and
        torch.func.
        """
        return self._run(x, *self._check(x, state, drive))

    def loop(self, x, state=None, drive=None):
        """As `forward`, but step by step: the definition, and slower."""
        outputs, state, _ = self.trace(x, state, drive, keep=())
        return outputs, state

    def trace(self, x, state=None, drive=None, keep=None):
        """As `loop`, with the quantities of every step: outputs, state, {name: (T, B, ...)}.

        keep: the names to return (None: all of `quantities`; ANRU's g is M times as large as the
        others). Raises ValueError for a name that the layer does not have.
        """
        state, drive = self._check(x, state, drive)
        x = x.dense() if isinstance(x, Embedded) else x
        outputs, kept = [], {}
        with parametrize.cached():  # a parametrized matrix is computed once
            for t, x_t in enumerate(x):
                drive_t = None if drive is None else drive[t]
                before, state = state, self.step(x_t, state, drive_t)
                outputs.append(hidden(state))
                if keep is None or keep:
                    found = self.quantities(x_t, before, state, drive_t)
                    for name in found if keep is None else keep:
                        kept.setdefault(name, []).append(choose("keep", name, found))
        return torch.stack(outputs), state, {k: torch.stack(v) for k, v in kept.items()}

    def _check(self, x, state, drive):
        """The initial state, and the drive converted to x's dtype; checks all shapes."""
        if len(x.shape) != 3 or x.shape[0] < 1 or x.shape[2] != self.input_size:
            raise ValueError(
                f"the input must be (T, B, {self.input_size}) with T ≥ 1, got {tuple(x.shape)}"
            )
        steps, batch = x.shape[:2]
        state = parts(self.initial_state(batch) if state is None else state)
        expected, shapes = self.state_shapes(batch), [tuple(part.shape) for part in state]
        if shapes != expected:
            raise ValueError(f"the state must have the shapes {expected}, got {shapes}")
        if drive is not None:
            if tuple(drive.shape) not in ((steps,), (steps, batch)):
                raise ValueError(
                    f"the drive must be ({steps},) or {(steps, batch)}, got {tuple(drive.shape)}"
                )
            drive = drive.to(x.table if isinstance(x, Embedded) else x)
        return _joined(state), drive


def parts(state):
    """The tensors of a state."""
    return tuple(state) if isinstance(state, (tuple, list)) else (state,)


def _joined(state):
    """The state of these tensors."""
    return tuple(state) if len(state) > 1 else state[0]


def hidden(state):
    """The hidden state h (B, H) of a layer's state: the output of the last step."""
    return parts(state)[0]
