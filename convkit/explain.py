"""What an implementation of an op receives: the order of its arguments, shapes, dtypes, options, rules.

Nothing is written here by hand for one op. The op's row says what it reads and writes, the problem's class
has the fields, and the docstring of the public function, in the op's own file, has shapes, ties and NaN.
`docs/ops.md` is `page()`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any

from . import ops
from .errors import unknown
from .op import OPS, Op, Problem

#: What stands for the dtype of a tensor that is of the second dtype of a pair.
PARAMETERS = "parameters'"
#: Arrays that every implementation gets, by device.
ARRAYS = (
    "For the CPU: NumPy arrays, C-contiguous; the inputs are read-only.",
    "For CUDA: CuPy arrays, C-contiguous, on the current device; work goes to CuPy's current stream. "
    "Under the emulator (no GPU) only .cu files run, and get pointers all the same.",
    "Outputs hold anything at first, NaN too: every element must be written.",
    "An empty batch (N = 0) is never passed on where the result is empty too.",
)
_SECTION = re.compile(r"^(\w+)\n-{3,}$", re.MULTILINE)
_ENTRY = re.compile(r"^(?P<names>\w+(?:, \w+)*)(?: : (?P<type>.*))?$")
_SAME = re.compile(r"^As in `(?:convkit\.)?(\w+)`")


@dataclass(frozen=True)
class Tensor:
    """An array that an implementation receives.

    Attributes
    ----------
    name : str
    role : {"input", "output", "flag"}
    shape, dtype : str
        For people to read; the problem's `shape(name)` and `dtype_of(name)` have the values.
    optional : bool
        It may be None.
    note : str
        Ties, NaN, in place: what else its values must be.
    """

    name: str
    role: str
    shape: str
    dtype: str
    optional: bool
    note: str


@dataclass(frozen=True)
class Option:
    """A further argument of an implementation, by keyword; `default` is the public function's, or ""."""

    name: str
    type: str
    default: str
    note: str


@dataclass(frozen=True)
class Field:
    """A number of the problem: what a user chose, or (`derived`) what follows from it."""

    name: str
    type: str
    default: str
    derived: bool


@dataclass(frozen=True)
class Received:
    """All that an implementation of one op receives."""

    op: Op
    about: str
    tensors: tuple[Tensor, ...]
    options: tuple[Option, ...]
    fields: tuple[Field, ...]
    struct: str
    rules: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first sentence of what the op is."""
        return " ".join(self.about.partition("\n\n")[0].split())

    @property
    def call(self) -> str:
        """How an implementation is called."""
        positional = [t.name for t in self.tensors if t.role != "flag"]
        keywords = [o.name for o in self.options]
        flags = [f"{t.name}=None" for t in self.tensors if t.role == "flag"]
        named = ["*", *keywords, *flags] if keywords or flags else []
        return f"run({', '.join(['problem', *positional, *named])})"


def received(op: str) -> Received:
    """What an implementation of this op receives.

    Raises
    ------
    OptionError
        If there is no such op; the message has the nearest name.
    """
    if op not in OPS:
        raise unknown("op", op, OPS)
    row = OPS[op]
    entries, about = _documented(op)
    sample = _sample(row)
    named = [(name, "input") for name in row.inputs]
    named += [(name, "output") for name in row.outputs]
    named += [(name, "flag") for name in row.flags]
    tensors = tuple(_tensor(row, sample, name, role, entries) for name, role in named)
    options = tuple(_option(row, name, entries) for name in row.options)
    return Received(row, about, tensors, options, _fields(sample), sample.c_struct(), _rules(row))


def _sample(op: Op) -> Problem:
    """A problem of the op that is not empty."""
    return next(problem for _, problem in op.cases.edges() if not problem.empty)


# ---------------------------------------------------------------------------------------------------
# Docstrings
# ---------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=1)
def _public() -> dict[str, Any]:
    """The public functions of the ops, by name."""
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(ops.__path__, f"{ops.__name__}."):
        names = vars(importlib.import_module(module.name))
        found |= {name: names[name] for name in OPS if callable(names.get(name))}
    return found


@functools.cache
def _documented(op: str) -> tuple[dict[str, tuple[str, str]], str]:
    """(type, description) of every argument and result, by name; and the text in front of them."""
    text = inspect.cleandoc(_public()[op].__doc__ or "") if op in _public() else ""
    parts = _SECTION.split(text)
    entries: dict[str, tuple[str, str]] = {}
    for title, body in zip(parts[1::2], parts[2::2]):
        if title in ("Parameters", "Returns"):
            entries |= dict(_entries(body))
    return entries, parts[0].strip()


def _entries(body: str) -> Iterable[tuple[str, tuple[str, str]]]:
    names: list[str] = []
    kind, lines = "", []  # type: ignore[var-annotated]
    for line in [*body.strip("\n").splitlines(), "end"]:
        if line[:1].strip() and (found := _ENTRY.match(line)):
            note = " ".join(" ".join(lines).split())
            yield from ((name, (kind, note)) for name in names)
            names, kind, lines = found["names"].split(", "), found["type"] or "", []
        else:
            lines.append(line)


def _entry(op: Op, name: str, entries: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """(type, description) of an argument: where the docstring refers to another op's, of that."""
    kind, note = entries.get(name, ("", ""))
    if found := _SAME.match(note):
        other, rest = found.group(1), note.partition(". ")[2]
        further = _documented(other)[0].get(name, ("", "")) if other in OPS else ("", "")
        return kind or further[0], " ".join(filter(None, (further[1], rest)))
    if name not in entries:
        for part in op.parts:
            if name in (of_part := _documented(part)[0]):
                return of_part[name]
    return kind, note


