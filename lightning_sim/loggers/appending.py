"""A file that grows by whole pieces: a write that fails halfway leaves it as it was."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["AppendedFile"]


class AppendedFile:
    """Writes pieces to the end of a file, each synchronised with the disk; held open only while it writes.

    A file that is already there is renamed to ``<stem>-1<suffix>`` (or the next free number) by the first
    `append`, and overwritten by `replace`.

    Args:
        path: Its directory is created when needed.
        start: What the file starts with, written before the first piece.
    """

    def __init__(self, path: Path, start: bytes) -> None:
        self.path = path
        self._start = start
        self._size: int | None = None  # of what is safely in the file; None before the first write
        self._unwritten = b""

    def append(self, piece: bytes) -> None:
        """Add one piece, and before it those that could not be written so far.

        Raises:
            OSError: If it cannot be written now, for instance because the disk is full.
        """
        self._unwritten += piece
        try:
            if self._size is None:
                _keep_earlier(self.path)
                self._size = _replace(self.path, self._start)
            if self._unwritten:
                self._size = _write_at(self.path, self._size, self._unwritten)
        except OSError as error:
            raise _explained(error, self.path) from error
        self._unwritten = b""

    def replace(self, pieces: bytes) -> None:
        """Atomically put a file with exactly these pieces in the place of the former one.

        Raises:
            OSError: If it cannot be written; the former file is then untouched.
        """
        self._size, self._unwritten = None, pieces
        try:
            self._size = _replace(self.path, self._start + pieces)
        except OSError as error:
            raise _explained(error, self.path) from error
        self._unwritten = b""

    def close(self) -> None:
        """Try once more to write what could not be written.

        Raises:
            OSError: If it still cannot.
        """
        if self._unwritten:
            self.append(b"")


def _write_at(path: Path, position: int, content: bytes) -> int:
    """Put `content` at `position`, cutting off whatever a failed write left behind it; the new size."""
    with path.open("r+b", buffering=0) as file:
        file.truncate(position)
        file.seek(position)
        try:
            _write_all(file.fileno(), content)
        except OSError:
            file.truncate(position)
            raise
    return position + len(content)


def _replace(path: Path, content: bytes) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb", buffering=0) as file:
            _write_all(file.fileno(), content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return len(content)


def _write_all(descriptor: int, content: bytes) -> None:
    remaining = memoryview(content)
    while remaining:  # a nearly full disk takes a part of it before it refuses
        remaining = remaining[os.write(descriptor, remaining) :]
    os.fsync(descriptor)


def _keep_earlier(path: Path) -> None:
    if not path.exists():
        return
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)


def _explained(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, f"could not be written: {error.strerror or error}", str(path))
