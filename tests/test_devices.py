"""Devices other than the CPU: training on a fake one, the choice of the GPU, and TF32."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch.utils import backend_registration

import sMNIST_task
from NetworkCreation.gamma_function import gamma
from tests.conftest import REPOSITORY, WARNINGS_FAIL
from tests.operations import Operations
from Training import flags
from Training.machine import allow_tf32
from Training.run_directory import describe

# How often the host reads a number in a training step: the loss and the gradient norm, in one
# transfer, and whether all parameters are finite.
LOOKS = {"trainer.py: _local_scalar_dense": 3}
EXPONENTIAL = {"rnn.py: linalg_matrix_exp": 1, "elsewhere: linalg_matrix_exp": 1}
CAYLEY = {"rnn.py: _linalg_check_errors": 1}


def by_file(lines):
    """The counts, summed over the lines of each file."""
    counts = Counter()
    for line, count in lines.items():
        counts[re.sub(r":\d+", "", line)] += count
    return counts


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason=f"torch {torch.__version__} cannot register a device from Python",
)
def test_training_on_a_fake_device():
    """One test, since it needs its own process."""
    found = json.loads(
        subprocess.run(
            [sys.executable, "-m", "tests.fake_device"],
            cwd=REPOSITORY,
            env={**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    )

    # deliberate faults are detected
    controls = found["controls"]
    for kind in ("waits", "copies", "doubles", "mixed"):
        assert {k for k, noted in controls[kind].items() if noted} == {kind}
    assert re.search("two devices.*cpu.*fake", controls["slipped in"])

    assert len(found["steps"]) == 32
    for name, step in found["steps"].items():
        expected = Counter(LOOKS)
        if "expRNN" in name or "nnRNN" in name:
            expected += CAYLEY if "cayley" in name else EXPONENTIAL
        assert by_file(step["training"].pop("waits")) == expected, name
        assert not any(step["training"].values()), (name, step["training"])
        assert not any(step["looking"][kind] for kind in ("doubles", "mixed")), name
        assert step["untrained"] == [], name
        gated = name.split()[-1] if name.endswith(("LSTM", "GRU")) else None
        assert step["recurrences"] == ([gated.lower()] if gated else []), name

    # ANRU splits a batch into parts only on a CPU, for its cache
    kernels = found["kernels"]
    assert kernels["large"] == kernels["small"] < kernels["on a CPU"] / 3

    # nor are sequences split for the cache, or denormal numbers flushed
    assert found["passes and flushes"] == [1, 0]

    # the environment of NVIDIA's containers is overridden
    assert found["tf32"] == [True, False]


def test_operations_are_counted():
    x = torch.rand(3, requires_grad=True)
    with Operations() as operations:
        torch.empty(2), x.view(3, 1), (x * 2 + 1).sum()
    assert operations.kernels == 3
    with Operations() as operations:
        gamma(x, 2.0, 0.5).sum().backward()
    assert operations.kernels > 10 and not operations.waits


# The choice of the GPU


@pytest.fixture
def restore_tf32():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    environment = os.environ.get("NVIDIA_TF32_OVERRIDE")
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    os.environ.pop("NVIDIA_TF32_OVERRIDE", None)
    if environment is not None:
        os.environ["NVIDIA_TF32_OVERRIDE"] = environment


@pytest.fixture
def choose(monkeypatch, restore_tf32):
    """Calls choose_device with a simulated GPU: None if absent, an exception if it fails."""

    def run(*typed, gpu):
        def ones(*shape, device):
            assert device == "cuda"
            if isinstance(gpu, Exception):
                raise gpu
            return torch.zeros(*shape)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch, "ones", ones)
        parser, args, _ = sMNIST_task.parse(["--dataset", "digits", *typed])
        device = flags.choose_device(parser, args)
        assert args.cuda == (device.type == "cuda")
        return device.type, parser, args

    return run


WORKS = object()
TOO_OLD = RuntimeError("CUDA error: no kernel image is available\nCompile with `TORCH_USE…`")


@pytest.mark.parametrize(
    ("typed", "gpu", "device"),
    [
        ([], WORKS, "cuda"),
        (["--cuda"], WORKS, "cuda"),
        (["--no-cuda"], WORKS, "cpu"),
        (["--no-cuda"], TOO_OLD, "cpu"),
        ([], None, "cpu"),
    ],
)
def test_the_device_is_the_gpu_if_there_is_one(choose, capsys, typed, gpu, device):
    assert choose(*typed, gpu=gpu)[0] == device
    assert capsys.readouterr().err == ""


def test_a_gpu_without_kernels_in_torch(choose, capsys):
    assert choose(gpu=TOO_OLD)[0] == "cpu"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "using the CPU" in said and "no kernel image" in said
    with pytest.raises(SystemExit):
        choose("--cuda", gpu=TOO_OLD)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--cuda" in said and "no kernel image" in said


# TF32


def tf32():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@WARNINGS_FAIL
def test_tf32_is_allowed_only_by_its_flag(choose, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    allow_tf32(True)
    assert tf32() == (True, True)
    _, parser, args = choose(gpu=WORKS)
    assert tf32() == (False, False) and os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    config = describe(parser, args, {}, {}, torch.device("cpu"))
    assert config["arguments"]["tf32"] is False
    assert config["versions"]["cuda"] == torch.version.cuda
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    _, parser, args = choose("--tf32", gpu=WORKS)
    assert tf32() == (True, True) and "NVIDIA_TF32_OVERRIDE" not in os.environ
    config = describe(parser, args, {}, {}, torch.device("cpu"))
    assert config["arguments"]["tf32"] is True


def test_tf32_requires_a_gpu(choose, capsys):
    for typed in ([], ["--no-cuda"]):
        with pytest.raises(SystemExit):
            choose("--tf32", *typed, gpu=WORKS if typed else None)
        assert "--tf32" in capsys.readouterr().err
