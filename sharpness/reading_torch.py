"""What ``torch.save`` wrote, from bytes in memory.

Before ``torch.load(weights_only=True)`` sees the bytes, the checksums of all members of the zip
archive are tested: torch compiles that test out and would load damaged weights silently
(pytorch#126952). It sees a copy of the archive that is made of what was tested, for its own zip
reader sees other things in a damaged directory: one flipped bit makes a member a folder there, and
its weights whatever was in memory. Names and sizes of members are those that ``torch.save`` writes,
so that nothing is unpacked, hidden or told twice.
"""

import pickle
import pickletools
import warnings
import zipfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from sharpness.errors import ComputationError
from sharpness.text import plain

MAGIC = b"PK\3\4"  # torch.load takes other beginnings for older formats, without checksums
STEPS = 2**20  # to hash a tuple; those of torch.save have some ten entries
# Operations of a pickle by what they do to its stack. All others push one value.
GETS = ("GET", "BINGET", "LONG_BINGET")
PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
IDLE = ("PROTO", "FRAME", "STOP")
POPS = {
    **dict.fromkeys(("POP", "APPEND", "BUILD", "BINPERSID", "TUPLE1"), 1),
    **dict.fromkeys(("SETITEM", "REDUCE", "NEWOBJ", "STACK_GLOBAL", "TUPLE2"), 2),
    "TUPLE3": 3,
}
TO_MARK = ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS", "POP_MARK")
CONSUMING = ("POP", "APPEND", "BUILD", "SETITEM", "APPENDS", "SETITEMS", "POP_MARK")
MEMBERS = 100_000  # one for each storage; the largest networks have thousands

Stored = dict[int, torch.UntypedStorage]  # by address; kept, so that none is given away again


def content(raw: bytes, path: Path) -> tuple[Any, Stored, str]:
    """Return what the file holds, the memory of its tensors, and its checksum: crc32 or none.

    Raises:
        ComputationError: If it is damaged, or holds more than tensors, numbers and text.
    """
    archive, checksum = _copied(raw, path)
    stored: Stored = {}

    def on_the_cpu(storage: Any, location: str) -> Any:
        stored[storage.data_ptr()] = storage
        return storage

    try:
        with warnings.catch_warnings():  # of kinds of tensors, which are refused later
            warnings.simplefilter("ignore")
            found = torch.load(archive, map_location=on_the_cpu, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ComputationError(
            f"{path} holds more than tensors, numbers and text ({_refused(error)}): save "
            "model.state_dict()"
        ) from error
    except Exception as error:
        raise ComputationError(
            f"{path} is no file that torch can load ({type(error).__name__}): save "
            "model.state_dict() again"
        ) from error
    return found, stored, checksum


def _copied(raw: bytes, path: Path) -> tuple[BytesIO, str]:
    """Return an archive of the same members, each checked, and by what."""
    copy = BytesIO()
    try:
        if not zipfile.is_zipfile(BytesIO(raw)):
            raise ComputationError(
                f"{path} is a truncated checkpoint (no zip directory): get it again"
            )
        with zipfile.ZipFile(BytesIO(raw)) as archive, zipfile.ZipFile(copy, "w") as target:
            members: list[Any] = archive.infolist()
            _require_plain(members, len(raw), path)
            # torch writes zeros where it is told not to compute checksums (set_crc32_options).
            checksum = "crc32" if any(member.CRC for member in members) else "none"
            for member in members:
                if checksum == "none":
                    member.CRC = None  # as zipfile itself marks what it cannot check
                data = archive.read(member)
                if member.filename.endswith("/data.pkl"):
                    _require_light(data, path)
                target.writestr(member.filename, data)
    except ComputationError:
        raise
    except Exception as error:
        raise ComputationError(f"{path} is damaged: {plain(error)}: get it again") from error
    copy.seek(0)
    return copy, checksum


def _require_plain(members: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    names = {member.filename for member in members}
    unsafe = [name for name in names if name[:1] in "/\\" or ".." in name.split("/")]
    problem = ""
    if len(members) > MEMBERS:
        problem = f"has {len(members):,} members, more than {MEMBERS:,}"
    elif len(names) < len(members):
        problem = "has two members of one name"
    elif unsafe:
        problem = f"has a member outside of it, {plain(unsafe[0])}"
    elif any(member.compress_type != zipfile.ZIP_STORED for member in members):
        problem = "has compressed members, which torch.save does not write"
    elif sum(member.file_size for member in members) > size:
        problem = "has members that claim more than the file"
    if problem:
        raise ComputationError(f"{path} is no honest file: it {problem}")


def _require_light(code: bytes, path: Path) -> None:
    """Refuse a pickle with a tuple that has the same tuples in it over and over.

    A key of n levels, each twice the one before, takes 2^n steps to hash, within one call that
    nothing interrupts. So the pickle is first run with the steps for the values.
    """
    with suppress(LookupError, ValueError, TypeError):  # what is no pickle is torch's to refuse
        if _heaviest(code) > STEPS:
            raise ComputationError(
                f"{path} is no honest file: it has tuples in tuples, as torch.save writes none"
            )


def _heaviest(code: bytes) -> int:
    """Return how many steps the hash of the largest tuple takes, or more than allowed."""
    stack: list[int | None] = []  # steps to hash each value; None is a mark
    memo: dict[int, int | None] = {}
    heaviest = 1
    operations: Any = pickletools.genops(code)
    for operation, value, _ in operations:
        name = operation.name
        if name in GETS:
            stack.append(memo[int(value)])
        elif name in PUTS:
            memo[len(memo) if name == "MEMOIZE" else int(value)] = stack[-1]
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(None)
        elif name not in IDLE:
            begin = len(stack) - POPS.get(name, 0)
            if name in TO_MARK:
                begin = len(stack) - 1 - stack[::-1].index(None)
            taken = [x for x in stack[begin:] if x is not None]
            del stack[begin:]
            if name not in CONSUMING:
                whole = name.startswith("TUPLE") or name in ("REDUCE", "NEWOBJ")
                stack.append(1 + sum(taken) if whole else 1)
                heaviest = max(heaviest, 1 + sum(taken) if whole else 1)
                if heaviest > STEPS:
                    break
    return heaviest


def _refused(error: Exception) -> str:
    """Return the one word of torch's six lines that says what was refused."""
    text = str(error)
    for mark in ("GLOBAL ", "Unsupported operand ", "class "):
        if mark in text:
            return plain(text.split(mark, 1)[1].split()[0])
    return type(error).__name__
