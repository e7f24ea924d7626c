"""What ``torch.save`` wrote, from bytes in memory.

Before ``torch.load(weights_only=True)`` sees the bytes, the checksums of all members of the zip
archive are tested: torch compiles that test out and would load damaged weights silently
(pytorch#126952). It sees a copy of the archive that is made of what was tested, for its own zip
reader sees other things in a damaged directory: one flipped bit makes a member a folder there, and
its weights whatever was in memory. Names and sizes of members are those that ``torch.save`` writes,
so that nothing is unpacked, hidden or told twice.
"""

import pickle
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from sharpness.errors import ComputationError
from sharpness.text import plain

MAGIC = b"PK\3\4"  # torch.load takes other beginnings for older formats, without checksums
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
                target.writestr(member.filename, archive.read(member))
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


def _refused(error: Exception) -> str:
    """Return the one word of torch's six lines that says what was refused."""
    text = str(error)
    for mark in ("GLOBAL ", "Unsupported operand ", "class "):
        if mark in text:
            return plain(text.split(mark, 1)[1].split()[0])
    return type(error).__name__
