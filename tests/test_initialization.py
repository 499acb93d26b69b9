"""Initial values of the recurrent matrices and the input maps."""

import math

import numpy as np
import pytest
import torch

from NetworkCreation import initialization
from NetworkCreation.initialization import INPUT, RECURRENT
from NetworkCreation.models import CharacterModel, PixelClassifier
from NetworkCreation.Networks import ANRU, NETWORKS, RNN

ROTATIONS = ["henaff", "cayley", "random"]
DTYPES = [torch.float32, torch.float64]


def draw(name, *shape, seed=0, dtype=torch.float64, **options):
    function = getattr(initialization, name, None) or RECURRENT[name]
    generator = torch.Generator().manual_seed(seed)
    return function(torch.full(shape, math.nan, dtype=dtype), generator, **options)


def distance_to_uniform(values, low, high):
    """√N times the Kolmogorov–Smirnov distance to U(low, high); exceeds 1.95 once in a thousand."""
    ordered = (np.sort(np.asarray(values)) - low) / (high - low)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    distance = max(np.abs(ordered - steps[:-1]).max(), np.abs(ordered - steps[1:]).max())
    return math.sqrt(len(ordered)) * distance


def block_angles(matrix):
    """The upper entries a of A where matrix = exp(A), A block-diagonal with [[0, a], [−a, 0]]."""
    first = torch.arange(0, matrix.shape[0] - 1, 2)
    return torch.atan2(matrix[first, first + 1], matrix[first, first])


def skew_symmetric(angles, size):
    matrix = torch.zeros(size, size, dtype=angles.dtype)
    for block, angle in enumerate(angles):
        matrix[2 * block, 2 * block + 1] = angle
        matrix[2 * block + 1, 2 * block] = -angle
    return matrix


def test_names():
    assert set(RECURRENT) == {"henaff", "cayley", "random", "xavier", "kaiming", "normal"}
    assert set(INPUT) == {"xavier", "kaiming", "normal"}
    assert all(INPUT[name] is RECURRENT[name] for name in INPUT)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROTATIONS)
def test_rotation(name, dtype, size):
    tolerance = 20 * size * torch.finfo(dtype).eps
    for seed in range(6):  # drawn from O(n), half of them would be reflections
        matrix = draw(name, size, size, seed=seed, dtype=dtype)
        assert matrix.dtype == dtype
        identity = torch.eye(size, dtype=dtype)
        torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=tolerance)
        torch.testing.assert_close(matrix.T @ matrix, identity, rtol=0, atol=tolerance)
        assert torch.linalg.det(matrix).item() == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("size", [2, 7, 20])
@pytest.mark.parametrize("name", ["henaff", "cayley"])
def test_is_the_exponential_of_a_skew_symmetric_matrix(name, size):
    matrix = draw(name, size, size)
    exponential = torch.matrix_exp(skew_symmetric(block_angles(matrix), size))
    torch.testing.assert_close(matrix, exponential, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["henaff", "cayley"])
def test_odd_size_leaves_the_last_unit_alone(name):
    matrix = draw(name, 7, 7)
    last = torch.eye(7, dtype=torch.float64)[6]
    assert torch.equal(matrix[6], last)
    assert torch.equal(matrix[:, 6], last)


def test_henaff_angles():
    angles = torch.cat([block_angles(draw("henaff", 200, 200, seed=seed)) for seed in range(20)])
    assert angles.min() >= -math.pi
    assert angles.max() <= 0
    assert distance_to_uniform(angles, -math.pi, 0) < 1.95


def test_cayley_angles():
    """The entries −√((1 − cos θ)/(1 + cos θ)) = −tan(θ/2) give back θ ~ U(0, π/2)."""
    entries = torch.cat([block_angles(draw("cayley", 200, 200, seed=seed)) for seed in range(20)])
    assert entries.min() >= -1
    assert entries.max() <= 0
    theta = 2 * torch.atan(-entries)
    torch.testing.assert_close(-torch.sqrt((1 - theta.cos()) / (1 + theta.cos())), entries)
    assert distance_to_uniform(theta, 0, math.pi / 2) < 1.95


