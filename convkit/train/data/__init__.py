"""Where labelled images come from: `open_data`."""

from __future__ import annotations

from pathlib import Path

from ...errors import unknown
from ...options import integer
from ..errors import DataError
from .dataset import Data
from .decode import SQUARES

_KINDS = (
    'DATA can be "digits", a folder with IDX files (MNIST, Fashion-MNIST), a folder of class folders or of '
    "train/ and val/ with class folders, a folder with the ILSVRC2012 tars, or a store of `convkit prepare`"
)


def open_data(path: str | Path, size: int, square: str = "crop") -> Data:
    """Labelled images by the name of a set, or from a folder.

    ===========================  ===========================================================================
    `path`                       what it is
    ===========================  ===========================================================================
    "digits"                     scikit-learn's 1,797 handwritten digits; needs no download
    a folder with `store.json`   what `convkit prepare` has made
    a folder with IDX files      MNIST, Fashion-MNIST: `train-images-idx3-ubyte`, ..., or the same with `.gz`
    a folder with three tars     `ILSVRC2012_img_train.tar`, `ILSVRC2012_img_val.tar` and
                                 `ILSVRC2012_devkit_t12.tar.gz`, which are read where they are
    any other folder             `train/CLASS/...` and `val/CLASS/...`; or `CLASS/...` alone, of which one
                                 image of ten is held out for validation
    ===========================  ===========================================================================

    A folder that is called "digits" is "./digits".

    Parameters
    ----------
    path : str or Path
    size : int
        Height and width to which files are decoded, in pixels. IDX files, digits and stores have a size of
        their own.
    square : str
        "crop": the shorter side is resized to `size`, and the square in the centre kept; "stretch": both are
        resized.

    Raises
    ------
    DataError
        If there is no such folder, or it holds no labelled images, or is damaged; one line.
    MissingExtra
        For "digits", without scikit-learn; for the tars, without SciPy.
    OptionError
        If `square` is neither.
    """
    if square not in SQUARES:
        raise unknown("square", square, SQUARES)
    size = integer("size", size, 1)
    if str(path) == "digits":
        from .digits import open_digits

        return open_digits()
    folder = Path(path)
    try:
        inside = {entry.name for entry in folder.iterdir()}
    except NotADirectoryError:
        raise DataError(f"{path} is a file, not a folder. {_KINDS}") from None
    except FileNotFoundError:
        raise DataError(f"no such folder: {path}. {_KINDS}") from None
    except (OSError, ValueError) as error:  # no permission, a link to itself, a NUL
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if inside & {"store.json", "unfinished.npz"}:  # the second: it says that the store is not finished
        from .store import open_store

        return open_store(folder)
    from . import folder as tree
    from . import idx, tars

    if idx.found(inside):
        return idx.open_idx(folder)
    if tars.found(inside):
        return tars.open_tars(folder, size, square)
    return tree.open_folder(folder, size, square)
