"""Data sets: splits, permutations, checksums, downloads, missing files; and the transforms."""

import argparse
import gzip
import hashlib
import io
import math
import tarfile
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import MNIST

from NetworkCreation.errors import UserError
from tests.conftest import data_root, write_corpus
from Training import datasets
from Training.datasets import checksums_of, columns, load_pixels, load_text, windows
from Training.transforms import TEST_TRANSFORMS, sine, step_drive, step_window


def test_digits_are_permuted_and_split_by_seed():
    data = load_pixels("digits", "absent", seed=3, permute=True)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1297, 250, 250]
    random = np.random.RandomState(3)
    permutation, order = random.permutation(64), random.permutation(1797)
    digits = load_digits()
    labels = torch.cat([data.train.labels, data.validation.labels, data.test.labels])
    assert np.array_equal(labels, digits.target[order])
    x, _ = data.test.batch(slice(0, 5))
    expected = digits.images[order[1547:1552]].reshape(5, 64)[:, permutation].T / 16
    assert np.allclose(x[:, :, 0], expected)
    data = load_pixels("digits", "absent", seed=3, permute=False)
    order = np.random.RandomState(3).permutation(1797)
    assert np.array_equal(data.train.images, digits.images[order[:1297]].reshape(-1, 64))


def test_mnist_is_permuted_and_split_by_seed():
    root = data_root("mnist")
    data = load_pixels("mnist", root, seed=400, permute=True)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [50000, 10**4, 10**4]
    assert data.steps == 784 and data.checksums == datasets.MNIST_SHA256
    random = np.random.RandomState(400)
    permutation, order = random.permutation(784), random.permutation(60000)
    images, labels, _, test_labels = (
        np.fromfile(root / "mnist" / "MNIST" / "raw" / name, np.uint8)
        for name in datasets.MNIST_SHA256
    )
    images, labels = images[16:].reshape(-1, 784), labels[8:]
    assert np.array_equal(data.train.images[7], images[order[7]][permutation])
    assert np.array_equal(data.train.labels, labels[order[:50000]])
    assert np.array_equal(data.validation.labels, labels[order[50000:]])
    assert np.array_equal(data.test.labels, test_labels[8:])
    x, _ = data.train.batch(slice(0, 100))
    assert x.shape == (784, 100, 1) and x.min() == 0 and x.max() == 1


def test_pennchar_has_fifty_symbols_and_keeps_its_lines():
    root = data_root("pennchar")
    text = load_text("ptb", root)
    assert len(text.vocabulary) == 50 and text.name == "PTB"
    for name, stream in (("train", text.train), ("valid", text.validation), ("test", text.test)):
        content = (root / "pennchar" / f"{name}.txt").read_text()
        assert len(stream) == len(content.split()) + len(content.removesuffix("\n").split("\n"))
        decoded = [text.vocabulary[i] for i in stream[:2000]]
        assert decoded == content.replace("\n", " <eos> ").split()[:2000]


def test_pydoc_is_split_in_order_without_loss():
    from pydoc_data.topics import topics

    text = load_text("pydoc", "absent")
    whole = "\n".join(topics[name] for name in sorted(topics))
    decoded = "".join(
        {"_": " ", "<eos>": "\n"}.get(text.vocabulary[i], text.vocabulary[i])
        for i in torch.cat([text.train, text.validation, text.test])
    )
    assert decoded == whole.replace("_", " ") and text.name == "pydoc"
    assert len(text.train) == len(whole) * 90 // 100


def test_another_corpus_is_rejected_unless_allowed(tmp_path):
    write_corpus(tmp_path / "pennchar", valid=b"\xef\xbb\xbfd a")  # with a byte order mark
    with pytest.raises(UserError, match=r"train\.txt has SHA-256 .*, expected e313d9.*any-corpus"):
        load_text("ptb", tmp_path)
    text = load_text("ptb", tmp_path, any_corpus=True)
    assert text.vocabulary == ["a", "b", "<eos>", "c", "d"] and text.name == "corpus"
    assert text.train.tolist() == [0, 1, 2, 3, 0, 2] and text.validation.tolist() == [4, 0, 2]
    for content, reason in ((b"a \xff b\n", "utf-8"), (b"", "empty file")):
        write_corpus(tmp_path / "pennchar", valid=content)
        with pytest.raises(UserError, match=rf"valid\.txt.*{reason}"):
            load_text("ptb", tmp_path, any_corpus=True)


def test_the_checksums_of_arguments_are_those_of_the_loaded_data(tmp_path):
    write_corpus(tmp_path / "pennchar")
    text = argparse.Namespace(dataset="ptb", data=tmp_path, any_corpus=True)
    assert checksums_of(text) == load_text("ptb", tmp_path, any_corpus=True).checksums
    text.any_corpus = False
    assert checksums_of(text) == datasets.PENNCHAR_SHA256
    for data in (load_pixels("digits", tmp_path, 1, False), load_text("pydoc", tmp_path)):
        (name,) = data.checksums
        arguments = argparse.Namespace(dataset=name, data=tmp_path)
        assert checksums_of(arguments) == data.checksums


