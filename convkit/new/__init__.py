"""Candidates to start from: one file for an op, in a language, that passes `convkit check` as it is.

A template is a file `templates/LANGUAGE/OP.template`. Where CUDA has none, the simplest kernel that convkit
ships for the op takes its place; where plain Python has none, the op's definition does. The comment at the
top, which says what the function receives, is made from the op's own file (`explain`).
"""

from __future__ import annotations

import difflib
import keyword
import os
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from .. import explain
from ..cuda import header
from ..errors import OptionError, unknown
from ..op import OPS
from ..registry import builtin

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Language:
    """A language that candidates are written in."""

    suffix: str
    title: str
    hint: str = ""


#: By the names that `--lang` takes. The first of a suffix is its default, but see `_DEFAULTS`.
LANGUAGES = {
    "cuda": Language(".cu", "CUDA C++", "runs on a GPU, and under the emulator where there is none"),
    "cpp": Language(".cpp", "C++", "compiled by this machine's compiler on the first call"),
    "numba": Language(".py", "Numba", "compiled on the first call"),
    "python": Language(".py", "Python with NumPy"),
    "torch": Language(".py", "PyTorch", "needs PyTorch: pip install torch"),
    "jax": Language(".py", "JAX", "needs JAX: pip install jax"),
    "triton": Language(".py", "Triton", "needs pip install triton torch; interpreted where there is no GPU"),
    "cupy": Language(".py", "CuPy", "needs a GPU: without one `convkit check` says 'not run'"),
    "numba-cuda": Language(".py", "numba.cuda", "simulated where there is no GPU, small problems only"),
}
#: What no function of C++17 can be called: its keywords, and `main`.
_WORDS = (
    "main alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t "
    "char32_t class compl const const_cast constexpr continue decltype default delete do double "
    "dynamic_cast else enum explicit export extern false float for friend goto if inline int long "
    "mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public "
    "register reinterpret_cast return short signed sizeof static static_assert static_cast struct "
    "switch template this thread_local throw true try typedef typeid typename union unsigned using "
    "virtual void volatile wchar_t while xor xor_eq"
)
_OF_CPP = frozenset(_WORDS.split())
_DEFAULTS = {".cu": ("cuda",), ".cpp": ("cpp",), ".py": ("numba", "python")}


def language_of(op: str, path: Path) -> str:
    """The language that a file's suffix stands for: of .py Numba, or NumPy where that has no template.

    Raises
    ------
    OptionError
        If the suffix is not one of them.
    """
    if path.suffix not in _DEFAULTS:
        endings = ", ".join(_DEFAULTS)
        raise OptionError(
            f"{path.name}: the file ends in one of {endings}; --lang says which language of .py"
        )
    names = _DEFAULTS[path.suffix]
    return next((name for name in names if op in ops_of(name)), names[0])


def ops_of(language: str) -> list[str]:
    """The ops that can be begun in a language."""
    own = {path.stem for path in (_TEMPLATES / language).glob("*.template")}
    if language == "cuda":
        own |= set(_shipped())
    if language == "python":
        own |= set(OPS)
    return [op for op in OPS if op in own]


def write(op: str, path: str | os.PathLike[str], language: str | None = None) -> Path:
    """Write a candidate.

    Parameters
    ----------
    op : str
    path : path
        The file; its stem becomes the implementation's name. What is there is never overwritten.
    language : str, optional
        One of `LANGUAGES`; by default what the suffix stands for.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OptionError
        If the op or the language is not known, there is no template for the two, the file's name is no name
        of a function or does not end as the language's files do, or the file exists.
    """
    path = Path(path)
    builtin()
    if op not in OPS:
        raise unknown("op", op, OPS)
    language = language or language_of(op, path)
    if language not in LANGUAGES:
        raise unknown("language", language, LANGUAGES)
    suffix = LANGUAGES[language].suffix
    if path.suffix != suffix:
        raise OptionError(f"{path.name}: a file in {LANGUAGES[language].title} ends in {suffix}")
    if not re.fullmatch(r"[A-Za-z_]\w*", path.stem, re.ASCII) or keyword.iskeyword(path.stem):
        raise OptionError(
            f"{path.name}: the stem becomes the function's name: letters, digits and underscores, "
            "no digit in front, no keyword of Python"
        )
    if suffix != ".py" and path.stem in _OF_CPP:
        raise OptionError(f"{path.name}: {path.stem!r} is a word of C++, and no function's name")
    content = text(op, language, path.stem)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise OptionError(f"{path} exists, and is left as it is: choose another name") from None
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror}") from error
    return path


