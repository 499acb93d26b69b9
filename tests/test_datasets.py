"""Data sets: splits, permutations, checksums, downloads, and errors for missing files."""

import errno
import gzip
import hashlib
import io
import math
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from Training import datasets
from Training.datasets import DataError, columns, load_pixels, load_text, windows
from Training.evaluation import bits_per_character, evaluate_pixels, evaluate_text


def rows(pixel_set):
    return {tuple(image) for image in pixel_set.images.tolist()}


def test_digits_are_split_by_seed_into_disjoint_sets():
    data = load_pixels("digits", "nowhere", seed=3, permute=False)
    sets = (data.train, data.validation, data.test)
    assert [len(one) for one in sets] == [1297, 250, 250]
    assert data.permutation is None
    order = np.random.RandomState(3).permutation(1797)
    everything = load_pixels("digits", "nowhere", seed=9, permute=False)
    assert sum(len(rows(one)) for one in sets) == len(set.union(*map(rows, sets)))
    assert set.union(*map(rows, sets)) == set.union(
        *map(rows, (everything.train, everything.validation, everything.test))
    )
    from sklearn.datasets import load_digits

    digits = load_digits()
    assert data.train.labels.tolist() == digits.target[order[:1297]].tolist()
    assert data.validation.labels.tolist() == digits.target[order[1297:1547]].tolist()
    x, labels = data.test.batch(slice(0, 5))
    expected = digits.images[order[1547:1552]].reshape(5, 64).T / 16
    assert np.allclose(x[:, :, 0], expected) and labels.shape == (5,)


def test_the_permutation_is_the_first_draw_of_the_seed():
    data = load_pixels("digits", "nowhere", seed=3, permute=True)
    random = np.random.RandomState(3)
    permutation, order = random.permutation(64), random.permutation(1797)
    assert np.array_equal(data.permutation, permutation)
    from sklearn.datasets import load_digits

    image = load_digits().images[order[0]].reshape(64)
    assert np.array_equal(data.train.images[0], image[permutation])


