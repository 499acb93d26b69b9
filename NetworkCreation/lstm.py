"""LSTM, the long short-term memory.

    f_t, i_t, o_t = σ(Wf [h_{t−1}, x_t]), σ(Wi [h_{t−1}, x_t]), σ(Wo [h_{t−1}, x_t] + drive_t)
    c_t = f_t ∘ c_{t−1} + i_t ∘ tanh(Wg [h_{t−1}, x_t])
    h_t = o_t ∘ tanh(c_t)                                all (B, H); every map has a bias

Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.
"""

import torch

from NetworkCreation import time_loop
from NetworkCreation.initialization import linear_map, xavier
from NetworkCreation.layer import RecurrentLayer, unsqueeze_drive


class LSTM(RecurrentLayer):
    """The long short-term memory; a drive is added to the output gate.

    Weights are initially xavier normal, biases as in `torch.nn.Linear`. State: (h, c), each (B, H).
    """

    def __init__(
        self, input_size, hidden_size, *, batch_first=False, generator=None, device=None, dtype=None
    ):
        super().__init__(input_size, hidden_size, batch_first)
        like = {"generator": generator, "device": device, "dtype": dtype}
        for gate in "fiog":
            gate_map = linear_map(hidden_size + input_size, hidden_size, xavier, **like)
            self.add_module(f"W{gate}", gate_map)

    def state_shapes(self, batch):
        return [(batch, self.hidden_size)] * 2

    def preactivation(self, x, h, drive=None):
        """a = Wo [h, x] + b_o + drive, of the output gate, (..., B, H)."""
        return self.Wo(torch.cat([h, x], dim=-1)) + unsqueeze_drive(drive)

    def step(self, x_t, state, drive_t=None):
        h, c = state
        hx = torch.cat([h, x_t], dim=-1)  # (B, H + I)
        f = torch.sigmoid(self.Wf(hx))  # (B, H)
        i = torch.sigmoid(self.Wi(hx))
        o = torch.sigmoid(self.preactivation(x_t, h, drive_t))
        c = f * c + i * torch.tanh(self.Wg(hx))
        h = o * torch.tanh(c)
        return h, c

    def quantities(self, x_t, before, after, drive_t=None):
        """a (of the output gate), h and c, each (B, H)."""
        h, c = after
        return {"a": self.preactivation(x_t, before[0], drive_t), "h": h, "c": c}

    def _run(self, x, state, drive):
        H = self.hidden_size
        gates = (self.Wi, self.Wf, self.Wg, self.Wo)  # in torch's order
        weight = torch.cat([gate.weight for gate in gates])
        b = torch.cat([gate.bias for gate in gates])
        x, U = time_loop.joined_input(x, drive, weight[:, H:], driven=slice(3 * H, None))
        weights = time_loop.flat_weights(U, weight[:, :H], b, torch.zeros_like(b))
        start, train = [part.unsqueeze(0) for part in state], torch.is_grad_enabled()
        outputs, h, c = torch.lstm(x, start, weights, True, 1, 0.0, train, False, False)
        return outputs, (h.squeeze(0), c.squeeze(0))
