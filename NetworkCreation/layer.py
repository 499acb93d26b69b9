"""Base class of the recurrent layers, and what their constructors share.

Letters, in all files: T time, B batch, I input, H main units, M supervisor units.
"""

import functools

import torch
from torch import nn
from torch.nn.utils import parametrize

from NetworkCreation.errors import OptionError
from NetworkCreation.gamma_function import combine, gamma, slope, terms, value
from NetworkCreation.time_loop import Embedded, without_autocast


def choose(name, value, choices):
    """choices[value]. Raises OptionError, with the allowed values, if there is no such key."""
    if value not in choices:
        raise OptionError(name, f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return choices[value]


def check_sizes(**sizes):
    """Raises OptionError for the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise OptionError(name, f"{name} must be at least 1, got {size}")


class Activation:
    """φ(a; parameters), element by element, for a step of a layer and for its fused loop.

    function(a, *parameters): φ, differentiable. Alone it is enough; the others are for speed:
    value(a, *parameters, out): writes φ(a) to `out`, if given, and returns it; `out` may be a.
    slope(z, *parameters): φ′(a).
    terms(z, *parameters): φ′(a), and a tuple of terms of the derivatives by the parameters.
    combine(*parameters, sums): these derivatives from sums of the terms (default: the sums).
    parameters: names of attributes of the layer, tensors of one shape.
    from_a: z is a; False: φ(a), which saves memory and needs `terms` (without parameters: `slope`).
    """

    def __init__(
        self, function, value=None, slope=None, terms=None, combine=None, parameters=(), from_a=True
    ):
        self.function = function
        self.value = value or self._value
        self.slope = slope or (lambda *arguments: self.terms(*arguments)[0])
        self.terms = terms or self._terms
        self.combine = combine or (lambda *arguments: arguments[-1])
        self.parameters = parameters
        self.from_a = from_a

    def _value(self, a, *parameters, out=None):
        h = self.function(a, *parameters)
        return h if out is None else out.copy_(h)

    @torch.enable_grad()
    def _terms(self, a, *parameters):
        inputs = [tensor.expand_as(a).detach().requires_grad_() for tensor in (a, *parameters)]
        h = self.function(*inputs)
        slope, *terms = torch.autograd.grad(h.sum(), inputs, materialize_grads=True)
        return slope, tuple(terms)


def modrelu(a, bias, out=None):
    """a/|a| · max(|a| + bias, 0), and 0 for a = 0. Source: Arjovsky et al., arXiv 1511.06464."""
    return torch.mul(a.sgn(), a.abs().add_(bias).relu_(), out=out)


def _modrelu_terms(h, bias):
    sign = h.sign()  # of a, and 0 below the threshold
    return sign.abs(), (sign,)


_relu = functools.partial(torch.threshold, threshold=0, value=0)
GAMMA = Activation(gamma, value, slope, terms, combine, parameters=("n", "s"))
NONLINEARITIES = {
    "gamma": GAMMA,
    "gamma2": GAMMA,
    "ReLU": Activation(_relu, _relu, torch.sign, from_a=False),
    "tanh": Activation(torch.tanh, torch.tanh, lambda h: 1 - h * h, from_a=False),
    "sigmoid": Activation(torch.sigmoid, torch.sigmoid, lambda h: h * (1 - h), from_a=False),
    "modrelu": Activation(modrelu, modrelu, terms=_modrelu_terms, parameters=("b",), from_a=False),
    "none": Activation(lambda a: a, slope=torch.ones_like, from_a=False),
}


def unsqueeze_drive(drive):
    """A drive (), (B,) or (T, B) with an axis for the units; 0 for no drive."""
    return 0.0 if drive is None else drive.unsqueeze(-1)


class RecurrentLayer(nn.Module):
    """Base class of the recurrent layers, which are called as `torch.nn.RNN` is.

        outputs, state = layer(x, state=None, drive=None)

    x is (T, B, I), or a `time_loop.Embedded`; outputs are (T, B, H). A state is one tensor or a
    tuple of tensors, the hidden state h (B, H) first; None stands for zeros. Unlike torch's, it has
    no axis for stacked layers. drive is (T,), (T, B) or None: a current that is added to the
    pre-activation of every unit. With batch_first=True, T and B are exchanged in x, outputs, drive.

    A layer computes in its own dtype, to which inputs in half precision are converted. Autocast has
    no effect (but on `step` called by itself).

    A network defines `step`; the rest has defaults. The constructors take a generator (of the
    initial values; None: torch's own), device and dtype. Raises OptionError for a size below 1.
    """

    training_flags = ()  # names of flags of the optimiser or the loss that apply to the network

    def __init__(self, input_size, hidden_size, batch_first=False):
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.batch_first = batch_first

    def state_shapes(self, batch):
        """The shapes of the state's tensors, a list; by default the state is h."""
        return [(batch, self.hidden_size)]

    def step(self, x_t, state, drive_t=None):
        """The state after one step: x_t (B, I), drive_t (), (B,) or None."""
        raise NotImplementedError(f"{type(self).__name__}.step")

    def recurrent_matrix(self):
        """The recurrent matrix (H, H), detached; raises NotImplementedError for LSTM and GRU."""
        raise NotImplementedError(f"{type(self).__name__} has no single recurrent matrix")

    def quantities(self, x_t, before, after, drive_t=None):
        """The quantities of one step that analyses need, by name: h (B, H)."""
        return {"h": hidden(after)}

    def gains(self, x):
        """n and s of γ by name, for an input x as in a call; {} for a network without γ."""
        return {}

    def penalty(self):
        """A term for the loss, (), by which the network is regularised, or None."""
        return None

    def parameter_groups(self):
        """The parameters with options of their own, {'gains', 'orthogonal' or 'T': list}."""
        return {}

    def initial_state(self, batch):
        """The state before the first step: zeros, of the dtype and on the device of the layer."""
        like = [*self.parameters(), *self.buffers()][0]
        return _joined([like.new_zeros(shape) for shape in self.state_shapes(batch)])

    def forward(self, x, state=None, drive=None):
        """The outputs of all steps and the state after the last; see the class.

        Raises ValueError for another shape or dtype. Differentiable once, in reverse mode; use
        `loop` for second derivatives, forward mode and torch.func.
        """
        x, state, drive = self._prepare(x, state, drive)
        with without_autocast(hidden(state).device):
            hooked = any(m._forward_pre_hooks or m._forward_hooks for m in self.children())
            run = self._steps if hooked or x.shape[1] == 0 else self._run  # which calls no hooks
            outputs, state, *_ = run(x, state, drive)
        return self._arrange(outputs), state

    def loop(self, x, state=None, drive=None):
        """As `forward`, but step by step: the definition, and slower."""
        return self.trace(x, state, drive, keep=())[:2]

    def trace(self, x, state=None, drive=None, keep=None):
        """As `loop`, with the quantities of every step: outputs, state, {name: (T, B, ...)}.

        keep: the names to return (None: all of `quantities`; ANRU's g is M times as large as the
        others). Raises ValueError for a name that the layer does not have.
        """
        x, state, drive = self._prepare(x, state, drive)
        with without_autocast(hidden(state).device):
            outputs, state, traced = self._steps(x, state, drive, keep and tuple(keep))
        return self._arrange(outputs), state, {k: self._arrange(v) for k, v in traced.items()}

    def _run(self, x, state, drive):
        """`forward` after the checks, T first. A network may replace it by a faster loop."""
        return self._steps(x, state, drive)

    def _steps(self, x, state, drive, keep=()):
        x = x.dense() if isinstance(x, Embedded) else x
        outputs, traced = [], {}
        with parametrize.cached():  # a parametrized matrix is computed once
            for t, x_t in enumerate(x):
                drive_t = None if drive is None else drive[t]
                before, state = state, self.step(x_t, state, drive_t)
                outputs.append(hidden(state))
                if keep is None or keep:
                    values = self.quantities(x_t, before, state, drive_t)
                    for name in values if keep is None else keep:
                        traced.setdefault(name, []).append(choose("keep", name, values))
        return torch.stack(outputs), state, {k: torch.stack(v) for k, v in traced.items()}

    def _arrange(self, tensor):
        """A result (T, B, ...) in the order of axes that the caller expects."""
        return tensor.transpose(0, 1) if self.batch_first else tensor

    def _prepare(self, x, state, drive):
        """x and drive with T first, and the state, in the layer's dtype; checks all of them."""
        given, axes = tuple(x.shape), "B, T" if self.batch_first else "T, B"
        x = x.transpose(0, 1) if self.batch_first and len(given) == 3 else x
        if len(given) != 3 or x.shape[0] < 1 or given[2] != self.input_size:
            expected = f"({axes}, {self.input_size}) with T ≥ 1"
            raise ValueError(f"the input must be {expected}, got {given}")
        steps, batch = x.shape[:2]
        if isinstance(x, Embedded):
            x = Embedded(x.symbols, self._in_own_dtype("input", x.table))
        else:
            x = self._in_own_dtype("input", x)
        state = parts(self.initial_state(batch) if state is None else state)
        expected, shapes = self.state_shapes(batch), [tuple(part.shape) for part in state]
        if shapes != expected:
            raise ValueError(f"the state must have the shapes {expected}, got {shapes}")
        state = _joined([self._in_own_dtype("state", part) for part in state])
        if drive is not None:
            if (shape := tuple(drive.shape)) not in ((steps,), given[:2]):
                raise ValueError(f"the drive must be ({steps},) or {given[:2]}, got {shape}")
            drive = drive.t() if self.batch_first and drive.ndim == 2 else drive
            drive = drive.to(hidden(state))
        return x, state, drive

    def _in_own_dtype(self, name, tensor):
        """The tensor in the layer's dtype; raises ValueError for others than half precision."""
        own = [*self.parameters(), *self.buffers()][0].dtype
        if tensor.dtype not in (own, torch.float16, torch.bfloat16):
            raise ValueError(f"the {name} is {tensor.dtype}, but the layer is {own}")
        return tensor.to(own)


def parts(state):
    """The tensors of a state."""
    return tuple(state) if isinstance(state, (tuple, list)) else (state,)


def _joined(state):
    """The inverse of `parts`."""
    return tuple(state) if len(state) > 1 else state[0]


def map_state(function, state):
    """A state with each of its tensors mapped; None stays None."""
    return None if state is None else _joined([function(part) for part in parts(state)])


def hidden(state):
    """The hidden state h (B, H) of a layer's state: the output of the last step."""
    return parts(state)[0]