class Response(io.BytesIO):
    """What `urlopen` returns."""

    length = url = None


def test_mnist_is_downloaded_and_verified(tmp_path, monkeypatch):
    contents = {}
    for name in datasets.MNIST_SHA256:
        header = (0x803, 3, 28, 28) if "images" in name else (0x801, 3)
        size = 3 * 784 if "images" in name else 3
        contents[name] = b"".join(value.to_bytes(4, "big") for value in header) + bytes(size)
    packed = {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(datasets, "MNIST_SHA256", sums)
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda request: Response(packed[Path(request.full_url).name])
    )
    (tmp_path / "MNIST").mkdir()  # as mnist appears where file names ignore case
    images, labels, _, _, _, checksums = datasets._load_mnist(tmp_path)
    assert images.shape == (6, 784) and len(labels) == 6 and checksums == sums
    name, raw = "train-labels-idx1-ubyte", tmp_path / "mnist" / "MNIST" / "raw"
    assert (raw / name).read_bytes() == contents[name]
    (raw / name).write_bytes(b"not labels")
    digest = hashlib.sha256(b"not labels").hexdigest()
    with pytest.raises(UserError, match=f"{name} has SHA-256 {digest}, expected {sums[name]}"):
        datasets._load_mnist(tmp_path)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda root: load_pixels("mnist", root, 400, False), "(?s)MNIST/raw.*--dataset digits"),
        (lambda root: load_text("ptb", root), "pennchar.*vgeadah.*--dataset pydoc"),
        (lambda root: load_text("ptb", root, True), "pennchar.*--dataset pydoc"),
    ],
)
def test_without_data_and_network_the_error_names_the_folder(tmp_path, monkeypatch, load, message):
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=URLError("no network")))
    with pytest.raises(UserError, match=message):
        load(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_pennchar_is_downloaded_file_by_file_or_from_the_archive(tmp_path, monkeypatch):
    served = tmp_path / "served"
    contents = {"train.txt": b"x y\n", "valid.txt": b"y z\n", "test.txt": b"z x\n"}
    write_corpus(served, train=contents["train.txt"])
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(datasets, "PENNCHAR_SHA256", digests)
    monkeypatch.setattr(datasets, "PENNCHAR_URL", served.as_uri())
    monkeypatch.setattr(datasets, "PENNCHAR_ARCHIVE", (served / "archive.tgz").as_uri())
    with pytest.raises(UserError, match=r"valid\.txt.*wrong checksum.*archive\.tgz"):
        load_text("ptb", tmp_path / "here")
    assert [path.name for path in (tmp_path / "here" / "pennchar").iterdir()] == ["train.txt"]
    with tarfile.open(served / "archive.tgz", "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"./simple-examples/data/ptb.char.{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    text = load_text("ptb", tmp_path / "here")
    assert text.vocabulary == ["x", "y", "<eos>", "z"] and text.validation.tolist() == [1, 3, 2]


def test_columns_run_side_by_side_and_windows_predict_every_symbol_once():
    assert columns(torch.arange(11), 3).tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    with pytest.raises(UserError, match="too few"):
        columns(torch.arange(5), 3)
    assert windows(8, 3) == [(0, 3), (3, 6), (6, 7)]
    for rows, bptt in ((2, 5), (22, 7)):
        predicted = [t + 1 for start, end in windows(rows, bptt) for t in range(start, end)]
        assert predicted == list(range(1, rows))


def test_the_sine_has_a_frequency_and_amplitude_and_the_step_is_half_open():
    factors = sine(6, frequency=1.5, amplitude=0.3)
    expected = [1 + 0.3 * math.sin(2 * math.pi * 1.5 * t / 6) for t in range(6)]
    assert factors.shape == (6, 1, 1) and factors.flatten().tolist() == pytest.approx(expected)
    assert step_drive(6, 0.5, 1, 2).tolist() == [0, 0.5, 0.5, 0, 0, 0]


def test_test_transforms_match_the_paper_and_scale_with_the_length():
    assert (step_window(784), step_window(64)) == ((200, 200), (16, 16))
    transforms = {name: make(784) for name, make in TEST_TRANSFORMS.items()}
    assert {factors.shape for factors in transforms.values()} == {(784, 1, 1)}
    t = torch.arange(784)[:, None, None]
    assert torch.equal(transforms["sin"], sine(784, 1.0, 0.5))
    assert torch.equal(transforms["step"], 1.0 + ((t >= 200) & (t < 400)))
    assert torch.equal(transforms["lin"], t / 784) and (transforms["none"] == 1).all()
