"""Arithmetic from kernel headers, evaluated safely: a kernel file may come from a stranger.

Names, integers, `+ - * // %`, comparisons, `and or not`, `a if c else b`, and the functions below. There
are no attributes, no subscripts, no strings and no other calls, so that nothing but numbers can come out.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import OptionError

Number = int | float | bool

FUNCTIONS: dict[str, Callable[..., Any]] = {"ceil_div": lambda a, b: -(-a // b), "min": min, "max": max}
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.Not: operator.not_}
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
#: A header's expressions are short; a longer one is an attempt to keep the evaluator busy.
MAX_LENGTH = 500
#: Nor is there a use for numbers beyond all addresses.
MAX_BITS = 128


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> ast.expr:
    """The checked syntax tree of an expression; from memory, where it has been seen before.

    Raises
    ------
    OptionError
        If it holds anything but the arithmetic above.
    """
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise OptionError(
            f"an expression must be a string of at most {MAX_LENGTH} characters, not {text!r:.80}"
        )
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise OptionError(f"expression {text!r} is not valid: {error}") from None
    for node in ast.walk(tree):
        _allow(node, text)
    return tree


def _allow(node: ast.AST, text: str) -> None:
    what = type(node).__name__
    if isinstance(node, ast.Constant):
        good = isinstance(node.value, int) and abs(node.value) < 2**63
        what = f"the constant {node.value!r}"
    elif isinstance(node, ast.Call):
        good = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
        what = f"a call of {ast.unparse(node.func)!r}"
    else:
        good = isinstance(
            node,
            (ast.Name, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.And, ast.Or, ast.Load)
            + (*_BINARY, *_UNARY, *_COMPARE),
        )
    if not good:
        allowed = f"integers, names, + - * // %, comparisons, and/or/not, if/else, {', '.join(FUNCTIONS)}"
        raise OptionError(f"expression {text!r} holds {what}, which is not allowed; allowed: {allowed}")


def names(text: str) -> set[str]:
    """The names that an expression uses, functions not counted."""
    return {n.id for n in ast.walk(parse(text)) if isinstance(n, ast.Name)} - FUNCTIONS.keys()


def evaluate(text: str, values: Mapping[str, Number]) -> Number:
    """The value of an expression.

    Parameters
    ----------
    text : str
    values : mapping of str to number
        The names that it may use.

    Raises
    ------
    OptionError
        If it is not allowed, uses an unknown name, or divides by zero.
    """
    try:
        return _value(parse(text), values, text)
    except ZeroDivisionError:
        raise OptionError(f"expression {text!r} divides by zero") from None


def _value(node: ast.expr, values: Mapping[str, Number], text: str) -> Any:
    def value(child: ast.expr) -> Any:
        return _value(child, values, text)

    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in values:
            raise OptionError(f"expression {text!r} uses {node.id!r}; it may use {', '.join(sorted(values))}")
        return values[node.id]
    if isinstance(node, ast.BinOp):
        result = _BINARY[type(node.op)](value(node.left), value(node.right))
        if isinstance(result, int) and result.bit_length() > MAX_BITS:
            raise OptionError(f"expression {text!r} comes to a number of more than {MAX_BITS} bits")
        return result
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](value(node.operand))
    if isinstance(node, ast.BoolOp):
        parts = (bool(value(v)) for v in node.values)
        return all(parts) if isinstance(node.op, ast.And) else any(parts)
    if isinstance(node, ast.Compare):
        sides = [value(v) for v in (node.left, *node.comparators)]
        return all(_COMPARE[type(o)](a, b) for o, a, b in zip(node.ops, sides, sides[1:]))
    if isinstance(node, ast.IfExp):
        return value(node.body) if value(node.test) else value(node.orelse)
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    try:
        return FUNCTIONS[node.func.id](*(value(a) for a in node.args))
    except TypeError as error:
        raise OptionError(f"expression {text!r}: {error}") from None
