"""The recurrent layers: RNN with an activation that may adapt, ANRU, LSTM and GRU.

Letters: T time, B batch, I input, H main units, M supervisor units.

Each layer is called as `torch.nn.RNN` is,

    outputs, state = layer(x, state=None, drive=None)

with x (T, B, I), outputs (T, B, H), and drive (T,), (T, B) or None: a current that is added to
the pre-activation of every unit. `layer.step(x_t, state, drive_t)` is one step and says the
equations; the layer is the loop of its steps.
"""

import torch
from torch import nn
from torch.nn.functional import relu

from NetworkCreation import initialization, recurrence
from NetworkCreation.gamma_function import gamma, register_gain_and_saturation


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


def _linear(inputs, outputs, initialise, generator, device, dtype, **options):
    """A linear map with weight (outputs, inputs) drawn by `initialise` and bias 0."""
    device = "cpu" if device is None else device
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, device=device, dtype=dtype)
    initialise(linear.weight, generator, **options)
    nn.init.zeros_(linear.bias)
    return linear


def _column(drive):
    """A drive (), (B,) or (T, B) with an axis for the units; nothing for no drive."""
    return 0.0 if drive is None else drive.unsqueeze(-1)


class RecurrentLayer(nn.Module):
    """What the layers share: the time loop, the trace, and the checks of what comes in.

    A state is one tensor or a tuple of tensors, the hidden state h (B, H) first.
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

    def initial_state(self, batch):
        """The state before the first step: zeros, as the layer's own tensors in type."""
        like = next(self.parameters())
        tensors = tuple(like.new_zeros(shape) for shape in self.state_shapes(batch))
        return tensors if len(tensors) > 1 else tensors[0]

    def forward(self, x, state=None, drive=None):
        """The outputs of all steps and the state after the last.

        x: (T, B, I). state: as the layer returns it, or None for zeros. drive: (T,), (T, B) or
        None. Returns outputs (T, B, H) and the state. Raises ValueError for another shape.
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
        for x_t, drive_t in zip(x, _by_step(drive, x), strict=True):
            state = self.step(x_t, state, drive_t)
            outputs.append(_hidden(state))
        return torch.stack(outputs), state

    def trace(self, x, state=None, drive=None, keep=None):
        """As the layer itself, and what its units did: outputs, state, {name: (T, B, ...)}.

        keep: the names to return, all of `quantities` where None (ANRU's g is M times as large as
        the others). Raises ValueError for a name that the layer does not have.
        """
        state, drive = self._check(x, state, drive)
        outputs, kept = [], {}
        for x_t, drive_t in zip(x, _by_step(drive, x), strict=True):
            before, state = state, self.step(x_t, state, drive_t)
            outputs.append(_hidden(state))
            step = self.quantities(x_t, before, state, drive_t)
            for name in step if keep is None else keep:
                kept.setdefault(name, []).append(choose("keep", name, step))
        return torch.stack(outputs), state, {k: torch.stack(v) for k, v in kept.items()}

    def _check(self, x, state, drive):
        """The state to start from and the drive, None or like x; ValueError for a wrong shape."""
        if x.ndim != 3 or x.shape[0] < 1 or x.shape[2] != self.input_size:
            raise ValueError(
                f"the input has the shape {tuple(x.shape)}: it must be "
                f"(T, B, {self.input_size}), T ≥ 1"
            )
        steps, batch = x.shape[:2]
        if state is None:
            state = self.initial_state(batch)
        expected = self.state_shapes(batch)
        parts = tuple(state) if isinstance(state, (tuple, list)) else (state,)
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
        return state, drive.to(x)


def _by_step(drive, x):
    """A drive for every step of x."""
    return [None] * len(x) if drive is None else drive


def _parts(state):
    return state if isinstance(state, tuple) else (state,)


def _hidden(state):
    return _parts(state)[0]


class RNN(RecurrentLayer):
    """h_t = φ(U x_t + V h_{t−1} + drive_t), φ a fixed or a learning activation.

    nonlin: a key of `NONLINEARITIES`. `gamma` has one n and one s for the layer, `gamma2` one of
    each for every unit; they start at n and s, and are parameters (learn_params) or buffers.
    `modrelu` learns a bias b for every unit, U(−0.01, 0.01) at the start.
    rinit, iinit: keys of `initialization.RECURRENT` (V) and `initialization.INPUT` (U). Biases
    start at 0. Raises ValueError for an unknown name, a size below 1 or n = 0.

    State: h (B, H).
    """

    def __init__(
        self,
        input_size,
        hidden_size,
        nonlin="gamma2",
        n=5.0,
        s=0.0,
        learn_params=True,
        rinit="henaff",
        iinit="kaiming",
        *,
        generator=None,
        device=None,
        dtype=None,
    ):
        super().__init__(input_size, hidden_size)
        like = (generator, device, dtype)
        self.nonlin = nonlin
        choose("nonlin", nonlin, NONLINEARITIES)
        recurrent = choose("rinit", rinit, initialization.RECURRENT)
        self.U = _linear(
            input_size, hidden_size, choose("iinit", iinit, initialization.INPUT), *like
        )
        self.V = _linear(hidden_size, hidden_size, recurrent, *like)
        if nonlin in ("gamma", "gamma2"):
            units = hidden_size if nonlin == "gamma2" else 1
            register_gain_and_saturation(self, units, n, s, learn_params, device, dtype)
        if nonlin == "modrelu":
            self.b = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
            initialization.uniform(self.b, generator, bound=0.01)

    def state_shapes(self, batch):
        return [(batch, self.hidden_size)]

    def preactivation(self, x, h, drive=None):
        """a = U x + b_U + V h + b_V + drive, (..., B, H)."""
        return self.U(x) + self.V(h) + _column(drive)

    def step(self, x_t, h, drive_t=None):
        a = self.preactivation(x_t, h, drive_t)  # (B, H)
        return NONLINEARITIES[self.nonlin](a, self)

    def _run(self, x, h, drive):
        names = {"gamma": ("n", "s"), "gamma2": ("n", "s"), "modrelu": ("b",)}.get(self.nonlin, ())
        parameters = [getattr(self, name) for name in names]
        return recurrence.rnn(self._workspace, self.nonlin, x, h, drive, self.U, self.V, parameters)

    def quantities(self, x_t, before, after, drive_t=None):
        """a and h, and n and s where φ has them; each (B, H)."""
        found = {"a": self.preactivation(x_t, before, drive_t), "h": after}
        if self.nonlin in ("gamma", "gamma2"):
            found |= {"n": self.n.expand_as(after), "s": self.s.expand_as(after)}
        return found

    def extra_repr(self):
        return f"nonlin={self.nonlin}"


class ANRU(RecurrentLayer):
    """The adaptive nonlinearity recurrent unit: a supervisor sets n and s of every unit at a step.

    Every main unit has a supervisor of M tanh units with a state of its own; all supervisors
    share their weights. n_t and s_t are read off linearly, neither squashed nor clamped.

    supervisor_size: M. rinit: of Whh and Wgg. iinit: of Uxh and Uag. Their biases start at 0.
    Wgn: xavier normal with gain 0.1 and bias 5 + 2u, one u ~ U(0, 1); Wgs: xavier normal with gain
    0.01 and bias 0. Raises ValueError for an unknown name or a size below 1.
    Source: Geadah et al., arXiv 2006.12253.

    State: (h, g), h (B, H) and g (B, H, M).
    """

    def __init__(
        self,
        input_size,
        hidden_size,
        supervisor_size=50,
        rinit="henaff",
        iinit="kaiming",
        *,
        generator=None,
        device=None,
        dtype=None,
    ):
        super().__init__(input_size, hidden_size)
        if supervisor_size < 1:
            raise ValueError(f"supervisor_size is {supervisor_size}: it must be at least 1")
        self.supervisor_size = supervisor_size
        like = (generator, device, dtype)
        recurrent = choose("rinit", rinit, initialization.RECURRENT)
        entry = choose("iinit", iinit, initialization.INPUT)
        self.Uxh = _linear(input_size, hidden_size, entry, *like)
        self.Whh = _linear(hidden_size, hidden_size, recurrent, *like)
        self.Uag = _linear(1, supervisor_size, entry, *like)
        self.Wgg = _linear(supervisor_size, supervisor_size, recurrent, *like)
        self.Wgn = _linear(supervisor_size, 1, initialization.xavier, *like, gain=0.1)
        self.Wgs = _linear(supervisor_size, 1, initialization.xavier, *like, gain=0.01)
        nn.init.constant_(self.Wgn.bias, 5 + 2 * torch.rand((), generator=generator).item())

    def state_shapes(self, batch):
        return [(batch, self.hidden_size), (batch, self.hidden_size, self.supervisor_size)]

    def preactivation(self, x, h, drive=None):
        """a = Uxh x + Whh h + b + drive, (..., B, H)."""
        return self.Uxh(x) + self.Whh(h) + _column(drive)

    def gain(self, g):
        """n = Wgn g + b_n, (..., B, H)."""
        return self.Wgn(g).squeeze(-1)

    def saturation(self, g):
        """s = Wgs g + b_s, (..., B, H)."""
        return self.Wgs(g).squeeze(-1)

    def step(self, x_t, state, drive_t=None):
        h, g = state
        a = self.preactivation(x_t, h, drive_t)  # (B, H)
        g = torch.tanh(self.Uag(a.unsqueeze(-1)) + self.Wgg(g))  # (B, H, M)
        h = gamma(a, self.gain(g), self.saturation(g))  # (B, H)
        return h, g

    def _run(self, x, state, drive):
        maps = (self.Uxh, self.Whh, self.Uag, self.Wgg, self.Wgn, self.Wgs)
        outputs, *state = recurrence.anru(self._workspace, x, *state, drive, *maps)
        return outputs, tuple(state)

    def quantities(self, x_t, before, after, drive_t=None):
        """a, n, s and h, each (B, H), and g (B, H, M)."""
        h, g = after
        a = self.preactivation(x_t, before[0], drive_t)
        return {"a": a, "n": self.gain(g), "s": self.saturation(g), "h": h, "g": g}

    def extra_repr(self):
        return f"supervisor_size={self.supervisor_size}"


class LSTM(RecurrentLayer):
    """The long short-term memory; a drive is added to the output gate.

    Each gate is a linear map of [h, x] joined, xavier normal with bias 0.
    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.

    State: (h, c), each (B, H).
    """

    def __init__(self, input_size, hidden_size, *, generator=None, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        joined, like = hidden_size + input_size, (generator, device, dtype)
        self.Wf = _linear(joined, hidden_size, initialization.xavier, *like)
        self.Wi = _linear(joined, hidden_size, initialization.xavier, *like)
        self.Wo = _linear(joined, hidden_size, initialization.xavier, *like)
        self.Wg = _linear(joined, hidden_size, initialization.xavier, *like)

    def state_shapes(self, batch):
        return [(batch, self.hidden_size)] * 2

    def preactivation(self, x, h, drive=None):
        """a = Wo [h, x] + b_o + drive, of the output gate, (..., B, H)."""
        return self.Wo(torch.cat([h, x], dim=-1)) + _column(drive)

    def step(self, x_t, state, drive_t=None):
        h, c = state
        hx = torch.cat([h, x_t], dim=-1)  # (B, H + I)
        f = torch.sigmoid(self.Wf(hx))  # (B, H)
        i = torch.sigmoid(self.Wi(hx))
        o = torch.sigmoid(self.preactivation(x_t, h, drive_t))
        c = f * c + i * torch.tanh(self.Wg(hx))
        h = o * torch.tanh(c)
        return h, c

    def _run(self, x, state, drive):
        maps = (self.Wf, self.Wi, self.Wo, self.Wg)
        outputs, *state = recurrence.lstm(self._workspace, x, *state, drive, *maps)
        return outputs, tuple(state)

    def quantities(self, x_t, before, after, drive_t=None):
        """a (of the output gate), h and c, each (B, H)."""
        h, c = after
        return {"a": self.preactivation(x_t, before[0], drive_t), "h": h, "c": c}


class GRU(RecurrentLayer):
    """The gated recurrent unit, as `torch.nn.GRU`; a drive is added to the candidate.

    All weights and biases start at U(−1/√H, 1/√H), as torch's do.
    Source: Cho et al., arXiv 1406.1078, with the reset gate after the recurrent product.

    State: h (B, H).
    """

    def __init__(self, input_size, hidden_size, *, generator=None, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        like = {"bound": hidden_size**-0.5}
        like |= {"generator": generator, "device": device, "dtype": dtype}
        for gate in "rzn":
            for source, size in (("i", input_size), ("h", hidden_size)):
                linear = _linear(size, hidden_size, initialization.uniform, **like)
                initialization.uniform(linear.bias, generator, bound=hidden_size**-0.5)
                self.add_module(f"W{source}{gate}", linear)

    def state_shapes(self, batch):
        return [(batch, self.hidden_size)]

    def preactivation(self, x, h, drive=None):
        """a = Win x + b + r ∘ (Whn h + b) + drive, of the candidate, (..., B, H)."""
        r = torch.sigmoid(self.Wir(x) + self.Whr(h))
        return self.Win(x) + r * self.Whn(h) + _column(drive)

    def step(self, x_t, h, drive_t=None):
        z = torch.sigmoid(self.Wiz(x_t) + self.Whz(h))  # (B, H)
        candidate = torch.tanh(self.preactivation(x_t, h, drive_t))
        return (1 - z) * candidate + z * h

    def _run(self, x, h, drive):
        maps = (self.Wir, self.Whr, self.Wiz, self.Whz, self.Win, self.Whn)
        return recurrence.gru(self._workspace, x, h, drive, *maps)

    def quantities(self, x_t, before, after, drive_t=None):
        """a (of the candidate) and h, each (B, H)."""
        return {"a": self.preactivation(x_t, before, drive_t), "h": after}


NETWORKS = {"RNN": RNN, "ANRU": ANRU, "LSTM": LSTM, "GRU": GRU}
