"""Makers of files that do harm, or try to: each gives bytes, and none of them is read here.

Where a file points to another one, that is the canary, whose content must never show.
"""

import argparse
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from h5py import h5d, h5g, h5p, h5s, h5t, h5z
from torch import nn

WEIGHTS = {"weight": torch.arange(6.0).reshape(3, 2).sin(), "count": torch.arange(3)}
CANARY = b"the content of another file"
ESCAPE = "\x1b[2J\x1b]0;owned\x07"


def saved(content: Any, **options: Any) -> bytes:
    file = BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


class Call:
    """Pickled, it is a call of this function with these arguments."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def members(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(raw)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, data in parts:
            archive.writestr(name, data)
    return file.getvalue()


def without_checksums(content: Any) -> bytes:
    torch.serialization.set_crc32_options(False)
    try:
        return saved(content)
    finally:
        torch.serialization.set_crc32_options(True)


def with_pickle(code: bytes) -> bytes:
    """Return a checkpoint of one float32 storage of 6 numbers under this pickle."""
    parts = members(saved({"w": torch.ones(6)}))
    return zipped([(name, code if name.endswith("/data.pkl") else x) for name, x in parts.items()])


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX%b\0\0\0%bX\3\0\0\0cpu%bt"


def nested_twice(depth: int) -> bytes:
    """Return a pickle of a dict whose key is a tuple of twice a tuple of twice a tuple ..."""
    code = b"\x80\2}K\1\x85q\0"
    for i in range(depth):
        code += b"h%c\x86q%c" % (i, i + 1)  # what is on the stack, and that again
    return code + b"K\1s."


def rebuilt(
    offset: bytes, size: bytes, stride: bytes, *, key: bytes = b"0", n: bytes = b"K\6"
) -> bytes:
    """Return a checkpoint whose tensor is this view of a storage."""
    storage = STORAGE % (bytes([len(key)]), key, n) + b"Q"
    view = offset + size + stride + b"\x89ccollections\nOrderedDict\n)R"
    code = b"}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tRs."
    return with_pickle(b"\x80\2" + code)


def deep(depth: int) -> bytes:
    """Return a checkpoint of dicts in dicts."""
    return with_pickle(b"\x80\2" + b"}X\5\0\0\0model" * depth + b"}" + b"s" * depth + b".")


class Weight(torch.Tensor):
    """A subclass, which a file names and torch does not know."""


def legacy_before_a_zip() -> bytes:
    """Return a legacy file, which has no checksums, with a whole archive behind it."""
    return saved({"w": torch.zeros(2)}, _use_new_zipfile_serialization=False) + saved(WEIGHTS)


def wrong_in_one_byte(part: bytes) -> bytes:
    raw = bytearray(saved(WEIGHTS))
    raw[raw.index(part)] ^= 1
    return bytes(raw)


def one_checksum_missing() -> bytes:
    """Return a file where one member has the checksum 0, as if it had none."""
    raw = bytearray(saved(WEIGHTS))
    with zipfile.ZipFile(BytesIO(raw)) as archive:
        crc = next(x.CRC for x in archive.infolist() if x.filename.endswith("data/0"))
    where = raw.rindex(struct.pack("<I", crc))
    raw[where : where + 4] = bytes(4)
    return bytes(raw)


def encrypted() -> bytes:
    raw = bytearray(saved(WEIGHTS))
    raw[raw.rindex(b"PK\1\2") + 8] |= 1
    return bytes(raw)


def script() -> bytes:
    parts = members(saved(WEIGHTS))
    return zipped([*parts.items(), ("archive/constants.pkl", pickle.dumps(()))])


def ragged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(1)])


def of_the_weights(change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> bytes:
    return zipped(change(list(members(saved(WEIGHTS)).items())))


def doubled() -> bytes:
    """Return an archive with a second member of the name of the weights."""
    parts = list(members(saved(WEIGHTS)).items())
    raw = zipped([*parts, ("archive/data/X", bytes(24))])
    return raw.replace(b"archive/data/X", b"archive/data/0")


def claiming() -> bytes:
    """Return an archive whose last member claims 2 GiB."""
    raw = bytearray(zipped([*members(saved(WEIGHTS)).items(), ("archive/x", b"x")]))
    where = raw.rindex(b"PK\1\2")
    raw[where + 20 : where + 28] = struct.pack("<II", 2**31, 2**31)
    return bytes(raw)


def crowded() -> bytes:
    """Return an archive of one member with 100,001 entries in its directory."""
    raw = zipped([("archive/x", b"x")])
    start, end = raw.index(b"PK\1\2"), raw.index(b"PK\5\6")
    entries = raw[start:end] * 100_001
    tail = b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 65535, 65535, len(entries), start, 0)
    return raw[:start] + entries + tail


WRAPPER = (torch.Tensor, torch.float32, (3,), (1,), 0, torch.strided, torch.device("cpu"), False)

# By what they are: the bytes, and a word of the refusal.
CHECKPOINTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a call of os.system": (
        lambda: saved({"state_dict": WEIGHTS, "x": Call(os.system, "touch /tmp/x")}),
        "system",
    ),
    "a call of eval": (lambda: saved({"w": Call(eval, "1")}), "eval"),
    "a call of open": (lambda: saved({"w": Call(open, "/etc/passwd")}), "open"),
    "a call of import": (lambda: saved({"w": Call(__import__, "antigravity")}), "__import__"),
    "a call of torch.load": (lambda: saved({"w": Call(torch.load, "/etc/passwd")}), "load"),
    "a whole module": (lambda: saved(nn.Linear(2, 2)), "Linear"),
    "a namespace": (lambda: saved({**WEIGHTS, "args": argparse.Namespace(a=1)}), "Namespace"),
    "an array of numpy": (lambda: saved({"w": np.ones(3)}), "numpy"),
    "the name of a class with escapes": (
        lambda: with_pickle(b"\x80\2cos\n" + ESCAPE.encode() + b"\n."),
        "os",
    ),
    "a name with escapes": (lambda: saved({ESCAPE: torch.eye(2).to_sparse()}), r"\\x1b"),
    "a sparse tensor": (lambda: saved({"w": torch.eye(2).to_sparse()}), "dense"),
    "a sparse CSR tensor": (lambda: saved({"w": torch.eye(2).to_sparse_csr()}), "dense"),
    "a quantized tensor": (
        lambda: saved({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}),
        "dense",
    ),
    "a meta tensor": (lambda: saved({"w": torch.ones(2, device="meta")}), "dense"),
    "a nested tensor": (lambda: saved({"w": ragged()}), "dense"),
    "complex numbers": (lambda: saved({"w": torch.ones(2, dtype=torch.complex64)}), "complex64"),
    "numbers of 8 bits": (lambda: saved({"w": torch.ones(2).to(torch.float8_e4m3fn)}), "float8"),
    "a tensor subclass": (lambda: saved({"w": torch.ones(2).as_subclass(Weight)}), "Weight"),
    "a DTensor": (
        lambda: with_pickle(b"\x80\2ctorch.distributed.tensor\nDTensor\n."),
        "more than tensors|state dict",  # torch allows the name once something has imported it
    ),
    "a wrapper without memory": (
        lambda: saved({"w": Call(torch._utils._rebuild_wrapper_subclass, *WRAPPER)}),
        "torch can load",
    ),
    "memory that nobody wrote": (lambda: saved({"w": Call(torch.FloatTensor, 3)}), "claims more"),
    "a typed storage": (lambda: saved({"w": torch.ones(2).storage()}), "state dict"),
    "a bare storage": (lambda: saved({"w": torch.ones(2).untyped_storage()}), "state dict"),
    "one number shown as many": (lambda: saved({"w": torch.ones(1).expand(50)}), "claims more"),
    "a terabyte of one number": (lambda: saved({"w": torch.ones(1).expand(10**12)}), "claims more"),
    "a storage of a terabyte": (
        lambda: rebuilt(b"K\0", b"K\6\x85", b"K\1\x85", n=b"\x8a\5\0\0\0\0\x40"),
        "torch can load",
    ),
    "a storage larger than its member": (
        lambda: rebuilt(b"K\0", b"K\x40\x85", b"K\1\x85", n=b"K\x40"),
        "torch can load",
    ),
    "a view behind its storage": (
        lambda: rebuilt(b"K\5", b"K\6\x85", b"K\1\x85"),
        "torch can load",
    ),
    "a view before its storage": (
        lambda: rebuilt(b"J\xff\xff\xff\xff", b"K\6\x85", b"K\1\x85"),
        "torch can load",
    ),
    "a negative size": (
        lambda: rebuilt(b"K\0", b"J\xff\xff\xff\xff\x85", b"K\1\x85"),
        "torch can load",
    ),
    "a storage of another name": (
        lambda: rebuilt(b"K\0", b"K\6\x85", b"K\1\x85", key=b"9"),
        "torch can load",
    ),
    "a storage by a path": (
        lambda: rebuilt(b"K\0", b"K\6\x85", b"K\1\x85", key=b"../../../etc/passwd"),
        "torch can load",
    ),
    "a key of 60 doubled tuples": (lambda: with_pickle(nested_twice(60)), "tuples in tuples"),
    "a key of 60 tuples of copies": (
        lambda: with_pickle(b"\x80\2}" + b"K\1\x85" + 60 * b"2\x86" + b"K\1s."),
        "tuples in tuples",
    ),
    "dicts 10,000 deep": (lambda: deep(10_000), "needs a state dict"),
    "a dict in itself": (
        lambda: with_pickle(b"\x80\2}q\0X\5\0\0\0modelh\0s."),
        "needs a state dict",
    ),
    "names that are no text": (lambda: saved({7: torch.ones(2)}), "holds a int"),
    "two members of one name": (doubled, "two members"),
    "a member above": (
        lambda: of_the_weights(lambda parts: [*parts, ("archive/../../x", b"x")]),
        "outside",
    ),
    "a member at the root": (
        lambda: of_the_weights(lambda parts: [*parts, ("/etc/cron.d/x", b"x")]),
        "outside",
    ),
    "packed members": (
        lambda: zipped(list(members(saved(WEIGHTS)).items()), zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "a bomb of zeros": (
        lambda: zipped([("archive/data/0", bytes(2**26))], zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "a member that claims 2 GiB": (claiming, "claim more"),
    "100,001 members": (crowded, "100,001 members"),
    "an encrypted member": (encrypted, "damaged"),
    "a wrong weight": (lambda: wrong_in_one_byte(WEIGHTS["weight"].numpy().tobytes()), "CRC-32"),
    "a wrong pickle": (lambda: wrong_in_one_byte(b"_rebuild_tensor_v2"), "CRC-32"),
    "one checksum missing": (one_checksum_missing, "CRC-32"),
    "a legacy file before an archive": (legacy_before_a_zip, "torch 1.6"),
    "a legacy file": (lambda: saved(WEIGHTS, _use_new_zipfile_serialization=False), "torch 1.6"),
    "a script": (script, "torch can load"),
    "an archive of nothing": (lambda: zipped([]), "torch"),
}


def hdf5(fill: Callable[[h5py.File], Any], **options: Any) -> bytes:
    """Return the bytes of an HDF5 file with one whole array, and what ``fill`` puts beside it."""
    file = BytesIO()
    with h5py.File(file, "w", **options) as made:
        made["a"] = np.arange(5.0)
        fill(made)
    return file.getvalue()


def low(
    file: h5py.File,
    kind: Any = h5t.IEEE_F64LE,
    shape: tuple[int, ...] = (6,),
    how: Callable[[Any], Any] = lambda plan: None,
) -> Any:
    """Make the array ``w`` with all that h5py leaves to libhdf5."""
    plan = h5p.create(h5p.DATASET_CREATE)
    how(plan)
    return h5d.create(file.id, b"w", kind, h5s.create_simple(shape), plan)


def external(file: h5py.File, path: str) -> None:
    low(file, h5t.STD_U8LE, (len(CANARY),), lambda plan: plan.set_external(path.encode(), 0, 27))


def virtual(file: h5py.File, path: str) -> None:
    layout = h5py.VirtualLayout((24,), "u1")
    layout[:] = h5py.VirtualSource(path, "a", (24,))
    file.create_virtual_dataset("w", layout)


def nested(file: h5py.File, depth: int) -> None:
    group: Any = file
    for _ in range(depth):
        group = group.create_group("g")
    group["w"] = np.ones(3)


def hard(file: h5py.File, name: str) -> None:
    file["g/h/w"] = np.ones(3)
    file[name] = file["g"] if name.startswith("g/") else file["a"]


def foreign_filter(file: h5py.File, number: int) -> None:
    def plan(plan: Any) -> None:
        plan.set_chunk((6,))
        plan.set_filter(number, h5z.FLAG_OPTIONAL, (1, 2, 3))

    low(file, how=plan)
    file["w"][:] = 1


def chunk(file: h5py.File, data: bytes, **options: Any) -> None:
    """Write the bytes of a chunk as they are, past all filters."""
    made = file.create_dataset("w", shape=(6,), dtype="f8", chunks=(6,), **options)
    made.id.write_direct_chunk((0,), data)


def named(old: bytes, new: bytes) -> bytes:
    raw = hdf5(lambda file: file.create_dataset(old.decode(), data=np.ones(3)))
    assert raw.count(old) == 1
    return raw.replace(old, new)


def patched(raw: bytes, where: int, new: bytes) -> bytes:
    return raw[:where] + new + raw[where + len(new) :]


def groups(file: h5py.File, count: int) -> None:
    # As the compact links of one symbol-table-free group: the file stays small.
    for i in range(count):
        h5g.create(file.id, b"%d" % i)


def packed(file: h5py.File, data: Any, **options: Any) -> None:
    file.create_dataset("w", data=data, **options)


def scalar_offset(plan: Any) -> None:
    plan.set_chunk((6,))
    plan.set_scaleoffset(h5z.SO_INT, 0)


def early(plan: Any) -> None:
    plan.set_chunk((3,))


def half_written(file: h5py.File) -> None:
    low(file, how=early)
    file["w"][:3] = 1


def reference(file: h5py.File) -> None:
    made = file.create_dataset("w", (1,), dtype=h5py.ref_dtype)
    made[0] = file["a"].ref


def region(file: h5py.File) -> None:
    made = file.create_dataset("w", (1,), dtype=h5py.regionref_dtype)
    made[0] = file["a"].regionref[1:3]


def vlen(file: h5py.File) -> None:
    made = file.create_dataset("w", (1,), dtype=h5py.vlen_dtype(np.float64))
    made[0] = np.ones(3)


def opaque(file: h5py.File) -> None:
    times = np.array(["2026-01-01"], "M8[s]")
    packed(file, times.astype(h5py.opaque_dtype(times.dtype)))


def huge_chunk(file: h5py.File) -> None:
    file.create_dataset("w", (1,), "f8", maxshape=(None,), chunks=(2**28,), compression="gzip")
    file["w"].id.write_direct_chunk((0,), b"\x78\x9c\x03\x00\x00\x00\x00\x01")


def hdf5_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Return hostile HDF5 files by what they are, with a word of the refusal.

    Args:
        folder: Where the other files are that some of them point to.
    """
    (folder / "canary").write_bytes(CANARY)
    with h5py.File(folder / "other.h5", "w") as file:
        file["a"] = np.frombuffer(CANARY[:24], "u1")
        file["d/w"] = np.frombuffer(CANARY[:24], "u1")
    other = str(folder / "other.h5")
    plain = hdf5(lambda file: None)
    latest = hdf5(lambda file: None, libver="latest")
    fletcher = {"fletcher32": True}
    made: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
        "data in another file": (lambda f: external(f, str(folder / "canary")), "another file"),
        "data in a file beside": (lambda f: external(f, "canary"), "another file"),
        "data in /etc/passwd": (lambda f: external(f, "/etc/passwd"), "another file"),
        "data in a device": (lambda f: external(f, "/dev/zero"), "another file"),
        "a link to another file": (lambda f: link(f, "w", h5py.ExternalLink(other, "/a")), "link"),
        "a link to a group elsewhere": (
            lambda f: link(f, "d", h5py.ExternalLink(other, "/d")),
            "link",
        ),
        "a link in a group": (lambda f: link(f, "g/w", h5py.ExternalLink(other, "/a")), "link"),
        "a link to a place here": (lambda f: link(f, "w", h5py.SoftLink("/a")), "link"),
        "a link to nothing": (lambda f: link(f, "w", h5py.SoftLink("/nosuch")), "link"),
        "a link to itself": (lambda f: link(f, "w", h5py.SoftLink("/w")), "link"),
        "a virtual array of another file": (lambda f: virtual(f, other), "another file"),
        "a virtual array of this file": (lambda f: virtual(f, "."), "another file"),
        "one array under two names": (lambda f: hard(f, "b"), "two names"),
        "a group in itself": (lambda f: hard(f, "g/h/g"), "two names"),
        "the root in itself": (lambda f: link(f, "r", f["/"]), "two names"),
        "groups 18 deep": (lambda f: nested(f, 18), "deep"),
        "groups 300 deep": (lambda f: nested(f, 300), "deep"),
        "an array of 7 TiB": (lambda f: low(f, shape=(10**12,)), "more than 3 times"),
        "an array of 7 TiB in chunks": (
            lambda f: low(f, shape=(10**12,), how=lambda plan: plan.set_chunk((10**6,))),
            "more than 3 times",
        ),
        "an array of 2^63 bytes": (lambda f: low(f, shape=(2**31, 2**29)), "more than 3 times"),
        "a half-written array": (half_written, "not stored whole"),
        "a bomb of zeros": (
            lambda f: packed(f, np.zeros(2**23), chunks=(2**23,), compression="gzip"),
            "more than 3 times",
        ),
        "a chunk of 2 GiB": (huge_chunk, "HDF5"),
        "a checksum of 2 bytes": (lambda f: chunk(f, b"xx", **fletcher), "signal|HDF5"),
        "a chunk of one byte": (lambda f: chunk(f, b"x", **fletcher), "signal|HDF5|stored"),
        "a wrong checksum": (lambda f: chunk(f, bytes(48) + b"wron", **fletcher), "HDF5"),
        "a chunk that gzip did not write": (
            lambda f: chunk(f, b"garbage" * 9, compression="gzip"),
            "HDF5",
        ),
        "packed by lzf": (
            lambda f: packed(f, np.ones(6), chunks=(6,), compression="lzf"),
            "packed",
        ),
        "packed by a plugin": (lambda f: foreign_filter(f, 305), "packed"),
        "packed by scale and offset": (
            lambda f: low(f, h5t.STD_I32LE, how=scalar_offset),
            "packed",
        ),
        "text": (lambda f: link(f, "w", "text"), "no array of real"),
        "texts of one length": (lambda f: packed(f, np.array([b"a", b"b"])), "no array of real"),
        "arrays of any length": (vlen, "no array of real"),
        "references": (reference, "no array of real"),
        "references of regions": (region, "no array of real"),
        "records": (lambda f: packed(f, np.zeros(3, "f8,i4")), "no array of real"),
        "complex numbers": (lambda f: packed(f, np.zeros(3, complex)), "no array of real"),
        "arrays of arrays": (
            lambda f: low(f, h5t.array_create(h5t.IEEE_F64LE, (3,))),
            "no array of real",
        ),
        "opaque bytes": (opaque, "no array of real"),
        "names for numbers": (
            lambda f: f.create_dataset("w", (3,), dtype=h5py.enum_dtype({"A": 1}, "i4")),
            "no array of real",
        ),
        "bits": (lambda f: low(f, h5t.STD_B8LE), "no array of real"),
        "numbers of 128 bits": (lambda f: packed(f, np.ones(3, np.longdouble)), "no array of real"),
        "a kind that has a name": (lambda f: link(f, "t", np.dtype("f8")), "neither a group"),
        "no shape": (lambda f: link(f, "w", h5py.Empty("f8")), "no shape"),
        "a name with escapes": (lambda f: link(f, ESCAPE, np.ones(3)), r"\\x1b"),
        "a name of two lines": (lambda f: link(f, "a\nb", np.ones(3)), "no name"),
        "a name of 5,000 letters": (lambda f: link(f, "x" * 5000, np.ones(3)), "no name"),
        "a group with a name of escapes": (lambda f: f.create_group(ESCAPE), r"\\x1b"),
        "a name from right to left": (lambda f: link(f, "\u202egpj", np.ones(3)), "no name"),
        "100,000 groups": (lambda f: groups(f, 100_000), "100,000 objects"),
    }
    found = {name: (hdf5(fill), word) for name, (fill, word) in made.items()}
    return found | {
        "a name that is no UTF-8": (named(b"zzzz", b"\xff\xfe\xff\xfe"), "no name"),
        "a name that is the folder above": (named(b"zz", b".."), "HDF5|no name"),
        "a name that is a path": (named(b"zzz", b"a/b"), "no name"),
        "a cut file": (plain[:-100], "HDF5"),
        "only the beginning": (plain[:8], "HDF5"),
        "the beginning of another version": (patched(plain, 8, b"\x09"), "HDF5"),
        "an end of file far away": (patched(plain, 40, b"\xff" * 7), "HDF5"),
        "a root at no address": (patched(latest, 36, b"\xff" * 8), "HDF5"),
        "addresses of 255 bytes": (patched(plain, 13, b"\xff"), "HDF5"),
        "noise behind the beginning": (plain[:8] + bytes(range(256)) * 8, "HDF5"),
    }


