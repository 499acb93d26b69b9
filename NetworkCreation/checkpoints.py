"""Loads models from checkpoint files, including those of the paper's own code."""

import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import torch

from NetworkCreation.layer import OptionError
from NetworkCreation.models import build_model
from NetworkCreation.rnn import RNN

# The first bytes of a file of torch before 1.6; later files are zip archives.
LEGACY_START = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # torch's magic number, pickled
# What zipfile and torch raise for a file that is damaged.
DAMAGED = (RuntimeError, EOFError, IndexError, UnicodeDecodeError)
DAMAGED += (struct.error, zipfile.BadZipFile, zlib.error)


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or holds another network than the one asked for."""


def read_checkpoint(path):
    """The dictionary in a checkpoint file, its tensors on the CPU; no code is executed.

    Raises CheckpointError, with the file's name, for a file that is missing, damaged, not a
    checkpoint, or holds anything but tensors and plain values.
    """
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says what is wrong
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: damaged, or holds more than tensors and values") from error
    except DAMAGED as error:
        reason = _first_line(error)
        if "weights_only" in reason:  # torch's advice to let the file run code
            reason = "not made of tensors and values alone"
        raise CheckpointError(f"{path}: damaged ({reason})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path}: not a checkpoint, it has no 'state_dict'")
    return checkpoint


def _check_archive(path):
    """Checks the sizes and checksums of an archive's parts, which torch does not."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            if file.read(len(LEGACY_START)) != LEGACY_START:
                raise zipfile.BadZipFile("neither an archive nor an older file of torch")
        return
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > Path(path).stat().st_size:
            raise zipfile.BadZipFile("it claims to hold more than it does")  # torch compresses none
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def load_model(checkpoint_path, config=None):
    """The trained model of a checkpoint, in eval mode on the CPU, and its config.

    A checkpoint of this project contains its config; a config that is given must have the same
    `model`. A checkpoint of the paper's own code, {'state_dict', 'optimizer', 'epoch'}, has none:
    give {'model': spec}, with spec as for `build_model`.
    Raises CheckpointError for a file that cannot be read or holds another network.
    """
    return model_of(read_checkpoint(checkpoint_path), checkpoint_path, config)


def model_of(checkpoint, checkpoint_path, config=None):
    """As `load_model`, for a checkpoint that has been read already."""
    saved, state = checkpoint.get("config"), checkpoint["state_dict"]
    if saved is None and config is None:
        raise CheckpointError(f"{checkpoint_path}: holds no config; give one")
    if saved is not None and config is not None and saved["model"] != config["model"]:
        raise CheckpointError(f"{checkpoint_path}: {_difference(saved['model'], config['model'])}")
    config = config if saved is None else saved
    try:
        _check_size(config["model"], state)
        model = build_model(config["model"])
    except (OptionError, KeyError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{checkpoint_path}: describes no network ({reason})") from error
    if saved is None:
        state = _from_paper(state, model)
    network = config["model"]["net_type"]
    for bias in ("rnn.U.bias", "rnn.Ure.bias"):
        if bias in state and bias not in model.state_dict():
            raise CheckpointError(
                f"{checkpoint_path}: of another version, in which {network} has the bias {bias}"
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


def _check_size(spec, state):
    """Raises OptionError for a network far larger than the file, before allocating it."""
    held = sum(tensor.numel() for tensor in state.values())
    claimed = sum(p.numel() for p in build_model(spec, device="meta").parameters())
    if claimed > 2 * held:  # the paper's files may lack biases, n and s
        raise OptionError("hidden_size", f"it has {claimed} parameters, the file {held} numbers")


def _from_paper(state, model):
    """The state_dict of the paper's own code in this project's names and shapes.

    Its RNN may have n and s twice (the second time in the activation's module) or, if fixed, not at
    all, as single numbers even for gamma2, and may lack a bias.
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
    """One line on how two specs differ."""
    names = [name for name in saved | asked if saved.get(name) != asked.get(name)]
    said = "; ".join(f"{n} is {saved.get(n)!r}, not {asked.get(n)!r}" for n in names)
    return f"holds another network: {said}"


def _first_line(error):
    return str(error).strip().split("\n")[0] or type(error).__name__
