"""Which source a figure belongs to: hashes of a kernel's file, of its includes, and of its machine code."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...checked import headers
from ...cpu import extension
from ...op import Problem
from ...paths import kernels_dir
from ...registry import Implementation

#: The status of a kernel that no GPU has run, and of one that a GPU has, or that runs on the CPU.
UNRUN = "emulated and compiled, not yet run"
RUN = "run"
_PACKAGE = Path(__file__).resolve().parents[2]
_NATIVE = _PACKAGE / "cpu" / "native"
#: What convkit's CUDA kernels are compiled with; see `convkit.cuda.nvrtc.compile_cubin`.
_CUDA_FLAGS = ["-std=c++17"]


def sha256(path: Path) -> str:
    """Of a file's bytes; of a folder, of the names and the bytes of the C++ files in it."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.suffix in (".cpp", ".hpp")):
        whole.update(f"{file.relative_to(path).as_posix()} {sha256(file)}\n".encode())
    return whole.hexdigest()


def key_of(implementation: Implementation) -> str:
    """The key in a result file's `kernels`: "conv2d_fprop/winograd"."""
    return f"{implementation.op}/{implementation.name}"


def describe(
    implementations: Iterable[Implementation],
    problems: dict[str, list[Problem]] | None = None,
    arch: str | None = None,
    ran: Iterable[str] = (),
) -> dict[str, dict[str, Any]]:
    """The `kernels` of a result file.

    Parameters
    ----------
    implementations : iterable of Implementation
        Layouts of the same implementation make one entry.
    problems : dict, optional
        By key, the problems that it ran: their machine code is hashed, for CUDA kernels.
    arch : str, optional
        Of the GPU that ran them, such as "sm_90a".
    ran : iterable of str
        Keys of CUDA kernels that have passed their checks on a GPU.

    Returns
    -------
    dict
        By key: "file", "source_sha256", "includes", "flags", "cubin_sha256", "status", and for the C++
        kernels "extension", the module that was loaded.
    """
    found: dict[str, dict[str, Any]] = {}
    for implementation in implementations:
        key = key_of(implementation)
        if key not in found:
            found[key] = dict(_describe(implementation.source))
            if implementation.device == "cuda":
                found[key]["status"] = RUN if key in set(ran) else UNRUN
                found[key] |= _machine_code(implementation, (problems or {}).get(key, []), arch)
        if implementation.packs:  # its time is the reorders' too
            more = [Path(file) for file in implementation.sources.files if file != implementation.source]
            named = {display(path): sha256(path) for file in more for path in (file, *_includes(file))}
            found[key]["includes"] = {**found[key]["includes"], **named}
    return found


