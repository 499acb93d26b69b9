"""Training at the edge of what the numbers hold: a finite result, or a stop that says what went."""

import math
import re

import pytest
import torch
from torch.nn.functional import cross_entropy

from NetworkCreation.models import build_model
from NetworkCreation.Networks import NETWORKS
from Training.runs import TrainingState, TrainingStopped

STEPS, BATCH, UNITS = 6, 3, 4
UPDATES = 4


def make_state(net_type, lr=1e-3, dtype=torch.float32, optimizer=torch.optim.Adam, **layer):
    """A small classifier of pixels and its optimiser."""
    spec = {"task": "pixels", "net_type": net_type, "hidden_size": UNITS, "classes": 10}
    model = build_model(spec | {"layer": layer}, torch.Generator().manual_seed(0)).to(dtype)
    return TrainingState(model, optimizer(model.parameters(), lr=lr), None, {}, batch=6)


def update(state, size=1.0):
    """One update on an input of this size, in the parameters' type."""
    like = next(state.model.parameters())
    x = size * torch.linspace(0, 1, STEPS * BATCH).view(STEPS, BATCH, 1).to(like)
    return state.update(cross_entropy(state.model(x), torch.arange(BATCH)))


def train(state, size=1.0):
    """Some updates: what stopped them, or None where all that there is stayed finite."""
    try:
        for _ in range(UPDATES):
            assert all(map(math.isfinite, update(state, size)))
    except TrainingStopped as stopped:
        return str(stopped)
    assert all(value.isfinite().all() for value in state.model.state_dict().values())
    return None


def assert_names(said, state):
    """That a stop names the epoch, the batch, and a parameter that there is."""
    assert "not finite in epoch 1, batch 7, at learning rate" in said
    assert any(name in said for name in state.model.state_dict()), said


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("net_type", NETWORKS)
def test_a_result_is_finite_or_the_stop_names_what_went(net_type, dtype):
    for lr in (1e-3, 1.0, 1e4, 1e10, 1e30):
        for size in (0.0, 1.0, 1e30):
            state = make_state(net_type, lr, dtype)
            if (said := train(state, size)) is not None:
                assert_names(said, state)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("nonlin", ["gamma", "gamma2"])
@pytest.mark.parametrize("s", [0.0, 0.5, 1.0])
def test_n_through_0_and_to_10000(nonlin, s):
    """Trains at every n on the way; with log(2)/n added at every step, a small n may explode."""
    for n in (1e4, 1.0, 1e-3, 1e-6, 1e-30, 1.2e-38, -1e-30, -1e-6, -1e-3, -1.0, -1e4):
        state = make_state("RNN", nonlin=nonlin, n=n, s=s)
        said = train(state)
        if abs(n) >= 1:
            assert said is None, (n, said)
        elif said is not None:
            assert_names(said, state)


@pytest.mark.parametrize("s", [0.0, 0.5])
def test_an_n_that_lands_on_0_is_named(s):
    """Plain descent with a gradient of n that is n itself leads to 0 exactly."""
    state = make_state("RNN", 1.0, optimizer=torch.optim.SGD, nonlin="gamma", n=2.0, s=s)
    state.update(state.model.rnn.n.square().sum() / 2)
    assert state.model.rnn.n.item() == 0
    with pytest.raises(TrainingStopped, match=re.escape("|n| is 0 or more in rnn.n")) as stopped:
        update(state)
    assert_names(str(stopped.value), state)


def test_the_largest_parameter_is_named_where_the_state_overflows():
    state = make_state("RNN", nonlin="ReLU")
    with torch.no_grad():
        state.model.rnn.V.weight.fill_(1e30)
    with pytest.raises(TrainingStopped, match=r"the loss is .* largest 1e\+30 in rnn\.V\.weight;"):
        update(state)


def test_a_gradient_whose_norm_overflows_is_named():
    state = make_state("RNN", nonlin="ReLU")
    said = r"the gradient's norm is not finite .* the largest 1e\+30 in lin\.bias;"
    with pytest.raises(TrainingStopped, match=said):
        state.update(1e30 * state.model.lin.bias.sum())


def test_a_parameter_without_elements_is_no_hindrance():
    """An EURNN of one unit has no pair of units to rotate."""
    spec = {"task": "pixels", "net_type": "EURNN", "hidden_size": 1, "classes": 10, "layer": {}}
    model = build_model(spec, torch.Generator().manual_seed(0))
    state = TrainingState(model, torch.optim.Adam(model.parameters()), None, {})
    for factor, said in ((math.inf, "the loss is"), (1e30, "the gradient's norm is")):
        loss = factor * (state.model(torch.ones(2, 1, 1)).sum() + model.rnn.theta.sum() + 1)
        with pytest.raises(TrainingStopped, match=said):
            state.update(loss)
