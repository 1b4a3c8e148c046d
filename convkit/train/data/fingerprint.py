"""A hash of what a data set is."""

from __future__ import annotations

import hashlib

import numpy as np


def fingerprint(*parts: object) -> str:
    """SHA-256 of texts, numbers, bytes and arrays, in hexadecimal; where one ends counts too."""
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            hashed.update(f"{part.dtype.str} {part.shape}".encode())
            content = part.tobytes()
        elif isinstance(part, bytes):
            content = part
        else:
            content = str(part).encode(errors="surrogateescape")
        hashed.update(len(content).to_bytes(8, "little"))
        hashed.update(content)
    return hashed.hexdigest()
