"""Signals that ask a run to end."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from convkit.train.stops import Stopped, Stops


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_noted(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with Stops() as stops:
        assert not stops
        os.kill(os.getpid(), number)
        assert stops
        with pytest.raises(Stopped, match="saved") as stopped:
            stops.end("saved")
        assert stopped.value.signal == number
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_at_once():
    with Stops() as stops:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stops


def test_a_signal_that_another_process_got():
    with Stops() as stops, pytest.raises(Stopped) as stopped:
        stops.end("saved")
    assert stopped.value.signal == 0


def test_another_thread_hears_none():
    seen = []

    def work() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with Stops() as stops:
            seen.append((bool(stops), signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