def link(file: h5py.File, name: str, what: Any) -> None:
    file[name] = what


def safetensors_of(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(kind: str = "F32", shape: str = "[2]", offsets: str = "[0,8]") -> bytes:
    return f'{{"dtype":"{kind}","shape":{shape},"data_offsets":{offsets}}}'.encode()


def of_w(**fields: str) -> bytes:
    return b'{"w":' + entry(**fields) + b"}"


SAFETENSORS: dict[str, bytes] = {
    "a header beyond the file": safetensors_of(of_w(), bytes(8), 10**9),
    "a header of 0 bytes": b"\0" * 8 + b"{",
    "a header that is no JSON": safetensors_of(b"{w}", bytes(8)),
    "a header 100,000 deep": safetensors_of(b'{"a":' * 100_000, bytes(8)),
    "a number of a million digits": safetensors_of(b'{"a":' + b"9" * 10**6 + b"}"),
    "a header that is a list": safetensors_of(b"{}"[:1] + b"[]}", bytes(8)),
    "an entry that is a number": safetensors_of(b'{"w":1}', bytes(8)),
    "no kind": safetensors_of(b'{"w":{"shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "numbers of 8 bits": safetensors_of(of_w(kind="F8_E4M3", shape="[8]"), bytes(8)),
    "complex numbers": safetensors_of(of_w(kind="C64", shape="[1]"), bytes(8)),
    "a kind with escapes": safetensors_of(of_w(kind="\\u001b[2J"), bytes(8)),
    "a name with escapes": safetensors_of(b'{"\\u001b[2J":' + entry(shape="[3]") + b"}", bytes(8)),
    "a shape of its own": safetensors_of(of_w(shape="[3]"), bytes(8)),
    "a negative shape": safetensors_of(of_w(shape="[-1,-2]"), bytes(8)),
    "a shape of fractions": safetensors_of(of_w(shape="[2.0]"), bytes(8)),
    "a shape of truths": safetensors_of(of_w(shape="[true,2]"), bytes(8)),
    "a shape beyond 64 bits": safetensors_of(of_w(shape=f"[{2**40},{2**40}]"), bytes(8)),
    "offsets beyond the file": safetensors_of(of_w(offsets="[8,16]"), bytes(8)),
    "three offsets": safetensors_of(of_w(offsets="[0,8,8]"), bytes(8)),
    "a hole": safetensors_of(of_w(offsets="[8,16]"), bytes(16)),
    "more behind the data": safetensors_of(of_w(), bytes(9)),
    "one place for two": safetensors_of(b'{"v":' + entry() + b',"w":' + entry() + b"}", bytes(8)),
    "one name for two": safetensors_of(
        b'{"w":' + entry() + b',"w":' + entry(offsets="[8,16]") + b"}", bytes(16)
    ),
    "nothing": safetensors_of(b"{}"),
}
