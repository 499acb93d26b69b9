"""The two models, and loading them from checkpoints, the paper's included."""

import math
import re

import pytest
import torch

from NetworkCreation.checkpoints import load_model, model_of, read_checkpoint
from NetworkCreation.errors import CheckpointError, OptionError, UserError
from NetworkCreation.layer import hidden
from NetworkCreation.models import build_model, gain_statistics
from NetworkCreation.time_loop import Embedded

LAYERS = {
    "RNN": {"nonlin": "gamma2", "n": 2.0, "s": 0.5, "learn_params": True},
    "ANRU": {"supervisor_size": 5},
    "LSTM": {},
    "GRU": {},
    "expRNN": {"rinit": "cayley"},
    "nnRNN": {"nonlin": "gamma2"},
    "EURNN": {"capacity": 3},
}


def pixels(net_type, **layer):
    layer = LAYERS[net_type] | layer
    return {"task": "pixels", "net_type": net_type, "hidden_size": 6, "classes": 10, "layer": layer}


def characters(net_type, **more):
    return {
        "task": "characters",
        "net_type": net_type,
        "hidden_size": 6,
        "embedding_size": 4,
        "vocabulary": ["a", "b", "c"],
        "tied": False,
        "layer": LAYERS[net_type],
        **more,
    }


def build(spec, seed=0):
    return build_model(spec, torch.Generator().manual_seed(seed))


def assert_close(found, expected):
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def save(path, state, **more):
    torch.save({"state_dict": state, "optimizer": {}, "epoch": 3, **more}, path)
    return path


@pytest.mark.parametrize("net_type", LAYERS)
def test_the_classifier_reads_the_last_state(net_type):
    model = build(pixels(net_type))
    x, drive = torch.rand(7, 3, 1), torch.rand(7)
    outputs, _ = model.rnn(x, drive=drive)
    expected = outputs[-1] @ model.lin.weight.T + model.lin.bias
    assert torch.allclose(model(x, drive=drive), expected, atol=1e-6)
    assert not torch.allclose(model(x), expected)


@pytest.mark.parametrize("net_type", LAYERS)
def test_the_character_model_predicts_at_every_step_and_carries_its_state(net_type):
    model = build(characters(net_type))
    symbols = torch.randint(0, 3, (8, 2), generator=torch.Generator().manual_seed(1))
    whole, _ = model(symbols)
    first, state = model(symbols[:5])
    second, _ = model(symbols[5:], state)
    assert whole.shape == (8, 2, 3)
    assert torch.allclose(whole, torch.cat([first, second]), atol=1e-6)


@pytest.mark.parametrize("net_type", LAYERS)
@pytest.mark.parametrize("vocabulary", ["abc", "abcd", "abcdefg"])  # the layer has 4 inputs
@pytest.mark.parametrize("tied", [False, True])
def test_the_character_model_matches_embedding_loop_and_decoder(net_type, vocabulary, tied):
    spec = characters(net_type, vocabulary=list(vocabulary), tied=tied, hidden_size=4)
    model = build(spec).double()
    generator = torch.Generator().manual_seed(1)
    symbols = torch.randint(0, len(vocabulary), (8, 5), generator=generator)
    drive = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    _, before = model(symbols[:2])
    before = [part.detach() for part in before] if isinstance(before, tuple) else before.detach()
    logits, state = model(symbols, before, drive)
    outputs, after = model.rnn.loop(model.encoder(symbols), before, drive)
    expected = model.decoder(outputs)
    assert_close(logits, expected)
    assert_close(hidden(state), hidden(after))
    for parameter, found, right in zip(
        model.parameters(),
        torch.autograd.grad((logits**2).sum(), [*model.parameters()]),
        torch.autograd.grad((expected**2).sum(), [*model.parameters()]),
        strict=True,
    ):
        assert found.shape == parameter.shape
        assert_close(found, right)