# ---------------------------------------------------------------------------------------------------
# One op
# ---------------------------------------------------------------------------------------------------
def _tensor(op: Op, sample: Problem, name: str, role: str, entries: dict[str, tuple[str, str]]) -> Tensor:
    kind, note = _entry(op, name, entries)
    shape = re.search(r"\([\w/, *]*\)", kind)
    dtype = sample.dtype_of(name)
    if op.dtypes.get(name) == "integer":
        dtype = "any integer"
    elif op.dtypes.get(name) == "real":
        dtype = "any real"
    elif "argmax" in name:
        dtype = "uint8, uint16 or uint32"
    elif dtype == sample.dtype:  # type: ignore[attr-defined]
        dtype = PARAMETERS if op.pairs and name in op.parameters else "storage"
    return Tensor(
        name,
        role,
        shape.group() if shape else str(sample.shape(name)) if role == "flag" else "any, one for all",
        dtype,
        name in op.optional or role == "flag",
        note,
    )


def _option(op: Op, name: str, entries: dict[str, tuple[str, str]]) -> Option:
    kind = ""
    for one in (op, *(OPS[part] for part in op.parts)):
        found = inspect.signature(one.define).parameters.get(name)
        if found is not None and not kind:
            kind = str(found.annotation)
    public = inspect.signature(_public()[op.name]).parameters.get(name)
    has_default = public is not None and public.default is not public.empty and public.default is not None
    return Option(
        name, kind, repr(public.default) if public and has_default else "", _entry(op, name, entries)[1]
    )


def _fields(sample: Problem) -> tuple[Field, ...]:
    own = []
    for field in fields(sample):
        default = "" if field.default is MISSING else repr(field.default)
        own.append(Field(field.name, str(field.type), default, False))
    known = {f.name for f in own} | set(dir(Problem))
    kind = type(sample)
    derived = [name for name in sorted(set(dir(kind)) - known) if not callable(getattr(kind, name, None))]
    made = (getattr(sample, name) for name in derived)
    more = [
        Field(name, type(value).__name__, "", True)
        for name, value in zip(derived, made)
        if isinstance(value, (int, float)) and not name.startswith("_")
    ]
    return (*own, *more)


def _rules(op: Op) -> tuple[str, ...]:
    rules = []
    if op.optional:
        rules.append(f"{' and '.join(op.optional)} may be None (in CUDA and C++ a null pointer).")
    if op.inplace:
        rules.append(
            "An output may be the very memory of an input: read an element before you write it, and no other."
        )
    elif op.updates:
        pairs = ", ".join(f"{out} of {of}" for out, of in op.updates.items())
        rules.append(f"An output may be the very memory of its input: {pairs}.")
    else:
        rules.append("No output overlaps an input.")
    if op.flags:
        rules.append(
            f"{' and '.join(op.flags)}: passed by keyword, and only where the caller gives it. An "
            "implementation that does not name it is passed over there."
        )
    if op.rectified:
        rules.append(f"{' and '.join(op.rectified)}: the output of a ReLU, so nowhere negative.")
    if op.parts:
        rules.append(f"It stands for {' and '.join(op.parts)} in one.")
    rules.append("NaN and infinities in the inputs come out where the definition has them.")
    return tuple(rules)


