"""The result result file: a JSON of what was measured, on what, from which source, with what verdict.

What can be derived from the raw samples is derived by `figures`, for a run and for `convkit verify` alike.
The file is rewritten whole and renamed into place: a reader, and a run that was killed, find the last
complete state.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import OptionError
from . import shape

VERSION = 1
KEY = "convkit_capsule"
Document = dict[str, Any]


# ---------------------------------------------------------------------------------------------------
# Making one
# ---------------------------------------------------------------------------------------------------
def new(
    command: Sequence[str],
    *,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    ceilings: Mapping[str, Any] | None = None,
) -> Document:
    """A result file with no rows yet."""
    return {
        KEY: VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": list(command),
        "digest": "",
        "convkit": commit(),
        "machine": dict(machine),
        "settings": dict(settings),
        "ceilings": dict(ceilings or {}),
        "conditions": [],
        "kernels": {},
        "peers": {},
        "missing": {},
        "rows": [],
        "interrupted": False,
        "resumed": 0,
        "failures": [],
    }


def absent(name: str, library: str, reason: str) -> Document:
    """The record of an entry that did not take part in a row."""
    return {
        "name": name, "library": library, "version": "", "layout": "", "marks": [], "facts": {},
        "workspace_bytes": None, "deterministic": None, "error": None,
        "checks": dict.fromkeys(("before", "during", "after"), "unchecked"), "looks": 0,
        "refused": reason, "samples_ms": [], "host_us": None,
    }  # fmt: skip


def commit() -> Document:
    """Version of convkit, and the commit of the checkout that it runs from, if it does."""
    from ...version import __version__

    folder = Path(__file__).resolve().parents[3]

    def git(*words: str) -> str | None:
        if not (folder / ".git").exists():
            return None
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10
            )
            return done.stdout.strip() if done.returncode == 0 else None
        return None

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "convkit", "kernels")
    return {"version": __version__, "commit": git("rev-parse", "HEAD") or "", "dirty": bool(changed)}


def plain(value: Any) -> Any:
    """A value as JSON has it: no NaN, no infinity, no NumPy types, lists for tuples."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of everything but the digest itself."""
    rest = {k: v for k, v in document.items() if k != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(document: Mapping[str, Any]) -> Document:
    """A copy with plain values and its digest."""
    found: Document = plain(copy.copy(document))
    found["digest"] = digest(found)
    return found


def write(document: Mapping[str, Any], path: str | Path) -> Document:
    """Seal a result file and put it where `path` says, at once or not at all; "-" is stdout.

    Raises
    ------
    OptionError
        If it cannot be written.
    """
    found = sealed(document)
    text = text_of(found)
    if str(path) == "-":
        sys.stdout.write(text)
        return found
    replace(path, text)
    return found


#: Fields of which each element has a line of its own, so that two files differ by lines where rows differ.
_BY_LINE = ("conditions", "kernels", "rows", "failures")


def text_of(document: Mapping[str, Any]) -> str:
    """The JSON: a line for each field, and for each row, kernel, round's conditions and failure."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=True, allow_nan=False)

    def field(name: str, value: Any) -> str:
        if name not in _BY_LINE or not value:
            return line(value)
        if isinstance(value, Mapping):
            lines = ",\n".join(f"  {line(key)}: {line(one)}" for key, one in value.items())
            return f"{{\n{lines}\n }}"
        lines = ",\n".join(f"  {line(one)}" for one in value)
        return f"[\n{lines}\n ]"

    fields = ",\n".join(f" {line(name)}: {field(name, value)}" for name, value in document.items())
    return f"{{\n{fields}\n}}\n"


def replace(path: str | Path, text: str) -> None:
    """Write a file, whole or not at all: a run that is killed leaves the one that was there.

    Raises
    ------
    OptionError
        If it cannot be written.
    """
    path = Path(path)
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.resolve().parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(draft, 0o666 & ~mask)
            os.replace(draft, path.resolve())
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror or error}") from None


def writable(path: str | Path) -> None:
    """Refuse a path that cannot be written, before anything is measured."""
    folder = Path(path).resolve().parent
    if str(path) == "-":
        return
    if not folder.is_dir():
        raise OptionError(f"cannot write {path}: there is no folder {folder}")
    if Path(path).is_dir():
        raise OptionError(f"cannot write {path}: it is a folder")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"cannot write {path}: the folder {folder} is read-only")


def load(path: str | Path) -> Document:
    """Read a result file.

    Raises
    ------
    OptionError
        In one line: the file is not there, is cut short, is something else, or has an unknown version.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise OptionError(f"{path} is not a result file: it is no text") from None
    if not text.strip():
        raise OptionError(f"{path} is not a result file: it is empty")
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        short = text.lstrip().startswith("{") and not text.rstrip().endswith("}")
        what = "is cut short" if short else "is not valid JSON"
        raise OptionError(f"{path} {what}{where}: {str(error).partition(':')[0]}") from None
    return _valid(document, path)


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON value")


def _valid(document: Any, path: str | Path) -> Document:
    if not isinstance(document, dict) or KEY not in document:
        raise OptionError(
            f"{path} is not a result file: it has no {KEY!r}; `convkit bench --json FILE` writes one"
        )
    version = document[KEY]
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        hint = "a newer convkit reads it" if newer else f"this convkit reads version {VERSION}"
        raise OptionError(f"{path} is a result file of version {version!r}: {hint}")
    if fault := next(shape.faults(document, shape.DOCUMENT), None):
        raise OptionError(f"{path} is a damaged result file: {fault}")
    return document
