"""Whether a run may be gone on with: settings, machine, versions and sources must be what they were."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...registry import Implementation
from . import machine, sources

#: Variables that change how a library computes: their values stand in the result file.
ENVIRONMENT = (
    "OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "THP_MEM", "MALLOC_", "GLIBC_", "XLA_", "LD_PRELOAD",
    "JAX_", "CONVKIT_", "OPENBLAS_", "CUDA_", "NVIDIA_", "CUDNN_", "CUBLAS_", "TORCH_",
)  # fmt: skip
#: What must agree for a run to be gone on with: of the settings all, of the machine these. More than for two
#: runs to be compared: one result file is of one machine, to its GPU's driver.
_MACHINE = (*machine.SAME, "cpu", "gpu")


def environment() -> dict[str, str]:
    """Variables of this process that change how a library computes."""
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(ENVIRONMENT)}


def incompatible(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How the settings or the machine of two result files differ, in words; None where they agree."""
    for name, value in now["settings"].items():
        if before["settings"].get(name) != value:
            return f"{name} was {before['settings'].get(name)!r}, and is {value!r}"
    for name in _MACHINE:
        if before["machine"].get(name) != now["machine"].get(name):
            was, now_is = before["machine"].get(name), now["machine"].get(name)
            return f"the machine's {name} was {was!r}, and is {now_is!r}"
    for name, about in now["peers"].items():
        version = before["peers"].get(name, {}).get("version")
        if version != about.get("version"):
            return f"{name} was {version or 'missing'}, and is {about.get('version')}"
    if before["convkit"].get("version") != now["convkit"]["version"]:
        return f"convkit was {before['convkit'].get('version')}, and is {now['convkit']['version']}"
    return None


def changed_sources(kernels: Mapping[str, Any], users: Iterable[Implementation] = ()) -> str | None:
    """The first source file that is not what it was, or None.

    Parameters
    ----------
    kernels : dict
        Of a result file.
    users : iterable of Implementation
        The user's, whose files are looked for by their names.
    """
    users = list(users)
    files = sources.files_of(users)
    for implementation in users:  # the same kernel from a file of another name is another source too
        record = kernels.get(sources.key_of(implementation))
        file = Path(implementation.source)
        if record and file.is_file() and sources.sha256(file) != record["source_sha256"]:
            return sources.display(file)
    for record in kernels.values():
        built = record.get("extension")
        known = {record["file"]: record["source_sha256"], **record["includes"]}
        if built:
            known[f"convkit/{built['file']}"] = built["sha256"]
        for name, sha in known.items():
            path = sources.find(name, files)
            if path is not None and sha and sources.sha256(path) != sha:
                return str(name)
    return None
