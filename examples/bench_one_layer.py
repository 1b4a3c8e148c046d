"""Time one layer: convkit's implementations of it, and a candidate of your own among them.

Run it with `python examples/bench_one_layer.py`. It calls `convkit bench`, and prints the command line first.
Each implementation is checked before it is timed, and they take turns. `--quick` is for a first look; figures
to rely on take longer. `--against torch,onnxruntime,jax,cudnn` adds other libraries, as far as they are
installed, and `--device cuda` runs on a GPU. docs/benchmarks.md says how the time is taken.
"""

import sys
from pathlib import Path

from convkit.cli import main

candidate = Path(__file__).with_name("numba_candidate.py")
arguments = ["bench", "--layers", "norm1", "--directions", "fwd", "--batch", "2", "--quick"]
arguments += ["--kernel", str(candidate), "--against", "none"]
print("convkit", *arguments, flush=True)
sys.exit(main(arguments))
