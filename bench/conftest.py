"""Options of `pytest bench/`; the ops that it times, and the races that it runs for them.

An op is raced once, by all of its implementations that were selected, in turns; each of its tests then gives
the samples of one of them to pytest-benchmark.
"""

from __future__ import annotations

import pytest

from convkit.bench import work
from convkit.bench.measure import clocks, own, timing
from convkit.errors import ConvkitError


def pytest_addoption(parser):
    group = parser.getgroup("convkit")
    group.addoption("--preset", default="paper", help="which AlexNet (paper, 2012, caffe, owt, small)")
    group.addoption("--batch", type=int, help="images in a batch (default: 4; --thorough: 16)")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where (default: cpu)")
    group.addoption(
        "--cache", default="cold", choices=timing.CACHES, help="caches before a call (default: cold)"
    )
    group.addoption("--dtype", default="float32", help="of the tensors (default: float32)")
    group.addoption("--rounds", type=int, help="turns of each implementation (default: 3; --thorough: 18)")
    group.addoption("--thorough", action="store_true", help="every round, and `convkit check` first: minutes")
    group.addoption("--reference", action="store_true", help="time the float64 reference too")


def pytest_configure(config):
    """Refuse what cannot be, in one line, before anything is collected."""
    for name in ("batch", "rounds"):
        if (value := getattr(config.option, name)) is not None and value < 1:
            raise pytest.UsageError(f"--{name} must be at least 1, not {value}")
    if config.option.batch is None:
        config.option.batch = 16 if config.option.thorough else 4
    try:
        config.convkit_items = _items(config.option)
    except ConvkitError as error:
        raise pytest.UsageError(str(error)) from None


def _items(options):
    wanted = work.Wanted(
        preset=options.preset, batches=(options.batch,), dtypes=(options.dtype,), directions=work.DIRECTIONS
    )
    return work.items(wanted)


def pytest_generate_tests(metafunc):
    if "entry" not in metafunc.fixturenames:
        return
    options = metafunc.config.option
    rows, ids = [], []
    for item in metafunc.config.convkit_items:
        for entry in own.entries(item, options.device, reference=options.reference):
            # By name: parameters are stored with the results, and must be the same in the next run.
            rows.append((item.id, entry.name))
            ids.append(f"{item.layer}-{item.op}-{entry.name.replace(' ', '-')}")
    metafunc.parametrize(("row", "entry"), rows, ids=ids)


#: Of a first look: what a difference of some percent needs is `--thorough`.
LOOK = {"rounds": 3, "turn_s": 0.02, "budget_s": 0.5, "gate": False}


def _settings(options):
    given = {} if options.rounds is None else {"rounds": options.rounds}
    return timing.Settings(**{**({} if options.thorough else LOOK), **given}, cache=options.cache)


class Races:
    """Results by item, each raced when its first test asks for it, by those that were selected."""

    def __init__(self, session: pytest.Session) -> None:
        self.options = session.config.option
        self.items = {item.id: item for item in session.config.convkit_items}
        self.selected: dict[str, set[str]] = {}
        for test in session.items:
            if call := getattr(test, "callspec", None):
                self.selected.setdefault(call.params["row"], set()).add(call.params["entry"])
        self.results: dict[str, timing.Result] = {}
        self.about: dict[tuple[str, str], dict] = {}
        self.clock = clocks.clock_for(self.options.device)
        self.ceilings = {} if self.options.benchmark_disable else self.clock.ceilings()

    def result(self, row: str, *, timed: bool = True) -> timing.Result:
        """What the race of an item gave; with `timed` False, just enough of one to say what is right."""
        if row not in self.results:
            item, options = self.items[row], self.options
            settings = _settings(options)
            if not timed:
                settings = timing.Settings.quickly(rounds=1, turn_s=0, pause_s=0, cache=options.cache)
            records = [
                entry
                for entry in own.entries(item, options.device, reference=options.reference)
                if entry.name in self.selected[row]
            ]
            for entry in records:
                about = {"marks": list(entry.marks), "layout": entry.layout}
                self.about[row, entry.name] = about
            self.results[row] = timing.race(item, records, self.clock, settings, ceilings=self.ceilings)
            if self.results[row].interrupted:
                raise KeyboardInterrupt
        return self.results[row]


@pytest.fixture(scope="session")
def races(request):
    return Races(request.session)
