"""Where a run's record lies: a directory of its own, which no other run, and no other process, writes to.

The directory belongs to the run whose id stands in the record's first line. It is claimed by making the record, in
which one of several processes succeeds; while its writer lives the record is locked, and the lock ends with the
process, however that ends. If a directory is taken, the next free one of ``<name>-1``, ``<name>-2``, ... is claimed.
Where files have no locks, a writer whose record was replaced by another process notices at its next measurement, and
writes all of it to a new place.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_sim._owned_files import create_file, try_lock
from lightning_sim.record.appending import AppendedFile

__all__ = ["FILE_NAME", "claim_new", "continue_own", "holds_measurements", "numbered_places"]

FILE_NAME = "record.jsonl"


def claim_new(wanted: Path, content: bytes) -> AppendedFile:
    """A new record with this content in the first directory that holds none.

    Raises:
        OSError: If it cannot be written.
    """
    for number in itertools.count():
        directory = wanted if number == 0 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            return AppendedFile.create(directory / FILE_NAME, content)
        except FileExistsError:
            continue
    raise AssertionError  # there is always a next number


def continue_own(wanted: Path, run_id: str, header: bytes, body: bytes) -> AppendedFile | None:
    """The record of this run, from now on with this content; None if there is none that nobody else writes to.

    If the former file holds anything that the new one does not, it is kept as ``record-1.jsonl`` (or the next free
    number) beside it.

    Raises:
        OSError: If the record cannot be written; the former file is then untouched.
    """
    for place in (wanted, *numbered_places(wanted.parent, wanted.name)):
        path = place / FILE_NAME
        try:
            former = path.open("r+b")
        except OSError:
            continue
        with former:
            first = former.readline()
            if _parsed(first).get("run_id") != run_id or try_lock(former.fileno()) is False:
                continue
            try:
                if not os.path.samestat(os.fstat(former.fileno()), path.stat()):
                    continue  # another process of this run has replaced it meanwhile
            except FileNotFoundError:
                continue
            held = former.read()
            if not body.startswith(held):
                _keep(path, first + held)
            if sys.platform == "win32":  # where an open file cannot be replaced
                former.close()
            return AppendedFile.replace(path, header + body)
    return None


def numbered_places(parent: Path, name: str) -> Iterator[Path]:
    """Directories of further records of a monitor, by number; those of a monitor with such a name are left out."""
    numbers = [
        int(match[1])
        for path in (parent.iterdir() if parent.is_dir() else ())
        if (match := re.fullmatch(re.escape(name) + r"-([1-9]\d{0,8})", path.name))
    ]
    for number in sorted(numbers):
        place = parent / f"{name}-{number}"
        if _header_of(place / FILE_NAME).get("monitor") == name:
            yield place


def _header_of(path: Path) -> dict[str, Any]:
    """The first line of a record; empty where there is none that can be read."""
    try:
        with path.open("rb") as file:
            return _parsed(file.readline())
    except OSError:
        return {}


def holds_measurements(path: Path) -> bool:
    """Whether anything was written to a record, and not only its place claimed."""
    with path.open("rb") as file:
        return bool(file.readline()) and bool(file.readline())


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("kind") == "header" else {}


def _keep(path: Path, content: bytes) -> None:
    for number in itertools.count(1):
        try:
            create_file(path.with_name(f"{path.stem}-{number}{path.suffix}"), content).release()
        except FileExistsError:
            continue
        return
