"""The data sets: MNIST and digits pixel by pixel, Penn Treebank and pydoc by character.

`load_pixels` and `load_text` read them, verify the SHA-256 of each file, and split them. `digits`
comes with scikit-learn and `pydoc` with Python; neither needs files or a network.
"""

import contextlib
import functools
import gzip
import hashlib
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from Training.output import say

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
PENNCHAR_MIRROR = (
    "https://raw.githubusercontent.com/vgeadah/NonlinMod/HEAD/Training/training_data/pennchar"
)
PENNCHAR_ARCHIVE = "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz"
DOWNLOAD_TIMEOUT = 60  # seconds without a response


class DataError(Exception):
    """A data set is missing, cannot be read or downloaded, or is not the expected one."""


@dataclass
class PixelSet:
    """Images as sequences: images (N, T) uint8, labels (N,); `scale` is the value of white."""

    images: torch.Tensor
    labels: torch.Tensor
    scale: int

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        return PixelSet(self.images.to(device), self.labels.to(device), self.scale)

    def batch(self, index):
        """x (T, B, 1) in [0, 1] and labels (B,) of the samples at index, a slice or a tensor."""
        x = self.images[index].t().unsqueeze(-1).float() / self.scale
        return x, self.labels[index]


@dataclass
class PixelData:
    """An image data set, split; `permutation` (T,) is the pixel order, None if not permuted."""

    train: PixelSet
    validation: PixelSet
    test: PixelSet
    permutation: np.ndarray | None
    classes: int
    checksums: dict = field(default_factory=dict)

    @property
    def steps(self):
        return self.train.images.shape[1]

    def to(self, device):
        sets = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return replace(self, **sets)


def load_pixels(name, root, seed, permute):
    """Loads an image data set, splits it and optionally permutes its pixels.

    name: a key of `PIXEL_SETS`. root: the data folder. seed: of the RandomState that draws the
    pixel permutation (if permute), then the sample permutation. Returns PixelData.
    Raises DataError if a file cannot be read or downloaded, or has the wrong checksum.
    """
    with _reading(root):
        images, labels, scale, sizes, test_size, checksums = PIXEL_SETS[name](Path(root))
    random = np.random.RandomState(seed)
    permutation = random.permutation(images.shape[1]) if permute else None
    if permute:
        images = images[:, torch.from_numpy(permutation)]
    # A predefined test set comes last and is not permuted.
    order = random.permutation(len(labels) - test_size)
    order = torch.from_numpy(np.append(order, np.arange(len(order), len(labels))))
    parts = torch.split(order, sizes)
    return PixelData(
        *(PixelSet(images[part], labels[part], scale) for part in parts),
        permutation=permutation,
        classes=10,
        checksums=checksums,
    )


def _load_mnist(root):
    """MNIST: 60,000 training images, split 50,000 / 10,000, and its own 10,000 test images."""
    from torchvision.datasets import MNIST, mnist  # slow to import, only needed here

    raw = root / "mnist" / "MNIST" / "raw"
    missing = [name for name in MNIST_SHA256 if not (raw / name).is_file()]
    _check_files(raw, {k: v for k, v in MNIST_SHA256.items() if k not in missing})
    sources = {"its .gz": lambda path: _unpack(raw / f"{path.name}.gz", path)}
    sources |= {mirror: functools.partial(_fetch_gz, mirror) for mirror in MNIST.mirrors}
    _obtain("MNIST", raw, MNIST_SHA256, missing, sources, "--dataset digits needs no files")
    checksums = _check_files(raw, MNIST_SHA256)
    # Reads the verified files: torchvision's MNIST prefers processed ones if there are any.
    files = [[raw / name for name in MNIST_SHA256 if kind in name] for kind in ("images", "labels")]
    images = torch.cat([mnist.read_image_file(path).flatten(1) for path in files[0]])
    labels = torch.cat([mnist.read_label_file(path) for path in files[1]])
    return images, labels, 255, [50000, 10000, 10000], 10000, checksums


def _load_digits(root):
    """scikit-learn's handwritten digits: 1797 images of 8 × 8 pixels with values 0 to 16."""
    from sklearn.datasets import load_digits  # slow to import, only needed here

    digits = load_digits()
    images = digits.images.reshape(len(digits.target), 64).astype(np.uint8)
    checksums = {"digits": hashlib.sha256(images.tobytes()).hexdigest()}
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return torch.from_numpy(images), labels, 16, [1297, 250, 250], 0, checksums


PIXEL_SETS = {"mnist": _load_mnist, "digits": _load_digits}


@dataclass
class TextData:
    """A corpus as three streams of symbol indices (N,); `vocabulary` lists the symbols.

    `name` is the name of the task: PTB, pydoc, or corpus for any other text.
    """

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor
    vocabulary: list
    name: str
    checksums: dict = field(default_factory=dict)


def load_text(name, root, any_corpus=False):
    """Loads a corpus as streams of symbol indices.

    name: a key of `TEXT_SETS`. root: the data folder. any_corpus: accept any text, without
    verifying its checksum. Symbols are separated by white space, each line end is <eos>, and
    indices follow the order of first appearance. Returns TextData.
    Raises DataError if a file cannot be read or downloaded, has the wrong checksum, or is empty.
    """
    with _reading(root):
        parts, task, checksums = TEXT_SETS[name](Path(root), any_corpus)
    number = {}
    streams = [
        torch.tensor([number.setdefault(symbol, len(number)) for symbol in symbols])
        for symbols in parts
    ]
    return TextData(*streams, vocabulary=list(number), name=task, checksums=checksums)