def test_mnist_is_split_by_seed(mnist_root):
    data = load_pixels("mnist", mnist_root, seed=400, permute=True)
    assert [len(one) for one in (data.train, data.validation, data.test)] == [50000, 10000, 10000]
    assert data.train.images.dtype == torch.uint8 and data.steps == 784
    assert data.checksums == datasets.MNIST_SHA256
    random = np.random.RandomState(400)
    permutation, order = random.permutation(784), random.permutation(60000)
    raw = mnist_root / "mnist" / "MNIST" / "raw"
    images = np.fromfile(raw / "train-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 784)
    labels = np.fromfile(raw / "train-labels-idx1-ubyte", np.uint8)[8:]
    assert np.array_equal(data.train.images[7], images[order[7]][permutation])
    assert np.array_equal(data.train.labels, labels[order[:50000]])
    assert np.array_equal(data.validation.labels, labels[order[50000:]])
    test_labels = np.fromfile(raw / "t10k-labels-idx1-ubyte", np.uint8)[8:]
    assert np.array_equal(data.test.labels, test_labels)
    x, _ = data.train.batch(slice(0, 100))
    assert x.shape == (784, 100, 1) and x.min() == 0 and x.max() == 1


def test_pennchar_has_fifty_symbols_and_keeps_its_lines(pennchar_root):
    text = load_text("ptb", pennchar_root)
    assert len(text.vocabulary) == 50 and text.name == "PTB"
    for name, stream in (("train", text.train), ("valid", text.validation), ("test", text.test)):
        content = (pennchar_root / "pennchar" / f"{name}.txt").read_text()
        assert len(stream) == len(content.split()) + len(content.removesuffix("\n").split("\n"))
        decoded = [text.vocabulary[i] for i in stream[:2000]]
        assert decoded == content.replace("\n", " <eos> ").split()[:2000]


def test_pydoc_is_split_in_order_without_loss():
    text = load_text("pydoc", "nowhere")
    from pydoc_data.topics import topics

    whole = "\n".join(topics[name] for name in sorted(topics))
    decoded = "".join(
        {"_": " ", "<eos>": "\n"}.get(text.vocabulary[i], text.vocabulary[i])
        for i in torch.cat([text.train, text.validation, text.test])
    )
    assert decoded == whole.replace("_", " ")
    assert len(text.train) == len(whole) * 90 // 100
    assert text.name == "pydoc"


def write_corpus(root, **texts):
    (root / "pennchar").mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid", "test"):
        content = texts.get(name, "a b\nc a\n")
        content = content if isinstance(content, bytes) else content.encode()
        (root / "pennchar" / f"{name}.txt").write_bytes(content)


def test_another_corpus_is_rejected_unless_allowed(tmp_path):
    write_corpus(tmp_path)
    with pytest.raises(DataError, match=r"train\.txt has SHA-256 .*, expected e313d9.*any-corpus"):
        load_text("ptb", tmp_path)
    text = load_text("ptb", tmp_path, any_corpus=True)
    assert text.vocabulary == ["a", "b", "<eos>", "c"] and text.name == "corpus"
    assert text.train.tolist() == [0, 1, 2, 3, 0, 2]


@pytest.mark.parametrize(("content", "said"), [(b"a \xff b\n", "UTF-8"), (b"", "empty file")])
def test_an_invalid_corpus_file_is_named(tmp_path, content, said):
    write_corpus(tmp_path, valid=content)
    with pytest.raises(DataError, match=rf"valid\.txt.*{said}"):
        load_text("ptb", tmp_path, any_corpus=True)


def test_a_byte_order_mark_is_ignored(tmp_path):
    write_corpus(tmp_path, train=b"\xef\xbb\xbfa b\n")
    assert load_text("ptb", tmp_path, True).vocabulary == ["a", "b", "<eos>", "c"]


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    for load in (
        lambda: load_pixels("mnist", tmp_path, 1, False),
        lambda: load_text("ptb", tmp_path),
    ):
        with pytest.raises(DataError, match=f"{tmp_path}.*: Permission denied"):
            load()


def test_only_missing_mnist_files_are_downloaded(tmp_path, monkeypatch):
    """One raw file, two valid .gz, and a damaged one that is replaced from the mirror."""
    raw, mirror = tmp_path / "mnist" / "MNIST" / "raw", tmp_path / "mirror"
    raw.mkdir(parents=True)
    mirror.mkdir()
    contents, fetched = {}, []
    for name in datasets.MNIST_SHA256:
        header = (0x803, 3, 28, 28) if "images" in name else (0x801, 3)
        size = 3 * 784 if "images" in name else 3
        content = b"".join(value.to_bytes(4, "big") for value in header) + bytes(size)
        contents[name] = content
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(datasets, "MNIST_SHA256", digests)
    first, second, third, fourth = contents
    (raw / first).write_bytes(contents[first])
    for name in (second, third):
        (raw / f"{name}.gz").write_bytes(gzip.compress(contents[name]))
    (raw / f"{fourth}.gz").write_bytes(gzip.compress(contents[fourth])[:-9])
    (mirror / f"{fourth}.gz").write_bytes(gzip.compress(contents[fourth]))
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [f"{mirror.as_uri()}/"])
    fetch = datasets._fetch
    monkeypatch.setattr(
        datasets, "_fetch", lambda url, path: fetched.append(url) or fetch(url, path)
    )
    datasets._load_mnist(tmp_path)
    assert fetched == [f"{mirror.as_uri()}/{fourth}.gz"]
    assert {name: (raw / name).read_bytes() for name in contents} == contents


