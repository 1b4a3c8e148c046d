"""scikit-learn's handwritten digits, as images of 28 x 28."""

from __future__ import annotations

import numpy as np

from ...errors import MissingExtra
from .dataset import Data, Pixels
from .fingerprint import fingerprint

#: Images for training; the rest is for validation. They come in the order of their writers, so the writers of
#: the one are hardly those of the other.
_TRAIN = 1400


def open_digits() -> Data:
    """scikit-learn's 1,797 handwritten digits: 1,400 for training, 397 for validation.

    Each of the 8 x 8 pixels becomes 3 x 3, with a border of 2 around them all; their values, from 0 to 16,
    are taken to 0 to 255.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998.

    Raises
    ------
    MissingExtra
        Without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("the data set digits", "scikit-learn", "train") from None
    digits = load_digits()
    values = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    enlarged = np.pad(values.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))[..., np.newaxis]
    labels = digits.target.astype(np.int32)
    classes = tuple("0123456789")
    return Data(
        name="digits",
        classes=classes,
        names=classes,
        train=Pixels(enlarged[:_TRAIN], labels[:_TRAIN]),
        validation=Pixels(enlarged[_TRAIN:], labels[_TRAIN:]),
        fingerprint=fingerprint("digits", _TRAIN, enlarged, labels),
    )