def _load_pennchar(root, any_corpus):
    folder = root / "pennchar"
    missing = [name for name in PENNCHAR_SHA256 if not (folder / name).is_file()]
    if missing and any_corpus:
        raise DataError(
            f"the corpus is missing: {', '.join(missing)} in {folder} (symbols separated by "
            "spaces); --dataset pydoc needs no files"
        )
    sources = {PENNCHAR_MIRROR: _fetch_mirror, PENNCHAR_ARCHIVE: _fetch_archive}
    _obtain("pennchar", folder, PENNCHAR_SHA256, missing, sources, "--dataset pydoc needs no files")
    found = {name: _sha256(folder / name) for name in PENNCHAR_SHA256}
    if not any_corpus:
        _check_files(folder, PENNCHAR_SHA256, "; use --any-corpus for a text of your own")
    parts = [_symbols(folder / name) for name in PENNCHAR_SHA256]
    return parts, "PTB" if found == PENNCHAR_SHA256 else "corpus", found


def _symbols(path):
    """The symbols of a text file, with <eos> for each line end."""
    symbols = []
    try:
        with path.open(encoding="utf-8-sig") as file:  # without the byte order mark
            for line in file:
                symbols += line.split()
                symbols.append("<eos>")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 ({error.reason})") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if not symbols:
        raise DataError(f"{path}: empty file")
    return symbols


def _load_pydoc(root, any_corpus):
    """The reference topics of Python's documentation, split in order into 90, 5 and 5 %.

    The text differs slightly between Python versions; the checksum tells them apart.
    """
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    symbols = ["_" if c == " " else "<eos>" if c == "\n" else c for c in text]
    first, second = len(symbols) * 90 // 100, len(symbols) * 95 // 100
    parts = [symbols[:first], symbols[first:second], symbols[second:]]
    return parts, "pydoc", {"pydoc": hashlib.sha256(text.encode()).hexdigest()}


TEXT_SETS = {"ptb": _load_pennchar, "pydoc": _load_pydoc}


def columns(stream, batch_size, device=None, name="the text"):
    """Splits a stream (N,) into parallel columns, (N // batch_size, batch_size).

    The remainder is dropped. Raises DataError, with the stream's name, if the stream is too short
    to predict one symbol per column.
    """
    rows = len(stream) // batch_size
    if rows < 2:
        raise DataError(
            f"{name}: {len(stream)} symbols are too few for {batch_size} columns of at least 2"
        )
    return stream[: rows * batch_size].view(batch_size, rows).t().contiguous().to(device)


def windows(rows, bptt):
    """(start, end) of each window of bptt predicted steps; the last window may be shorter."""
    return [(start, min(start + bptt, rows - 1)) for start in range(0, rows - 1, bptt)]


@contextlib.contextmanager
def _reading(root):
    """Turns an OSError into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or root}: {error.strerror}") from error


@contextlib.contextmanager
def _new_folder(folder):
    """Creates a folder; if the block fails, removes the new folders that are still empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):  # not empty: keeps what was downloaded
                path.rmdir()
        raise


def _obtain(what, folder, digests, missing, sources, advice):
    """Gets each missing file from the first source that has it.

    sources: {name: function that writes the file to a path}. Files with a wrong digest are not
    kept. Raises DataError if a file cannot be obtained or written.
    """
    if not missing:
        return
    named = f"{what} is missing ({', '.join(missing)} in {folder})"
    try:
        with _new_folder(folder), tempfile.TemporaryDirectory(dir=folder) as temporary:
            for path in (Path(temporary) / name for name in missing):
                reasons = []
                for source, write in sources.items():
                    try:
                        write(path)
                        _check_files(path.parent, {path.name: digests[path.name]})
                        break
                    except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError) as error:
                        reasons.append(f"{source} ({_one_line(error)})")
                    except DataError as error:
                        reasons.append(f"{source} ({error})")
                else:
                    raise DataError(
                        f"{named}; {path.name} not obtained from {', '.join(reasons)}; {advice}"
                    )
                path.replace(folder / path.name)
    except OSError as error:
        raise DataError(
            f"{named}, which cannot be written: {_one_line(error)}; {advice}"
        ) from error


def _fetch_mirror(path):
    _fetch(f"{PENNCHAR_MIRROR}/{path.name}", path)


def _fetch_archive(path):
    """Extracts a file from Mikolov's archive, which is downloaded once."""
    whole = path.with_name("archive.tgz")
    if not whole.exists():
        _fetch(PENNCHAR_ARCHIVE, whole)
    with tarfile.open(whole) as archive:
        member = archive.extractfile(f"./simple-examples/data/ptb.char.{path.name}")
        with member, path.open("wb") as file:
            shutil.copyfileobj(member, file)


def _fetch_gz(mirror, path):
    packed = path.with_name(f"{path.name}.gz")
    _fetch(f"{mirror}{packed.name}", packed)
    _unpack(packed, path)


def _unpack(packed, path):
    with gzip.open(packed) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file)


def _fetch(url, path):
    say(f"downloading {url}")
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)


def _check_files(folder, digests, hint=""):
    """The digests of files by name; raises DataError at the first that differs."""
    for name, digest in digests.items():
        found = _sha256(folder / name)
        if found != digest:
            raise DataError(f"{folder / name} has SHA-256 {found}, expected {digest}{hint}")
    return dict(digests)


def _sha256(path):
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return digest.hexdigest()


def _one_line(error):
    return " ".join(str(error).split()) or type(error).__name__