def text(op: str, language: str, stem: str) -> str:
    """The whole text of a candidate.

    Raises
    ------
    OptionError
        If there is no template; the message has the ops that have one.
    """
    name = stem.removeprefix(op).lstrip("_") or "kernel"
    if any(i == name for i in _taken(op, language)):
        raise OptionError(f"{op} has an implementation {name!r} already: choose another name for the file")
    body = _body(op, language, stem)
    if body is None:
        have = ops_of(language)
        near = difflib.get_close_matches(op, have, n=1)
        others = [other for other in LANGUAGES if op in ops_of(other)]
        raise OptionError(
            f"no template for {op} in {LANGUAGES[language].title}; there are: {', '.join(have)}"
            f"{f' (the nearest is {near[0]})' if near else ''}. {op} has one in: {', '.join(others)}"
        )
    body = _wrapped_signature(body.replace("@STEM@", stem).replace("@NAME@", name), stem)
    return f"{_comment(op, language, stem)}\n{body}"


def _wrapped_signature(body: str, stem: str) -> str:
    """The parameters of the C function in lines of the right length: they were set for another name."""

    def again(found: re.Match[str]) -> str:
        whole = " ".join(found.group().split())
        if len(whole) <= 104:
            return whole
        front, _, parameters = whole.partition("(")
        last = textwrap.wrap(f"{parameters}", 100, initial_indent="    ", subsequent_indent="    ")
        return "\n".join([f"{front}(", *last])

    return re.sub(
        rf'^extern "C"[^;{{}}]*?\bvoid {stem}\(.*?\) \{{$', again, body, flags=re.DOTALL | re.MULTILINE
    )


def _taken(op: str, language: str) -> list[str]:
    from ..registry import implementations

    device = "cuda" if language in ("cuda", "cupy") else "cpu"
    return [i.name for i in implementations(op, device=device)]


def _body(op: str, language: str, stem: str) -> str | None:
    own = _TEMPLATES / language / f"{op}.template"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    if language == "cuda" and op in (shipped := _shipped()):
        return _standing_alone(shipped[op])
    return _definition(op) if language == "python" else None


# ---------------------------------------------------------------------------------------------------
# What stands in for a template
# ---------------------------------------------------------------------------------------------------
def _shipped() -> dict[str, header.KernelFile]:
    """The simplest kernel that convkit ships for each op: in NCHW, of the lowest rank, then the shortest."""
    found: dict[str, header.KernelFile] = {}
    for path in header.builtin_files():
        file = header.read(path)
        now = found.get(file.header.op)
        if now is None or _weight(file) < _weight(now):
            found[file.header.op] = file
    return found


def _weight(file: header.KernelFile) -> tuple[bool, int, int]:
    return file.header.layout != "NCHW", file.header.rank, len(file.source)


def _standing_alone(file: header.KernelFile) -> str:
    """A shipped kernel without the prose that argues for it, under another name."""
    lines = file.source.splitlines()
    first = lines.index("// /// kernel")
    last = lines.index("// ///", first + 1)
    head = [re.sub(r"^(// rank\s*=).*", r"\1 -1", line) for line in lines[first : last + 1]]
    head = [line for line in head if not line.startswith("// tune")]
    code = "\n".join(lines[last + 1 :])
    # A comment that goes on behind the header belongs to the prose.
    code = re.sub(r"\A(//.*\n)+", "", code).lstrip("\n")
    # Helpers and further entries are named after the file too.
    return re.sub(rf"\b{file.stem}(?=_|\b)", "@STEM@", "\n".join([*head, "", code])) + "\n"


