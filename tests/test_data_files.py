"""Files in genuine formats, written here, are read to the last pixel; others are refused."""

import gzip
import io
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sharpness.cli import LONGEST

from sharpness.data import DATA, source_of, split
from sharpness.data_files import EMNIST, READERS, idx
from sharpness.errors import ComputationError, InputError
from sharpness.names import ARRAY_FILES, is_array_file, source_digest
from sharpness.unpickling import unpickled

Bytes = NDArray[np.uint8]
RNG = np.random.default_rng(0)
CIFAR_10 = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
KINDS = {"images": 3, "labels": 1}


def drawn(*shape: int, below: int = 256) -> Bytes:
    return RNG.integers(0, below, shape, dtype=np.uint8)


def idx_bytes(array: Bytes) -> bytes:
    """An IDX file: two zeros, the code of bytes, the number of axes, the sizes, the bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_files(folder: Path, train: str, test: str, *, ending: str = "") -> dict[str, Bytes]:
    """The four files of a set, of 5 and 3 examples, and what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for part, examples in ((train, 5), (test, 3)):
        arrays = {"images": drawn(examples, 28, 28), "labels": 1 + drawn(examples, below=9)}
        for kind, array in arrays.items():
            name, raw = f"{part}-{kind}-idx{array.ndim}-ubyte{ending}", idx_bytes(array)
            (folder / name).write_bytes(gzip.compress(raw) if ending == ".gz" else raw)
            written[f"{part}-{kind}"] = array
    return written


def require_equal(part: Any, images: Bytes, labels: Bytes) -> None:
    inputs, targets = part
    assert inputs.dtype == torch.float32
    # To the rounding of float32: pixels of 0 to 255 are divided by 255.
    assert np.abs(inputs.double().numpy() - images / 255).max() < 2**-24
    assert targets.dtype == torch.int64
    assert targets.tolist() == labels.tolist()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("within", ["", "raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_read_plain_and_packed(
    name: str, within: str, ending: str, tmp_path: Path
) -> None:
    written = idx_files(tmp_path / within, "train", "t10k", ending=ending)
    train, test = source_of(name, {"folder": str(tmp_path)})
    require_equal(train, written["train-images"][:, None], written["train-labels"])
    require_equal(test, written["t10k-images"][:, None], written["t10k-labels"])


def test_names_with_a_dot_are_those_of_some_copies(tmp_path: Path) -> None:
    idx_files(tmp_path, "train", "t10k")
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(source_of("mnist", {"folder": str(tmp_path)})[0][1]) == 5


@pytest.mark.parametrize("part", EMNIST)
def test_emnist_is_turned_upright_and_its_letters_count_from_zero(
    part: str, tmp_path: Path
) -> None:
    written = idx_files(tmp_path, f"emnist-{part}-train", f"emnist-{part}-test", ending=".gz")
    first = 1 if part == "letters" else 0
    for found, name in zip(
        source_of("emnist", {"folder": str(tmp_path), "split": part}),
        (f"emnist-{part}-train", f"emnist-{part}-test"),
        strict=True,
    ):
        upright = written[f"{name}-images"].transpose(0, 2, 1)[:, None]
        require_equal(found, upright, written[f"{name}-labels"] - first)


def test_the_folder_is_that_of_the_environment_or_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARPNESS_DATA", raising=False)
    here = idx_files(tmp_path / "data" / "mnist", "train", "t10k")
    there = idx_files(tmp_path / "sets" / "mnist", "train", "t10k")
    require_equal(source_of("mnist")[0], here["train-images"][:, None], here["train-labels"])
    monkeypatch.setenv("SHARPNESS_DATA", str(tmp_path / "sets"))
    require_equal(source_of("mnist")[0], there["train-images"][:, None], there["train-labels"])


def test_a_missing_file_is_told_with_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARPNESS_DATA", raising=False)
    wanted = {
        "mnist": "train-images-idx3-ubyte",
        "fashion-mnist": "train-images-idx3-ubyte",
        "emnist": "emnist-balanced-train-images-idx3-ubyte",
        "cifar-10": "data_batch_1.bin",
        "cifar-100": "train.bin",
    }
    for name, file in wanted.items():
        with pytest.raises(InputError, match=f"{name} needs .* in data/{name}, got no") as caught:
            source_of(name)
        assert file in str(caught.value)
        assert "SHARPNESS_DATA" in str(caught.value)
        assert len(f"sharpness: error: {caught.value}") <= LONGEST  # nothing of it is left out
        assert "\n" not in str(caught.value)
    idx_files(tmp_path / "data" / "mnist", "train", "t10k")
    (tmp_path / "data" / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="mnist needs t10k-labels-idx1-ubyte in data/mnist"):
        source_of("mnist")


GOOD = idx_bytes(drawn(5, 28, 28))
CLAIM = struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "got nothing in 0 bytes"),
        (GOOD[:9], "number 2051 and 3 sizes.*00 00 08 03 in 9 bytes"),
        (b"\0\0\x0d\x03" + GOOD[4:], "number 2051.*got 00 00 0d 03"),
        (idx_bytes(drawn(5)), "number 2051.*got 00 00 08 01"),
        (b"<html>not found</html>", "number 2051"),
        (GOOD[:-1], "needs the 3,936 bytes that its header says, got 3,935"),
        (GOOD + b"\0\0", "needs the 3,936 bytes that its header says, got 3,938"),
        (CLAIM + bytes(100), "needs the .* bytes that its header says, got 116"),
        (gzip.compress(CLAIM + bytes(100)), "bytes that its header says"),
        (gzip.compress(GOOD[:-1]), "needs the 3,936 bytes that its header says, got 3,935"),
        (gzip.compress(GOOD + b"\0"), "needs the 3,936 bytes that its header says, got more"),
        (gzip.compress(GOOD)[:-9], "damaged or cut off"),
        (gzip.compress(GOOD)[:-8] + bytes(8), "damaged or cut off"),
    ],
    ids=[
        *("empty", "cut header", "other kind", "labels", "page", "cut", "longer", "claim"),
        *("packed claim", "packed cut", "packed longer", "cut packed", "checksum"),
    ],
)
def test_a_damaged_idx_file_is_named_with_its_size_and_the_one_expected(
    raw: bytes, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(raw)
    with pytest.raises(ComputationError, match=f"train-images-idx3-ubyte.gz .*{named}") as caught:
        idx(path, 3)
    assert "\n" not in str(caught.value)


def test_images_without_their_labels_are_refused(tmp_path: Path) -> None:
    idx_files(tmp_path, "train", "t10k")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(drawn(4)))
    with pytest.raises(ComputationError, match=r"a label for each of the 5 images.*got 4"):
        source_of("mnist", {"folder": str(tmp_path)})


