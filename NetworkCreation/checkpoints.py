"""Loads models from checkpoint files, including those of the paper's own code."""

import json
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import torch

from NetworkCreation.errors import CheckpointError, OptionError
from NetworkCreation.models import build_model
from NetworkCreation.rnn import RNN

# What zipfile and torch raise for a damaged file.
DAMAGED = (RuntimeError, EOFError, IndexError, ValueError, struct.error, zlib.error)
DAMAGED += (zipfile.BadZipFile,)


def read_checkpoint(path):
    """The dictionary in a checkpoint file, its tensors on the CPU; no code is executed.

    Raises CheckpointError, with the file's name, for a file that is missing, damaged, not a
    checkpoint, or contains anything but tensors and plain values.
    """
    try:
        _check_file(Path(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says what is wrong
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: damaged, or more than tensors and plain values") from error
    except DAMAGED as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged ({reason})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path}: not a checkpoint, it has no 'state_dict'")
    return checkpoint


def _check_file(path):
    """Checks what torch does not: the kind of file, and the parts of an archive."""
    if path.exists() and not path.is_file():
        raise OSError("not a file")
    if not zipfile.is_zipfile(path):  # written by torch before 1.6, or not a checkpoint
        return
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            # torch would leave the memory of a tensor unset if its part is a directory (0x10)
            directory = part.is_dir() or part.external_attr & 0x10
            if directory or part.flag_bits & 1 or part.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile(f"{part.filename} is a directory, encrypted or compressed")
            if part.file_size != part.compress_size:
                raise zipfile.BadZipFile(f"{part.filename} has two sizes")
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def load_model(path, config=None):
    """The trained model of a checkpoint, in eval mode on the CPU, and its config.

    path: a checkpoint, or the directory of a run: its best model if it saved one, else that of its
    last saved epoch, else its newest state. config: {'model': spec}, with spec as for
    `build_model`, for a file of the paper's own code, which contains none; ignored otherwise.
    Raises CheckpointError for a file that cannot be read or contains a different network.
    """
    path = _checkpoint_of(Path(path)) if Path(path).is_dir() else path
    return model_of(read_checkpoint(path), path, config)


def _checkpoint_of(run):
    """The file of a run's directory that `load_model` loads."""
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        best = config["arguments"].get("save")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run}: not the directory of a run ({error})") from error
    if best is not None and (run / best).is_file():
        return run / best
    epochs = [re.fullmatch(r"e_(\d+)\.pth\.tar", file.name) for file in run.iterdir()]
    last = max((int(match[1]) for match in epochs if match), default=0)
    return run / (f"e_{last}.pth.tar" if last > 0 else "last.pth.tar")


def model_of(checkpoint, path, config=None):
    """As `load_model`, for a checkpoint that has been read already from this path."""
    saved, state = checkpoint.get("config"), checkpoint["state_dict"]
    if saved is None and config is None:
        raise CheckpointError(f"{path}: has no config; give one")
    config = config if saved is None else saved
    try:
        spec = config["model"]
        model = build_model(spec)
    except (OptionError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: describes no valid network ({error})") from error
    if saved is None:
        state = _from_paper(state, model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise CheckpointError(
            f"{path}: contains a different network than {spec['net_type']} with "
            f"{spec['hidden_size']} units ({reasons})"
        ) from error
    return model.eval(), config


def _from_paper(state, model):
    """The state_dict of the paper's own code in this project's names and shapes.

    Its RNN may have n and s twice (the second time in the activation's module) or, if fixed, not at
    all, as single numbers even for gamma2, and may lack a bias.
    """
    state = dict(state)
    for name in ("n", "s"):
        if f"rnn.nonlinearity.{name}" in state:
            state.setdefault(f"rnn.{name}", state.pop(f"rnn.nonlinearity.{name}"))
    if isinstance(model.rnn, RNN):
        own = {f"rnn.{name}": value for name, value in model.rnn.state_dict().items()}
        for name in ("rnn.n", "rnn.s"):
            if name not in own:
                state.pop(name, None)  # γ is not this network's activation
            elif name not in state:
                state[name] = own[name]
            elif state[name].numel() == 1:
                state[name] = state[name].reshape(1).expand_as(own[name])
        for name in ("rnn.U.bias", "rnn.V.bias"):
            state.setdefault(name, torch.zeros_like(own[name]))  # a map without a bias
    return state
