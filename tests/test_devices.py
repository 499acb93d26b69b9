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
from NetworkCreation.errors import UserError
from tests.conftest import REPOSITORY, WARNINGS_FAIL
from tests.operations import Operations
from Training import flags

# How often the host reads a number in a training step: the loss and the gradient norm, in one
# transfer, and whether all parameters are finite.
LOOKS = Counter({"wait trainer.py: _local_scalar_dense": 3})
EXPONENTIAL = Counter(["wait rnn.py: linalg_matrix_exp", "wait elsewhere: linalg_matrix_exp"])
CAYLEY = Counter(["wait rnn.py: _linalg_check_errors"])


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason=f"torch {torch.__version__} cannot register a device from Python",
)
def test_training_on_a_fake_device():
    """No tensor stays on the CPU, and the host waits for the device only where it must."""
    output = subprocess.check_output([sys.executable, "-m", "tests.fake_device"], cwd=REPOSITORY)
    models, (faults, error) = json.loads(output.splitlines()[-1])

    x = torch.rand(3, requires_grad=True)
    with Operations() as operations:
        torch.empty(2), x.view(3, 1), (x * 2 + 1).sum()
    assert operations.kernels == 3
    # deliberate faults are detected
    assert {note.split()[0] for note in faults} == {"wait", "copy", "mixed"}
    assert re.search("two devices.*cpu.*fake", error)

    assert len(models) > 20
    for name, operations in models.items():
        expected = LOOKS
        if "expRNN" in name or "nnRNN" in name:
            expected = LOOKS + (CAYLEY if "cayley" in name else EXPONENTIAL)
        assert operations["training"] == expected, name
        assert not any(note.startswith("mixed") for note in operations["evaluation"]), name
        assert operations["untrained"] == [], name


def tf32():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture
def choose(monkeypatch):
    """Calls choose_device with or without a simulated GPU; restores the TF32 settings."""
    before = tf32()

    def run(*words, gpu):
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        args, _ = sMNIST_task.parse(["--dataset", "digits", *words])
        device = flags.choose_device(args)
        assert args.cuda == (device.type == "cuda")
        return device.type

    yield run
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@WARNINGS_FAIL
def test_the_gpu_is_used_if_there_is_one_and_tf32_only_if_asked_for(choose):
    assert [choose(gpu=True), choose("--cuda", gpu=True)] == ["cuda", "cuda"]
    assert [choose("--no-cuda", gpu=True), choose(gpu=False)] == ["cpu", "cpu"]
    for words, gpu in ((["--cuda"], False), (["--tf32"], False), (["--tf32", "--no-cuda"], True)):
        with pytest.raises(UserError, match=words[0]):
            choose(*words, gpu=gpu)
    choose("--tf32", gpu=True)
    assert tf32() == (True, True) and os.environ["NVIDIA_TF32_OVERRIDE"] == "1"
    choose(gpu=True)
    assert tf32() == (False, False) and os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
