"""The two models, and loading them from checkpoints, the paper's included."""

import contextlib
import math
import re

import pytest
import torch

from NetworkCreation.checkpoints import load_model, model_of, read_checkpoint
from NetworkCreation.errors import CheckpointError, OptionError
from NetworkCreation.layer import hidden, map_state
from NetworkCreation.models import build_model
from NetworkCreation.time_loop import Embedded
from tests.faults import Evil
from tests.layers import assert_close, randn, seeded
from Training.evaluation import gain_statistics

LAYERS = {"ANRU": {"supervisor_size": 5}, "LSTM": {}, "GRU": {}, "EURNN": {"capacity": 3}}
LAYERS |= {"expRNN": {"rinit": "cayley"}, "nnRNN": {"nonlin": "gamma2"}}
LAYERS["RNN"] = {"nonlin": "gamma2", "n": 2.0, "s": 0.5, "learn_params": True}
each_layer = pytest.mark.parametrize("net_type", LAYERS)


def pixels(net_type):
    return dict(task="pixels", net_type=net_type, hidden_size=6, classes=10, layer=LAYERS[net_type])


def characters(net_type, **more):
    spec = {"task": "characters", "net_type": net_type, "hidden_size": 6, "embedding_size": 4}
    return spec | {"vocabulary": list("abc"), "tied": False, "layer": LAYERS[net_type]} | more


def build(spec):
    return build_model(spec, seeded(0))


def save(path, state, **more):
    torch.save({"state_dict": state, "optimizer": {}, "epoch": 3, **more}, path)
    return path


@each_layer
def test_the_classifier_reads_the_last_state(net_type):
    model = build(pixels(net_type)).double()
    x, drive = torch.rand(2, 7, 3, 1).double().unbind()
    outputs, _ = model.rnn(x, drive=drive[..., 0])
    logits = outputs[-1] @ model.lin.weight.T + model.lin.bias
    assert_close([model(x, drive=drive[..., 0])], [logits])


@each_layer
@pytest.mark.parametrize("vocabulary", ["abc", "abcd", "abcdefg"])  # the layer has 4 inputs
@pytest.mark.parametrize("tied", [False, True])
def test_the_character_model_is_embedding_loop_and_decoder(net_type, vocabulary, tied):
    spec = characters(net_type, vocabulary=list(vocabulary), tied=tied, hidden_size=4)
    model = build(spec).double()
    assert (model.decoder.weight is model.encoder.weight) == tied
    symbols, drive = torch.randint(len(vocabulary), (8, 5), generator=seeded(1)), randn(8, 5)
    before = map_state(torch.detach, model(symbols[:2])[1])
    outputs, after = model.rnn.loop(model.encoder(symbols), before, drive)

    def results(logits, state):
        gradients = torch.autograd.grad(logits.square().sum(), [*model.parameters()])
        return [logits, hidden(state), *gradients]

    assert_close(results(*model(symbols, before, drive)), results(model.decoder(outputs), after))


@each_layer
def test_layers_accept_embedded_symbols(net_type):
    model = build(characters(net_type)).double()
    x = Embedded(torch.randint(0, 3, (8, 5), dtype=torch.int32), model.encoder.weight)
    expected, _ = model.rnn.loop(x.dense())
    for run in (model.rnn, model.rnn.loop, model.rnn.trace, torch.no_grad()(model.rnn)):
        assert_close([run(x)[0]], [expected])
    half = Embedded(x.symbols, x.table.half())
    assert_close([model.rnn(half)[0]], [model.rnn(half.dense())[0]])
    with pytest.raises(ValueError, match=r"T, B, 4.*8, 5, 3"):
        model.rnn(Embedded(x.symbols, torch.zeros(3, 3)))


def test_gain_statistics_are_those_of_the_units():
    rnn, anru, gru = (build(pixels(net_type)).rnn for net_type in ("RNN", "ANRU", "GRU"))
    x = torch.rand(5, 2, 1)
    rnn.n.data = torch.arange(1.0, 7.0)
    expected = {"n_mean": 3.5, "n_std": math.sqrt(35 / 12), "s_mean": 0.5, "s_std": 0.0}
    assert gain_statistics(rnn.gains(x)) == pytest.approx(expected)
    traced, statistics = anru.trace(x)[2], gain_statistics(anru.gains(x))
    assert statistics["n_mean"] == pytest.approx(traced["n"].double().mean().item())
    assert statistics["s_std"] == pytest.approx(traced["s"].double().std(correction=0).item())
    assert gain_statistics(gru.gains(x)) == dict.fromkeys(expected)


@each_layer
@pytest.mark.parametrize("task", [pixels, characters])
def test_a_checkpoint_alone_restores_the_model(tmp_path, net_type, task):
    spec = task(net_type)
    model = build(spec)
    torch.rand(3)  # initial values come from the given generator alone
    same = build(spec).state_dict()
    path = save(tmp_path / "e_3.pth.tar", model.state_dict(), config={"model": spec})
    loaded, config = load_model(path)
    assert config == {"model": spec} and not loaded.training
    # as in a file of the paper's own code, which has no config
    papers, _ = model_of({"state_dict": model.state_dict()}, path, {"model": spec})
    for state in (loaded.state_dict(), papers.state_dict(), same):
        torch.testing.assert_close(state, model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("nonlin", "units"), [("gamma", 1), ("gamma2", 6), ("ReLU", 0)])
