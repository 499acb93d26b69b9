"""What the recurrent layers share: activations, the time loop, and the checks of what comes in.

Letters: T time, B batch, I input, H main units.
"""

import torch
from torch import nn
from torch.nn.functional import relu
from torch.nn.utils import parametrize

from NetworkCreation import initialization, recurrence
from NetworkCreation.gamma_function import gamma, register_gain_and_saturation
from NetworkCreation.recurrence import Embedded


def modrelu(a, bias):
    """sign(a) · max(|a| + bias, 0), of a real a. Source: Arjovsky et al., arXiv 1511.06464."""
    return a.sign() * relu(a.abs() + bias)


# φ(a, layer): the layer holds what an activation has to learn.
NONLINEARITIES = {
    "gamma": lambda a, layer: gamma(a, layer.n, layer.s),
    "gamma2": lambda a, layer: gamma(a, layer.n, layer.s),
    "ReLU": lambda a, layer: relu(a),
    "tanh": lambda a, layer: torch.tanh(a),
    "sigmoid": lambda a, layer: torch.sigmoid(a),
    "modrelu": lambda a, layer: modrelu(a, layer.b),
    "none": lambda a, layer: a,
}


def choose(kind, name, choices):
    """choices[name]; a ValueError with the allowed names where there is none such."""
    if name not in choices:
        raise ValueError(f"{kind} is {name!r}: it must be one of {', '.join(choices)}")
    return choices[name]


def linear_map(inputs, outputs, initialise, generator, device, dtype, bias=True, **options):
    """A linear map: weight (outputs, inputs) by `initialise`, bias U(±1/√inputs) as torch's."""
    device = "cpu" if device is None else device
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias, device=device, dtype=dtype)
    initialise(linear.weight, generator, **options)
    if bias:
        initialization.uniform(linear.bias, generator, bound=inputs**-0.5)
    return linear


def modrelu_bias(units, generator, device, dtype):
    """The bias of the modReLU at the start, a parameter (units,): U(−0.01, 0.01)."""
    bias = nn.Parameter(torch.empty(units, device=device, dtype=dtype))
    initialization.uniform(bias, generator, bound=0.01)
    return bias


def column(drive):
    """A drive (), (B,) or (T, B) with an axis for the units; nothing for no drive."""
    return 0.0 if drive is None else drive.unsqueeze(-1)


class RecurrentLayer(nn.Module):
    """What the layers share: the time loop, the trace, and the checks of what comes in.

    A layer is called as `torch.nn.RNN` is,

        outputs, state = layer(x, state=None, drive=None)

    with x (T, B, I), outputs (T, B, H), and drive (T,), (T, B) or None: a current that is added
    to the pre-activation of every unit. An x that is made of symbols may be given as a
    `recurrence.Embedded`. A state is one tensor or a tuple of tensors, the hidden state h (B, H)
    first.
    """

    def __init__(self, input_size, hidden_size):
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self._workspace = recurrence.Workspace()

    def state_shapes(self, batch):
        """The shapes of the state's tensors for a batch of this size."""
        raise NotImplementedError

    def step(self, x_t, state, drive_t=None):
        """The state after one step: x_t (B, I), drive_t (), (B,) or None."""
        raise NotImplementedError

    def quantities(self, x_t, before, after, drive_t=None):
        """What analysis needs of the step that led from one state to another, by name."""
        raise NotImplementedError

    def parameters_apart(self):
        """The parameters that an optimiser treats apart, {name of the group: list of them}."""
        return {}

    def initial_state(self, batch):
        """The state before the first step: zeros, as the layer's own tensors in type."""
        like = next(self.parameters())
        tensors = tuple(like.new_zeros(shape) for shape in self.state_shapes(batch))
        return tensors if len(tensors) > 1 else tensors[0]

    def forward(self, x, state=None, drive=None):
        """The outputs of all steps and the state after the last.

        x: (T, B, I), or `Embedded`. state: as the layer returns it, or None for zeros. drive:
        (T,), (T, B) or None. Returns outputs (T, B, H) and the state. Raises ValueError for
        another shape.
        The gradients can be used, not differentiated again: for that, and in forward mode or
        under torch.func, there is `loop`.
        """
        return self._run(x, *self._check(x, state, drive))

    def _run(self, x, state, drive):
        """`forward` of what has been checked, by `recurrence`."""
        raise NotImplementedError

    def loop(self, x, state=None, drive=None):
        """The same as the layer itself, step by step: the definition, and slower."""
        state, drive = self._check(x, state, drive)
        outputs = []
        with parametrize.cached():  # a matrix that is made of parameters is made once
            for x_t, drive_t in zip(_dense(x), _by_step(drive, x), strict=True):
                state = self.step(x_t, state, drive_t)
                outputs.append(hidden(state))
        return torch.stack(outputs), state

    def trace(self, x, state=None, drive=None, keep=None):
        """As the layer itself, and what its units did: outputs, state, {name: (T, B, ...)}.

        keep: the names to return, all of `quantities` where None (ANRU's g is M times as large as
        the others). Raises ValueError for a name that the layer does not have.
        """
        state, drive = self._check(x, state, drive)
        outputs, kept = [], {}
        with parametrize.cached():
            for x_t, drive_t in zip(_dense(x), _by_step(drive, x), strict=True):
                before, state = state, self.step(x_t, state, drive_t)
                outputs.append(hidden(state))
                step = self.quantities(x_t, before, state, drive_t)
                for name in step if keep is None else keep:
                    kept.setdefault(name, []).append(choose("keep", name, step))
        return torch.stack(outputs), state, {k: torch.stack(v) for k, v in kept.items()}

    def _check(self, x, state, drive):
        """The state to start from and the drive, None or like x; ValueError for a wrong shape."""
        if len(x.shape) != 3 or x.shape[0] < 1 or x.shape[2] != self.input_size:
            raise ValueError(
                f"the input has the shape {tuple(x.shape)}: it must be "
                f"(T, B, {self.input_size}), T ≥ 1"
            )
        steps, batch = x.shape[:2]
        if state is None:
            state = self.initial_state(batch)
        expected = self.state_shapes(batch)
        parts = _parts(state)
        shapes = [tuple(part.shape) for part in parts]
        if shapes != expected:
            raise ValueError(f"the state's shapes are {shapes}: they must be {expected}")
        state = parts if len(parts) > 1 else parts[0]
        if drive is None:
            return state, None
        if tuple(drive.shape) not in ((steps,), (steps, batch)):
            raise ValueError(
                f"the drive has the shape {tuple(drive.shape)}: it must be "
                f"({steps},) or {(steps, batch)}"
            )
        return state, drive.to(x.table if isinstance(x, Embedded) else x)