def test_a_modified_mnist_file_is_named_with_both_digests(tmp_path):
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-labels-idx1-ubyte").write_bytes(b"not labels")
    found = hashlib.sha256(b"not labels").hexdigest()
    with pytest.raises(DataError, match=rf"train-labels.*{found}.*65a50cbb"):
        load_pixels("mnist", tmp_path, 400, False)
    assert (raw / "train-labels-idx1-ubyte").read_bytes() == b"not labels"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (lambda root: load_pixels("mnist", root, 400, False), "MNIST/raw.*--dataset digits"),
        (lambda root: load_text("ptb", root), "pennchar.*vgeadah.*--dataset pydoc"),
        (lambda root: load_text("ptb", root, True), "pennchar.*--dataset pydoc"),
    ],
)
def test_without_data_and_network_the_error_names_the_folder(tmp_path, no_network, load, said):
    with pytest.raises(DataError, match=said):
        load(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serves a small corpus as pennchar, from a folder in place of the mirror."""
    served = tmp_path / "served"
    write_corpus(served, train="x y\n", valid="y z\n", test="z x\n")
    monkeypatch.setattr(datasets, "PENNCHAR_MIRROR", (served / "pennchar").as_uri())
    monkeypatch.setattr(datasets, "PENNCHAR_ARCHIVE", (served / "archive.tgz").as_uri())
    digests = {
        name: hashlib.sha256((served / "pennchar" / name).read_bytes()).hexdigest()
        for name in ("train.txt", "valid.txt", "test.txt")
    }
    monkeypatch.setattr(datasets, "PENNCHAR_SHA256", digests)
    return served


def test_pennchar_is_downloaded_from_the_mirror(tmp_path, served):
    text = load_text("ptb", tmp_path / "here")
    assert text.vocabulary == ["x", "y", "<eos>", "z"]
    assert sorted(path.name for path in (tmp_path / "here" / "pennchar").iterdir()) == [
        "test.txt",
        "train.txt",
        "valid.txt",
    ]


def test_pennchar_falls_back_to_the_archive(tmp_path, served):
    with tarfile.open(served / "archive.tgz", "w:gz") as archive:
        for name in ("train.txt", "valid.txt", "test.txt"):
            content = (served / "pennchar" / name).read_bytes()
            member = tarfile.TarInfo(f"./simple-examples/data/ptb.char.{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (served / "pennchar" / "valid.txt").unlink()
    text = load_text("ptb", tmp_path / "here")
    assert text.validation.tolist() == [1, 3, 2]


def test_a_download_with_a_wrong_digest_is_not_kept(tmp_path, served):
    (served / "pennchar" / "test.txt").write_text("something else\n")
    with pytest.raises(DataError, match=r"test\.txt has SHA-256"):
        load_text("ptb", tmp_path / "here")
    left = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert "test.txt" not in [path.name for path in left]


def test_columns_run_side_by_side():
    assert columns(torch.arange(11), 3).tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    with pytest.raises(DataError, match="too few"):
        columns(torch.arange(5), 3)


def test_windows_predict_every_symbol_once():
    assert windows(8, 3) == [(0, 3), (3, 6), (6, 7)]
    for rows_, bptt in ((2, 5), (100, 7), (22, 7)):
        predicted = [t + 1 for start, end in windows(rows_, bptt) for t in range(start, end)]
        assert predicted == list(range(1, rows_))


class Constant(torch.nn.Module):
    """Returns the same logits for every sample, highest for class 0."""

    def forward(self, x, drive=None):
        return torch.tensor([2.0, 0.0, 0.0]).expand(x.shape[1], 3)


def test_the_score_is_the_mean_over_samples_of_uneven_batches():
    labels = torch.tensor([0, 1, 0, 2, 0, 0, 1])
    data = datasets.PixelSet(torch.zeros(7, 4, dtype=torch.uint8), labels, 255)
    loss, accuracy = evaluate_pixels(Constant(), data, batch_size=3)
    total = math.exp(2) + 2
    expected = (4 * (math.log(total) - 2) + 3 * math.log(total)) / 7
    assert loss == pytest.approx(expected, rel=1e-6) and accuracy == 4 / 7
    _, accuracy = evaluate_pixels(Constant(), data, batch_size=3, limit=1)
    assert accuracy == 2 / 3


class Counter(torch.nn.Module):
    """Predicts from the number of steps seen, so the state must be carried over."""

    def forward(self, symbols, state=None, drive=None):
        seen = torch.arange(1, len(symbols) + 1) + (0 if state is None else state)
        logits = torch.stack([seen / 10.0, torch.zeros(len(seen))], dim=1)
        return logits[:, None].expand(-1, symbols.shape[1], -1), seen[-1]


def test_text_is_scored_over_all_symbols_for_any_window():
    text = torch.randint(0, 2, (23, 4), generator=torch.Generator().manual_seed(0))
    losses = [evaluate_text(Counter(), text, bptt) for bptt in (1, 5, 22, 100)]
    seen = torch.arange(1, 23) / 10.0
    logits = torch.stack([seen, torch.zeros(22)], dim=1)[:, None].expand(-1, 4, -1)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[1:].flatten())
    assert losses == pytest.approx([expected.item()] * 4, rel=1e-6)


def test_bits_per_character():
    assert bits_per_character(math.log(2)) == 1
    assert bits_per_character(math.log(50)) == pytest.approx(math.log2(50))
