"""Loads models from checkpoint files, including those of the paper's own code."""

import json
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import torch

from NetworkCreation.errors import CheckpointError, OptionError
from NetworkCreation.models import build_model
from NetworkCreation.rnn import RNN

LAST = "last.pth.tar"  # the latest state of a run
# What torch and zipfile raise for a damaged file.
DAMAGED = (RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError)
DAMAGED += (AssertionError, struct.error, zlib.error, zipfile.BadZipFile)


def read_checkpoint(path):
    """The dictionary in a checkpoint file, its tensors on the CPU; no code is executed.

    Raises CheckpointError, with the file's name, for a file that is missing, damaged, not a
    checkpoint, or contains anything but tensors and plain values.
    """
    if Path(path).exists() and not Path(path).is_file():  # reading a device may never end
        raise CheckpointError(f"{path}: not a file")
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says what is wrong
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:  # its message advises to execute the file's code
        raise CheckpointError(f"{path}: damaged, or more than tensors and plain values") from error
    except DAMAGED as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged ({reason})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path}: not a checkpoint, it has no 'state_dict'")
    return checkpoint


def _check_archive(path):
    """Checks what torch does not: the checksums of an archive, and the entries of its directory."""
    if not zipfile.is_zipfile(path):  # written by torch before 1.6, or not a checkpoint
        return
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            # torch would leave the memory of a tensor unset if its part is a directory (0x10)
            if part.external_attr & 0x10 or part.file_size != part.compress_size:
                raise zipfile.BadZipFile(f"{part.filename} is a directory or compressed")
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def load_model(path, config=None):
    """The trained model of a checkpoint, in eval mode on the CPU, and its config.

    path: a checkpoint, or the directory of a run, see `checkpoint_of`. config: {'model': spec of
    `build_model`} for a file of the paper's own code, which has none. Raises CheckpointError.
    """
    path = checkpoint_of(Path(path)) if Path(path).is_dir() else path
    return model_of(read_checkpoint(path), path, config)


def kept_checkpoints(run):
    """{epoch: path} of the checkpoints e_<epoch>.pth.tar in the directory of a run, in order."""
    epochs = {path.name[2:-8]: path for path in run.glob("e_*.pth.tar")}
    return dict(sorted((int(k), path) for k, path in epochs.items() if k.isdecimal()))


def newest_checkpoint(run):
    """The path of the latest kept checkpoint of a run, or else of its latest state."""
    epoch = max(kept_checkpoints(run), default=0)
    path = run / (f"e_{epoch}.pth.tar" if epoch else LAST)
    if not path.is_file():
        raise CheckpointError(f"{run}: has no checkpoint yet ({path.name})")
    return path


def checkpoint_of(run):
    """The path of the model of a run: the best one if it saved one, else the newest checkpoint."""
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        best = run / config["arguments"].get("save", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{run}: not the directory of a run ({error})") from error
    return best if best.is_file() else newest_checkpoint(run)


def model_of(checkpoint, path, config=None):
    """As `load_model`, for a checkpoint that has been read already from this path."""
    state, saved = checkpoint["state_dict"], checkpoint.get("config")
    config = config if saved is None else saved
    if config is None:
        raise CheckpointError(f"{path}: has no config; give one")
    try:
        spec = config["model"]
        model = build_model(spec, device="cpu")
    except (OptionError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: describes no valid network ({error})") from error
    try:
        model.load_state_dict(_from_paper(state, model) if saved is None else state)
    except RuntimeError as error:
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise CheckpointError(
            f"{path}: contains a different network than {spec['net_type']} with "
            f"{spec['hidden_size']} units ({reasons})"
        ) from error
    return model.eval(), config


def _from_paper(state, model):
    """The state_dict of the paper's own code in this project's names and shapes.

    Only its RNN differs. n and s are single numbers, for gamma2 too, and saved with the layer, with
    its activation, with both or, if fixed, with neither, even if φ is ReLU. Biases may be missing.
    """
    if not isinstance(model.rnn, RNN):
        return state
    state, own = dict(state), model.state_dict()
    for name, nested in (("rnn.n", "rnn.nonlinearity.n"), ("rnn.s", "rnn.nonlinearity.s")):
        value = state.pop(nested, own.get(name))
        value = state.pop(name, value)
        if name in own:
            state[name] = value.expand_as(own[name]) if value.numel() == 1 else value
    for name in ("rnn.U.bias", "rnn.V.bias"):
        state.setdefault(name, torch.zeros_like(own[name]))
    return state
