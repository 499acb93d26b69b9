"""The data sets: MNIST, digits or a file of sequences to classify; Penn Treebank, pydoc or a text.

`load_pixels` and `load_text` read them, verify the SHA-256 of each file, and split them. `digits`
comes with scikit-learn and `pydoc` with Python; neither needs files or a network. A loader of one's
own is a function and its entry in `PIXEL_SETS` or `TEXT_SETS`, whose keys --dataset takes.
"""

import functools
import hashlib
import io
import socket
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from NetworkCreation.errors import UserError
from Training.run_directory import write_whole
from Training.sequences import load_npz

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
PENNCHAR_SHA256 = {
    "train.txt": "e313d91425e06c4f0a8fb6e881dcce0c291f2a0e9f4dda54833069b122f91da9",
    "valid.txt": "21661f63ec355085879458b6524644d4add5573541b4be14fb52ab2e2e995eb8",
    "test.txt": "1ef5607ac3c463b16e38bfe7900dd3bfc91de5a96e0f21e7eab5188b465b8ebe",
}
PENNCHAR_URL = (
    "https://raw.githubusercontent.com/vgeadah/NonlinMod/HEAD/Training/training_data/pennchar"
)
PENNCHAR_ARCHIVE = "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz"
DOWNLOAD_TIMEOUT = 60  # seconds without a response


@dataclass
class PixelSet:
    """Images (uint8 or float32) as sequences (N, T) or (N, T, I); labels (N,); value of white."""

    images: torch.Tensor
    labels: torch.Tensor
    scale: int

    def __len__(self):
        return len(self.labels)

    def batch(self, index):
        """x (T, B, I), divided by `scale`, and labels (B,) at index, a slice or a tensor."""
        images = self.images[index]
        images = images.unsqueeze(-1) if images.ndim == 2 else images
        return images.transpose(0, 1).float() / self.scale, self.labels[index]


@dataclass
class PixelData:
    """An image data set, split; `name` is that of the task: sMNIST, psMNIST, sDigits, …"""

    train: PixelSet
    validation: PixelSet
    test: PixelSet
    steps: int
    inputs: int  # of a step
    classes: int
    name: str
    checksums: dict


def load_pixels(name, root, seed, permute, device=None):
    """Loads an image data set, splits it and optionally permutes its pixels (or steps).

    name: a key of `PIXEL_SETS`. root: the data folder, or the file of npz. seed: of the RandomState
    that draws the pixel permutation (if permute), then the sample permutation. Returns PixelData on
    the device. Raises UserError if a file cannot be read or downloaded, or has the wrong checksum.
    """
    if name != "npz" and Path(root).suffix == ".npz":
        raise UserError(f"argument --data: {root} needs --dataset npz, got {name}")
    images, labels, scale, sizes, last, checksums = PIXEL_SETS[name](Path(root))
    random = np.random.RandomState(seed)
    if permute:
        images = images[:, random.permutation(images.shape[1])]
    order = random.permutation(len(labels) - last)
    order = torch.from_numpy(np.append(order, np.arange(len(order), len(labels))))
    parts = torch.split(order, sizes)
    if scale is None:
        scale = images[parts[0]].abs().max().item() or 1
    task = {"mnist": "MNIST", "npz": Path(root).stem}.get(name, name)
    task += ".npz" * (name == "npz" and task.lower() in PIXEL_SETS)
    return PixelData(
        *(PixelSet(images[i].to(device), labels[i].to(device), scale) for i in parts),
        steps=images.shape[1],
        inputs=1 if images.ndim == 2 else images.shape[2],
        classes=int(labels.max()) + 1,
        name=("ps" if permute else "s") + task[:1].upper() + task[1:],
        checksums=checksums,
    )


