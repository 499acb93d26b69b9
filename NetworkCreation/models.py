"""The two models of the experiments, layer and read-out, and how a checkpoint becomes a model."""

import pickle
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from NetworkCreation import initialization
from NetworkCreation.layers import choose, hidden, linear_map
from NetworkCreation.Networks import ANRU, NETWORKS, RNN
from NetworkCreation.recurrence import Embedded

# What a file that is damaged, or made to do damage, can raise while it is read or built from.
DAMAGE = (
    *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(EOFError, OverflowError, MemoryError, struct.error, tarfile.TarError, zipfile.BadZipFile),
)


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or holds another network than the one asked for."""


class PixelClassifier(nn.Module):
    """A recurrent layer that reads an image pixel by pixel, and a read-out of its last state.

    `lin` maps h_T to the classes, and starts as torch's linear maps do.
    """

    def __init__(self, rnn, classes=10, generator=None):
        super().__init__()
        self.rnn = rnn
        self.lin = linear_map(
            rnn.hidden_size, classes, initialization.torch_default, generator, None, None
        )

    def forward(self, x, drive=None):
        """x (T, B, I), drive as the layer takes it; returns logits (B, classes)."""
        _, state = self.rnn(x, drive=drive)
        return self.lin(hidden(state))  # the gradient of outputs[-1] would be as large as outputs


class CharacterModel(nn.Module):
    """An embedding of symbols, a recurrent layer, and a read-out at every step.

    vocabulary: the number of symbols. Embedding and read-out weights are U(−0.1, 0.1), the
    read-out's bias is 0. tied: both are one matrix; raises ValueError where the sizes differ.
    """

    def __init__(self, rnn, vocabulary, tied=False, generator=None):
        super().__init__()
        embedding_size = rnn.input_size
        if tied and embedding_size != rnn.hidden_size:
            raise ValueError(
                f"the embedding has {embedding_size} and the layer {rnn.hidden_size} units: "
                "tied weights need as many"
            )
        weight = torch.empty(vocabulary, embedding_size)
        initialization.uniform(weight, generator, bound=0.1)
        self.encoder = nn.Embedding(vocabulary, embedding_size, _weight=weight)
        self.rnn = rnn
        self.decoder = nn.utils.skip_init(nn.Linear, rnn.hidden_size, vocabulary)
        initialization.uniform(self.decoder.weight, generator, bound=0.1)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, symbols, state=None, drive=None):
        """symbols (T, B) of integers; returns logits (T, B, vocabulary) and the layer's state."""
        vocabulary, embedding_size = self.encoder.weight.shape
        few = vocabulary < embedding_size
        x = Embedded(symbols, self.encoder.weight) if few else self.encoder(symbols)
        outputs, state = self.rnn(x, state, drive)
        return self.decoder(outputs), state


def build_model(spec, generator=None):
    """The model that a dictionary of plain values describes, new and on the CPU.

    spec: `task` ('pixels' or 'characters'), `net_type` (a key of `NETWORKS`), `hidden_size`,
    `layer` (further arguments of that layer), and for pixels `classes`, for characters
    `embedding_size`, `vocabulary` (the list of symbols) and `tied`.
    Raises ValueError where a value is not allowed.
    """
    network = choose("net_type", spec["net_type"], NETWORKS)
    characters = {"pixels": False, "characters": True}
    if choose("task", spec["task"], characters):
        inputs = spec["embedding_size"]
        rnn = network(inputs, spec["hidden_size"], generator=generator, **spec["layer"])
        return CharacterModel(rnn, len(spec["vocabulary"]), spec["tied"], generator)
    rnn = network(1, spec["hidden_size"], generator=generator, **spec["layer"])
    return PixelClassifier(rnn, spec["classes"], generator)


def parameter_groups(model, options):
    """The model's parameters as an optimiser takes them: the main group, then those set apart.

    options: {name of a group of `parameters_apart`: what the optimiser does otherwise there}.
    """
    apart = model.rnn.parameters_apart()
    taken = {parameter for parameters in apart.values() for parameter in parameters}
    main = [parameter for parameter in model.parameters() if parameter not in taken]
    groups = [{"params": parameters, **options[name]} for name, parameters in apart.items()]
    return [{"params": main}, *groups]


@torch.no_grad()
def adaptation(rnn, x):
    """Mean and standard deviation of n and s: over units and, for ANRU, over the input x too.

    x: (T, B, I), a few sequences. Returns {'n_mean', 'n_std', 's_mean', 's_std'} of floats, each
    None for a layer without n and s.
    """
    found = {}
    if isinstance(rnn, ANRU):
        _, _, found = rnn.trace(x, keep=("n", "s"))
    elif hasattr(rnn, "n"):
        found = {"n": rnn.n, "s": rnn.s}
    statistics = {}
    for name in ("n", "s"):
        values = found[name].double() if name in found else None
        statistics[f"{name}_mean"] = None if values is None else values.mean().item()
        statistics[f"{name}_std"] = None if values is None else values.std(correction=0).item()
    return statistics


