"""Run the probes: those that load other people's native code in child processes.

A child tells the rows of each probe as soon as it has them. What crashes or hangs there is a row too, and the
next child goes on behind that probe.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict

from .guard import rows_of
from .packages import OPTIONAL
from .probes import probes
from .row import BROKEN, LIMIT, Row


def rows(*, imports: bool = False) -> list[Row]:
    """Every row, in the order of the table. Never raises.

    Parameters
    ----------
    imports : bool
        Import the optional packages that are installed too, which takes seconds.
    """
    every = probes(imports)
    found: dict[str, list[Row]] = {}
    foreign = [name for name, _, apart in every if apart]
    thread = threading.Thread(target=lambda: found.update(_in_children(foreign, imports)))
    thread.start()
    own = {name: rows_of(name, probe) for name, probe, apart in every if not apart}
    thread.join()
    lost = "the child process that was to look gave no answer"
    return [
        row
        for name, _, apart in every
        for row in (found.get(name, [Row(name, BROKEN, lost)]) if apart else own[name])
    ]


_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from convkit.cli.doctor.children import child; "
    "child(sys.argv[3:], imports=sys.argv[2] == '1')"
)


def _in_children(names: Sequence[str], imports: bool) -> dict[str, list[Row]]:
    """Rows by probe. A probe that its process does not survive is broken; another process goes on."""
    found: dict[str, list[Row]] = {}
    left = list(names)
    while left:
        text, end = _run_child(left, imports)
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                name, told = json.loads(line)
                found[name] = [Row(**row) for row in told]
        left = [name for name in left if name not in found]
        if left:
            advice = f"reinstall it; {_reproduce(left[0])} shows all that it says"
            found[left[0]] = [Row(left[0], BROKEN, end, advice)]
            left = left[1:]
    return found


def _reproduce(name: str) -> str:
    """A command that ends as the probe did."""
    others = {"GPU": "nvidia-smi", "nvdisasm": "nvdisasm --version"}
    modules = {"CuPy": "cupy", "NVRTC": "convkit.cuda.nvrtc as it; it.version()", "cuDNN frontend": "cudnn"}
    modules |= {"cuDNN": "convkit.bench.peers.cudnn.library as it; it.load()"} | {
        about[0]: about[2] for about in OPTIONAL
    }
    command = others.get(name) or f"python -c 'import {modules[name]}'"
    return f"`{command}`"


def _run_child(names: Sequence[str], imports: bool) -> tuple[str, str]:
    """What a child process told, and how it ended."""
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), "1" if imports else "0", *names]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired as error:
        return _text(error.stdout), f"no answer in {LIMIT:g} s"
    except OSError as error:
        return "", f"no process can be started to look: {error}"
    last = [line.strip() for line in _text(done.stderr).splitlines() if line.strip()][-1:]
    said = f": {last[0]}" if last else ""
    if done.returncode < 0:
        with contextlib.suppress(ValueError):
            return _text(done.stdout), f"it crashes: {signal.Signals(-done.returncode).name}{said}"
    return _text(done.stdout), f"it ends the process with status {done.returncode}{said}"


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")


def child(names: Sequence[str], *, imports: bool = False) -> None:
    """What a child process does: a line of JSON for each probe, as soon as it has ended."""
    told = os.dup(1)
    os.dup2(2, 1)  # whatever is loaded here may print
    every = {name: probe for name, probe, _ in probes(imports)}
    for name in names:
        line = json.dumps([name, [asdict(row) for row in rows_of(name, every[name])]])
        os.write(told, line.encode() + b"\n")
    os._exit(0)  # libraries that crash when they are unloaded have said all that they can