def test_random_rotation_is_uniform_in_the_plane():
    angles = [block_angles(draw("random", 2, 2, seed=seed)).item() for seed in range(200)]
    assert distance_to_uniform(angles, -math.pi, math.pi) < 1.95


def test_random_rotation_has_no_favoured_entry():
    draws = torch.stack([draw("random", 4, 4, seed=seed) for seed in range(150)])
    assert draws.mean(0).abs().max() < 4 * math.sqrt(1 / 4 / 150)  # an entry's variance is 1/H
    assert (draws.square().mean(0) - 1 / 4).abs().max() < 4 * math.sqrt(1 / 16 / 150)


SHAPE = (300, 100)
DEVIATIONS = {"xavier": math.sqrt(2 / 400), "kaiming": math.sqrt(2 / 100), "normal": 300**-0.5}


@pytest.mark.parametrize("name, deviation", DEVIATIONS.items())
def test_normal_distributions(name, deviation):
    scaled = draw(name, *SHAPE) / deviation
    count = scaled.numel()
    assert abs(scaled.mean().item()) < 4 / math.sqrt(count)
    assert abs(scaled.std().item() - 1) < 4 / math.sqrt(2 * count)
    assert abs(scaled.pow(4).mean().item() - 3) < 4 * math.sqrt(96 / count)


def test_xavier_gain():
    torch.testing.assert_close(draw("xavier", 5, 3, gain=0.1), 0.1 * draw("xavier", 5, 3))


def test_uniform():
    values = draw("uniform", 100, 40, bound=0.3).flatten()
    assert distance_to_uniform(values, -0.3, 0.3) < 1.95
    assert values.abs().max() <= 0.3


# The distribution of each tensor of a layer with 60 inputs and 200 units: U(−a, a), N(0, σ²) or
# zero. Recurrent matrices are tested separately.
ENTRY = ("normal", math.sqrt(2 / 60))  # kaiming, the default of --iinit
BY_INPUT, BY_UNITS = ("uniform", 60**-0.5), ("uniform", 200**-0.5)
GATE = {"weight": ("normal", math.sqrt(2 / 460)), "bias": ("uniform", 260**-0.5)}
LAYERS = {
    ("RNN", "gamma2"): {"U.weight": ENTRY, "U.bias": BY_INPUT, "V.bias": BY_UNITS},
    ("RNN", "modrelu"): {"U.bias": BY_INPUT, "V.bias": BY_UNITS, "b": ("uniform", 0.01)},
    ("ANRU", None): {
        "Uxh.weight": ENTRY,
        "Uag.weight": ("normal", math.sqrt(2)),
        "Wgn.weight": ("normal", 0.1 * math.sqrt(2 / 301)),
        "Wgs.weight": ("normal", 0.01 * math.sqrt(2 / 301)),
        **{f"{name}.bias": ("zero",) for name in ("Uxh", "Whh", "Uag", "Wgg", "Wgs")},
    },
    ("LSTM", None): {f"W{g}.{kind}": drawn for g in "fiog" for kind, drawn in GATE.items()},
    ("GRU", None): {
        f"W{source}{gate}.{kind}": drawn
        for source, drawn in (("i", BY_INPUT), ("h", BY_UNITS))
        for gate in "rzn"
        for kind in ("weight", "bias")
    },
    ("expRNN", "modrelu"): {"U.weight": ENTRY, "b": ("uniform", 0.01)},
    ("expRNN", "tanh"): {"U.weight": ENTRY, "U.bias": BY_INPUT},
    ("nnRNN", "modrelu"): {"U.weight": ENTRY, "b": ("uniform", 0.01)},
    ("nnRNN", "tanh"): {"U.weight": ENTRY, "U.bias": BY_INPUT},
    ("EURNN", "modrelu"): {"Ure.weight": ENTRY, "Uim.weight": ENTRY, "b": ("uniform", 0.01)},
    ("EURNN", "none"): {"Ure.weight": ENTRY, "Uim.weight": ENTRY, "Ure.bias": BY_INPUT},
}


