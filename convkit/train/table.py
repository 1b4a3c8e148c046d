"""Tables that grow row by row: CSV files that a killed process leaves readable."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConvkitWarning
from .errors import RunError


class Table:
    """A CSV file to which rows are added.

    Its columns are those of the file, or else the names of the first row. Each row is given to the operating
    system at once. A row that finds no room on the disk waits in memory for the next one.

    Parameters
    ----------
    path : Path
        It need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] | None = None
        self._file: io.FileIO | None = None
        self._size = 0  # bytes of whole rows
        self._waiting = b""
        self._warned: set[str] = set()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. What is not given stays empty.

        A name that is no column is left out, with one `ConvkitWarning`. So is a disk that is full.
        """
        if self._file is None:
            self._open()
        if self._columns is None:
            self._columns = list(row)
            self._waiting += _line(self._columns)
        for name in row:
            if name not in self._columns:
                self._warn(name, f"{self.path} has no column {name!r}: it is left out")
        self._waiting += _line([row.get(name) for name in self._columns])
        self._write()

    def cut(self, column: str, last: int) -> None:
        """Keep the rows up to the first whose `column` is more than `last`, or that is torn; drop the rest.

        Raises
        ------
        RunError
            If the file cannot be read or changed.
        """
        self.close()
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}") from error
        size, header = 0, None
        for line in content.splitlines(keepends=True):
            cells = _cells(line)
            if header is None:
                if cells is None or column not in cells:
                    break
                header = cells
            elif cells is None or len(cells) != len(header):
                break
            else:
                value = cells[header.index(column)]
                if not value.isdecimal() or int(value) > last:
                    break
            size += len(line)
        if size < len(content):
            try:
                os.truncate(self.path, size)  # one step: there is no moment with half of it
            except OSError as error:
                raise RunError(f"cannot change {self.path}: {error.strerror}") from error

    def sync(self) -> None:
        """Bring the rows to the disk."""
        if self._file is not None:
            if self._waiting:
                self._write()
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._warn("", f"cannot write {self.path}: {error.strerror}")

    def close(self) -> None:
        """Close the file. The next row opens it again."""
        if self._file is not None:
            if self._waiting:
                self._write()
            self._file.close()
        self._columns, self._file, self._waiting = None, None, b""

    def _open(self) -> None:
        try:
            self._file = io.FileIO(self.path, "a+")
            content = _whole_lines(self._file)
            self._file.truncate(len(content))
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}") from error
        self._size = len(content)
        if content:
            self._columns = _cells(content.splitlines(keepends=True)[0])

    def _write(self) -> None:
        assert self._file is not None
        try:
            written = self._file.write(self._waiting) or 0
            if written < len(self._waiting):
                self._file.truncate(self._size)
                raise OSError(None, "No space left on device")
        except OSError as error:
            self._warn("", f"cannot write {self.path}: {error.strerror}; its rows wait in memory")
        else:
            self._size += written
            self._waiting = b""

    def _warn(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, ConvkitWarning, stacklevel=3)


def read(path: str | Path, most: int | None = None) -> dict[str, np.ndarray]:
    """The columns of a table as float64 arrays; what is empty or no number is NaN.

    Parameters
    ----------
    path : str or Path
        Where there is no file, there are no columns.
    most : int, optional
        Of a longer table, only every second, third, ... row is read, so that there are about so many.

    Raises
    ------
    RunError
        If the file cannot be read.
    """
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    header = _cells(lines[0]) if lines else None
    if header is None:
        return {}
    rows = lines[1:]
    if most is not None and len(rows) > most:
        rows = rows[:: -(-len(rows) // most)]
    found = [cells for cells in map(_cells, rows) if cells is not None and len(cells) == len(header)]
    return {
        name: np.array([_number(cells[n]) for cells in found], np.float64) for n, name in enumerate(header)
    }


def _whole_lines(file: io.FileIO) -> bytes:
    file.seek(0)
    content = file.readall()
    return content[: content.rfind(b"\n") + 1]


def _line(values: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in values])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (float, np.floating)):
        return float.__repr__(float(value))  # the shortest text that gives the same number
    if isinstance(value, np.generic):
        value = value.item()
    return " ".join(str(value).split())  # a row is one line


def _cells(line: bytes) -> list[str] | None:
    """The cells of a line, or None where it is torn."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return None
    if not text.endswith("\n"):
        return None
    text = text[:-1]
    return text.split(",") if '"' not in text else next(csv.reader([text]), None)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
