"""The two models of the experiments: a recurrent layer with its read-out."""

import torch
from torch import nn

from NetworkCreation.errors import OptionError
from NetworkCreation.initialization import linear_map, torch_default, uniform
from NetworkCreation.layer import choose, hidden
from NetworkCreation.Networks import NETWORKS
from NetworkCreation.time_loop import Embedded


class PixelClassifier(nn.Module):
    """A recurrent layer that reads an image pixel by pixel, and a linear read-out of h_T."""

    def __init__(self, rnn, classes=10, generator=None, device=None):
        super().__init__()
        self.rnn = rnn
        like = {"generator": generator, "device": device}
        self.lin = linear_map(rnn.hidden_size, classes, torch_default, **like)

    def forward(self, x, drive=None):
        """x (T, B, I), drive as for the layer; returns logits (B, classes)."""
        _, state = self.rnn(x, drive=drive)
        return self.lin(hidden(state))  # the gradient of outputs[-1] would be as large as outputs


class CharacterModel(nn.Module):
    """An embedding of symbols, a recurrent layer, and a read-out at every step.

    vocabulary: the number of symbols. Embedding and read-out weights are U(−0.1, 0.1), the
    read-out's bias is 0. tied: both are one matrix; raises OptionError if the sizes differ.
    """

    def __init__(self, rnn, vocabulary, tied=False, generator=None, device=None):
        super().__init__()
        embedding_size = rnn.input_size
        if tied and embedding_size != rnn.hidden_size:
            sizes = f"{embedding_size} and {rnn.hidden_size}"
            raise OptionError("tied", f"tied needs an embedding as large as the layer, got {sizes}")
        weight = torch.empty(vocabulary, embedding_size, device=device)
        uniform(weight, generator, bound=0.1)
        self.encoder = nn.Embedding(vocabulary, embedding_size, _weight=weight)
        self.rnn = rnn
        device = weight.device
        self.decoder = nn.utils.skip_init(nn.Linear, rnn.hidden_size, vocabulary, device=device)
        uniform(self.decoder.weight, generator, bound=0.1)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, symbols, state=None, drive=None):
        """symbols (T, B) of integers; returns logits (T, B, vocabulary) and the layer's state."""
        few = self.encoder.num_embeddings < self.encoder.embedding_dim
        x = Embedded(symbols, self.encoder.weight) if few else self.encoder(symbols)
        outputs, state = self.rnn(x, state, drive)
        return self.decoder(outputs), state

    @torch.no_grad()
    def sample(self, symbol, count, generator):
        """Draws `count` indices of symbols to follow `symbol`; generator: on the CPU."""
        symbols, state = [], None
        for _ in range(count):
            symbol = torch.tensor([[symbol]], device=self.encoder.weight.device)
            logits, state = self(symbol, state)
            symbol = torch.multinomial(logits[0, 0].cpu().softmax(0), 1, generator=generator).item()
            symbols.append(symbol)
        return symbols


def build_model(spec, generator=None, device=None):
    """The new model that a dictionary of plain values describes.

    spec: `task` ('pixels' or 'characters'), `net_type` (a key of `NETWORKS`), `hidden_size`,
    `layer` (further arguments of that layer), and for pixels `classes` and `inputs` (of a step;
    1 if it is missing), for characters `embedding_size`, `vocabulary` (the list of symbols) and
    `tied`. Raises OptionError for a value that is not allowed.
    """
    network = choose("net_type", spec["net_type"], NETWORKS)
    input_sizes = {"pixels": spec.get("inputs", 1), "characters": spec.get("embedding_size")}
    input_size = choose("task", spec["task"], input_sizes)
    like = {"generator": generator, "device": device}
    rnn = network(input_size, spec["hidden_size"], **spec["layer"], **like)
    if spec["task"] == "pixels":
        return PixelClassifier(rnn, spec["classes"], **like)
    return CharacterModel(rnn, len(spec["vocabulary"]), spec["tied"], **like)
