"""`extern __shared__ T name[];` for a host compiler, which has no such thing.

Each such declaration becomes a constant pointer of that name to the block's dynamic shared memory: as on a
GPU, all of them begin at one address, whatever their types and wherever they stand. Inside a function that is
a local variable. At file scope it is another name for the one variable of the runtime that has the address.
The text is rewritten behind the preprocessor, so that macros and included files are covered.
"""

from __future__ import annotations

import re

_DECLARED = re.compile(r"\bextern\b[^;{}]*\b__shared__\b|\b__shared__\b[^;{}]*\bextern\b")

# What `__shared__` is behind the preprocessor, and parentheses in parentheses of an attribute.
_SHARED = r"static\s+__thread\b"
_NESTED = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_ALIGNED = rf"(?:__attribute__|alignas)\s*{_NESTED}"
_DECLARATION = re.compile(
    rf"(?:{_ALIGNED}\s*)?(?:\bextern\b(?:[^;{{}}=()]|{_NESTED})*?\b{_SHARED}|\b{_SHARED}(?:[^;{{}}=()]|{_NESTED})*?\bextern\b)"
    rf"(?:[^;{{}}=()]|{_NESTED})*;"
)
_PARTS = re.compile(r"(?P<type>.*?)\b(?P<name>\w+)\s*\[\s*\](?P<more>(?:\s*\[[^\]]*\])*)\s*;", re.DOTALL)


def found(text: str) -> bool:
    """Whether a source declares dynamic shared memory in CUDA's own way (it may be in a comment)."""
    return "extern" in text and _DECLARED.search(text) is not None


def rewritten(text: str) -> str:
    """Preprocessed source with the declarations replaced; lines keep their numbers."""
    inside = _function_scopes(text)

    def pointer(match: re.Match[str]) -> str:
        whole = match.group()
        plain = re.sub(rf"\bextern\b|\b{_SHARED}|{_ALIGNED}", " ", whole)
        parts = _PARTS.fullmatch(plain)
        if parts is None or "," in parts["name"] + parts["more"]:
            return whole  # the compiler says what it does not understand
        kind, name, more = parts["type"].strip(), parts["name"], parts["more"]
        declared = f"{kind} (*const {name}){more}" if more else f"{kind}* const {name}"
        lost = "\n" * (whole.count("\n") - declared.count("\n"))
        if any(first < match.start() < last for first, last in inside):
            pointed = f"{kind} (*){more}" if more else f"{kind}*"
            return f"{declared} = reinterpret_cast<{pointed}>(ckemu_dynamic_shared());{lost}"
        model = '__attribute__((tls_model("initial-exec")))'
        return f'extern __thread {model} {declared} __asm__("ckemu_dynamic");{lost}'

    return _DECLARATION.sub(pointer, text)


_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|[{};]')
_OPENS_SCOPE = re.compile(r'\bnamespace\b|\bextern\s*"C(?:\+\+)?"\s*$|\b(?:struct|class|union|enum)\b[^()]*$')


def _function_scopes(text: str) -> list[tuple[int, int]]:
    """Where the bodies of functions begin and end."""
    found, depth, body, since = [], 0, None, 0
    opened: list[bool] = []
    for token in _TOKEN.finditer(text):
        what = token.group()
        if what == "{":
            is_function = not _OPENS_SCOPE.search(text[since : token.start()])
            if is_function and body is None:
                body, depth = token.start(), len(opened)
            opened.append(is_function)
        elif what == "}" and opened:
            opened.pop()
            if body is not None and len(opened) == depth:
                found.append((body, token.start()))
                body = None
        elif what not in (";", "}"):
            continue
        since = token.end()
    return found