def merged(before: Mapping[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """A kernel's entry, with the machine code that rows of an earlier run of the same result file had of it.

    Those rows may have had problems that are not measured again, so that nothing here compiles them.
    """
    if not before or not before.get("cubins"):
        return now
    hashes = {*before["cubins"], *now.get("cubins", ())}
    flags = list(dict.fromkeys((*before.get("flags", ()), *now.get("flags", ()))))
    return {**now, "flags": flags, **_cubins(hashes)}


def files_of(implementations: Iterable[Implementation]) -> list[Path]:
    """Their source files, and what these include."""
    paths = [Path(i.source) for i in implementations if i.source]
    return [file for path in paths if path.is_file() for file in (path, *_includes(path))]


@functools.cache
def _describe(source: str) -> dict[str, Any]:
    path = Path(source)
    if not source or not path.is_file():
        return {
            "file": source, "source_sha256": None, "includes": {}, "flags": [], "cubin_sha256": None,
            "status": RUN,
        }  # fmt: skip
    included = includes(path)
    entry: dict[str, Any] = {
        "file": display(path),
        "source_sha256": sha256(path),
        "includes": {name: sha256(file) for name, file in included.items()},
        "flags": list(_CUDA_FLAGS) if path.suffix == ".cu" else [],
        "cubin_sha256": None,
        "status": RUN,
    }
    if path.suffix == ".py" and _PACKAGE / "cpu" / "extension.py" in included.values():
        entry |= _extension()
    return entry


def display(path: Path) -> str:
    """A path that means the same elsewhere: "kernels/x.cu", "convkit/cpu/y.py"; a user's file's name."""
    path = path.resolve()
    for folder, name in ((kernels_dir(), "kernels"), (_PACKAGE, "convkit")):
        if path.is_relative_to(folder):
            return f"{name}/{path.relative_to(folder).as_posix()}"
    return path.name


def find(name: str, users: Iterable[Path] = ()) -> Path | None:
    """The file here that a result file calls by this name, or None."""
    for folder, word in ((kernels_dir(), "kernels/"), (_PACKAGE, "convkit/")):
        if name.startswith(word):
            path = folder / name.removeprefix(word)
            return path if path.exists() else None
    return next((path for path in users if path.name == name and path.is_file()), None)


# ---------------------------------------------------------------------------------------------------
# What a file includes
# ---------------------------------------------------------------------------------------------------
def includes(path: Path) -> dict[str, Path]:
    """What a kernel's file includes, by the names that a result file has for them."""
    return {display(p): p for p in sorted(_includes(path))}


def _includes(path: Path) -> set[Path]:
    if path.suffix == ".cu":
        return _closure(path, headers)
    found = _closure(path, _modules) if path.is_relative_to(_PACKAGE) else set()
    if _PACKAGE / "cpu" / "extension.py" in found and _NATIVE.is_dir():  # a wheel has the built module alone
        found.add(_NATIVE)
    return found


def _closure(path: Path, directly: Any) -> set[Path]:
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        for other in directly(waiting.pop()):
            if other not in seen and other != path:
                seen.add(other)
                waiting.append(other)
    return seen


def _modules(path: Path) -> list[Path]:
    """Modules of the CPU backend that a module imports: what computes, not the rest."""
    if path.name == "threads.py":  # the pool asks `extension` for its threads, not for kernels
        return []
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = path.parents[node.level - 1]
        base = folder.joinpath(*(node.module or "").split(".")) if node.module else folder
        candidates = [base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)]
        found += [p.resolve() for p in candidates if p.is_file()]
    return [p for p in found if p.parent == _PACKAGE / "cpu"]


def _extension() -> dict[str, Any]:
    """The module of C++ kernels that is loaded: built on this machine, so its hash is this machine's."""
    module = extension.kernels()
    path = getattr(module, "__file__", None)
    if not path:
        return {}
    flags = [f"isa {extension.isa()}: {extension.ISAS[extension.isa()]}"]
    return {"flags": flags, "extension": {"file": Path(path).name, "sha256": sha256(Path(path))}}


def _machine_code(
    implementation: Implementation, problems: list[Problem], arch: str | None
) -> dict[str, Any]:
    """Hash of the CUBIN of each problem's translation unit; from the cache, where a run has just put it."""
    if arch is None or not problems:
        return {}
    from ...cuda.header import read
    from ...cuda.heuristics import fitted
    from ...cuda.nvrtc import cached_cubin, version
    from ...cuda.source import translation_unit
    from ...errors import ConvkitError

    path = Path(implementation.source)
    kernel = read(path)
    hashes = set()
    try:
        for unit in dict.fromkeys(translation_unit(fitted(kernel, p), p) for p in problems):
            code = cached_cubin(unit, arch, include=(path.parent,), name=kernel.stem)
            hashes.add(hashlib.sha256(code).hexdigest())
        flags = [*_CUDA_FLAGS, f"-arch={arch}", f"nvrtc {version()}"]
    except ConvkitError:
        return {}
    return {"flags": flags, **_cubins(hashes)}


def _cubins(hashes: set[str]) -> dict[str, Any]:
    """Of each CUBIN, and one hash for all of them."""
    whole = "".join(sorted(hashes)).encode()
    one = next(iter(hashes)) if len(hashes) == 1 else hashlib.sha256(whole).hexdigest()
    return {"cubin_sha256": one, "cubins": sorted(hashes)}
