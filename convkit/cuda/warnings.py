"""What in a CUDA kernel may go wrong on a GPU though it passes here: found by reading its source.

The look is at tokens, not at a syntax tree: declarations give the names their types as far as they are
plain, and what is not understood is not warned of. Four things are looked for:

- functions whose error on a GPU the emulator can only guess (`__expf`, `__powf`);
- products of 32-bit numbers in offsets, which wrap around in a large tensor;
- atomic sums of floating-point numbers, whose order and bits differ from run to run;
- vectors of 8 and 16 bytes read through a pointer that may be aligned to one element only.

Constants are bounded, and so are what a thread or a block counts by, filters, and remainders of divisions by
constants: a product counts by its factors that have no bound. A cast of one factor to 64 bits settles it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

#: Approximations, with what to write for an accurate result.
FAST_MATH = {
    "__expf": "expf", "__exp10f": "exp10f", "__logf": "logf", "__log2f": "log2f", "__log10f": "log10f",
    "__powf": "powf", "__sinf": "sinf", "__cosf": "cosf", "__tanf": "tanf", "__tanhf": "tanhf",
    "__sincosf": "sincosf", "__fdividef": "a plain division",
}  # fmt: skip

_VECTORS = re.compile(
    r"(?:float|double|u?int|u?short|u?char|u?long|u?longlong)[24]|(?:__half|__nv_bfloat16)2"
)
_INTEGERS = {"int", "unsigned", "signed", "short", "char", "uint32_t", "int32_t", "uint", "bool"}
_WIDE = {
    "size_t", "ptrdiff_t", "int64_t", "uint64_t", "intptr_t", "uintptr_t", "long",
}  # fmt: skip
_FLOATS = {"float", "double", "__half", "half", "__nv_bfloat16", "nv_bfloat16", "storage_t"}
_SKIPPED = {
    "const",
    "volatile",
    "constexpr",
    "static",
    "__restrict__",
    "restrict",
    "register",
    "inline",
    "std",
}
#: Members of a problem that stay small, or that have 64 bits.
_SMALL_MEMBERS = re.compile(r"R|S|stride\w*|pad\w*|dilation\w*|groups|window\w*|taps|behind|ahead")
_WIDE_MEMBERS = {"size"}
_SMALL_BUILTINS = {"threadIdx", "blockDim", "warpSize"}
_LARGE_BUILTINS = {"blockIdx", "gridDim"}


@dataclass(frozen=True)
class SourceWarning:
    """A place in a kernel file that deserves a second look.

    Attributes
    ----------
    line : int
    what : str
        What stands there.
    why : str
        What may come of it.
    instead : str
        What to write.
    """

    line: int
    what: str
    why: str
    instead: str


def warnings_of(path: str | Path) -> list[SourceWarning]:
    """What to look at in a kernel file, by line.

    Parameters
    ----------
    path : str or Path
        A `.cu` or `.cuh` file. It need not compile.

    Returns
    -------
    list of SourceWarning
    """
    return _Reader(Path(path).read_text(encoding="utf-8", errors="replace")).warnings()


def warnings_text(targets: Iterable[str | Path]) -> str:
    """The warnings on those of the targets that are CUDA files, as lines of text; "" where there are none."""
    rows = []
    for path in dict.fromkeys(map(Path, targets)):
        if path.suffix not in (".cu", ".cuh") or not path.is_file():
            continue
        for found in warnings_of(path):
            rows.append(f"{path.name}:{found.line}: warning: {found.what}")
            rows.append(f"  {found.why}; {found.instead}")
    return "\n".join(rows)


# ---------------------------------------------------------------------------------------------------
# Tokens
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Token:
    text: str
    line: int

    @property
    def is_name(self) -> bool:
        return self.text[0].isalpha() or self.text[0] == "_"


_BLANK = re.compile(
    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*',
    re.DOTALL | re.MULTILINE,
)
_TOKEN = re.compile(
    r"[A-Za-z_]\w*|\.?\d(?:[eEpP][+-]|'\d|[\w.])*|->|::|<<=?|>>=?|[-+*/%&|^=!<>]=|\+\+|--|&&|\|\||[^\s\w]"
)


def _tokens(source: str) -> list[_Token]:
    """Without comments, strings and lines of the preprocessor."""

    def blank(match: re.Match[str]) -> str:
        text = match.group()
        return ("0" if text[0] in "\"'" else " ") + "\n" * text.count("\n")

    found, line, last = [], 1, 0
    text = _BLANK.sub(blank, source)
    for match in _TOKEN.finditer(text):
        line += text.count("\n", last, match.start())
        last = match.start()
        found.append(_Token(match.group(), line))
    return found


# ---------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Value:
    """An expression: its unbounded factors, whether it has 64 bits, its largest product of 32 bits."""

    factors: int = 0
    wide: bool = False
    product: int = 0  # unbounded factors of a product that was computed in 32 bits
    line: int = 0
    pointer: str = ""  # "parameter", "local", "array": what the address is, if it is one
    element_of: str = ""  # the same of the array that it is an element of


@dataclass
class _Name:
    kind: str  # "int", "wide", "float", "other"
    pointer: str = ""
    value: _Value = field(default_factory=_Value)


_NUMBER = _Value()
_UNBOUNDED = _Value(factors=1)
#: A member of some struct, the result of some function: as good as one of 64 bits, which settles a product.
_UNKNOWN = _Value(wide=True)
#: What GEOMETRY calls the problem, whose members are of 32 bits.
_PROBLEM = "g"

#: An address made a number, and its remainder taken; or a function of the same purpose.
_ADDRESS = r"(?:unsigned long(?: long)?|(?:std::)?u?intptr_t|(?:std::)?size_t|(?:std::)?uint64_t)"
_ADDRESS_TEST = re.compile(
    rf"\b(?:is_)?aligned\w*\s*\(|(?:reinterpret_cast\s*<\s*{_ADDRESS}\s*>|\(\s*{_ADDRESS}\s*\))[^;]*?[%&]"
)


class _Reader:
    """One pass over the tokens: declarations into scopes, expressions into values, both in order."""

    def __init__(self, source: str) -> None:
        self._all = _tokens(source)
        self._found: dict[tuple[int, str], SourceWarning] = {}
        self._scopes: list[dict[str, _Name]] = [{}]
        self._parameters: dict[str, _Name] = {}
        self._at = 0
        # A kernel that asks where its pointers begin knows what it may read through them.
        self._asks_alignment = bool(_ADDRESS_TEST.search(source))

    def warnings(self) -> list[SourceWarning]:
        with contextlib.suppress(RecursionError):  # nested beyond what anybody writes
            while self._at < len(self._all):
                self._step()
        return sorted(self._found.values(), key=lambda w: w.line)

    # -- walking ------------------------------------------------------------------------------------
    def _text(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._all[at].text if 0 <= at < len(self._all) else ""

    def _line(self) -> int:
        return self._all[min(self._at, len(self._all) - 1)].line

    def _step(self) -> None:
        text = self._text()
        if text == "{":
            self._scopes.append(self._parameters)
            self._parameters = {}
            self._at += 1
        elif text == "}":
            if len(self._scopes) > 1:
                self._scopes.pop()
            self._at += 1
        elif text == ";":
            if len(self._scopes) == 1:
                self._parameters = {}
            self._at += 1
        elif text == "template":
            self._template()
        elif text in ("struct", "class", "enum", "namespace", "using", "typedef", "goto"):
            while self._text() not in ("{", ";", ""):
                self._at += 1
        elif text == "for" and self._text(1) == "(":
            self._at += 2  # what it declares stays visible a little too long
            if self._declaration():
                self._loop_limit()
        elif self._declaration():
            pass
        elif self._starts_expression():
            self._expression()
        else:
            self._at += 1

    def _loop_limit(self) -> None:
        """Behind `for (int k = 0`: k goes as far as what it is compared with."""
        name = self._scopes[-1].get(self._text(1))
        if self._text() != ";" or name is None or self._text(2) not in ("<", "<=", "!="):
            return
        start = self._at
        self._at += 3
        limit = self._binary(self._LEVELS.index(("<<", ">>")))
        self._at = start
        if name.kind == "int" and limit.factors > name.value.factors:
            name.value = _UNBOUNDED

    def _template(self) -> None:
        """Parameters of a template are constants."""
        self._at += 1
        depth = 0
        while self._text():
            text = self._text()
            depth += (text == "<") - (text == ">") - 2 * (text == ">>")
            if text in (",", ">", ">>", "=") and self._all[self._at - 1].is_name:
                self._scopes[0][self._text(-1)] = _Name("int")
            self._at += 1
            if depth <= 0:
                return

    def _starts_expression(self) -> bool:
        text = self._text()
        return bool(text) and (text[0].isalnum() or text[0] in "_(.*&!~-+") and text not in (".", "->")

    # -- declarations -------------------------------------------------------------------------------
    def _declaration(self) -> bool:
        """Reads a declaration if one begins here: a type, then names with their initialisers."""
        start = self._at
        shared = constant = False
        kind = ""
        while self._all[self._at].is_name if self._at < len(self._all) else False:
            text = self._text()
            if text in ("__shared__", "extern"):
                shared = True
            elif text == "constexpr" or text == "__constant__":
                constant = True
            elif text == "alignas" or text in ("__align__", "__launch_bounds__", "__attribute__"):
                self._at += 1
                self._skip_brackets()
                continue
            elif text in _WIDE:
                kind = "wide"
            elif text in _INTEGERS:
                kind = kind or "int"
            elif text in _FLOATS or _VECTORS.fullmatch(text):
                kind = kind or "float"
            elif text in ("auto", "void") or text.endswith("_t"):
                kind = kind or "other"
            elif text.startswith("__") and text.endswith("__"):
                pass
            elif text not in _SKIPPED:
                break
            self._at += 1
            if self._text() == "::":
                self._at += 1
        if not kind:
            self._at = start
            return False
        declared = False
        while True:
            pointer = False
            while self._text() in ("*", "&", "&&", "const", "__restrict__", "volatile", "restrict"):
                pointer = pointer or self._text() == "*"
                self._at += 1
            if not (self._at < len(self._all) and self._all[self._at].is_name):
                break
            name = self._text()
            after = self._text(1)
            if after not in ("=", ";", ",", ")", "[", ":", "{", "("):
                break
            self._at += 1
            if after == "(":  # a function, or a variable with an initialiser in parentheses
                self._function_parameters(name)
                return True
            declared = True
            self._declare(name, kind, pointer, shared, constant)
            if self._text() != ",":
                break
            if not self._continues():
                break
            self._at += 1
        if not declared:
            self._at = start
            return False
        return True

    def _continues(self) -> bool:
        """Whether another declarator follows the comma: a name or star that is no type."""
        text = self._text(1)
        if text == "*":
            return True
        return bool(re.fullmatch(r"[A-Za-z_]\w*", text)) and self._text(2) in ("=", ";", ",", "[")

    def _declare(self, name: str, kind: str, pointer: bool, shared: bool, constant: bool) -> None:
        where = "local" if pointer else ""
        if self._text() == "[":
            where = "array"
            while self._text() == "[":
                self._skip_brackets()
        if shared:
            where = "array"
        value = _UNBOUNDED if kind == "int" and not constant else _NUMBER
        if kind == "wide":
            value = _Value(wide=True)
        if self._text() == "=":
            self._at += 1
            given = self._ternary() if self._text() != "{" else None
            if given is None:
                self._skip_brackets()
            elif pointer:
                where = "array" if given.pointer == "array" else "local"
            elif constant:
                value = _NUMBER if kind == "int" else _Value(wide=kind == "wide")
            elif kind == "int":
                value = _Value(given.factors, False, given.product, given.line)
            elif kind == "other":
                value, where = given, given.pointer
        self._scopes[-1][name] = _Name(kind, where, value)

    def _function_parameters(self, name: str) -> None:
        """Between the parentheses of a function: pointers in there are tensors."""
        self._at += 1
        depth = 1
        found: dict[str, _Name] = {}
        kind, pointer = "", False
        while depth and self._at < len(self._all):
            text = self._text()
            depth += (text == "(") - (text == ")")
            if text == "*":
                pointer = True
            elif text in _WIDE:
                kind = "wide"
            elif text in _INTEGERS:
                kind = kind or "int"
            elif text in _FLOATS or _VECTORS.fullmatch(text):
                kind = kind or "float"
            ends = text in (",", ")") and depth <= 1
            if ends:
                last = self._text(-1)
                if re.fullmatch(r"[A-Za-z_]\w*", last) and (kind or pointer):
                    value = _Value(wide=True) if kind == "wide" else _UNBOUNDED if kind == "int" else _NUMBER
                    found[last] = _Name(kind or "other", "parameter" if pointer else "", value)
                kind, pointer = "", False
            self._at += 1
        self._parameters = found

    def _skip_brackets(self) -> None:
        """Past a bracket and all that is in it; expressions in there are read."""
        if self._text() not in ("(", "[", "{"):
            return
        depth = 0
        while self._at < len(self._all):
            text = self._text()
            depth += (text in ("(", "[", "{")) - (text in (")", "]", "}"))
            self._at += 1
            if depth == 0:
                return

    # -- expressions --------------------------------------------------------------------------------
    def _lookup(self, name: str) -> _Name | None:
        for scope in (self._parameters, *reversed(self._scopes)):
            if name in scope:
                return scope[name]
        return None

    def _expression(self) -> _Value:
        value = self._assignment()
        while self._text() == ",":
            self._at += 1
            value = self._assignment()
        return value

    def _assignment(self) -> _Value:
        start = self._at
        value = self._ternary()
        if re.fullmatch(r"(?:[-+*/%&|^]|<<|>>)?=", self._text()):
            operator = self._text()
            self._at += 1
            given = self._assignment()
            name = self._lookup(self._all[start].text)
            if name is not None and self._at - start > 1 and self._all[start + 1].text == operator:
                self._assign(name, operator, given)
            return given
        if self._at == start:
            self._at += 1
        return value

    def _assign(self, name: _Name, operator: str, given: _Value) -> None:
        if name.kind == "int" and operator in ("=", "+="):
            old = name.value
            if operator == "=" or given.product > old.product:
                product, line = given.product, given.line
            else:
                product, line = old.product, old.line
            name.value = _Value(max(given.factors, old.factors), False, product, line)
        if operator == "+=" and name.pointer in ("parameter", "local"):
            self._offset(given, "local")  # a step, from wherever it stands

    def _ternary(self) -> _Value:
        value = self._binary(0)
        if self._text() == "?":
            self._at += 1
            first = self._ternary()
            if self._text() == ":":
                self._at += 1
            return self._either(first, self._ternary())
        return value

    _LEVELS = (
        ("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", ">", "<=", ">="), ("<<", ">>"),
        ("+", "-"), ("*", "/", "%"),
    )  # fmt: skip

    def _binary(self, level: int) -> _Value:
        if level == len(self._LEVELS):
            return self._unary()
        value = self._binary(level + 1)
        while self._text() in self._LEVELS[level]:
            operator, line = self._text(), self._line()
            self._at += 1
            right = self._binary(level + 1)
            value = self._combine(value, operator, right, line)
        return value

    def _combine(self, a: _Value, operator: str, b: _Value, line: int) -> _Value:
        if operator in ("+", "-"):
            for pointer, offset in ((a, b), (b, a)):
                if pointer.pointer:
                    self._offset(offset, pointer.pointer)
                    return _Value(pointer=pointer.pointer)
            return self._either(a, b)
        if operator == "*":
            wide = a.wide or b.wide
            inner = max(a, b, key=lambda v: v.product)
            if wide:  # a plane of 2^31 elements is not what a product of two extents is about
                kept = inner.product if inner.product > 2 else 0
                return _Value(0, True, kept, inner.line)
            factors = a.factors + b.factors
            if a.factors and b.factors:
                return _Value(factors, False, max(factors, inner.product), line)
            return _Value(factors, False, inner.product, inner.line)
        if operator == "/":
            return _Value(a.factors, a.wide, a.product, a.line)
        if operator == "%":
            return _Value(min(a.factors, b.factors), a.wide or b.wide, a.product, a.line)
        if operator == "&":
            bounded = not (a.factors and b.factors)
            return _Value(0 if bounded else 1, a.wide or b.wide, a.product, a.line)
        if operator in ("<<", ">>"):
            return _Value(a.factors, a.wide, a.product, a.line)
        if operator in ("|", "^"):
            return self._either(a, b)
        return _NUMBER  # a truth value

    @staticmethod
    def _either(a: _Value, b: _Value) -> _Value:
        inner = max(a, b, key=lambda v: v.product)
        return _Value(
            max(a.factors, b.factors), a.wide or b.wide, inner.product, inner.line, a.pointer or b.pointer
        )

    def _unary(self) -> _Value:
        text = self._text()
        if text in ("-", "+", "!", "~", "++", "--"):
            self._at += 1
            return self._unary()
        if text == "*":
            self._at += 1
            self._unary()
            return _UNBOUNDED
        if text == "&":
            self._at += 1
            return _Value(pointer=self._unary().element_of or "local")
        if text == "(":
            cast = self._c_cast()
            if cast is not None:
                return cast
        return self._postfix()

    def _c_cast(self) -> _Value | None:
        """`(long long)n`, `(float4*)p`; None where the parentheses hold an expression."""
        end = self._at + 1
        words = []
        while end < len(self._all) and self._all[end].text != ")":
            words.append(self._all[end].text)
            end += 1
        known = _INTEGERS | _WIDE | _FLOATS | _SKIPPED | {"*", "&", "::"}
        typed = any(w in _INTEGERS | _WIDE | _FLOATS or _VECTORS.fullmatch(w) for w in words)
        if not typed or not all(w in known or _VECTORS.fullmatch(w) for w in words):
            return None
        line = self._line()
        self._at = end + 1
        return self._cast(words, self._unary(), line)

    def _cast(self, words: list[str], value: _Value, line: int) -> _Value:
        if "*" in words:
            vector = next((w for w in words if _VECTORS.fullmatch(w)), None)
            if vector is not None and value.pointer in ("parameter", "local") and not self._asks_alignment:
                self._vector(vector, line)
            return _Value(pointer=value.pointer or "local")
        if any(w in _WIDE for w in words):
            return _Value(0, True, value.product if value.product > 2 else 0, value.line)
        if any(w in _FLOATS for w in words):
            return _NUMBER
        return _Value(value.factors, False, value.product, value.line)

    def _postfix(self) -> _Value:
        value, owner = self._primary()
        while True:
            text = self._text()
            if text == "[":
                self._at += 1
                inside = self._expression()
                if self._text() == "]":
                    self._at += 1
                array = value.pointer or value.element_of
                if array:
                    self._offset(inside, array)
                value = _Value(factors=1, element_of=array)
                owner = ""
            elif text in (".", "->"):
                member = self._text(1)
                self._at += 2
                if owner in _SMALL_BUILTINS:
                    value = _NUMBER
                elif owner in _LARGE_BUILTINS:
                    value = _UNBOUNDED
                elif owner != _PROBLEM or member in _WIDE_MEMBERS:
                    value = _UNKNOWN
                else:
                    value = _NUMBER if _SMALL_MEMBERS.fullmatch(member) else _UNBOUNDED
                owner = ""
            elif text == "(":
                value = self._call(owner)
                owner = ""
            elif text in ("++", "--"):
                self._at += 1
            else:
                return value

    def _primary(self) -> tuple[_Value, str]:
        text = self._text()
        if text == "(":
            self._at += 1
            value = self._expression()
            if self._text() == ")":
                self._at += 1
            return value, ""
        if text and (text[0].isdigit() or text[0] == "."):
            self._at += 1
            return _Value(wide="l" in text.lower() and "x" not in text.lower()), ""
        if text in ("static_cast", "reinterpret_cast", "const_cast") and self._text(1) == "<":
            return self._named_cast(), ""
        if text in _WIDE and self._text(1) in ("(", "{"):  # size_t(n)
            self._at += 1
            self._skip_brackets()
            return _Value(wide=True), ""
        if not text or not (text[0].isalpha() or text[0] == "_"):
            return _NUMBER, ""
        while self._text(1) == "::":
            self._at += 2
        text = self._text()
        self._at += 1
        if text in _SMALL_BUILTINS or text in _LARGE_BUILTINS:
            return _NUMBER, text
        name = self._lookup(text)
        if name is None:  # a constant of the tile, a macro, a struct, a function
            return _NUMBER, text
        value = name.value
        return _Value(value.factors, value.wide, value.product, value.line, name.pointer), text

    def _named_cast(self) -> _Value:
        line = self._line()
        self._at += 2
        words = []
        depth = 1
        while self._text():
            depth += (self._text() == "<") - (self._text() == ">")
            self._at += 1
            if not depth:
                break
            words.append(self._text(-1))
        value = _NUMBER
        if self._text() == "(":
            self._at += 1
            value = self._expression()
            if self._text() == ")":
                self._at += 1
        return self._cast(words, value, line)

    def _call(self, name: str) -> _Value:
        line = self._line()
        self._at += 1
        arguments = []
        first = self._at
        while self._text() not in (")", ""):
            before = self._at
            arguments.append(self._assignment())
            if self._text() == "," or (self._text() != ")" and self._at == before):
                self._at += 1
            elif self._text() in (";", "{", "}"):
                return _NUMBER
        self._at += 1
        if name in FAST_MATH:
            self._fast_math(name, line)
        if re.fullmatch(r"atomic(?:Add|Sub)(?:_block|_system)?", name):
            self._atomic(name, first, line)
        if name in ("min", "umin") and arguments:
            return min(arguments, key=lambda v: v.factors)
        if name in ("max", "umax", "ceil_div", "__mul24", "__ldg") and arguments:
            return max(arguments, key=lambda v: v.factors)
        return _UNKNOWN

    # -- findings -----------------------------------------------------------------------------------
    def _add(self, line: int, what: str, why: str, instead: str) -> None:
        self._found.setdefault((line, what), SourceWarning(line, what, why, instead))

    def _offset(self, value: _Value, pointer: str) -> None:
        """An offset from a tensor, or from a place in one, which may be as far as a plane of it."""
        if pointer == "array" or value.product < (2 if pointer == "parameter" else 3):
            return
        self._add(
            value.line,
            "an offset is a product of 32-bit integers",
            "it wraps around in a tensor of more than 2^31 elements",
            "cast the first factor: static_cast<long long>(n) * ...",
        )

    def _fast_math(self, name: str, line: int) -> None:
        better = FAST_MATH[name]
        self._add(
            line,
            f"{name} is an approximation",
            "its error on a GPU may exceed the gate's bound though the emulator's, a guess, does not",
            f"use {better if ' ' in better else better + '()'}, or check the kernel on a GPU",
        )

    def _atomic(self, name: str, first: int, line: int) -> None:
        """The first argument's type, as far as the name in it tells."""
        depth = 0
        for token in self._all[first:]:
            depth += (token.text in "([") - (token.text in ")]")
            if depth < 0 or (token.text == "," and not depth):
                return
            found = self._lookup(token.text) if token.is_name else None
            if found is not None and found.pointer:
                if found.kind == "float":
                    self._add(
                        line,
                        f"{name} of floating-point numbers",
                        "the order of the sum, and so its bits, differ from run to run",
                        "reduce within the block, then in a second launch in a fixed order",
                    )
                return

    def _vector(self, vector: str, line: int) -> None:
        self._add(
            line,
            f"a pointer is read as {vector}",
            "an array may begin at any element, and a misaligned vector is an error on a GPU",
            "test the address first, and move single elements where it is no multiple of the vector's size",
        )