@pytest.mark.parametrize("net_type", LAYERS)
def test_layers_accept_embedded_symbols(net_type):
    model = build(characters(net_type)).double()
    x = Embedded(torch.randint(0, 3, (8, 5), dtype=torch.int32), model.encoder.weight)
    assert x.shape == x.dense().shape == (8, 5, 4)
    expected, _ = model.rnn.loop(x.dense())
    for run in (model.rnn, model.rnn.loop, model.rnn.trace):
        assert_close(run(x)[0], expected)
    with torch.no_grad():
        assert_close(model.rnn(x)[0], expected)
    with pytest.raises(ValueError, match=r"T, B, 4.*8, 5, 3"):
        model.rnn(Embedded(x.symbols, torch.zeros(3, 3)))


def test_tied_weights_are_one_matrix():
    model = build(characters("GRU", embedding_size=6, tied=True))
    assert model.decoder.weight is model.encoder.weight
    with pytest.raises(OptionError, match=r"4.*6") as caught:
        build(characters("GRU", tied=True))
    assert caught.value.name == "tied"


def test_models_do_not_depend_on_the_global_generator():
    first = build(pixels("ANRU"), seed=5)
    torch.rand(3)
    second = build(pixels("ANRU"), seed=5)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("spec", "name", "message"),
    [
        (pixels("RNN") | {"net_type": "CNN"}, "net_type", "RNN, ANRU.*got 'CNN'"),
        (pixels("RNN") | {"task": "speech"}, "task", "pixels, characters, got 'speech'"),
        (pixels("RNN") | {"hidden_size": 0}, "hidden_size", "at least 1, got 0"),
        (pixels("RNN") | {"classes": 0}, "classes", "at least 1, got 0"),
        (pixels("RNN", n=0.0), "n", "gain n is 0"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_invalid_spec_is_rejected(spec, name, message, device):
    with pytest.raises(OptionError, match=message) as caught:
        build_model(spec, device=device)
    assert caught.value.name == name


@pytest.mark.parametrize("net_type", LAYERS)
@pytest.mark.parametrize("task", [pixels, characters])
def test_a_model_on_the_meta_device_has_the_same_parameters(net_type, task):
    expected, found = build_model(task(net_type)), build_model(task(net_type), device="meta")
    assert all(parameter.is_meta for parameter in found.parameters())
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in (expected, found)]
    assert shapes[0] == shapes[1]
    groups = [model.rnn.parameter_groups() for model in (expected, found)]
    assert groups[0].keys() == groups[1].keys()
    large = {"ANRU": {"supervisor_size": 10**9}, "EURNN": {"capacity": 10**9}}.get(net_type, {})
    spec = task(net_type) | {"hidden_size": 10**9, "layer": LAYERS[net_type] | large}
    assert sum(p.numel() for p in build_model(spec, device="meta").parameters()) > 10**18


def test_gain_statistics_are_those_of_the_units():
    model = build(pixels("RNN"))
    with torch.no_grad():
        model.rnn.n.copy_(torch.arange(1.0, 7.0))
    found = gain_statistics(model.rnn, torch.rand(5, 2, 1))
    assert found["n_mean"] == 3.5
    assert found["n_std"] == pytest.approx(math.sqrt(35 / 12))
    assert (found["s_mean"], found["s_std"]) == (0.5, 0.0)
    model, x = build(pixels("ANRU")), torch.rand(5, 2, 1)
    _, _, trace = model.rnn.trace(x)
    found = gain_statistics(model.rnn, x)
    assert found["n_mean"] == pytest.approx(trace["n"].double().mean().item())
    assert found["s_std"] == pytest.approx(trace["s"].double().std(correction=0).item())
    assert set(gain_statistics(build(pixels("GRU")).rnn, x).values()) == {None}


@pytest.mark.parametrize("net_type", LAYERS)
@pytest.mark.parametrize("task", [pixels, characters])
def test_a_checkpoint_alone_restores_the_model(tmp_path, net_type, task):
    spec = task(net_type)
    model = build(spec)
    path = save(tmp_path / "e_3.pth.tar", model.state_dict(), config={"model": spec})
    loaded, config = load_model(path)
    assert config == {"model": spec} and not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_fixed_n_and_s_are_in_the_checkpoint(tmp_path):
    spec = pixels("RNN", learn_params=False)
    model = build(spec)
    with torch.no_grad():
        model.rnn.n.fill_(3.25)
    path = save(tmp_path / "e_3.pth.tar", model.state_dict(), config={"model": spec})
    assert load_model(path)[0].rnn.n.tolist() == [3.25] * 6


@pytest.mark.parametrize("net_type", ["ANRU", "LSTM", "GRU"])
def test_the_papers_checkpoints_load_with_a_config(tmp_path, net_type):
    spec = pixels(net_type)
    model = build(spec)
    path = save(tmp_path / "e_99.pth.tar", model.state_dict())
    with pytest.raises(CheckpointError, match=r"e_99.*config"):
        load_model(path)
    loaded, _ = load_model(path, {"model": spec})
    x = torch.rand(4, 2, 1)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("nonlin", ["gamma", "gamma2"])
@pytest.mark.parametrize(
    "names", [("rnn.",), ("rnn.", "rnn.nonlinearity."), ("rnn.nonlinearity.",)]
)
def test_the_papers_rnn_holds_one_n_and_s_under_one_or_two_names(tmp_path, nonlin, names):
    spec = pixels("RNN", nonlin=nonlin)
    state = build(spec).state_dict()
    del state["rnn.n"], state["rnn.s"]
    for name in names:
        state |= {f"{name}n": torch.tensor([4.5]), f"{name}s": torch.tensor([-0.25])}
    model, _ = load_model(save(tmp_path / "e_9.pth.tar", state), {"model": spec})
    units = 6 if nonlin == "gamma2" else 1
    assert model.rnn.n.tolist() == [4.5] * units and model.rnn.s.tolist() == [-0.25] * units
    assert torch.equal(model.rnn.V.weight, state["rnn.V.weight"])


def test_the_papers_rnn_without_n_s_or_biases_takes_them_from_the_config(tmp_path):
    spec = pixels("RNN", nonlin="gamma", n=7.0, s=0.25, learn_params=False)
    state = build(spec).state_dict()
    for name in ("rnn.n", "rnn.s", "rnn.U.bias", "rnn.V.bias"):
        del state[name]
    model, _ = load_model(save(tmp_path / "e_9.pth.tar", state), {"model": spec})
    assert (model.rnn.n.item(), model.rnn.s.item()) == (7.0, 0.25)
    assert model.rnn.V.bias.count_nonzero() == 0


def test_the_papers_relu_checkpoint_may_hold_an_unused_n(tmp_path):
    spec = pixels("RNN") | {"layer": {"nonlin": "ReLU"}}
    state = build(spec).state_dict() | {"rnn.n": torch.ones(1), "rnn.s": torch.ones(1)}
    model, _ = load_model(save(tmp_path / "e_9.pth.tar", state), {"model": spec})
    assert not hasattr(model.rnn, "n")


def test_a_checkpoint_of_another_network_is_rejected(tmp_path):
    spec = pixels("RNN")
    for number, other in enumerate((pixels("GRU"), spec | {"hidden_size": 5})):
        path = save(tmp_path / f"e_{number}.pth.tar", build(other).state_dict())
        with pytest.raises(
            CheckpointError, match=rf"e_{number}.*different network than RNN with 6"
        ):
            load_model(path, {"model": spec})


def test_the_directory_of_a_run_stands_for_its_best_or_latest_model(tmp_path):
    spec = pixels("RNN")
    state = build(spec).state_dict()

    def loaded():
        return load_model(tmp_path)[0].rnn.n[0].item()

    def add(name, n):
        changed = state | {"rnn.n": torch.full((6,), n)}
        save(tmp_path / name, changed, config={"model": spec})

    with pytest.raises(CheckpointError, match="not the directory of a run"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"arguments": {"save": "best.pt"}}')
    with pytest.raises(CheckpointError, match=r"last\.pth\.tar.*No such file"):
        load_model(tmp_path)
    add("last.pth.tar", 1.0)
    add("e_0.pth.tar", 2.0)
    assert loaded() == 1.0
    for epoch in (9, 10):
        add(f"e_{epoch}.pth.tar", epoch)
        assert loaded() == epoch
    add("best.pt", 3.0)
    assert loaded() == 3.0
    (tmp_path / "config.json").write_text('{"arguments": {}}')
    assert loaded() == 10.0


def test_an_invalid_saved_spec_is_a_checkpoint_error(tmp_path):
    spec = pixels("RNN")
    checkpoint = {"state_dict": build(spec).state_dict()}
    for model, reason in (
        (spec | {"net_type": "CNN"}, "net_type"),
        (spec | {"hidden_size": -3}, "hidden_size"),
        (spec | {"layer": {"gates": 3}}, "gates"),
        ({"task": "pixels"}, "net_type"),
        ([], "list"),
    ):
        with pytest.raises(CheckpointError, match=rf"a.pt: .*no valid network.*{reason}"):
            model_of(checkpoint | {"config": {"model": model}}, "a.pt")


class Trap:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def assert_rejected(path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
def test_a_truncated_or_modified_file_is_rejected(tmp_path, legacy):
    spec, path = pixels("RNN"), tmp_path / "e_1.pth.tar"
    content = {"state_dict": build(spec).state_dict(), "config": {"model": spec}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    good = path.read_bytes()
    assert load_model(path)[1] == content["config"]
    for length in [*range(0, 60, 7), *range(60, len(good), len(good) // 40)]:
        path.write_bytes(good[:length])
        assert_rejected(path)
    if not legacy:  # the legacy format has no checksums
        flip(path, good.index(content["state_dict"]["rnn.V.weight"].numpy().tobytes()), 1)
        assert_rejected(path)


def flip(path, place, bit):
    """Flips a bit of the byte of a file at this place."""
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


# Places in an entry of an archive's directory, and bits that make torch skip or misread the entry.
BITS = {"directory": (38, 0x10), "encrypted": (8, 1), "compressed": (10, 8), "name": (46, 1)}


@pytest.mark.parametrize(("place", "bit"), BITS.values(), ids=BITS)
def test_a_flipped_bit_in_the_directory_of_an_archive_is_rejected(tmp_path, place, bit):
    path = save(tmp_path / "e_1.pth.tar", build(pixels("RNN")).state_dict())
    good = path.read_bytes()
    entries = [match.start() for match in re.finditer(b"PK\x01\x02", good)]
    assert len(entries) > 10
    for entry in entries:
        flip(path, entry + place, bit)
        assert_rejected(path)
        path.write_bytes(good)
    read_checkpoint(path)


def test_other_files_are_rejected_without_running_code(tmp_path):
    for name, text in {
        "absent": None,
        "empty": "",
        "metrics.csv": "epoch,train_loss\n1,0.5\n",
        "config.json": "{}",
        "log.txt": "no checkpoint at all",
    }.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        assert_rejected(tmp_path / name)
    torch.save([1, 2], tmp_path / "list")
    torch.save({"epoch": 1}, tmp_path / "no_state")
    for legacy in (False, True):
        trap = {"state_dict": {}, "trap": Trap(tmp_path / "sprung")}
        torch.save(trap, tmp_path / f"trap{legacy}", _use_new_zipfile_serialization=not legacy)
    for name in ("list", "no_state", "trapFalse", "trapTrue", "", "/dev/zero"):
        assert_rejected(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