def _definition(op: str) -> str:
    it = explain.received(op)
    names = [t.name for t in it.tensors if t.role != "flag"]
    keywords = "options" if it.options or it.op.flags else ""
    takes = ", ".join(["problem", *names, *([f"**{keywords}"] if keywords else [])])
    return f'''import convkit as ck
from convkit.op import OPS

# A right answer to start from, in whose place yours goes: the op's definition, in float64.
# ({_file(op)})
definition = OPS["{op}"].define


@ck.implements("{op}", name="@NAME@", dtypes=("float32", "float64"), rank=-1)
def {op}({takes}):
    definition({takes})
'''


def _file(op: str) -> str:
    return OPS[op].define.__module__.replace(".", "/") + ".py"


# ---------------------------------------------------------------------------------------------------
# The comment at the top
# ---------------------------------------------------------------------------------------------------
def _comment(op: str, language: str, stem: str) -> str:
    it, of = explain.received(op), LANGUAGES[language]
    file = f"{stem}{of.suffix}"
    lines = [f"{stem}: {op} in {of.title}"]
    lines += ["", f"{of.hint[0].upper()}{of.hint[1:]}."] if of.hint else []
    lines += [""]
    lines += [line for part in it.about.splitlines() for line in [part.rstrip()]]
    lines += ["", "It is called as", "", *explain.lines(op, _signature(it, language, stem)), ""]
    # One small convolution: AlexNet's layers would take minutes.
    small = f"--conv 2,8,28,28,8,3,3,pad=1 --directions {OPS[op].direction}"
    what = small if op in ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad") else f"--op {op}"
    where = "  # on a GPU" if language in ("cuda", "cupy", "numba-cuda") else ""
    lines += [f"convkit check {file}", f"convkit bench {file} {what} --against none --quick{where}"]
    if language == "cuda":
        lines += [
            f"convkit check {file} --sanitize    # races, stray accesses, uninitialised reads, by line",
            f"convkit source {file}              # what stands in front of this file",
            "",
            "Between the lines with /// is TOML: the launch, as expressions; docs/kernels.md has all keys.",
            "Shared headers (*.cuh) come with convkit. rank -1: it runs where it is named.",
        ]
    elif language == "cpp":
        lines += [
            "",
            "Between the lines with /// is TOML: docs/kernels.md has the keys. In front of this file stand",
            "g's type and storage_t, the arrays' type. rank -1: it runs where it is named.",
        ]
    else:
        lines += ["", "rank=-1: it runs where it is named, ck.use(" + f'{op}="{_name(op, stem)}").']
    if language in ("cuda", "cpp"):
        toml = ""
        if language == "cpp":
            # The numbers in g are float32, which is too few digits for an op on float64.
            dtypes = '"float32"' if "float " in it.struct else '"float32", "float64"'
            options = [f'{o.name} = "{_c_type(op, o.name)}"' for o in it.options]
            toml = "\n".join(
                ["", "//", "// /// kernel", f'// op      = "{op}"', f"// dtypes  = [{dtypes}]"]
                + ([f"// options = {{ {', '.join(options)} }}"] if options else [])
                + ["// rank    = -1", "// ///", ""]
            )
        else:
            toml = "\n//"
        return "\n".join(f"// {line}".rstrip() for line in lines) + toml
    quoted = "\n".join(line.rstrip() for line in lines).replace("\\", "\\\\")
    return f'"""{quoted}\n"""\n'


def _name(op: str, stem: str) -> str:
    return stem.removeprefix(op).lstrip("_") or "kernel"


def _signature(it: explain.Received, language: str, stem: str) -> str:
    """How the function of this language is called."""
    tensors = [t.name for t in it.tensors if t.role != "flag"]
    if language in ("cuda", "cpp"):
        options = [o.name for o in it.options]
        return f"{stem}({', '.join(['g', *tensors, *options])})"
    if language == "jax" or (language == "torch" and not it.op.inplace):
        inputs = [t.name for t in it.tensors if t.role == "input"]
        options = ["*", *(o.name for o in it.options)] if it.options else []
        outputs = [t.name for t in it.tensors if t.role == "output"]
        return f"{it.op.name}({', '.join(['problem', *inputs, *options])}) -> {', '.join(outputs)}"
    return it.call.replace("run(", f"{it.op.name}(", 1)


def _c_type(op: str, option: str) -> str:
    """The C type of an option, as the shipped kernel has it."""
    shipped = _shipped().get(op)
    return (shipped.header.options if shipped else {}).get(option, "int")
