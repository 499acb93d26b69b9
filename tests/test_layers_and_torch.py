"""Layers with tools of torch: checkpointing, pruning, half precision, default devices, buffers."""

import pytest
import torch
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from NetworkCreation.layer import RecurrentLayer, parts
from NetworkCreation.Networks import NETWORKS
from tests.layers import EACH_LOOP, assert_close, build, joined, new, randn, results, seeded

each_loop = pytest.mark.parametrize("key", EACH_LOOP)


@each_loop
def test_a_checkpointed_layer_has_the_same_gradients(key):
    layer, x = build(key), randn(9, 3, 2)
    again = results(lambda *given: checkpoint(layer, *given, use_reentrant=False), layer, x)
    assert_close(again, results(layer, layer, x))


@each_loop
def test_a_returned_state_can_be_modified(key):
    layer, x, kept = build(key), randn(9, 3, 2), torch.tensor([[0.0], [1.0], [1.0]]).double()

    def masked(*given):
        outputs, (h, *rest) = layer(*given)[0], parts(layer(*given)[1])
        return outputs, joined([h * kept, *rest])

    def reset(*given):
        outputs, state = layer(*given)
        parts(state)[0][0].zero_()
        return outputs, state

    assert_close(results(reset, layer, x), results(masked, layer, x))


@pytest.mark.parametrize(("net_type", "name"), [("RNN", "V"), ("ANRU", "Whh"), ("GRU", "Whn")])
def test_a_pruned_map_is_used_as_pruned(net_type, name):
    layer, x = new(net_type), randn(5, 3, 2)
    prune.l1_unstructured(layer.get_submodule(name), "weight", 0.5)
    for _ in range(2):
        layer(x)[0].square().sum().backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= 0.1 * parameter.grad
    assert_close([layer(x)[0]], [layer.loop(x)[0]])


def test_an_orthogonal_matrix_is_not_computed_in_half_precision():
    layer = new("expRNN", dtype=torch.float32).bfloat16()
    with pytest.raises(ValueError, match=r"needs float32 or float64, got torch\.bfloat16"):
        layer(randn(5, 3, 2).bfloat16())


@pytest.mark.parametrize("net_type", NETWORKS)
def test_the_default_device_does_not_change_initial_values(net_type):
    generator = seeded(0)
    with torch.device("meta"):
        layer = NETWORKS[net_type](2, 4, generator=generator, device="cpu")
    expected = NETWORKS[net_type](2, 4, generator=seeded(0)).state_dict()
    torch.testing.assert_close(layer.state_dict(), expected, rtol=0, atol=0)


class Reservoir(RecurrentLayer):
    """Fixed weights, which are buffers: only a read-out would learn."""

    def __init__(self):
        super().__init__(1, 3)
        self.register_buffer("W", torch.eye(3))

    def step(self, x_t, h, drive_t=None):
        return torch.tanh(x_t + h @ self.W)


def test_a_layer_may_have_no_parameters():
    outputs, h = Reservoir()(torch.ones(4, 2, 1))
    assert outputs.shape == (4, 2, 3) and torch.equal(outputs[-1], h)
