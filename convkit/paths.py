"""Where convkit's own files lie, in a checkout and in an installed wheel alike, and those that it keeps."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
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


def cache_folders(given: Path | None = None) -> Iterator[Path]:
    """The folders in which convkit may keep what it has made, the preferred first. None need be there.

    Parameters
    ----------
    given : pathlib.Path, optional
        Default: ``CONVKIT_CACHE``, else ``convkit`` below ``XDG_CACHE_HOME`` or ``~/.cache``.

    Yields
    ------
    pathlib.Path
        That one; then, for where it cannot be written, a folder of this user's among the temporary files.
    """
    if given is not None:
        yield given
    elif os.environ.get("CONVKIT_CACHE"):
        yield Path(os.environ["CONVKIT_CACHE"]).expanduser().absolute()  # compilers run in another folder
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        with contextlib.suppress(RuntimeError):  # no home at all
            yield (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "convkit"
    shared = Path(tempfile.gettempdir(), f"convkit-{os.getuid()}")
    if _is_ours(shared):
        yield shared


def _is_ours(folder: Path) -> bool:
    """Whether a folder among the temporary files is this user's alone, or free to be made."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
