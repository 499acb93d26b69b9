"""Initial values of the recurrent matrices and the input maps."""

import math
import re

import pytest
import torch
from scipy.stats import kstest

from NetworkCreation.initialization import RECURRENT, torch_default, uniform
from NetworkCreation.models import CharacterModel, PixelClassifier
from NetworkCreation.Networks import ANRU, NETWORKS, RNN
from tests.layers import seeded

ROTATIONS = ["henaff", "cayley", "random"]
FUNCTIONS = RECURRENT | {"uniform": uniform, "torch_default": torch_default}
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def draw(name, *shape, seed=0, dtype=torch.float64):
    return FUNCTIONS[name](torch.full(shape, math.nan, dtype=dtype), seeded(seed))


def is_uniform(values, low, high):
    """Whether a Kolmogorov–Smirnov test, wrong once in a thousand, accepts U(low, high)."""
    return kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


def block_angles(matrix):
    """The upper entries a of A where matrix = exp(A), A block-diagonal with [[0, a], [−a, 0]]."""
    return torch.atan2(matrix.diagonal(1)[::2], matrix.diagonal()[:-1:2])


@pytest.mark.parametrize("size", [1, 2, 9, 64])
@every_dtype
@pytest.mark.parametrize("name", ROTATIONS)
def test_rotation(name, dtype, size):
    tolerance = 20 * size * torch.finfo(dtype).eps
    for seed in range(6):  # drawn from O(n), half of them would be reflections
        matrix = draw(name, size, size, seed=seed, dtype=dtype)
        identity = torch.eye(size, dtype=dtype)
        torch.testing.assert_close(matrix.T @ matrix, identity, rtol=0, atol=tolerance)
        assert torch.linalg.det(matrix).item() == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("size", [2, 7, 20])
@pytest.mark.parametrize("name", ["henaff", "cayley"])
def test_is_the_exponential_of_a_skew_symmetric_matrix(name, size):
    """Of one whose last row and column are 0 if their number is odd."""
    matrix = draw(name, size, size)
    A = torch.zeros(size, size).double()
    A.diagonal(1)[::2] = block_angles(matrix)
    exponential = torch.matrix_exp(A - A.t())
    torch.testing.assert_close(matrix, exponential, rtol=0, atol=1e-12)


def test_the_angles_of_rotations_are_uniform():
    """Of cayley, the entries −√((1 − cos θ)/(1 + cos θ)) = −tan(θ/2) give back θ ~ U(0, π/2)."""
    angles, entries = (
        torch.cat([block_angles(draw(name, 200, 200, seed=seed)) for seed in range(20)])
        for name in ("henaff", "cayley")
    )
    assert -math.pi <= angles.min() and angles.max() <= 0 and is_uniform(angles, -math.pi, 0)
    assert entries.min() >= -1 and entries.max() <= 0
    assert is_uniform(2 * torch.atan(-entries), 0, math.pi / 2)
    planar = [block_angles(draw("random", 2, 2, seed=seed)).item() for seed in range(200)]
    assert is_uniform(planar, -math.pi, math.pi)


def check_drawn(tensors, kind, scale=None):
    """Checks that the tensors of one name in several layers follow this distribution."""
    values = torch.stack(tensors).detach().double().flatten()
    count = len(values)
    if kind == "zero":
        assert values.count_nonzero() == 0
    elif kind == "uniform":
        assert values.abs().max() <= scale * (1 + 1e-6) and is_uniform(values, -scale, scale)
    else:
        assert abs(values.mean().item()) < 4 * scale / math.sqrt(count)
        assert abs(values.std().item() / scale - 1) < 4 / math.sqrt(2 * count)
        assert abs((values / scale).pow(4).mean().item() - 3) < 4 * math.sqrt(96 / count)


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
        **{f"Wi{gate}.{kind}": BY_INPUT for gate in "rzn" for kind in ("weight", "bias")},
        **{f"Wh{gate}.{kind}": BY_UNITS for gate in "rzn" for kind in ("weight", "bias")},
    },
    ("EURNN", "modrelu"): {"Ure.weight": ENTRY, "Uim.weight": ENTRY, "b": ("uniform", 0.01)},
    ("EURNN", "none"): {"Ure.weight": ENTRY, "Uim.weight": ENTRY, "Ure.bias": BY_INPUT},
}
for _net_type in ("expRNN", "nnRNN"):
    LAYERS[_net_type, "modrelu"] = {"U.weight": ENTRY, "b": ("uniform", 0.01)}
    LAYERS[_net_type, "tanh"] = {"U.weight": ENTRY, "U.bias": BY_INPUT}


@pytest.mark.parametrize("net_type, nonlin", LAYERS)
def test_every_tensor_of_a_layer_starts_as_in_the_paper(net_type, nonlin):
    options = {} if nonlin is None else {"nonlin": nonlin}
    options |= {"supervisor_size": 300} if net_type == "ANRU" else {}
    generator = seeded(1)
    layers = [NETWORKS[net_type](60, 200, **options, generator=generator) for _ in range(4)]
    named = [dict(layer.named_parameters()) for layer in layers]
    expected = LAYERS[net_type, nonlin]
    for name, drawn in expected.items():
        check_drawn([parameters[name] for parameters in named], *drawn)
        assert drawn == ("zero",) or not torch.equal(named[0][name], named[1][name])
    biases = {name for name in named[0] if name.endswith("bias")} - {"Wgn.bias"}
    assert biases <= expected.keys()  # there are no other biases


def test_other_matrices_and_biases_start_as_in_the_paper():
    generator = seeded(0)
    biases = [ANRU(2, 2, 3, generator=generator).Wgn.bias.item() for _ in range(60)]
    assert is_uniform(biases, 5, 7)
    models = [PixelClassifier(RNN(1, 400), 300, generator) for _ in range(4)]
    for name in ("weight", "bias"):
        check_drawn([getattr(m.lin, name) for m in models], "uniform", 400**-0.5)
    rnns = [RNN(100, 80, rinit="normal", generator=generator) for _ in range(4)]
    check_drawn([rnn.V.weight for rnn in rnns], "normal", 80**-0.5)
    models = [CharacterModel(rnn, 50, generator=generator) for rnn in rnns]
    for part in ("encoder", "decoder"):
        check_drawn([getattr(m, part).weight for m in models], "uniform", 0.1)
    check_drawn([m.decoder.bias for m in models], "zero")


@every_dtype
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_parameter_is_filled_from_the_given_generator_or_torchs_own(name, dtype):
    def fill(generator):
        weight = torch.nn.Parameter(torch.full((6, 6), math.nan, dtype=dtype))
        assert FUNCTIONS[name](weight, generator) is weight
        assert weight.isfinite().all() and weight.requires_grad and weight.is_leaf
        return weight

    torch.manual_seed(1)
    before = torch.get_rng_state()
    for generator in (seeded(1), None):
        first, second = fill(generator), fill(generator)
        assert torch.equal(fill(seeded(1)), first) and not torch.allclose(first, second)
        assert torch.equal(torch.get_rng_state(), before) == (generator is not None)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (4,), (2, 2, 2)])
@pytest.mark.parametrize("name", ROTATIONS)
def test_a_matrix_that_is_not_square_is_rejected(name, shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        RECURRENT[name](torch.empty(shape))
