"""What is seen of a run: lines, a bar, TensorBoard's events."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from conftest import need

from convkit.train import log
from convkit.train.events import Events
from convkit.train.log import Log


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def train(shown: Log, clock: Clock, first: int, stop: int, seconds: float = 8.0) -> None:
    """Steps of some epochs of ten; each takes 8 seconds, and a validation 20."""
    for step in range(first, stop):
        clock.now += seconds
        epoch = (step - 1) // 10 + 1
        shown.step({
            "epoch": epoch, "step": step, "loss": 3.0 - step / 100, "error": 0.5 - step / 1000, "lr": 0.02,
            "images_per_second": 812.4, "wait": 0.021, "note": "text",
        })  # fmt: skip
        if step % 10 == 0:
            clock.now += 20
            shown.epoch({
                "epoch": epoch, "step": step, "loss": 2.9, "error": 0.45, "top5_error": 0.2,
                "validation_loss": 2.5, "validation_error": 0.4, "validation_top5_error": 0.1, "lr": 0.02,
                "images_per_second": 8.124, "wait": 0.02, "seconds": 4000.0,
            })  # fmt: skip


@pytest.fixture
def clock():
    return Clock()


def test_lines_where_there_is_no_terminal(clock):
    stream = io.StringIO()
    shown = Log(stream=stream, interval=30, clock=clock)
    shown.begin(epochs=12, epoch_steps=10)
    train(shown, clock, 1, 12)
    shown.say("said")
    shown.doing("validation 1/2")
    shown.end("over")
    assert stream.getvalue().splitlines() == [
        # Means over the steps since the line before. Left: 6 steps of 8 s; 116 steps of 8 s.
        "epoch 1/12, step 4/10: loss 2.9750, error 49.75 %, 812 images/s, waiting 2 %, lr 0.02, "
        "left 0:48, 15:28 in all",
        "epoch 1/12, step 8/10: loss 2.9350, error 49.35 %, 812 images/s, waiting 2 %, lr 0.02, "
        "left 0:16, 14:56 in all",
        "epoch  1/12: loss 2.9000, error 45.00 %; validation loss 2.5000, error 40.00 %, top-5 10.00 %; "
        "lr 0.02, 8.12 images/s, waiting 2 %, 1:06:40",
        # 44 s since the last line. Left: 9 steps of 8 s; 109 steps of (11 * 8 + 20) / 11 s.
        "epoch 2/12, step 1/10: loss 2.8900, error 48.90 %, 812 images/s, waiting 2 %, lr 0.02, "
        "left 1:12, 17:50 in all",
        "said",
        "over",
    ]


def test_time_left_of_a_run_that_goes_on(clock):
    stream = io.StringIO()
    shown = Log(stream=stream, interval=30, clock=clock)
    shown.begin(epochs=12, epoch_steps=10, done=13, total=53)
    train(shown, clock, 14, 18)
    # 3 steps of this epoch and 36 of all are left; a step takes 8 s.
    assert stream.getvalue().splitlines()[0].endswith("left 0:24, 4:48 in all")


def test_what_a_row_does_not_have_is_left_out(clock):
    stream = io.StringIO()
    shown = Log(stream=stream, interval=0, clock=clock)
    shown.begin(epochs=2, epoch_steps=2)
    clock.now += 1
    shown.step({"epoch": 1, "step": 1, "loss": float("nan")})
    shown.epoch({"epoch": 1, "step": 2, "loss": 1.0, "validation_loss": None})
    assert stream.getvalue().splitlines() == [
        "epoch 1/2, step 1/2: loss nan, left 0:01, 0:03 in all", "epoch 1/2: loss 1.0000",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (90000, "25:00:00"), (float("inf"), "?"), (-1, "0:00")],
)
def test_a_duration(seconds, text):
    assert log.duration(seconds) == text


@pytest.mark.parametrize(("columns", "bar"), [(150, True), (119, False)])
def test_a_bar_on_a_terminal(clock, monkeypatch, columns, bar):
    monkeypatch.setattr(log, "_columns", lambda stream: columns)
    stream = Terminal()
    shown = Log(stream=stream, clock=clock)
    shown.begin(epochs=2, epoch_steps=10)
    train(shown, clock, 1, 6)
    shown.say("said {}")
    shown.doing("validation {1/2}")
    train(shown, clock, 6, 11)
    shown.end("over")
    states = stream.getvalue().replace("\n", "\r").split("\r")
    seen = [state.strip() for state in states if "step 5/10" in state]
    text = "loss 2.9500, error 49.50 %, left 0:40, 2:00 in all, 812 images/s, waiting 2 %, lr 0.02"
    middle = "|######      | " if bar else ": "
    assert seen[0] == f"epoch 1/2, step 5/10{middle}{text}"
    assert seen[-1].endswith("validation {1/2}"), "it stays where it is"
    lines = [line.rpartition("\r")[2].strip() for line in stream.getvalue().split("\n")]
    said, epoch, over = (line for line in lines if line)
    assert (said, over) == ("said {}", "over") and epoch.startswith("epoch 1/2: loss 2.9000")


def test_a_bar_is_drawn_a_few_times_a_second(clock):
    def monitors() -> list[threading.Thread]:
        """tqdm's own thread, which another test may have started."""
        return [one for one in threading.enumerate() if "TMonitor" in type(one).__name__]

    before = monitors()
    stream = Terminal()
    shown = Log(stream=stream, clock=clock)
    shown.begin(epochs=1, epoch_steps=10_000)
    train(shown, clock, 1, 10, seconds=0.01)
    assert stream.getvalue() == ""
    train(shown, clock, 11, 12, seconds=0.2)
    assert stream.getvalue().count("left") == 1
    assert monitors() == before, "forks want no threads"
    shown.end()