def check_drawn(tensors, kind, scale=None):
    """Checks that the tensors of one name in several layers follow this distribution."""
    values = torch.stack(tensors).detach().double().flatten()
    count = len(values)
    if kind == "zero":
        assert values.count_nonzero() == 0
    elif kind == "uniform":
        assert values.abs().max() <= scale * (1 + 1e-6)
        assert distance_to_uniform(values, -scale, scale) < 1.95
    else:
        assert abs(values.mean().item()) < 4 * scale / math.sqrt(count)
        assert abs(values.std().item() / scale - 1) < 4 / math.sqrt(2 * count)
        assert abs((values / scale).pow(4).mean().item() - 3) < 4 * math.sqrt(96 / count)


@pytest.mark.parametrize("net_type, nonlin", LAYERS)
def test_every_tensor_of_a_layer_starts_as_in_the_paper(net_type, nonlin):
    options = {} if nonlin is None else {"nonlin": nonlin}
    options |= {"supervisor_size": 300} if net_type == "ANRU" else {}
    generator = torch.Generator().manual_seed(1)
    layers = [NETWORKS[net_type](60, 200, **options, generator=generator) for _ in range(4)]
    named = [dict(layer.named_parameters()) for layer in layers]
    expected = LAYERS[net_type, nonlin]
    for name, drawn in expected.items():
        check_drawn([parameters[name] for parameters in named], *drawn)
        same = drawn != ("zero",) and torch.equal(named[0][name], named[1][name])
        assert not same, name
    biases = {name for name in named[0] if name.endswith("bias")} - {"Wgn.bias"}
    assert biases <= expected.keys()  # there are no other biases


def test_the_bias_of_the_gain_is_drawn_between_5_and_7():
    generator = torch.Generator().manual_seed(0)
    biases = [ANRU(2, 2, 3, generator=generator).Wgn.bias.item() for _ in range(60)]
    assert distance_to_uniform(biases, 5, 7) < 1.95


def test_read_outs_start_as_in_the_paper():
    generator = torch.Generator().manual_seed(2)
    models = [PixelClassifier(RNN(1, 400), 300, generator) for _ in range(4)]
    for name in ("weight", "bias"):
        check_drawn([getattr(m.lin, name) for m in models], "uniform", 400**-0.5)
    models = [CharacterModel(RNN(100, 80), 50, generator=generator) for _ in range(4)]
    for part in ("encoder", "decoder"):
        check_drawn([getattr(m, part).weight for m in models], "uniform", 0.1)
    check_drawn([m.decoder.bias for m in models], "zero")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*RECURRENT, "uniform"])
def test_reproducible_and_independent_of_the_global_generator(name, dtype):
    torch.manual_seed(1)
    first = draw(name, 6, 6, seed=3, dtype=dtype)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = draw(name, 6, 6, seed=3, dtype=dtype)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert not torch.allclose(first, draw(name, 6, 6, seed=4, dtype=dtype))


@pytest.mark.parametrize("name", RECURRENT)
def test_a_generator_advances(name):
    generator = torch.Generator().manual_seed(0)
    first = RECURRENT[name](torch.empty(6, 6), generator)
    assert not torch.allclose(first, RECURRENT[name](torch.empty(6, 6), generator))


@pytest.mark.parametrize("name", RECURRENT)
def test_without_a_generator_the_global_one_is_used(name):
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(RECURRENT[name](torch.empty(6, 6)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.allclose(draws[0], draws[2])


@pytest.mark.parametrize("name", RECURRENT)
def test_fills_a_parameter_in_place(name):
    weight = torch.nn.Parameter(torch.full((4, 4), math.nan))
    assert RECURRENT[name](weight, torch.Generator().manual_seed(0)) is weight
    assert weight.isfinite().all()
    assert weight.requires_grad
    assert weight.is_leaf


@pytest.mark.parametrize("name", [*RECURRENT, "uniform", "torch_default"])
def test_nothing_is_drawn_for_a_meta_tensor(name):
    function = getattr(initialization, name, None) or RECURRENT[name]
    weight = torch.empty(10**9, 10**9, device="meta")
    before = torch.get_rng_state()
    assert function(weight) is weight
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (4,), (2, 2, 2)])
@pytest.mark.parametrize("name", ROTATIONS)
def test_a_matrix_that_is_not_square_is_rejected(name, shape):
    with pytest.raises(ValueError) as caught:
        RECURRENT[name](torch.empty(shape))
    assert str(shape) in str(caught.value)
