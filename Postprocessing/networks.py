"""Models, inputs and matrices of saved runs: what the analyses need of a run and of its network.

A run is opened as `Training.run_directory.Run(path)`; its settings are `run.config["arguments"]`.
"""

import math

import torch
from torch.nn.utils import parametrize

from NetworkCreation.checkpoints import load_model, newest_checkpoint
from Training.config import RunError
from Training.datasets import columns, load_pixels, load_text


class Unsuitable(Exception):
    """An analysis cannot be computed for a run; the message says why."""


class NotApplicable(Unsuitable):
    """An analysis is not defined for a run's network."""


class Diverged(NotApplicable):
    """An analysis has no result, as a network diverges; saved, so that it is not asked for."""


def is_text(run):
    """Whether a run is scored in bits per character."""
    return run.config["model"]["task"] == "characters"


def kept_model(run, epoch=None):
    """The model of a run's newest kept checkpoint, or of an epoch, in eval mode on the CPU."""
    return load_model(newest_checkpoint(run.path) if epoch is None else run.kept[epoch])[0]


def data_set(run, data=None):
    """The data set of a run, PixelData or TextData; data: its folder, None for that of the run.

    Raises RunError if the run was trained on other data.
    """
    arguments = run.config["arguments"]
    root = arguments["data"] if data is None else data
    if is_text(run):
        loaded = load_text(arguments["dataset"], root, arguments["any_corpus"])
    else:
        loaded = load_pixels(arguments["dataset"], root, arguments["seed"], arguments["permute"])
    if run.config["data"] != loaded.checksums:
        raise RunError(f"{run.path}: was trained on other data than those in {root}")
    return loaded


@torch.no_grad()
def layer_input(run, model, count, data=None, least=1):
    """The input of the recurrent layer for the first B = `count` test sequences, x (T, B, I).

    For text, the first --bptt steps of B columns. data: as for `data_set`. least: minimum T, unless
    the test set is too small; sequences are continued by further test sequences, or by the text.
    """
    test = data_set(run, data).test
    if is_text(run):
        steps = max(least, run.config["arguments"]["bptt"])
        return model.encoder(columns(test, count)[:steps])
    copies = math.ceil(least / test.images.shape[1])
    x, _ = test.batch(slice(0, copies * count))
    return chains(x, count) if copies > 1 else x


def trained_layers(run, sequences, data=None, device="cpu", least=1):
    """Yields (epoch, layer, x) for every kept checkpoint of a run.

    The layer is frozen and in float64, on the device. x (T, B, I) is its `layer_input` for
    B = `sequences`. Raises Unsuitable if the test set is too small for `least`.
    """
    for epoch in run.kept:
        model = kept_model(run, epoch)
        x = layer_input(run, model, sequences, data, least)
        if len(x) < least:
            raise Unsuitable(
                f"the test set has only {len(x)} steps for each of {sequences} chains, "
                f"{least} are needed; --set lyapunov.steps or lyapunov.chains lowers this"
            )
        yield epoch, freeze(model.rnn.to(device)), x.to(device, torch.float64)


def chains(x, count):
    """Sequences x (T, N, I) as chains of N // count sequences each, (T N // count, count, I)."""
    return torch.cat(x[:, : x.shape[1] // count * count].split(count, dim=1))


def trained_anru(run, device="cpu"):
    """The model of a run and its frozen ANRU, in float64; NotApplicable for another network."""
    network = run.config["model"]["net_type"]
    if network != "ANRU":
        raise NotApplicable(f"needs an ANRU, got {network}")
    model = kept_model(run)
    return model, freeze(model.rnn).to(device)


def freeze(layer):
    """Converts a layer to float64 in place, removes parametrizations and gradients; returns it."""
    layer.double()
    for module in list(layer.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
    return layer.requires_grad_(False)