# ---------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------
def lines(op: str, call: str = "") -> list[str]:
    """What an implementation receives, in short lines of plain text: for a comment, or a terminal.

    Parameters
    ----------
    op : str
    call : str
        How the function of another language is called, in the place of `Received.call`.
    """
    it = received(op)
    width = max(
        len(name) for name in (*(t.name for t in it.tensors), *(o.name for o in it.options), "problem")
    )
    call = call or it.call
    found = [*_wrapped(call, "", 4), ""]
    if "(g, " in call:
        names = re.findall(r"(\w+);", it.struct.partition("{")[2])
        found += _hanging("g", f"struct {it.op.problem.__name__}: {', '.join(names)}", width)
    else:
        numbers = ", ".join(f.name for f in it.fields)
        found += _hanging("problem", f"{it.op.problem.__name__}: {numbers}", width)
    for tensor in it.tensors:
        what = f"{tensor.role}, {tensor.shape}, {tensor.dtype}{', may be None' if tensor.optional else ''}"
        found += _hanging(tensor.name, f"{what}. {tensor.note}".rstrip(), width)
    for option in it.options:
        default = f", by default {option.default}" if option.default else ""
        found += _hanging(option.name, f"option, {option.type}{default}. {option.note}".rstrip(), width)
    found += ["", "storage: the dtype of the call, one of those that the implementation declares."]
    if any(tensor.dtype == PARAMETERS for tensor in it.tensors):
        found += [f"{PARAMETERS}: the same, or the second of a pair, such as float32 of bfloat16/float32."]
    for rule in it.rules:
        found += _wrapped(rule, "")
    return found


def _hanging(name: str, text: str, width: int) -> list[str]:
    return _wrapped(text, f"{name:<{width}}  ")


def _wrapped(text: str, first: str, indent: int = 0) -> list[str]:
    import textwrap

    further = " " * (indent or len(first))
    return textwrap.wrap(text, 104, initial_indent=first, subsequent_indent=further, break_long_words=False)


def markdown(op: str) -> str:
    """A section of the page: what an implementation of this op receives."""
    it = received(op)
    about = f"```text\n{it.about}\n```" if "===" in it.about else it.about
    rows = ["| argument | what | shape | dtype | |", "|---|---|---|---|---|"]
    for t in it.tensors:
        what = t.role + (", may be None" if t.optional else "")
        rows.append(f"| `{t.name}` | {what} | {t.shape} | {t.dtype} | {t.note} |")
    for o in it.options:
        default = f", by default {o.default}" if o.default else ""
        rows.append(f"| `{o.name}` | option{default} | | {o.type} | {o.note} |")
    own = ", ".join(f"`{f.name}`" for f in it.fields if not f.derived)
    derived = ", ".join(f"`{f.name}`" for f in it.fields if f.derived)
    problem = f"`problem` is a `{it.op.problem.__name__}`: {own}" + (
        f"; derived: {derived}" if derived else ""
    )
    parts = [
        f"## {op}",
        about,
        f"```python\n{it.call}\n```",
        "\n".join(rows),
        f"{problem}. In CUDA and C++, `g`:",
        f"```c++\n{it.struct}\n```",
        "\n".join(f"- {rule}" for rule in it.rules),
    ]
    return "\n\n".join(parts)


def page() -> str:
    """`docs/ops.md`: every op."""
    arrays = "\n".join(f"- {line}" for line in ARRAYS)
    index = " · ".join(f"[{op}](#{op})" for op in OPS)
    head = f"""# What an implementation receives

Generated by `convkit explain > docs/ops.md` from the ops' own files; a test holds it up to date.
`convkit explain OP` prints one op. [kernels.md](kernels.md) says how a candidate is written in each language.

An implementation is called as `run(problem, *inputs, *outputs, **options)`. `problem` has the sizes.
"storage" is the dtype of the call: one of those that the implementation declares (`dtypes=`, by default
float32 alone). It may be a pair, such as "bfloat16/float32", where the op has tensors of "parameters'" dtype:
those are then of the second, and "storage" is the first.

{arrays}

{index}
"""
    return "\n".join([head, *(f"{markdown(op)}\n" for op in OPS)]).rstrip() + "\n"
