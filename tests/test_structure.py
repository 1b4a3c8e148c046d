"""The rooms of the package: each imports what stands below it, never above, and nothing in a circle.

Imports inside functions count. docs/architecture.md explains the rooms.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import convkit as ck

PACKAGE = Path(ck.__file__).parent
#: From above to below: modules and packages of `convkit`. Those of one line may not import each other.
ORDER = (
    "__init__ __main__", "layers", "cli", "swap", "train", "tune", "bench", "onnx", "torch", "check",
    "network", "new", "discovery", "tuned", "cpp explain", "cuda", "cpu", "ops", "dispatch", "bound", "call",
    "registry", "checked", "devices", "adapters", "layouts", "op options", "arrays", "paths",
    "version errors",
)  # fmt: skip
#: The rooms of the bench, likewise.
BENCH = (
    "command",
    "arguments show",
    "results",
    "peers",
    "measure",
    "steps",
    "work status",
    "geometries",
    "__init__",
)
#: Those of training, likewise.
TRAIN = (
    "__init__",
    "report training",
    "trained loop page",
    "prediction preparation",
    "evaluation",
    "loader",
    "processes",
    "reading inputs build run_folder photos curves log",
    "recipe checkpoint table events position exchange lock draws patterns",
    "data stops",
    "disk errors",
)


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("convkit", *path.relative_to(PACKAGE).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of convkit that a module imports, wherever in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join((*parts, *([node.module] if node.module else [])))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return {one for one in found if one in known and one != name}


KNOWN = modules()
GRAPH = {name: imports(name, path, KNOWN) for name, path in KNOWN.items()}


def room(name: str, depth: int = 1) -> str:
    parts = name.split(".")
    return parts[depth] if len(parts) > depth else "__init__"


def upward(order: tuple[str, ...], depth: int, names: list[str]) -> list[str]:
    rank = {word: number for number, line in enumerate(order) for word in line.split()}
    missing = {room(name, depth) for name in names} - rank.keys()
    assert not missing, f"they have no place in the order: {missing}"
    return [
        f"{name} imports {other}"
        for name in names
        for other in sorted(GRAPH[name])
        if other in names
        and room(name, depth) != room(other, depth)
        and rank[room(name, depth)] >= rank[room(other, depth)]
    ]


def test_a_room_imports_what_stands_below_it():
    assert not upward(ORDER, 1, sorted(GRAPH))


@pytest.mark.parametrize(("name", "order"), [("bench", BENCH), ("train", TRAIN)])
def test_inside_a_room_too(name, order):
    inside = [one for one in GRAPH if one.split(".")[:2] == ["convkit", name]]
    assert not upward(order, 2, sorted(inside))


def circles() -> list[list[str]]:
    """Strongly connected parts of more than one module, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    waiting: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        waiting.append(name)
        for other in GRAPH[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in waiting:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            part = waiting[waiting.index(name) :]
            del waiting[waiting.index(name) :]
            if len(part) > 1:
                found.append(sorted(part))

    for name in GRAPH:
        if name not in index:
            visit(name)
    return found


def test_nothing_imports_in_a_circle():
    assert not circles()


def test_nothing_inside_imports_the_public_face():
    assert not [name for name, found in GRAPH.items() if "convkit" in found and name != "convkit.__main__"]


@pytest.mark.parametrize("kind", ["op", "kernel"])
def test_the_check_sees_what_it_is_for(kind, monkeypatch):
    """A wrong import in each direction is reported."""
    if kind == "op":
        monkeypatch.setitem(GRAPH, "convkit.op", {"convkit.ops.lrn"})
        assert upward(ORDER, 1, sorted(GRAPH)) == ["convkit.op imports convkit.ops.lrn"]
        assert any("convkit.op" in part for part in circles())
    else:
        monkeypatch.setitem(GRAPH, "convkit.cuda.header", {"convkit.check"})
        assert upward(ORDER, 1, sorted(GRAPH)) == ["convkit.cuda.header imports convkit.check"]


def test_an_op_is_named_in_its_own_rooms():
    """Average pooling, which no layer uses: its file, its implementations, the face, and the neighbours."""
    found = defaultdict(list)
    for name, path in KNOWN.items():
        if "avgpool2d" in path.read_text(encoding="utf-8"):
            found[room(name)].append(name)
    assert found.keys() <= {"ops", "cpu", "__init__", "onnx", "torch"}, dict(found)
    assert found["ops"] == ["convkit.ops.avgpool2d"]
