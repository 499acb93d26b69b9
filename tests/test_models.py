"""The two models, and how a checkpoint becomes a model, the paper's own included."""

import math

import pytest
import torch

from NetworkCreation.layers import hidden
from NetworkCreation.models import (
    CheckpointError,
    adaptation,
    build_model,
    load_model,
    read_checkpoint,
)
from NetworkCreation.recurrence import Embedded

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
@pytest.mark.parametrize("vocabulary", ["abc", "abcd", "abcdefg"])  # of 4 inputs
@pytest.mark.parametrize("tied", [False, True])
def test_the_character_model_is_embedding_steps_and_read_out(net_type, vocabulary, tied):
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
def test_every_way_through_a_layer_takes_symbols(net_type):
    model = build(characters(net_type)).double()
    x = Embedded(torch.randint(0, 3, (8, 5), dtype=torch.int32), model.encoder.weight)
    assert x.shape == x.dense().shape == (8, 5, 4)
    expected, _ = model.rnn.loop(x.dense())
    for run in (model.rnn, model.rnn.loop, model.rnn.trace):
        assert_close(run(x)[0], expected)
    with torch.no_grad():
        assert_close(model.rnn(x)[0], expected)
    with pytest.raises(ValueError, match=r"8, 5, 3.*T, B, 4"):
        model.rnn(Embedded(x.symbols, torch.zeros(3, 3)))


def test_tied_weights_are_one_matrix():
    model = build(characters("GRU", embedding_size=6, tied=True))
    assert model.decoder.weight is model.encoder.weight
    with pytest.raises(ValueError, match=r"4.*6"):
        build(characters("GRU", tied=True))


def test_a_seed_makes_the_same_model_whatever_the_global_generator_did():
    first = build(pixels("ANRU"), seed=5)
    torch.rand(3)
    second = build(pixels("ANRU"), seed=5)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (pixels("RNN") | {"net_type": "CNN"}, "CNN.*ANRU"),
        (pixels("RNN") | {"task": "speech"}, "speech.*pixels"),
        (pixels("RNN") | {"hidden_size": 0}, "hidden_size is 0"),
        (pixels("RNN", n=0.0), "gain n is 0"),
    ],
)
def test_a_wrong_spec_is_refused(spec, said):
    with pytest.raises(ValueError, match=said):
        build_model(spec)


def test_adaptation_is_that_of_the_units():
    model = build(pixels("RNN"))
    with torch.no_grad():
        model.rnn.n.copy_(torch.arange(1.0, 7.0))
    found = adaptation(model.rnn, torch.rand(5, 2, 1))
    assert found["n_mean"] == 3.5
    assert found["n_std"] == pytest.approx(math.sqrt(35 / 12))
    assert (found["s_mean"], found["s_std"]) == (0.5, 0.0)
    model, x = build(pixels("ANRU")), torch.rand(5, 2, 1)
    _, _, trace = model.rnn.trace(x)
    found = adaptation(model.rnn, x)
    assert found["n_mean"] == pytest.approx(trace["n"].double().mean().item())
    assert found["s_std"] == pytest.approx(trace["s"].double().std(correction=0).item())
    assert set(adaptation(build(pixels("GRU")).rnn, x).values()) == {None}


@pytest.mark.parametrize("net_type", LAYERS)
@pytest.mark.parametrize("task", [pixels, characters])
def test_a_checkpoint_alone_gives_back_the_model(tmp_path, net_type, task):
    spec = task(net_type)
    model = build(spec)
    path = save(tmp_path / "e_3.pth.tar", model.state_dict(), config={"model": spec})
    loaded, config = load_model(path)
    assert config == {"model": spec} and not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_fixed_n_and_s_are_in_the_checkpoint(tmp_path):
    spec = pixels("RNN", learn_params=False)
    model = build(spec)
    with torch.no_grad():
        model.rnn.n.fill_(3.25)
    path = save(tmp_path / "e_3.pth.tar", model.state_dict(), config={"model": spec})
    assert load_model(path)[0].rnn.n.tolist() == [3.25] * 6


@pytest.mark.parametrize("net_type", ["ANRU", "LSTM", "GRU"])
def test_the_papers_checkpoint_is_read_with_a_config(tmp_path, net_type):
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


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    spec = pixels("RNN")
    path = save(tmp_path / "e_3.pth.tar", build(spec).state_dict(), config={"model": spec})
    with pytest.raises(CheckpointError, match=r"e_3.*net_type is 'RNN', not 'GRU'"):
        load_model(path, {"model": pixels("GRU")})
    path = save(tmp_path / "e_4.pth.tar", build(pixels("GRU")).state_dict())
    with pytest.raises(CheckpointError, match=r"e_4.*another network than RNN"):
        load_model(path, {"model": spec})
    path = save(tmp_path / "e_5.pth.tar", build(spec | {"hidden_size": 5}).state_dict())
    with pytest.raises(CheckpointError, match=r"e_5.*another network than RNN with 6"):
        load_model(path, {"model": spec})


def test_a_bias_that_a_network_no_longer_has_is_of_another_version(tmp_path):
    for net_type, name in (("expRNN", "rnn.U.bias"), ("EURNN", "rnn.Ure.bias")):
        spec = pixels(net_type) | {"layer": {"nonlin": "modrelu"}}
        state = build(spec).state_dict() | {name: torch.zeros(6)}
        path = save(tmp_path / "e_6.pth.tar", state, config={"model": spec})
        with pytest.raises(CheckpointError, match=rf"e_6.* another version.*{net_type}.*{name}$"):
            load_model(path)


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_what_is_no_checkpoint_is_named_and_runs_no_code(tmp_path):
    spec = pixels("RNN")
    good = save(tmp_path / "good", build(spec).state_dict(), config={"model": spec}).read_bytes()
    bad = {
        "absent": None,
        "empty": b"",
        "text": b"no checkpoint at all",
        "cut": good[: len(good) // 2],
        "head": good[:20],
    }
    for name, content in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)
    torch.save([1, 2], tmp_path / "list")
    torch.save({"epoch": 1}, tmp_path / "no_state")
    torch.save({"state_dict": {}, "trap": Trap(tmp_path / "sprung")}, tmp_path / "trap")
    for name in ("list", "no_state", "trap"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path)
