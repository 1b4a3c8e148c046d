"""`convkit doctor`: what is installed here, whether it works, and what to do where it does not.

The probes of `probes.py` give the rows of a table. An exception in a probe is a row. Other people's native
code (the driver, CuPy, NVRTC, cuDNN) is loaded in a child process, so that a crash there is a row too. A
version is read from the metadata of what is installed. Only what a GPU needs is imported; the other packages
are imported on request.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from .._output import encodable, require_writable, write


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "doctor",
        help="list what is installed, whether it works, and what to do where it does not",
        description="Look at Python, the C++ kernels, the compiler, the GPU with its driver, CuPy, NVRTC, "
        "cuDNN, optional packages, the disk cache and CONVKIT_* variables: what is found, its state, what to "
        "do. The exit status is 1 if something that is installed is broken; what is missing is no failure.",
    )
    parser.add_argument(
        "--imports", action="store_true", help="also import each optional package, which takes seconds"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write all rows to this file ('-': stdout, and no table)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table, or write the document; 1 where something is broken."""
    from . import children
    from .row import document, summary, table

    require_writable(args.json)
    found = children.rows(imports=args.imports)
    everything = document(found)
    if args.json:
        write(args.json, json.dumps(everything, indent=1))
    if args.json != "-":
        print(encodable(f"{table(found)}\n\n{summary(everything['counts'])}"))
    return 0 if everything["ok"] else 1
