"""Files that one living process holds, by locks that end with it however it ends, and by names that nobody has."""

from __future__ import annotations

import os
import re
import sys
import uuid
import weakref
from pathlib import Path

__all__ = ["HeldFile", "create_file", "replace_file", "try_lock", "write_all"]

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)

if sys.platform == "win32":

    def try_lock(descriptor: int) -> bool | None:
        """Nothing is locked on Windows."""
        return None

else:
    import fcntl

    def try_lock(descriptor: int) -> bool | None:
        """Lock an open file until it is closed; False where somebody else holds it, None where files have no locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True


class HeldFile:
    """A file that this process made, known by more than its path, and locked until `release` or the process's end.

    Args:
        descriptor: Of the open file, empty as yet.
        content: What is written to it.

    Raises:
        OSError: If it cannot be written.
    """

    def __init__(self, descriptor: int, content: bytes) -> None:
        self._descriptor: int | None = descriptor
        _held.add(self)
        try:
            write_all(descriptor, content)
            self._status = os.fstat(descriptor)
        except BaseException:
            self.release()
            raise
        if sys.platform == "win32":  # where an open file can be neither renamed nor removed
            self.release()

    def is_open_as(self, descriptor: int) -> bool:
        """Whether this is the file that was opened as `descriptor`."""
        return os.path.samestat(self._status, os.fstat(descriptor))

    def release(self) -> None:
        """Let others hold the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()


def create_file(path: Path, content: bytes) -> HeldFile:
    """Make a file that does not exist, of processes that try it at once by one of them.

    Raises:
        FileExistsError: If it exists.
        OSError: If it cannot be written; it is then removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, _NEW, 0o666)
    try_lock(descriptor)
    try:
        return HeldFile(descriptor, content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def replace_file(path: Path, content: bytes) -> HeldFile:
    """Write a file in one piece: whoever reads it, and whatever happens, finds the former one or this one.

    Raises:
        OSError: If it cannot be written; the former file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = _temporary_beside(path)
    try:
        held = HeldFile(descriptor, content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return held


def write_all(descriptor: int, content: bytes) -> None:
    """Write at the file's position, and synchronise with the disk.

    Raises:
        OSError: If not everything could be written.
    """
    remaining = memoryview(content)
    while remaining:  # a nearly full disk takes a part of it before it refuses
        remaining = remaining[os.write(descriptor, remaining) :]
    os.fsync(descriptor)


def _temporary_beside(path: Path) -> tuple[int, Path]:
    """A new hidden file in the directory of `path`, open and locked; those left there by dead processes are removed."""
    for abandoned in path.parent.iterdir():
        if _TEMPORARY.fullmatch(abandoned.name):
            _remove_unless_held(abandoned)
    while True:
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        descriptor = os.open(temporary, _NEW, 0o666)
        # Until it was locked, another process may have taken it for abandoned.
        if try_lock(descriptor) is not False and temporary.exists():
            return descriptor, temporary
        os.close(descriptor)


def _remove_unless_held(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return
    if try_lock(descriptor):
        path.unlink(missing_ok=True)
    os.close(descriptor)


def _release_in_child() -> None:
    # A lock lasts as long as any copy of its descriptor: workers that outlive a killed training must not hold it.
    for held in list(_held):
        held.release()


_held: weakref.WeakSet[HeldFile] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
