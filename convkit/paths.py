"""Where convkit's own files lie, in a checkout and in an installed wheel alike."""

from __future__ import annotations

import os
from pathlib import Path

from convkit.errors import ConvkitError

_PACKAGE = Path(__file__).resolve().parent


def kernels_dir() -> Path:
    """The folder of kernel files (`*.cu`, `*.cuh`, `emulator/`).

    Returns
    -------
    pathlib.Path
        The first of: the folder that the environment variable ``CONVKIT_KERNELS`` names; the copy inside an
        installed wheel (``convkit/_kernels``); ``kernels/`` of the checkout, for an editable install.

    Raises
    ------
    ConvkitError
        ``CONVKIT_KERNELS`` names no folder, or none of the other two is there.
    """
    chosen = os.environ.get("CONVKIT_KERNELS")
    if chosen:
        folder = Path(chosen).expanduser().resolve()
        if not folder.is_dir():
            raise ConvkitError(f"CONVKIT_KERNELS={chosen!r} is not a folder")
        return folder
    candidates = (_PACKAGE / "_kernels", _PACKAGE.parent / "kernels")
    for folder in candidates:
        if folder.is_dir():
            return folder
    looked = " or ".join(str(folder) for folder in candidates)
    raise ConvkitError(
        f"the kernel files are missing: there is no {looked}; reinstall convkit, or set CONVKIT_KERNELS"
    )