def _load_mnist(root):
    """MNIST: 60,000 training images, split 50,000 / 10,000, and its own 10,000 test images."""
    # Not by root / "MNIST", which is root / "mnist" where file names ignore case.
    folder = root if (root / "MNIST" / "raw").is_dir() else root / "mnist"
    raw = folder / "MNIST" / "raw"
    if not all((raw / name).is_file() for name in MNIST_SHA256):
        from torchvision.datasets import MNIST  # slow to import, only needed here

        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        try:
            MNIST(folder, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"MNIST is missing in {raw} and cannot be downloaded ({error}); --dataset digits "
                "needs no files"
            ) from error
    files = [_read(raw / name, digest)[0] for name, digest in MNIST_SHA256.items()]
    # After a header of 16 or 8 bytes, the IDX format has one byte per pixel or label.
    images = np.concatenate([np.frombuffer(file, np.uint8, offset=16) for file in files[::2]])
    labels = np.concatenate([np.frombuffer(file, np.uint8, offset=8) for file in files[1::2]])
    images, labels = torch.from_numpy(images.reshape(-1, 784)), torch.from_numpy(labels).long()
    return images, labels, 255, [50000, 10000, 10000], 10000, MNIST_SHA256


def _load_digits(root):
    """scikit-learn's handwritten digits: 1797 images of 8 × 8 pixels with values 0 to 16."""
    from sklearn.datasets import load_digits  # slow to import, only needed here

    digits = load_digits()
    images = digits.images.reshape(len(digits.target), 64).astype(np.uint8)
    checksums = {"digits": hashlib.sha256(images.tobytes()).hexdigest()}
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return torch.from_numpy(images), labels, 16, [1297, 250, 250], 0, checksums


# Loaders by name. Each takes the data folder (a Path) and returns: images (N, T) or (N, T, I),
# uint8 or float32; labels (N,) from 0; the value that becomes 1 (None: the largest in the training
# part); the sizes of training, validation and test part; the number of last samples that stay in
# place, such as a predefined test set, while the seed permutes the others; and {name: checksum}.
PIXEL_SETS = {"mnist": _load_mnist, "digits": _load_digits, "npz": load_npz}


@dataclass
class TextData:
    """A corpus as three streams of symbol indices (N,), with its symbols; `name`: of the task."""

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor
    vocabulary: list
    name: str
    checksums: dict


def load_text(name, root, any_corpus=False):
    """Loads a corpus as streams of symbol indices.

    name: a key of `TEXT_SETS`. root: the data folder. any_corpus: accept any text, without
    verifying its checksum. Symbols are separated by white space, each line end is <eos>, and
    indices follow the order of first appearance. Returns TextData.
    Raises UserError if a file cannot be read or downloaded, has the wrong checksum, or is empty.
    """
    parts, task, checksums = TEXT_SETS[name](Path(root), any_corpus)
    number = {}
    indices = [[number.setdefault(s, len(number)) for s in symbols] for symbols in parts]
    return TextData(*map(torch.tensor, indices), list(number), task, checksums)


def _load_pennchar(root, any_corpus):
    """The Penn Treebank; any text in its place, or in the data folder itself and named by it."""
    own = (root / "train.txt").is_file()
    folder = root if own and any_corpus else root / "pennchar"
    if own and not any_corpus and not folder.is_dir():
        raise UserError(f"argument --data: {root} has a text of its own; use --any-corpus")
    parts, checksums = [], {}
    for name, digest in PENNCHAR_SHA256.items():
        if any_corpus and not (folder / name).is_file():
            where = f"{name} in {root} or {folder}, symbols separated by spaces"
            raise UserError(f"the corpus is missing ({where}); --dataset pydoc needs no files")
        if not (folder / name).is_file():
            _download_pennchar(folder / name)
        hint = "; use --any-corpus for a text of your own"
        data, checksums[name] = _read(folder / name, None if any_corpus else digest, hint)
        parts.append(_symbols(folder / name, data))
    if checksums == PENNCHAR_SHA256:
        return parts, "PTB", checksums
    task = (folder == root and root.resolve().name) or "corpus"
    return parts, f"{task}-corpus" if task in ("PTB", "pydoc") else task, checksums


