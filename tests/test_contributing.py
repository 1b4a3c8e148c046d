"""CONTRIBUTING.md does what it says: its files go into a fresh tree, and its commands are run there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WHOLE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: Without the section that needs a build of some minutes.
PAGE = re.sub(r"^### In C\+\+$.*?(?=^## )", "", WHOLE, flags=re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<body>.*?)^ *```$", re.DOTALL | re.MULTILINE)
#: The line in front of a block that is a file, or that is added to one.
_FILE = re.compile(r"^(?P<add>Add to )?`(?P<path>[\w./]+)`:$")


@dataclass(frozen=True)
class Block:
    path: str  # "" for commands
    added: bool
    body: str


def blocks() -> Iterator[Block]:
    for found in _BLOCK.finditer(PAGE):
        before = PAGE[: found.start()].rstrip().splitlines()[-1]
        named = _FILE.match(before)
        if found["language"] == "console":
            yield Block("", False, found["body"])
        else:
            assert named, f"no file is named before the block after {before!r}"
            yield Block(named["path"], bool(named["add"]), found["body"])


def commands(body: str) -> Iterator[list[str]]:
    for line in body.splitlines():
        if line.strip():
            assert line.strip().startswith("$ "), f"no command: {line!r}"
            yield shlex.split(line.strip()[2:], comments=True)


COMMANDS = [command for block in blocks() if not block.path for command in commands(block.body)]


def test_make_knows_the_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {
        word for command in COMMANDS if command[0] == "make" for word in command[1:] if "=" not in word
    }
    assert "test" in targets
    assert targets <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_links_lead_somewhere():
    titles = re.findall(r"^#+ (.*)$", WHOLE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    found = re.findall(r"\]\(#([\w-]+)\)", WHOLE)
    assert found and set(found) <= anchors


@pytest.mark.slow
def test_walk(tmp_path, compiler):
    for name in ("convkit", "kernels", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("CONVKIT_KERNELS", None)
    for block in blocks():
        if block.path:
            path = tmp_path / block.path
            assert path.exists() == block.added, f"{block.path} is {'not ' * block.added}there already"
            path.parent.mkdir(exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(("\n\n" if block.added else "") + block.body)
            if block.path.startswith("convkit/bench/peers/"):
                enter(tmp_path, path.stem)
            continue
        for command in commands(block.body):
            if command[0] == "make":
                continue
            assert command[0] in ("convkit", "python")
            command = ["-m", *command] if command[0] == "convkit" else command[1:]
            done = subprocess.run(
                [sys.executable, *command],
                capture_output=True, text=True, timeout=600, cwd=tmp_path, env=environment,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            assert "FAILS" not in done.stdout
            shown(command, done.stdout)


def enter(tree: Path, module: str) -> None:
    """The line in PEERS that the page asks for."""
    (line,) = re.findall(r"^In `PEERS`.*`([^`]+),`\.", PAGE, re.MULTILINE)
    assert module.replace("_", "-") in line
    path = tree / "convkit/bench/peers/__init__.py"
    text = path.read_text(encoding="utf-8")
    assert text.count("PEERS = {") == 1
    path.write_text(text.replace("PEERS = {", f"PEERS = {{{line}, "), encoding="utf-8")


def shown(command: list[str], output: str) -> None:
    """What the reader must see."""
    words = " ".join(command)
    for part, text in {
        "check leaky_relu_fprop_elementwise": "elementwise",
        "--sanitize": "elementwise",
        "launches.py": "leaky_relu_fprop_elementwise (4, 1, 1) (256, 1, 1) ['g', 'x', 'y', 'slope']",
        "convkit ops": "convkit/ops/leaky_relu.py",
        "--against plain-numpy": "plain-numpy  NCHW",
        "list leaky_relu_fprop": "reference",
    }.items():
        assert part not in words or text in output, f"{words}\n{output}"