def read_checkpoint(path):
    """The dictionary that a checkpoint file holds, its tensors on the CPU; it runs no code.

    Raises CheckpointError, with the file's name, for what is no checkpoint, is cut short, or
    holds anything but tensors and plain values.
    """
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with a file is said in one line
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for tensor in _tensors(checkpoint):
            if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
                raise ValueError("it does not hold all numbers of a tensor")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of tensors and plain values ({_first_line(error)})"
        ) from error
    except (OSError, *DAMAGE) as error:
        raise CheckpointError(f"{path}: cannot be read ({_first_line(error)})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path}: not a checkpoint, it has no 'state_dict'")
    for name, value in checkpoint["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path}: not a checkpoint, {name!r} is no tensor's name")
    config = checkpoint.get("config", {"model": {}})
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise CheckpointError(f"{path}: damaged, its config describes no model")
    return checkpoint


def _tensors(value):
    """The tensors within dictionaries and sequences."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _check_archive(path):
    """Raises ValueError for a checkpoint that is not what was written; torch does not check that.

    Every part has its CRC-32, and none is compressed, so that none is larger than the file. Of the
    files that torch wrote before version 1.6, which are no archives, nothing is checked.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > Path(path).stat().st_size:
            raise ValueError("it is said to hold more than it does")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} in it does not have its checksum")


def load_model(checkpoint_path, config=None):
    """The trained model of a checkpoint, in eval mode on the CPU, and its config.

    A checkpoint of this project holds its config, and needs no other; one that is given must
    have the same `model`. A checkpoint of the paper's own code, {'state_dict', 'optimizer',
    'epoch'}, holds none: give {'model': spec}, spec as for `build_model`.
    Raises CheckpointError for a file that cannot be read or holds another network.
    """
    return model_of(read_checkpoint(checkpoint_path), checkpoint_path, config)


def model_of(checkpoint, checkpoint_path, config=None):
    """As `load_model`, of a checkpoint that has been read already."""
    saved = checkpoint.get("config")
    if saved is None and config is None:
        raise CheckpointError(f"{checkpoint_path}: holds no config, so that one must be given")
    if saved is not None and config is not None and saved["model"] != config["model"]:
        raise CheckpointError(f"{checkpoint_path}: {_difference(saved['model'], config['model'])}")
    config = config if saved is None else saved
    state = checkpoint["state_dict"]
    try:
        _check_size(config["model"], sum(tensor.numel() for tensor in state.values()))
        model = build_model(config["model"])
        if saved is None:
            state = _from_paper(state, model)
    except DAMAGE as error:
        reason = f"no {error}" if isinstance(error, KeyError) else _first_line(error)
        raise CheckpointError(f"{checkpoint_path}: describes no network ({reason})") from error
    network = config["model"]["net_type"]
    for bias in ("rnn.U.bias", "rnn.Ure.bias"):
        if bias in state and bias not in model.state_dict():
            raise CheckpointError(
                f"{checkpoint_path}: of another version, whose {network} has the bias {bias}"
            )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise CheckpointError(
            f"{checkpoint_path}: holds another network than {network} with "
            f"{config['model']['hidden_size']} units ({reasons})"
        ) from error
    return model.eval(), config


def _check_size(spec, held):
    """Raises ValueError, before memory is taken, where a network has more weights than are held."""
    units, layer = spec["hidden_size"], spec["layer"]
    if min(units, spec.get("classes", 1), spec.get("embedding_size", 1)) < 1:
        raise ValueError("a size of it is below 1")
    if spec["net_type"] == "EURNN":
        weights = layer.get("capacity", 2) * max(units - 1, 1)
    else:
        weights = units**2 + layer.get("supervisor_size", 0) ** 2
    if spec["task"] == "characters":
        weights += len(spec["vocabulary"]) * spec["embedding_size"] + units * spec["embedding_size"]
    else:
        weights += units * spec["classes"]
    if weights > held + 1000:  # a lower bound, but for one unit with many layers of rotations
        raise ValueError(f"it has {weights} weights or more, and the file {held}")


def _from_paper(state, model):
    """The state_dict of the paper's own code in this project's names and shapes.

    Its RNN may hold n and s twice, the second time within the activation's module, or not at all
    where they were fixed; one number each even for gamma2; and it may lack a bias.
    """
    state = dict(state)
    for name in ("n", "s"):
        inner = state.pop(f"rnn.nonlinearity.{name}", None)
        if inner is not None:
            state.setdefault(f"rnn.{name}", inner)
    if isinstance(model.rnn, RNN):
        here = {f"rnn.{name}": value for name, value in model.rnn.state_dict().items()}
        for name in ("rnn.n", "rnn.s"):
            if name not in here:
                state.pop(name, None)  # γ is not this network's activation
            elif name not in state:
                state[name] = here[name]
            elif state[name].numel() == 1:
                state[name] = state[name].reshape(1).expand_as(here[name])
        for name in ("rnn.U.bias", "rnn.V.bias"):
            state.setdefault(name, torch.zeros_like(here[name]))  # a map without a bias
    return state


def _difference(saved, asked):
    """One line that says in what two specs differ."""
    names = [name for name in saved | asked if saved.get(name) != asked.get(name)]
    said = "; ".join(f"{n} is {saved.get(n)!r}, not {asked.get(n)!r}" for n in names)
    return f"holds another network: {said}"


def _first_line(error):
    return str(error).strip().split("\n")[0] or type(error).__name__