def test_a_packed_file_that_unpacks_without_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(2**25)))
    with pytest.raises(ComputationError, match="got more"):
        idx(path, 3)


def python2_pickle(rows: Bytes, **lists: list[int]) -> bytes:
    """A dictionary as cPickle of Python 2 wrote CIFAR's, protocol 2, with strings of bytes."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    raw = b"\x80\x02}q\x01("
    raw += text("batch_label") + text("training batch 1 of 5")
    for name, values in lists.items():
        raw += text(name) + b"]q\x02(" + b"".join(map(number, values)) + b"e"
    raw += text("data") + b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
    raw += b"K\x00\x85" + text("b") + b"\x87R(K\x01"
    raw += number(rows.shape[0]) + number(rows.shape[1]) + b"\x86"
    raw += b"cnumpy\ndtype\nq\x05" + text("u1") + b"K\x00K\x01\x87R"
    raw += b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    raw += b"T" + struct.pack("<I", rows.size) + rows.tobytes() + b"tb"
    return raw + text("filenames") + b"](" + text("a.png") + text("b.png") + b"eu."


def python3_pickle(rows: Bytes, **lists: list[int]) -> bytes:
    content = {name.encode(): values for name, values in lists.items()}
    return pickle.dumps({b"data": rows, **content}, protocol=2)


def test_the_pickle_of_python_2_is_one_that_python_reads_alike() -> None:
    rows, labels = drawn(2, 3072), [3, 250]
    raw = python2_pickle(rows, labels=labels)
    theirs = pickle.loads(raw, encoding="latin1")  # noqa: S301  written above
    assert theirs["batch_label"] == "training batch 1 of 5"
    assert np.array_equal(theirs["data"], rows)
    assert unpickled(raw, Path("a"))["labels"] == theirs["labels"] == labels


def cifar_files(folder: Path, form: str, names: list[str], labels: int) -> dict[str, Any]:
    """The files of one version with 2 images each, and their rows and labels by name."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name in names:
        rows, classes = drawn(2, 3072), drawn(2, labels, below=10)
        if form == "binary":
            (folder / f"{name}.bin").write_bytes(np.hstack([classes, rows]).tobytes())
        else:
            keys = ["labels"] if labels == 1 else ["coarse_labels", "fine_labels"]
            lists = {key: classes[:, i].tolist() for i, key in enumerate(keys)}
            dumps = python2_pickle if form == "python 2" else python3_pickle
            (folder / name).write_bytes(dumps(rows, **lists))
        written[name] = (rows, classes)
    return written


