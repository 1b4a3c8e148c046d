"""cuDNN without a framework: every algorithm of its legacy API, every plan of its graph API.

    with Session() as cudnn:                                    # finds libcudnn; needs a GPU
        for engine in engines(problem, "conv2d_fprop", "bfloat16", session=cudnn):
            print(engine.name, engine.refused or engine.workspace_bytes)

`library` loads libcudnn through ctypes, `legacy` and `graph` are the two APIs, `engines` is one face for
both, and `peer` makes entries of what it finds.

Written to NVIDIA's documentation and headers. What is known: libcudnn 9.28 was loaded on a machine without a
GPU, every descriptor was made and set there, and cudnn-frontend 1.32 listed and built its plans for a
described GPU. No result file in `bench/results` has a GPU's run of it yet.
"""

from .engines import Engine, Engines, Session, engines
from .library import CudnnError, NotSupported, Unavailable
from .peer import about, entries

__all__ = [
    "CudnnError", "Engine", "Engines", "NotSupported", "Session", "Unavailable", "about", "engines",
    "entries",
]  # fmt: skip
