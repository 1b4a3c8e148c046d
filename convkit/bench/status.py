"""Which CUDA kernels a GPU has run: the one place that says so, from the results in the tree.

    python -m convkit.bench.status

A kernel has run where a result file of a GPU says that it passed its checks there, from the source that it
has now. Files of `make gpu` and of `convkit bench --json` count alike. Without a checkout there are no
results, and no kernel counts as run.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..paths import kernels_dir
from ..registry import Implementation

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
#: The mark of a kernel that no GPU has run.
UNRUN = "not yet run on a GPU"


@lru_cache(maxsize=4)
def kernels_run(folder: Path = RESULTS) -> dict[str, str]:
    """By the kernel file's name, the GPU that has run it."""
    found: dict[str, str] = {}
    for document in _documents(folder):
        machine = document.get("machine") or {}
        for name, sha in _passed(document):
            path = kernels_dir() / name
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha:
                found[name] = str(machine.get("name") or machine.get("device"))
    return found


def has_run(implementation: Implementation) -> bool:
    """Whether a GPU has run each kernel file of an implementation: of a packed one, the reorders too."""
    ran = kernels_run()
    return all(Path(file).name in ran for file in (implementation.source, *implementation.sources.files))


def _documents(folder: Path) -> Iterator[dict[str, Any]]:
    """The results in a folder, oldest names first; what is none of them is passed over."""
    for path in sorted(folder.glob("*.json*")) if folder.is_dir() else ():
        try:
            data = path.read_bytes()
            document = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        except (OSError, ValueError, EOFError):
            continue
        if isinstance(document, dict):
            yield document


def _passed(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(file, SHA-256 of its source) of the CUDA kernels that passed on this document's GPU."""
    kernels = document.get("kernels") or {}
    for stage in document.get("stages", ()):  # of `make gpu`
        if stage.get("name") == "gate":  # keys are "op/implementation/dtype/number"
            verdicts = [(r["key"].split("/"), r.get("ok")) for r in stage["records"]]
            good, bad = (
                {f"{op}_{name}.cu" for (op, name, *_), ok in verdicts if ok is w} for w in (True, False)
            )
            yield from ((name, str(kernels.get(name))) for name in sorted(good - bad))
    if "rows" in document and (document.get("machine") or {}).get("device") == "cuda":
        for entry in kernels.values():
            if entry.get("status") == "run" and str(entry.get("file")).startswith("kernels/"):
                yield entry["file"].removeprefix("kernels/"), str(entry.get("source_sha256"))


def sentence(folder: Path = RESULTS) -> str:
    """How many of the kernels a GPU has run, and which GPU."""
    names = {path.name for path in kernels_dir().glob("*.cu")}
    ran = {name: gpu for name, gpu in kernels_run(folder).items() if name in names}
    if not ran:
        return "No GPU has run the CUDA kernels yet."
    gpus = ", ".join(sorted(set(ran.values())))
    if len(ran) == len(names):
        return f"A GPU has run all {len(names)} CUDA kernels: {gpus}."
    return f"A GPU has run {len(ran)} of the {len(names)} CUDA kernels: {gpus}."


if __name__ == "__main__":
    print(sentence())
    for name, gpu in sorted(kernels_run().items()):
        print(f"{name:40} {gpu}")