@pytest.mark.parametrize(
    ("form", "within"),
    [
        *(("binary", x) for x in ("", "cifar-10-batches-bin")),
        *(("python 2", x) for x in ("", "cifar-10-batches-py")),
        ("python 3", ""),
    ],
)
def test_cifar_10_is_read_from_both_versions(form: str, within: str, tmp_path: Path) -> None:
    written = cifar_files(tmp_path / within, form, CIFAR_10, 1)
    train, test = source_of("cifar-10", {"folder": str(tmp_path)})
    rows = np.concatenate([written[name][0] for name in CIFAR_10[:5]])
    labels = np.concatenate([written[name][1] for name in CIFAR_10[:5]])
    require_equal(train, rows.reshape(-1, 3, 32, 32), labels[:, 0])
    rows, labels = written["test_batch"]
    require_equal(test, rows.reshape(-1, 3, 32, 32), labels[:, 0])


@pytest.mark.parametrize("labels", ["fine", "coarse"])
@pytest.mark.parametrize("form", ["binary", "python 2", "python 3"])
def test_cifar_100_has_fine_and_coarse_labels(form: str, labels: str, tmp_path: Path) -> None:
    written = cifar_files(tmp_path, form, ["train", "test"], 2)
    column = {"coarse": 0, "fine": 1}[labels]
    options = {"folder": str(tmp_path), "labels": labels}
    for name, part in zip(("train", "test"), source_of("cifar-100", options), strict=True):
        rows, classes = written[name]
        require_equal(part, rows.reshape(-1, 3, 32, 32), classes[:, column])


def test_a_binary_file_that_was_cut_off_is_told_with_both_sizes(tmp_path: Path) -> None:
    cifar_files(tmp_path, "binary", CIFAR_10, 1)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ComputationError, match=r"data_batch_3\.bin .* 3,073 bytes, 30,730,000 .* got 6,145 bytes"
    ):
        source_of("cifar-10", {"folder": str(tmp_path)})