def test_quiet(clock):
    stream = Terminal()
    shown = Log(quiet=True, stream=stream, clock=clock)
    shown.begin(epochs=2, epoch_steps=10)
    train(shown, clock, 1, 12)
    shown.say("said")
    shown.doing("this")
    shown.end("over")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_terminal_that_is_gone_does_not_end_the_training(clock, kind):
    stream = kind()
    shown = Log(stream=stream, clock=clock)
    shown.begin(epochs=2, epoch_steps=10)
    train(shown, clock, 1, 6)
    stream.close()  # writing is a ValueError then
    train(shown, clock, 6, 12)

    class Gone(kind):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    shown = Log(stream=Gone(), clock=clock)
    shown.begin(epochs=2, epoch_steps=10)
    train(shown, clock, 1, 12)
    shown.end("over")


def test_warnings_are_lines(clock):
    stream = io.StringIO()
    shown = Log(stream=stream, clock=clock)
    before = warnings.showwarning
    with shown.warnings():
        warnings.warn("its bits may differ", UserWarning, stacklevel=1)
    assert stream.getvalue() == "warning: its bits may differ\n" and warnings.showwarning is before


# -- TensorBoard --------------------------------------------------------------------------------------
def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_events_are_those_of_an_undisturbed_run(tmp_path, clock):
    need("tensorboard")
    shown = Log(quiet=True, events=tmp_path / "events", clock=clock)
    shown.begin(epochs=3, epoch_steps=10)
    train(shown, clock, 1, 25)
    shown.end()
    for done in (13, 13):  # twice: the last checkpoint was the same
        shown = Log(quiet=True, events=tmp_path / "events", clock=clock)
        shown.begin(epochs=3, epoch_steps=10, done=done)
        train(shown, clock, done + 1, 31)
        shown.end()
    assert len(os.listdir(tmp_path / "events")) == 3
    found = scalars(tmp_path / "events")
    assert [step for step, _ in found["train/loss"]] == list(range(1, 31))
    assert found["train/loss"][9][1] == pytest.approx(2.9)
    assert [step for step, _ in found["validation/top5_error"]] == [10, 20, 30]
    assert set(found) == {
        *(f"train/{name}" for name in ("loss", "error", "lr", "images_per_second", "wait")),
        *(f"validation/{name}" for name in ("loss", "error", "top5_error")),
        *(
            f"epoch/{n}"
            for n in ("loss", "error", "top5_error", "lr", "images_per_second", "wait", "seconds")
        ),
    }


def test_events_can_be_read_while_the_run_goes_on(tmp_path, clock):
    need("tensorboard")
    shown = Log(quiet=True, events=tmp_path, clock=clock)
    shown.begin(epochs=1, epoch_steps=10)
    train(shown, clock, 1, 4)  # 24 seconds
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [1, 2]
    shown.end()
    assert len(scalars(tmp_path)["train/loss"]) == 3


def test_without_tensorboard_there_are_no_events(tmp_path, clock, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    stream = io.StringIO()
    shown = Log(stream=stream, events=tmp_path / "events", clock=clock)
    shown.begin(epochs=1, epoch_steps=10)
    train(shown, clock, 1, 3)
    shown.end()
    assert not (tmp_path / "events").exists() and stream.getvalue() == ""


def test_events_that_cannot_be_written_are_said_once(tmp_path, clock, monkeypatch):
    need("tensorboard")
    (tmp_path / "file").write_text("")
    stream = io.StringIO()
    shown = Log(stream=stream, interval=1e9, events=tmp_path / "file", clock=clock)
    shown.begin(epochs=1, epoch_steps=10)
    train(shown, clock, 1, 4)
    assert stream.getvalue().startswith("no events for TensorBoard: ") and stream.getvalue().count("\n") == 1

    stream = io.StringIO()
    shown = Log(stream=stream, interval=1e9, events=tmp_path / "events", clock=clock)
    shown.begin(epochs=1, epoch_steps=10)
    train(shown, clock, 1, 2)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Events, "add", full)
    train(shown, clock, 2, 5)
    assert stream.getvalue() == "no more events for TensorBoard: No space left on device\n"


def test_a_tensorboard_that_is_broken_is_said(tmp_path, clock, monkeypatch):
    need("tensorboard")

    def broken(*_: object) -> None:
        raise TypeError("Descriptors cannot be created\ndirectly")

    monkeypatch.setattr(Events, "__init__", broken)
    stream = io.StringIO()
    shown = Log(stream=stream, events=tmp_path, clock=clock)
    shown.begin(epochs=1, epoch_steps=10)
    train(shown, clock, 1, 2)
    assert "tensorboard cannot be imported: Descriptors cannot be created directly\n" in stream.getvalue()


def test_events_import_neither_tensorflow_nor_torch(tmp_path):
    need("tensorboard")
    for name in ("tensorflow", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__name__} was imported')")
    program = (
        "import sys; from pathlib import Path; from convkit.train.events import Events\n"
        "events = Events(Path(sys.argv[1])); events.add(1, {'train/loss': 1.0}); events.close()\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(log.__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "events"], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert scalars(tmp_path / "events") == {"train/loss": [(1, 1.0)]}
