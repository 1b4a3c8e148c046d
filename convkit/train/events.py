"""A file of events for TensorBoard."""

from __future__ import annotations

import importlib
import io
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import RunError


class Events:
    """A file of events, as TensorBoard reads it. Neither TensorFlow nor a thread is involved.

    Parameters
    ----------
    folder : Path
        A new file is made in it.
    done : int
        Steps that are complete already. What the folder's older files have beyond them is forgotten.

    Raises
    ------
    ImportError
        If tensorboard is not installed.
    OSError
        If the file cannot be written.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        # Its writer of files asks for TensorFlow, which is slow to import and prints; its records do not.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        before = [re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.iterdir()]
        number = max([int(time.time()), *(int(found[1]) + 1 for found in before if found)])
        path = folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}"
        self._records = RecordWriter(io.BufferedWriter(io.FileIO(path, "x")))
        self._write(file_version="brain.Event:2")
        if done or any(before):
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=done + 1, session_log=start)
        self.flush()

    @classmethod
    def make(cls, folder: Path, done: int = 0) -> Events | None:
        """One, or None where tensorboard is not installed.

        Raises
        ------
        RunError
            If tensorboard is installed, but cannot be imported.
        OSError
            If the file cannot be written.
        """
        try:
            importlib.import_module("tensorboard")
        except ModuleNotFoundError:
            return None
        try:
            return cls(folder, done)
        except OSError:
            raise
        except Exception as error:  # of a protobuf that does not fit, for one
            raise RunError(f"tensorboard cannot be imported: {' '.join(str(error).split())}") from error

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Values of a step, by tag; what is no number is left out, and so are numbers of epochs and steps."""
        found = [
            self._summary.Value(tag=tag, simple_value=float(value))
            for tag, value in values.items()
            if isinstance(value, (int, float))
            and not isinstance(value, bool)
            and not tag.endswith(("/epoch", "/step"))
        ]
        if found:
            self._write(step=step, summary=self._summary(value=found))

    def flush(self) -> None:
        """Let readers see what was added."""
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