class Touching:
    """What runs a command when Python's unpickler meets it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return __import__("os").system, (self.command,)


def test_a_pickle_that_would_run_a_command_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "touched"
    bomb = {b"data": drawn(2, 3072), b"labels": Touching(f"touch {mark}")}
    for protocol in range(5):
        raw = pickle.dumps(bomb, protocol=protocol)
        with pytest.raises(ComputationError, match="data_batch_1 is refused"):
            unpickled(raw, Path("data_batch_1"))
        assert not mark.exists()
    pickle.loads(pickle.dumps(bomb, protocol=2))  # noqa: S301  the bomb is one
    assert mark.exists()


def replaced(raw: bytes, old: bytes, new: bytes) -> bytes:
    assert raw.count(old) == 1
    return raw.replace(old, new)


SMALL = python3_pickle(np.zeros((2, 3072), np.uint8), labels=[1, 2])
EVIL = {
    "eval": (b"\x80\x02cbuiltins\neval\nU\x011\x85R.", "the name builtins.eval"),
    "an instance": (b"(ibuiltins\nobject\n.", "the operation INST"),
    "a subclass": (b"\x80\x02cnumpy\nmatrix\n.", "the name numpy.matrix"),
    "an extension": (b"\x80\x02\x82\x01.", "the operation EXT1"),
    "a reference": (b"\x80\x02U\x01xQ.", "the operation BINPERSID"),
    "a claim of 2^40 bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
    "place 2^32 - 1": (b"\x80\x02]r\xff\xff\xff\xff\x94.", "dictionary, got a list"),
    "objects": (pickle.dumps({b"data": np.array([{}])}, protocol=2), "a call of dtype of O8"),
    "floats": (pickle.dumps({b"data": np.zeros(2)}, protocol=2), "a call of dtype of f8"),
    "a claim in shapes": (replaced(SMALL, b"M\x00\x0c", b"M\xff\xff"), "shape .* in 6,144 bytes"),
    "a tuple as key": (b"\x80\x02})K\x01s.", "a tuple as a key"),
    "no dictionary": (pickle.dumps([1], protocol=2), "needs a dictionary, got a list"),
    "the state of a list": (b"\x80\x02]K\x01b.", "a state of a list"),
    "the state of a name": (b"\x80\x02cnumpy\nndarray\n}b.", "a state of a _Name"),
    "nothing": (b"", "damaged"),
    "an end too soon": (SMALL[:-20], "damaged"),
    "a page": (b"<html>", "damaged|refused"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_pickle_of_anything_else_is_refused_in_one_line(kind: str) -> None:
    raw, named = EVIL[kind]
    with pytest.raises(ComputationError, match=named) as caught:
        unpickled(raw, Path("data_batch_1"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_in_any_order_of_memory_come_out_as_they_were(protocol: int) -> None:
    for rows in (drawn(4, 6), np.asfortranarray(drawn(4, 6))):
        raw = pickle.dumps({"data": rows, "labels": [7]}, protocol=protocol)
        found = unpickled(raw, Path("a"))
        assert np.array_equal(found["data"], rows)
        assert found["labels"] == [7]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({b"labels": [1, 2]}, r"data of shape \(10000, 3072\), got none"),
        ({b"data": drawn(2, 3071), b"labels": [1, 2]}, r"got \(2, 3071\)"),
        ({b"data": drawn(2, 3072), b"labels": [1]}, "got 2 images and 1 labels"),
        ({b"data": drawn(2, 3072), b"labels": [1, 10**30]}, "of 0 to 99"),
        ({b"data": drawn(2, 3072), b"labels": [1, [2]]}, "whole numbers as labels"),
        ({b"data": drawn(2, 3072), b"labels": None}, "whole numbers as labels"),
        ({b"data": drawn(0, 3072), b"labels": []}, "is refused"),
    ],
)
def test_a_batch_of_other_things_is_refused(
    content: dict[bytes, Any], named: str, tmp_path: Path
) -> None:
    cifar_files(tmp_path, "python 3", CIFAR_10, 1)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ComputationError, match=f"data_batch_1 .*{named}"):
        source_of("cifar-10", {"folder": str(tmp_path)})


def npz_file(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def packed_file(path: Path, arrays: dict[str, Any]) -> None:
    np.savez_compressed(path, **arrays)


def h5_file(path: Path, arrays: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


WRITERS = pytest.mark.parametrize(
    ("ending", "write"),
    [(".npz", npz_file), (".npz", packed_file), (".h5", h5_file), (".hdf5", h5_file)],
    ids=["npz", "packed npz", "h5", "hdf5"],
)
FORMS = ["train_x train_y test_x test_y", "x_train y_train x_test y_test"]
FORMS += ["train_images train_labels test_images test_labels"]


@WRITERS
@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_both_parts_are_found_by_their_names(
    ending: str, write: Callable[[Path, Any], None], form: str, tmp_path: Path
) -> None:
    path = tmp_path / f"mine{ending}"
    parts = [(drawn(6, 4, 4), drawn(6)), (drawn(3, 4, 4), drawn(3)[:, None])]
    flat = [array for part in parts for array in part]
    write(path, dict(zip(form.split(), flat, strict=True)))
    for found, (images, labels) in zip(source_of(str(path)), parts, strict=True):
        require_equal(found, images, labels.flatten())


@WRITERS
def test_arrays_of_one_part_are_split_and_numbers_stay_as_they_are(
    ending: str, write: Callable[[Path, Any], None], tmp_path: Path
) -> None:
    path = tmp_path / f"mine{ending}"
    x, y = RNG.standard_normal((10, 3)), RNG.standard_normal((10, 2)).astype(">f4")
    write(path, {"x": x, "y": y})
    (inputs, targets), examples = source_of(str(path))
    assert examples == 8
    assert np.array_equal(inputs.numpy(), x)
    assert np.array_equal(targets.numpy(), y.astype("f4"))
    parts = split(source_of(str(path)))
    assert sorted([*parts.train_index.tolist(), *parts.test_index.tolist()]) == list(range(10))


def test_groups_of_an_hdf5_file_are_parts(tmp_path: Path) -> None:
    names = ["train/x", "train/y", "test/x", "test/y"]
    h5_file(tmp_path / "a.h5", {name: np.arange(4 + i // 2) for i, name in enumerate(names)})
    assert [len(y) for _, y in source_of(str(tmp_path / "a.h5"))] == [4, 5]


def npy_bytes(shape: str, content: bytes = bytes(100), kind: str = "<f8") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def zipped(raw: bytes, *, times: int = 1) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(times):
            archive.writestr("x.npy" if not i else f"x{i}.npy", raw)
    return target.getvalue()


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "not a zip file"),
        (b"<html>", "not a zip file"),
        (zipped(npy_bytes("(1000000000000,)")), "8,000,000,000,000 bytes in 100"),
        (zipped(npy_bytes("(12,)")), "96 bytes in 100"),
        (zipped(npy_bytes("(12,)", kind="|O")), "no real numbers"),
        (zipped(npy_bytes("(12,)", kind="<c16")), "no real numbers"),
        (zipped(b"plain text"), "magic"),
        (zipped(npy_bytes("(3,)", bytes(24)))[:-30], "not a zip file"),
    ],
)
def test_a_damaged_npz_is_refused_before_it_takes_memory(
    raw: bytes, named: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.npz").write_bytes(raw)
    with pytest.raises(ComputationError, match=f"mine.npz cannot be read as .npz .*{named}"):
        source_of(str(tmp_path / "mine.npz"))


def test_a_zip_that_claims_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    raw = zipped(npy_bytes("(3,)", bytes(24)))
    size = struct.pack("<I", 152)
    (tmp_path / "mine.npz").write_bytes(raw.replace(size, struct.pack("<I", 2**31)))
    with pytest.raises(ComputationError, match="no honest file: it claims 2,147,483,648 bytes"):
        source_of(str(tmp_path / "mine.npz"))


def test_arrays_of_other_names_and_missing_files_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", a=np.zeros(3), train_x=np.zeros(3))
    with pytest.raises(InputError, match=r"needs arrays train_x, .* got a, train_x: rename"):
        source_of(str(tmp_path / "mine.npz"))
    for name in ("no.npz", "no.h5"):
        with pytest.raises(InputError, match=f"{name} needs to be a file that is there"):
            source_of(str(tmp_path / name))


def test_pickled_objects_in_an_npz_are_not_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "touched"
    bomb = np.array([Touching(f"touch {mark}")], dtype=object)
    np.savez(tmp_path / "mine.npz", x=bomb, y=np.zeros(1))
    with pytest.raises(ComputationError, match="no real numbers"):
        source_of(str(tmp_path / "mine.npz"))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "options", "named"),
    [
        ("mnist", {"foldr": "x"}, r"data_options of mnist .*folder.*got foldr: did you mean fold"),
        ("emnist", {"split": "digit"}, "split to be one of balanced.*got 'digit'"),
        ("cifar-100", {"labels": "some"}, "fine or coarse, got 'some'"),
        ("mnist", {"folder": 3}, "folder to be the name of a folder, got 3"),
        ("mine.npz", {"folder": "x"}, r"data_options of mine.npz .*classes.*got folder"),
        ("digits", {"seed": 1}, r"data_options of digits need to be some of classes, .*got seed"),
        ("mnst", {}, "did you mean mnist"),
    ],
)
def test_a_wrong_option_is_told_with_those_that_there_are(
    data: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        source_of(data, options)


def test_every_set_says_in_its_first_line_what_it_is() -> None:
    for name, function in DATA.items():
        assert re.match(r"Return .*\.$", (function.__doc__ or "").splitlines()[0]), name


def test_every_file_of_arrays_has_a_reader_and_a_digest_of_what_is_in_it(tmp_path: Path) -> None:
    assert set(READERS) == set(ARRAY_FILES)
    assert not is_array_file(None)
    digests = []
    for number in (0, 1, 0):
        np.save(tmp_path / "a.npy", number)
        (tmp_path / "a.npy").replace(tmp_path / "a.npz")
        digests.append(source_digest(str(tmp_path / "a.npz")))
    assert digests[0] == digests[2] != digests[1]
    assert source_digest("no.npz") is None
