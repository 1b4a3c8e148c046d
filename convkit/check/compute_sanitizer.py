"""Kernels on a GPU under NVIDIA's compute-sanitizer: accesses, races, barriers, memory that was not written.

The emulator's check mode asks the same of the source, without a GPU. This asks the machine code.
Written to version 2026.4's manual and messages; not yet run with a GPU.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import MissingExtra
from ..registry import Implementation

#: Its tools, and what each looks for.
TOOLS = {
    "memcheck": "accesses out of bounds or misaligned",
    "racecheck": "races in shared memory",
    "initcheck": "reads of global memory that was not written",
    "synccheck": "barriers that not all threads reach",
}
_PREFIX = "========="
#: Messages of the tool about itself, not about a kernel.
_ITS_OWN = ("COMPUTE-SANITIZER", "ERROR SUMMARY", "RACECHECK SUMMARY", "LEAK SUMMARY", "Target application")
#: Details that say nothing of the kernel: what called it on the host is convkit.
_HOST = ("Saved host backtrace", "Host Frame")


@dataclass(frozen=True)
class Finding:
    """What a tool says about a case, or "" and a result that is wrong.

    Attributes
    ----------
    case : str
        The implementation and its case.
    lines : tuple of str
        The message, and its details.
    """

    case: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What one tool has found.

    Attributes
    ----------
    tool : str
        A key of `TOOLS`.
    cases : int
        So many were run to their end.
    findings : tuple of Finding
    problem : str
        Why there is no verdict; "" if there is one.
    """

    tool: str
    cases: int
    findings: tuple[Finding, ...]
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether all cases ran, and nothing was found."""
        return not self.findings and not self.problem


def program() -> str:
    """The path of compute-sanitizer: of its wheel, of the PATH, or of a CUDA toolkit.

    Raises
    ------
    MissingExtra
        If there is none.
    """
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        pattern = os.path.join(glob.escape(folder), "*", "bin", "compute-sanitizer")
        if found := sorted(filter(os.path.isfile, glob.glob(pattern))):
            return found[-1]
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    folders = os.pathsep.join([os.environ.get("PATH", ""), str(Path(toolkit, "bin"))])
    if (path := shutil.which("compute-sanitizer", path=folders)) is not None:
        return path
    raise MissingExtra("--sanitize on a GPU", "compute-sanitizer", "sanitize")


def examine(
    chosen: Sequence[Implementation],
    *,
    files: Iterable[str] = (),
    seed: int = 0,
    only: str = "",
    progress: Callable[[str, str], None] | None = None,
) -> Iterator[Report]:
    """Run small cases of CUDA implementations under each tool, in a process of their own.

    Parameters
    ----------
    chosen : sequence of Implementation
    files : iterable of str
        Those that register them, where convkit does not ship them.
    seed : int
        Of inputs and geometries.
    only : str
        Only cases with this text in their name.
    progress : callable, optional
        Called as ``progress(tool, case)``.

    Yields
    ------
    Report
        One for each of `TOOLS`.
    """
    path = program()
    asked = json.dumps(
        {"files": list(files), "chosen": [[i.op, i.label] for i in chosen], "seed": seed, "only": only}
    )
    for tool in TOOLS:
        # "kernel": what is at fault ends alone, and the cases after it still run.
        command = [
            path, "--tool", tool, "--print-limit", "1000", "--destroy-on-device-error", "kernel",
            sys.executable, "-m", "convkit.check.exact", asked,
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        ) as process:  # fmt: skip
            assert process.stdout is not None
            yield read(tool, process.stdout, progress)


def read(tool: str, lines: Iterable[str], progress: Callable[[str, str], None] | None = None) -> Report:
    """The report of a tool from what it and the cases have printed.

    Parameters
    ----------
    tool : str
    lines : iterable of str
        Lines of compute-sanitizer, which begin with ``=========``, and of `convkit.check.exact`, in the order
        in which they came.
    progress : callable, optional
        Called as ``progress(tool, case)``.
    """
    case, ran, begun, last = "before the first case", 0, 0, ""
    found: list[tuple[str, list[str]]] = []
    others: list[str] = []
    for line in map(str.strip, lines):
        if line.startswith('{"begins"'):
            case, begun = json.loads(line)["begins"], begun + 1
            if progress:
                progress(tool, case)
        elif line.startswith('{"case"'):
            ran += 1
            # What the tool has found already is why the result is wrong.
            if (fault := json.loads(line)["fault"]) and not any(of == case for of, _ in found):
                found.append((case, [f"wrong result: {fault}"]))
        elif line.startswith(_PREFIX):
            last = _take(found, case, line.removeprefix(_PREFIX)) or last
        elif line:
            others.append(line)
    problem = ""
    if not ran:
        said = " / ".join(filter(None, [*others[-3:], last]))
        problem = f"no case ran: {said or 'nothing was printed'}"
    elif ran < begun:
        problem = f"it ended in {case}: {' / '.join(filter(None, [*others[-2:], last]))}"
    return Report(tool, ran, tuple(Finding(of, tuple(told)) for of, told in found), problem)


def _take(found: list[tuple[str, list[str]]], case: str, text: str) -> str:
    """Add a line of the tool to what it has found: a message or a detail of one. Return its text."""
    message = text.strip()
    if not message or message.startswith((*_ITS_OWN, *_HOST)):
        return ""
    if not text.startswith("    "):
        found.append((case, [message]))
    elif found:
        found[-1][1].append(message)
    return message
