"""`convkit sass`: a kernel's machine code, and what it comes to, with no GPU."""

from __future__ import annotations

import argparse
from typing import Any

from ._kernel import arguments, unit
from ._output import table


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "sass",
        help="print the machine code of a kernel, and its registers and spills",
        description="Compile a kernel by NVRTC, on any machine; print its machine code, and behind it what "
        "it comes to: registers, spills, shared memory, multiply-adds and loads of the main loop, and the "
        "instructions from a load to its use.",
    )
    arguments(parser, arch=True)
    parser.add_argument("--summary", action="store_true", help="print what it comes to alone")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the machine code of one kernel."""
    from ..cuda import nvrtc, sass

    of = unit(args)
    cubin = nvrtc.compile_cubin(of.text, args.arch, include=(of.file.path.parent,), name=of.file.stem)
    text = sass.disassemble(cubin.code)
    if not args.summary:
        print(text.rstrip(), "\n")
    facts = sass.facts(text)
    rows = []
    for entry, used in cubin.resources().items():
        found = facts[entry]
        core = f"{found.hmma} HMMA" if found.hmma else f"{found.ffma} FFMA"
        multiplies = found.hmma or found.ffma
        loop = f"{core} of {found.loop_instructions}" if multiplies else "no multiply-adds in a loop"
        rows.append(
            (entry, used.registers, used.spill_bytes, used.stack_bytes, used.shared_bytes, found.instructions,
             loop, found.global_loads - found.async_copies, found.load_to_use or "", found.async_copies,
             found.shared_loads, found.matrix_loads)
        )  # fmt: skip
    headers = (
        "entry", "registers", "spilled B", "stack B", "static shared B", "instructions", "main loop",
        "LDG", "to use", "LDGSTS", "LDS", "LDSM",
    )  # fmt: skip
    tile = ", ".join(f"{name} = {value}" for name, value in of.file.header.tile.items())
    about = (of.file.path.name, of.dtype, tile, args.arch, f"NVRTC {nvrtc.version()}")
    print(f"{', '.join(filter(None, about))}\n")
    print(table(rows, headers))
    return 0