def _download_pennchar(path):
    """Downloads a file of pennchar, from Mikolov's archive if it is not to be had by itself."""
    reasons = []
    for url in (f"{PENNCHAR_URL}/{path.name}", PENNCHAR_ARCHIVE):
        try:
            data = _fetch(url)
            if url == PENNCHAR_ARCHIVE:
                with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                    member = f"./simple-examples/data/ptb.char.{path.name}"
                    data = archive.extractfile(member).read()
            if hashlib.sha256(data).hexdigest() != PENNCHAR_SHA256[path.name]:
                raise OSError("wrong checksum")
        except (OSError, KeyError, tarfile.TarError) as error:
            reasons.append(f"{url} ({error})")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            return write_whole(path, data)
    raise UserError(
        f"pennchar is missing ({path}) and not obtained from {', '.join(reasons)}; --dataset pydoc "
        "needs no files"
    )


@functools.cache
def _fetch(url):
    print(f"downloading {url}")
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as answer:
        return answer.read()


def _read(path, digest, hint=""):
    """The content of a file, and its SHA-256. Raises UserError if `digest` is another."""
    data = path.read_bytes()
    present = hashlib.sha256(data).hexdigest()
    if digest not in (present, None):
        raise UserError(f"{path} has SHA-256 {present}, expected {digest}{hint}")
    return data, present


def _symbols(path, data):
    """The symbols of a text file with this content, with <eos> for each line end."""
    try:
        lines = io.StringIO(data.decode("utf-8-sig"), newline=None)  # any kind of line end
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    symbols = [symbol for line in lines for symbol in [*line.split(), "<eos>"]]
    if not symbols:
        raise UserError(f"{path}: empty file")
    return symbols


def _load_pydoc(root, any_corpus):
    """The topics of the documentation of this version of Python, split into 90, 5 and 5 %."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    symbols = ["_" if c == " " else "<eos>" if c == "\n" else c for c in text]
    first, second = len(symbols) * 90 // 100, len(symbols) * 95 // 100
    parts = [symbols[:first], symbols[first:second], symbols[second:]]
    return parts, "pydoc", {"pydoc": hashlib.sha256(text.encode()).hexdigest()}


TEXT_SETS = {"ptb": _load_pennchar, "pydoc": _load_pydoc}


def columns(stream, batch_size, device=None, name="the text"):
    """A stream (N,) as parallel columns, (N // batch_size, batch_size), without the remainder.

    Raises UserError, with the stream's name, if it is too short to predict a symbol per column.
    """
    rows = len(stream) // batch_size
    if rows < 2:
        raise UserError(
            f"{name}: {len(stream)} symbols are too few for {batch_size} columns of at least 2"
        )
    return stream[: rows * batch_size].view(batch_size, rows).t().contiguous().to(device)


def windows(rows, bptt):
    """(start, end) of each window of bptt predicted steps; the last window may be shorter."""
    return [(start, min(start + bptt, rows - 1)) for start in range(0, rows - 1, bptt)]


def checksums_of(args):
    """The checksums of the data that a script with these arguments would load; {} without data."""
    dataset, any_corpus = getattr(args, "dataset", None), getattr(args, "any_corpus", False)
    if dataset == "mnist":
        return MNIST_SHA256
    if dataset == "ptb" and not any_corpus:
        return PENNCHAR_SHA256
    return {} if dataset is None else _loaded_checksums(dataset, Path(args.data), any_corpus)


@functools.cache
def _loaded_checksums(dataset, root, any_corpus):
    if dataset in PIXEL_SETS:
        return PIXEL_SETS[dataset](root)[-1]
    if dataset not in TEXT_SETS:
        raise UserError(f"--dataset {dataset}: not in PIXEL_SETS or TEXT_SETS")
    return TEXT_SETS[dataset](root, any_corpus)[-1]
