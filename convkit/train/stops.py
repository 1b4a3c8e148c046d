"""Signals that ask a run to end: SIGTERM, Ctrl-C, and SIGHUP of a terminal that is gone."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, NoReturn

from ..errors import ConvkitError

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(ConvkitError):
    """A run that was asked to end, and has saved what is needed to go on.

    Attributes
    ----------
    signal : int
        That asked for it.
    """

    signal: int = 0


class Stops:
    """A block in which these signals are noted; it is true when one has come. A second one ends at once.

    Only Python's main thread hears signals: in another thread the block notes none.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._seen:
            raise KeyboardInterrupt
        self._seen = number

    def __bool__(self) -> bool:
        return bool(self._seen)

    def end(self, message: str) -> NoReturn:
        """Raise `Stopped`. The signal may have come to another rank."""
        stopped = Stopped(message)
        stopped.signal = self._seen
        raise stopped