@pytest.mark.parametrize("owners", [["rnn"], ["rnn", "rnn.nonlinearity"], ["rnn.nonlinearity"], []])
def test_the_papers_rnn_holds_n_and_s_under_any_names(tmp_path, nonlin, units, owners):
    """As single numbers, or not at all if they are fixed; a ReLU network does not use them."""
    spec = pixels("RNN") | {"layer": {"nonlin": nonlin, **({"n": 7.0, "s": 0.25} if units else {})}}
    state = build(spec).state_dict()
    V = state["rnn.V.weight"]
    for name in ("rnn.n", "rnn.s", "rnn.U.bias", "rnn.V.bias"):
        state.pop(name, None)
    for owner in owners:
        state |= {f"{owner}.n": torch.tensor([4.5]), f"{owner}.s": torch.tensor([-0.25])}
    path = save(tmp_path / "e_9.pth.tar", state)
    with pytest.raises(CheckpointError, match=r"e_9.*config"):
        load_model(path)
    rnn = load_model(path, {"model": spec})[0].rnn
    assert torch.equal(rnn.V.weight, V) and not rnn.U.bias.any() and not rnn.V.bias.any()
    gains = {name: values.tolist() for name, values in rnn.gains().items()}
    n, s = (4.5, -0.25) if owners else (7.0, 0.25)
    assert gains == ({"n": [n] * units, "s": [s] * units} if units else {})


def test_the_directory_of_a_run_stands_for_its_best_or_latest_model(tmp_path):
    spec = pixels("RNN")
    state = build(spec).state_dict()

    def loaded():
        return load_model(tmp_path)[0].rnn.n[0].item()

    def add(name, n):
        save(tmp_path / name, state | {"rnn.n": torch.full((6,), n)}, config={"model": spec})

    with pytest.raises(CheckpointError, match="not the directory of a run"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"arguments": {"save": "best.pt"}}')
    with pytest.raises(CheckpointError, match=r"no checkpoint yet \(last\.pth\.tar\)"):
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


def test_another_network_or_an_invalid_spec_is_named():
    spec = pixels("RNN")
    for other in (pixels("GRU"), spec | {"hidden_size": 5}):
        message = r"e_9: .*different network than RNN with 6 units \(.*V"
        with pytest.raises(CheckpointError, match=message):
            model_of({"state_dict": build(other).state_dict()}, "e_9", {"model": spec})
    for wrong, name, message in (
        (spec | {"net_type": "CNN"}, "net_type", "RNN, ANRU.*got 'CNN'"),
        (spec | {"task": "speech"}, "task", "pixels, characters, got 'speech'"),
        (spec | {"hidden_size": -3}, "hidden_size", "at least 1, got -3"),
        (characters("GRU", tied=True), "tied", "4 and 6"),
        (spec | {"layer": {"gates": 3}}, None, "gates"),
        ({"task": "pixels"}, None, "net_type"),
        ([], None, "list"),
    ):
        if name is not None:
            with pytest.raises(OptionError, match=message) as caught:
                build_model(wrong)
            assert caught.value.name == name
        with pytest.raises(CheckpointError, match=rf"a.pt: .*no valid network.*{message}"):
            model_of({"state_dict": {}, "config": {"model": wrong}}, "a.pt")


def assert_rejected(path):
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: .*\Z"):  # in one line
        read_checkpoint(path)


def flipped(content, place, bit):
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


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
    if legacy:  # without checksums: rejected, or read with another value
        for place in range(0, len(good), 17):
            path.write_bytes(flipped(good, place, 4))
            with contextlib.suppress(CheckpointError):
                read_checkpoint(path)
        return
    weights = good.index(content["state_dict"]["rnn.V.weight"].numpy().tobytes())
    places = [(weights, 1)]
    for entry in re.finditer(b"PK\x01\x02", good):
        # directory, encrypted, compressed, name: torch would skip or misread the entry
        places += [(entry.start() + at, bit) for at, bit in ((38, 16), (8, 1), (10, 8), (46, 1))]
    assert len(places) > 40
    for place, bit in places:
        path.write_bytes(flipped(good, place, bit))
        assert_rejected(path)


def test_other_files_are_rejected_without_running_code(tmp_path):
    for text in ("", "epoch,train_loss\n1,0.5\n", "{}"):
        (tmp_path / "text").write_text(text)
        assert_rejected(tmp_path / "text")
    torch.save([1, 2], tmp_path / "list")
    torch.save({"epoch": 1}, tmp_path / "no_state")
    for legacy in (False, True):
        trap = {"state_dict": {}, "trap": Evil(tmp_path / "sprung")}
        torch.save(trap, tmp_path / f"trap{legacy}", _use_new_zipfile_serialization=not legacy)
    for name in ("list", "no_state", "trapFalse", "trapTrue", "absent", "", "/dev/zero"):
        assert_rejected(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
