"""GRU, the gated recurrent unit, as `torch.nn.GRU`.

    r_t = σ(Wir x_t + Whr h_{t−1}),  z_t = σ(Wiz x_t + Whz h_{t−1})
    h_t = (1 − z_t) ∘ tanh(Win x_t + r_t ∘ Whn h_{t−1} + drive_t) + z_t ∘ h_{t−1}
                                                         all (B, H); every map has a bias

Source: Cho et al., arXiv 1406.1078, with the reset gate after the recurrent product.
"""

import torch

from NetworkCreation import time_loop
from NetworkCreation.initialization import linear_map, torch_default
from NetworkCreation.layer import RecurrentLayer, unsqueeze_drive


class GRU(RecurrentLayer):
    """The gated recurrent unit; a drive is added to the candidate.

    Weights and biases are initially those of `torch.nn.Linear`. State: h (B, H).
    """

    def __init__(
        self, input_size, hidden_size, *, batch_first=False, generator=None, device=None, dtype=None
    ):
        super().__init__(input_size, hidden_size, batch_first)
        like = {"generator": generator, "device": device, "dtype": dtype}
        for gate in "rzn":
            for source, size in (("i", input_size), ("h", hidden_size)):
                linear = linear_map(size, hidden_size, torch_default, **like)
                self.add_module(f"W{source}{gate}", linear)

    def preactivation(self, x, h, drive=None):
        """a = Win x + b + r ∘ (Whn h + b) + drive, of the candidate, (..., B, H)."""
        r = torch.sigmoid(self.Wir(x) + self.Whr(h))
        return self.Win(x) + r * self.Whn(h) + unsqueeze_drive(drive)

    def step(self, x_t, h, drive_t=None):
        z = torch.sigmoid(self.Wiz(x_t) + self.Whz(h))  # (B, H)
        candidate = torch.tanh(self.preactivation(x_t, h, drive_t))
        return (1 - z) * candidate + z * h

    def quantities(self, x_t, before, after, drive_t=None):
        """a (of the candidate) and h, each (B, H)."""
        return {"a": self.preactivation(x_t, before, drive_t), "h": after}

    def _run(self, x, h, drive):
        of_x, of_h = (self.Wir, self.Wiz, self.Win), (self.Whr, self.Whz, self.Whn)
        U, W = (torch.cat([linear.weight for linear in maps]) for maps in (of_x, of_h))
        b_x, b_h = (torch.cat([linear.bias for linear in maps]) for maps in (of_x, of_h))
        x, U = time_loop.joined_input(x, drive, U, driven=slice(2 * self.hidden_size, None))
        weights, train = time_loop.flat_weights(U, W, b_x, b_h), torch.is_grad_enabled()
        outputs, h = torch.gru(x, h.unsqueeze(0), weights, True, 1, 0.0, train, False, False)
        return outputs, h.squeeze(0)