def _by_step(drive, x):
    """A drive for every step of x."""
    return [None] * x.shape[0] if drive is None else drive


def _dense(x):
    """x (T, B, I), where it is `Embedded` too."""
    return x.dense() if isinstance(x, Embedded) else x


def _parts(state):
    return tuple(state) if isinstance(state, (tuple, list)) else (state,)


def hidden(state):
    """The hidden state h (B, H) of a layer's state: the output of the last step."""
    return _parts(state)[0]


class ElmanLayer(RecurrentLayer):
    """h_t = φ(U x_t + V h_{t−1} + drive_t): what the layers with one recurrent matrix share.

    A subclass makes the linear maps U and V, in this order, and then calls `_add_activation`.

    State: h (B, H).
    """

    def _add_activation(self, nonlin, n, s, learn_params, generator, device, dtype):
        """φ, a key of `NONLINEARITIES`, and what it has to learn: n and s, or b, or nothing.

        n, s: initial values, parameters (learn_params) or buffers; one each for the layer (gamma)
        or for every unit (gamma2). b, of modrelu: U(−0.01, 0.01) at the start.
        Raises ValueError for an unknown name, or n = 0.
        """
        self.nonlin = nonlin
        choose("nonlin", nonlin, NONLINEARITIES)
        self._activation_names = ()
        if nonlin in ("gamma", "gamma2"):
            units = self.hidden_size if nonlin == "gamma2" else 1
            register_gain_and_saturation(self, units, n, s, learn_params, device, dtype)
            self._activation_names = ("n", "s")
        if nonlin == "modrelu":
            self.b = modrelu_bias(self.hidden_size, generator, device, dtype)
            self._activation_names = ("b",)

    def state_shapes(self, batch):
        return [(batch, self.hidden_size)]

    def preactivation(self, x, h, drive=None):
        """a = U x + V h + drive, with the biases that U and V have, (..., B, H)."""
        return self.U(x) + self.V(h) + column(drive)

    def step(self, x_t, h, drive_t=None):
        a = self.preactivation(x_t, h, drive_t)  # (B, H)
        return NONLINEARITIES[self.nonlin](a, self)

    def _run(self, x, h, drive):
        parameters = [getattr(self, name) for name in self._activation_names]
        return recurrence.rnn(self._workspace, self.nonlin, x, h, drive, self.U, self.V, parameters)

    def quantities(self, x_t, before, after, drive_t=None):
        """a and h, and n and s where φ has them; each (B, H)."""
        found = {"a": self.preactivation(x_t, before, drive_t), "h": after}
        if self.nonlin in ("gamma", "gamma2"):
            found |= {"n": self.n.expand_as(after), "s": self.s.expand_as(after)}
        return found

    def extra_repr(self):
        return f"nonlin={self.nonlin}"
