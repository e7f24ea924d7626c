"""Bytes on a disk: the few calls by which results and journals are written.

Nothing else in the library writes, so that a test can let each of them fail, or record them and
rebuild what a crash between any two of them leaves behind.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def create(path: Path, *, mode: int = 0o666) -> int:
    """Return a descriptor of a new, empty file."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def append(descriptor: int, data: bytes, path: Path) -> None:
    """Write bytes at the end of the file, all of them.

    Raises:
        OSError: If the disk does not take them; it names the path, as those of all calls here do.
    """
    left = memoryview(data)
    with naming(path):
        while left:
            left = left[os.write(descriptor, left) :]


def sync(descriptor: int, path: Path) -> None:
    """Return when all that was written is on the disk; a failure is for good, never tried again."""
    with naming(path):
        os.fsync(descriptor)


def cut(descriptor: int, size: int, path: Path) -> None:
    """Cut the file off behind its first ``size`` bytes."""
    with naming(path):
        os.ftruncate(descriptor, size)


def link(source: Path, target: Path) -> None:
    """Give a file a second name: unlike ``replace``, it replaces nothing."""
    os.link(source, target)


def replace(source: Path, target: Path) -> None:
    """Give a file another name, in place of what has that name."""
    os.replace(source, target)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(descriptor, path)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what the disk refuses meanwhile name this path."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
