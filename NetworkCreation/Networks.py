"""The recurrent layers: RNN with an activation that may adapt, ANRU, LSTM and GRU.

Letters: T time, B batch, I input, H main units, M supervisor units.

`layers.py` says how a layer is called; the orthogonal ones are in `orthogonal.py`.
`layer.step(x_t, state, drive_t)` is one step and says the equations; the layer is the loop of its
steps. `NETWORKS` lists them all.
"""

import torch
from torch import nn

from NetworkCreation import initialization, recurrence
from NetworkCreation.gamma_function import gamma
from NetworkCreation.layers import (
    ElmanLayer,
    RecurrentLayer,
    choose,
    column,
    linear_map,
)
from NetworkCreation.orthogonal import EURNN, ExpRNN, NonNormalRNN


class RNN(ElmanLayer):
    """h_t = φ(U x_t + V h_{t−1} + drive_t), φ a fixed or a learning activation.

    nonlin: a key of `NONLINEARITIES`. `gamma` has one n and one s for the layer, `gamma2` one of
    each for every unit; they start at n and s, and are parameters (learn_params) or buffers.
    `modrelu` learns a bias b for every unit, U(−0.01, 0.01) at the start.
    rinit, iinit: keys of `initialization.RECURRENT` (V) and `initialization.INPUT` (U). Biases
    start as torch's: U(±1/√I) for U, U(±1/√H) for V. Raises ValueError for an unknown name, a size
    below 1 or n = 0.

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
        recurrent = choose("rinit", rinit, initialization.RECURRENT)
        entry = choose("iinit", iinit, initialization.INPUT)
        self.U = linear_map(input_size, hidden_size, entry, *like)
        self.V = linear_map(hidden_size, hidden_size, recurrent, *like)
        self._add_activation(nonlin, n, s, learn_params, *like)


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
        self.Uxh = linear_map(input_size, hidden_size, entry, *like)
        self.Whh = linear_map(hidden_size, hidden_size, recurrent, *like)
        self.Uag = linear_map(1, supervisor_size, entry, *like)
        self.Wgg = linear_map(supervisor_size, supervisor_size, recurrent, *like)
        self.Wgn = linear_map(supervisor_size, 1, initialization.xavier, *like, gain=0.1)
        self.Wgs = linear_map(supervisor_size, 1, initialization.xavier, *like, gain=0.01)
        for linear in (self.Uxh, self.Whh, self.Uag, self.Wgg, self.Wgs):
            nn.init.zeros_(linear.bias)
        nn.init.constant_(self.Wgn.bias, 5 + 2 * torch.rand((), generator=generator).item())

    def state_shapes(self, batch):
        return [(batch, self.hidden_size), (batch, self.hidden_size, self.supervisor_size)]

    def preactivation(self, x, h, drive=None):
        """a = Uxh x + Whh h + b + drive, (..., B, H)."""
        return self.Uxh(x) + self.Whh(h) + column(drive)

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
        self.Wf = linear_map(joined, hidden_size, initialization.xavier, *like)
        self.Wi = linear_map(joined, hidden_size, initialization.xavier, *like)
        self.Wo = linear_map(joined, hidden_size, initialization.xavier, *like)
        self.Wg = linear_map(joined, hidden_size, initialization.xavier, *like)

    def state_shapes(self, batch):
        return [(batch, self.hidden_size)] * 2

    def preactivation(self, x, h, drive=None):
        """a = Wo [h, x] + b_o + drive, of the output gate, (..., B, H)."""
        return self.Wo(torch.cat([h, x], dim=-1)) + column(drive)

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

    Weights and biases start as those of `torch.nn.Linear`: U(±1/√I) for the maps of x, U(±1/√H)
    for those of h.
    Source: Cho et al., arXiv 1406.1078, with the reset gate after the recurrent product.

    State: h (B, H).
    """

    def __init__(self, input_size, hidden_size, *, generator=None, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        like = (generator, device, dtype)
        for gate in "rzn":
            for source, size in (("i", input_size), ("h", hidden_size)):
                linear = linear_map(size, hidden_size, initialization.torch_default, *like)
                self.add_module(f"W{source}{gate}", linear)

    def state_shapes(self, batch):
        return [(batch, self.hidden_size)]

    def preactivation(self, x, h, drive=None):
        """a = Win x + b + r ∘ (Whn h + b) + drive, of the candidate, (..., B, H)."""
        r = torch.sigmoid(self.Wir(x) + self.Whr(h))
        return self.Win(x) + r * self.Whn(h) + column(drive)

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


NETWORKS = {
    "RNN": RNN,
    "ANRU": ANRU,
    "LSTM": LSTM,
    "GRU": GRU,
    "expRNN": ExpRNN,
    "nnRNN": NonNormalRNN,
    "EURNN": EURNN,
}
