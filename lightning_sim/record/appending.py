"""A file that grows by whole pieces: a write that fails halfway leaves it as it was."""

from __future__ import annotations

from pathlib import Path

from lightning_sim._owned_files import HeldFile, create_file, replace_file, write_all

__all__ = ["AppendedFile"]


class AppendedFile:
    """Writes pieces to the end of a file that it made itself, each synchronised with the disk.

    Args:
        path: Where the file is.
        held: The file, which nobody else writes.
        size: Of what is safely in it.
    """

    def __init__(self, path: Path, held: HeldFile, size: int) -> None:
        self.path = path
        self._held = held
        self._size = size

    @classmethod
    def create(cls, path: Path, content: bytes) -> AppendedFile:
        """A file that did not exist; its directory is made when needed.

        Raises:
            FileExistsError: If it exists.
            OSError: If it cannot be written; it is then removed.
        """
        return cls(path, create_file(path, content), len(content))

    @classmethod
    def replace(cls, path: Path, content: bytes) -> AppendedFile:
        """A file that atomically takes the place of a former one.

        Raises:
            OSError: If it cannot be written; the former one is then untouched.
        """
        return cls(path, replace_file(path, content), len(content))

    def append(self, piece: bytes) -> None:
        """Add one piece, cutting off whatever a failed write left behind the last one.

        Raises:
            FileNotFoundError: If the file is gone from its path, where there may be another.
            OSError: If it cannot be written now, for instance because the disk is full.
        """
        with self.path.open("r+b", buffering=0) as file:
            if not self._held.is_open_as(file.fileno()):
                raise FileNotFoundError(f"{self.path} is another file by now")
            file.truncate(self._size)
            file.seek(self._size)
            try:
                write_all(file.fileno(), piece)
            except OSError:
                file.truncate(self._size)
                raise
        self._size += len(piece)

    def release(self) -> None:
        """Let others go on with the file."""
        self._held.release()
