"""Which implementations each op has, and how one is chosen.

Nothing here keeps a list of implementations by hand: `convkit.discovery` finds what convkit ships on the
first look-up (`finder`), and adds a user's file.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any

from . import adapters, layouts
from . import checked as gate
from .errors import NoImplementation, NotChecked, OptionError, unknown
from .op import OPS, PAIRS, Problem
from .options import finite, integer
from .options import flag as true_or_false

#: Grades of float32 arithmetic, coarsest first. `math=` names the coarsest that the caller accepts.
MATH = ("tf32", "fp32-emulated", "fp32")
DEVICES = ("cpu", "cuda")
ALL_DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes
    ----------
    op, name, device : str
        With the layout, the key. The name says the idea ("implicit_gemm"), never a number.
    run : callable
        `run(problem, *inputs, *outputs, **options)` fills the outputs, which hold anything at first.
        Inputs and outputs are contiguous arrays; an optional input may be None.
    dtypes : tuple of str
        Storage dtypes that it accepts; also pairs, "bfloat16/float32", of an op that takes them (`op.PAIRS`).
    layout : str
        Layout that it reads and writes: "NCHW", "nChw16c", of its input's and its output's side
        "NCHW>nChw16c", with that of its weights "NHWC, KRSC"; see `layouts.declared`. Part of the key: a name
        may stand for an idea in several layouts.
    packs : str
        Of a kernel that computes in another layout than it takes: that layout. Each call reorders the tensors
        on the way in and out (`cuda.packed`), so it is more launches than one file's. Else empty.
    rank : int
        The highest rank that accepts a problem is chosen.
    error : float
        Declared relative RMS error of its float32 arithmetic against float64. The gate holds it to this,
        and `max_error` refuses what declares more.
    math : str
        Grade of its float32 arithmetic, one of `MATH`.
    truncates : bool
        Its sums are cut where float32 ends, not rounded to nearest, as tensor cores have it.
    when : callable, optional
        `when(problem)` returns None, or the reason why it does not fit.
    missing : callable, optional
        Returns None, or what this machine lacks to run it.
    workspace : callable, optional
        `workspace(problem)` returns the bytes of scratch memory that `run` wants as `workspace=`, a
        uint8 array, aligned; so that a planned network allocates it once.
    tile : tuple of (str, int)
        The tile that it runs every problem with, where one was fixed (`cuda.prepare.tiled`); empty where it
        has none, or chooses for each problem. Part of the label.
    prepare : callable, optional
        `prepare(problem)` does once what depends on the problem alone, for the device or emulator that
        is current, and returns `launch(*inputs, *outputs, **options)`: `run` without its first argument.
    flags : tuple of str
        Which flags of the op `run` takes by keyword. By default those that its signature names, or all
        where it has ``**options``.
    flops : callable, optional
        `flops(problem)` returns the operations of an algorithm that needs fewer than the op's definition.
        None: those of the definition. `convkit bench` holds its times against the machine's peak by this,
        and refuses what no fast algorithm could do with.
    compiled : bool
        Its work is done by compiled code, which takes inputs as const and knows nothing of NumPy's warnings:
        dispatch then spares a call the protection of its inputs, and `np.errstate`.
    source : str
        File that it comes from.
    origin : str
        File of the user's that `convkit.register` loaded it from; empty for what was registered otherwise.
    sources : checked.Sources
        Its files as they were when it was registered; by default `source` alone.
    """

    op: str
    name: str
    run: Callable[..., None]
    device: str = "cpu"
    dtypes: tuple[str, ...] = ("float32",)
    layout: str = "NCHW"
    rank: int = 0
    error: float = 1e-6
    math: str = "fp32"
    truncates: bool = False
    when: Callable[[Any], str | None] | None = None
    missing: Callable[[], str | None] | None = None
    workspace: Callable[[Any], int] | None = None
    prepare: Callable[[Any], Callable[..., None]] | None = None
    flags: tuple[str, ...] = None  # type: ignore[assignment]  # __post_init__ puts a tuple there
    flops: Callable[[Any], int] | None = None
    compiled: bool = False
    tile: tuple[tuple[str, int], ...] = ()
    packs: str = ""
    source: str = field(default="", compare=False)
    origin: str = field(default="", compare=False)
    sources: gate.Sources = field(default=None, compare=False, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.flags is None:
            object.__setattr__(self, "flags", _flags_taken(self.op, self.run))
        if self.sources is None:
            object.__setattr__(self, "sources", gate.Sources.of(self.source))

    @property
    def checked(self) -> str:
        """What is known of its check on this engine: "shipped", the day of its pass, or "unchecked"."""
        return gate.state(self)

    @property
    def name_and_tile(self) -> str:
        """The name, and the tile where one was fixed: "implicit_gemm[TILE_M=64, TILE_N=256]"."""
        tile = ", ".join(f"{name}={value}" for name, value in self.tile)
        return f"{self.name}[{tile}]" if tile else self.name

    @property
    def label(self) -> str:
        """The name, the tile where one was fixed, and the layout where it is not the users' own.

        In the users' own, "packed" where the kernel computes in another one.
        """
        if self.layout == "NCHW":
            return f"{self.name_and_tile} packed" if self.packs else self.name_and_tile
        return f"{self.name_and_tile} {self.layout}"

    @property
    def layout_text(self) -> str:
        """The layout as tables have it: "NHWC, KRSC", or "NCHW (packs NHWC, KRSC)"."""
        return f"{self.layout} (packs {self.packs})" if self.packs else self.layout

    def refusal(
        self, problem: Any, math: str | None = None, max_error: float = 1.0, flags: Iterable[str] = ()
    ) -> str | None:
        """Why this implementation cannot be used for the problem and with these flags, or None."""
        if self.missing and (lack := self.missing()):
            return lack
        if problem.dtype not in self.dtypes:
            return f"takes {', '.join(self.dtypes)}, not {problem.dtype}"
        if MATH.index(self.math) < MATH.index(math or "fp32"):
            return f"computes in {self.math}, and math={math or 'fp32'!r} was asked for"
        if self.error > max_error:
            return f"declares a relative RMS error of {self.error:g}, above max_error = {max_error:g}"
        for flag in flags:
            if flag not in self.flags:
                return f"does not take {flag}="
        return self.declines(problem)

    def declines(self, problem: Any) -> str | None:
        """What `when` says of a problem."""
        reason = self.when(problem) if self.when else None
        if reason is None or (reason and isinstance(reason, str)):
            return reason
        raise OptionError(
            f"`when` of {self.op}, {self.name}, gave {reason!r}: it gives None where the problem fits, "
            "and else the reason, a text"
        )


def _flags_taken(op: str, run: Callable[..., None]) -> tuple[str, ...]:
    """Flags of the op that a function can be given by keyword."""
    known = OPS[op].flags if op in OPS else ()
    if not known:
        return ()
    try:
        parameters = inspect.signature(run).parameters
    except (TypeError, ValueError):  # a callable that does not say
        return ()
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return known
    by_name = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return tuple(name for name in known if name in by_name)


_IMPLEMENTATIONS: dict[tuple[str, str, str, str], Implementation] = {}
_LOCK = threading.RLock()
_loaded: set[str] = set()
_generation, _counted = 0, 0


def generation() -> int:
    """A number that is another one after implementations have been added or taken away.

    What was worked out for a choice among them holds as long as it is the same.
    """
    if len(_IMPLEMENTATIONS) != _counted:  # one was taken out by hand
        changed()
    return _generation


def changed() -> None:
    """What was worked out for a choice among implementations no longer holds."""
    global _generation, _counted
    with _LOCK:
        _generation += 1
        _counted = len(_IMPLEMENTATIONS)


def require_dtype(op: str, dtype: str) -> None:
    """Refuse a dtype that no problem of the op can have."""
    if dtype not in (known := (*ALL_DTYPES, *OPS[op].pairs)):
        if dtype in PAIRS:
            raise OptionError(f"{op} has no tensors of a second dtype: it takes no pair such as {dtype!r}")
        raise unknown("dtype", dtype, known)


def add(implementation: Implementation) -> Implementation:
    """Register one implementation. A name that is taken by another file is an error."""
    if implementation.op not in OPS:
        raise unknown("op", implementation.op, OPS)
    name = implementation.name
    if not (isinstance(name, str) and name.isprintable() and 0 < len(name) <= 100):
        raise OptionError(f"the name of an implementation is a short text, not {name!r:.100}")
    _check_declared(implementation)
    if not implementation.dtypes:
        raise OptionError(f"{implementation.op}, {name}: dtypes must name one dtype at least")
    for dtype in implementation.dtypes:
        require_dtype(implementation.op, dtype)
    finite("error", implementation.error, 0)
    if implementation.math not in MATH:
        raise unknown("math", implementation.math, MATH)
    if (plain := str(layouts.declared(implementation.layout))) != implementation.layout:
        raise OptionError(f"unknown layout {implementation.layout!r}; did you mean {plain!r}?")
    for flag in implementation.flags:
        if flag not in OPS[implementation.op].flags:
            raise unknown(f"flag of {implementation.op}", flag, OPS[implementation.op].flags)
    key = (implementation.op, implementation.device, implementation.name, implementation.layout)
    with _LOCK:
        before = _IMPLEMENTATIONS.get(key)
        if before is not None and before.source != implementation.source:
            raise OptionError(
                f"{implementation.op} already has an implementation {implementation.label!r} "
                f"for {implementation.device}, from {before.source}; choose another name"
            )
        _IMPLEMENTATIONS[key] = implementation
        changed()
    return implementation


def _check_declared(implementation: Implementation) -> None:
    """Refuse what would fail later, in every call of the op: it is asked whichever implementation runs."""
    where = f"{implementation.op}, {implementation.name}"
    if implementation.device not in DEVICES:
        raise unknown("device", implementation.device, DEVICES)
    integer(f"{where}: rank", implementation.rank)
    for name in ("compiled", "truncates"):
        true_or_false(f"{where}: {name}", getattr(implementation, name))
    for name in ("when", "missing", "workspace", "prepare", "flops"):
        value = getattr(implementation, name)
        if value is not None and not callable(value):
            raise OptionError(f"{where}: {name} must be a function or None, not {value!r:.100}")
    for name in ("dtypes", "flags", "tile"):
        value = getattr(implementation, name)
        if not isinstance(value, (tuple, list)):
            raise OptionError(f"{where}: {name} must be a tuple, not {value!r:.100}")
    if not isinstance(implementation.layout, str):
        raise OptionError(f"{where}: layout must be a text, not {implementation.layout!r:.100}")


def implements(
    op: str, *, name: str, arrays: str | None = None, returns: bool = False, **declared: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: register a function as an implementation of `op`.

    Parameters
    ----------
    op : str
        Name of the op, such as "conv2d_fprop". `convkit explain OP` says what the function receives.
    name : str
        Name of the implementation: the idea, in a word.
    arrays : {"torch", "jax"}, optional
        Library whose arrays the function takes: by default NumPy's, and on a GPU CuPy's. See `adapters`.
    returns : bool
        The function is not given the outputs: it returns them, and they are copied.
    **declared
        The further fields of `Implementation`: dtypes, rank, error, when, ...

    Examples
    --------
    >>> @ck.implements("relu_fprop", name="mine", rank=-1)
    ... def relu(problem, x, y):
    ...     np.maximum(x, 0, out=y)

    >>> @ck.implements("relu_fprop", name="mine", arrays="jax", returns=True)
    ... def relu(problem, x):
    ...     return jnp.maximum(x, 0)
    """

    known = {f.name for f in fields(Implementation)} - {
        "op", "name", "run", "packs", "source", "origin", "sources",
    }  # fmt: skip
    for key in declared:
        if key not in known:
            raise unknown("declaration", key, known)

    def decorate(run: Callable[..., Any]) -> Callable[..., Any]:
        if op not in OPS:
            raise unknown("op", op, OPS)
        if not callable(run):
            raise OptionError(f"{op}, {name}: a function is needed, not {run!r:.100}")
        code, here = getattr(inspect.unwrap(run), "__code__", None), sys._getframe(1).f_code.co_filename
        source = code.co_filename if code else here  # a compiled function does not say where it is from
        _fits(op, run, "workspace" in declared, returns)
        whole = adapters.adapt(op, run, arrays, returns)
        if arrays is not None:
            declared.setdefault("missing", lambda: adapters.missing(arrays))
        sources = gate.Sources.of(source, here)
        add(Implementation(op, name, whole, source=source, sources=sources, **declared))
        return run

    return decorate


def _fits(op: str, run: Callable[..., Any], workspace: bool, returns: bool) -> None:
    """Refuse a function that cannot be called with the problem, the inputs and the outputs of the op."""
    try:
        signature = inspect.signature(run)
    except (TypeError, ValueError):  # a callable that does not say
        return
    tensors = ("problem", *OPS[op].inputs, *(() if returns else OPS[op].outputs))
    options = (*OPS[op].options, *(("workspace",) if workspace else ()))
    try:
        signature.bind(*tensors, **dict.fromkeys(options))
    except TypeError as error:
        takes = ", ".join((*tensors, *(("*", *options) if options else ())))
        raise OptionError(
            f"an implementation of {op} is called as run({takes}), which {getattr(run, '__name__', run)!s}"
            f"{signature} does not take: {error}"
        ) from None


def _nothing(device: str) -> None:
    pass


def _default(found: Implementation, problem: Problem, math: str, flags: tuple[str, ...]) -> None:
    return None


#: `tuner(default, problem, math, flags)` gives what was measured to be faster than the default here, or None;
#: `convkit.tuned` puts it here.
tuner: Callable[[Implementation, Problem, str, tuple[str, ...]], Implementation | None] = _default

#: Adds what convkit ships for a device; `convkit.discovery` puts it here.
finder: Callable[[str], None] = _nothing


def builtin(device: str | None = None) -> None:
    """Add what convkit ships for a device, or for all, unless that has been done.

    For CUDA only where it may be asked for: a first call on a CPU need not wait for the kernels' headers.
    """
    if not _loaded.issuperset(wanted := DEVICES if device is None else (device,)):
        with _LOCK:
            for one in wanted:
                if one not in _loaded:
                    finder(one)
                    _loaded.add(one)


@contextlib.contextmanager
def whole() -> Iterator[dict[tuple[str, str, str, str], Implementation]]:
    """All that is registered, for a block that adds to it: if the block fails, nothing of it is left."""
    before = dict(_IMPLEMENTATIONS)
    try:
        yield before
    except BaseException:
        with _LOCK:
            _IMPLEMENTATIONS.clear()
            _IMPLEMENTATIONS.update(before)
            changed()
        raise


@contextlib.contextmanager
def added(these: Iterable[Implementation]) -> Iterator[None]:
    """Implementations that are registered for a block alone."""
    builtin()
    with _LOCK:
        before = dict(_IMPLEMENTATIONS)
    try:
        for one in these:
            add(one)
        yield
    finally:
        with _LOCK:
            _IMPLEMENTATIONS.clear()
            _IMPLEMENTATIONS.update(before)
            changed()


def since(before: dict[tuple[str, str, str, str], Implementation]) -> list[Implementation]:
    """What has been registered since `whole` gave this."""
    return [i for key, i in _IMPLEMENTATIONS.items() if before.get(key) is not i]


def implementations(
    op: str | None = None, *, device: str | None = None, layout: str | None = "NCHW"
) -> list[Implementation]:
    """The registered implementations, in the order in which dispatch prefers them.

    Parameters
    ----------
    op : str, optional
        Only those of this op.
    device : {"cpu", "cuda"}, optional
        Only those for this device.
    layout : str, optional
        Only those that compute in this layout; by default the layout of users' arrays, None for all.
    """
    if op is not None and op not in OPS:
        raise unknown("op", op, OPS)
    if device not in (None, *DEVICES):
        raise unknown("device", device, DEVICES)
    if layout is not None:
        layouts.declared(layout)
    builtin(device)
    global _listed
    registered = list(_IMPLEMENTATIONS.values())
    if _listed[0] != registered:  # by identity first: a microsecond
        _listed = registered, {}
    key = op, device, layout
    if (found := _listed[1].get(key)) is None:
        found = _listed[1][key] = _in_order(registered, *key)
    return list(found)


#: What was registered when lists of implementations were made, and the lists: every call of an op needs one.
_listed: tuple[list[Implementation], dict[tuple[str | None, ...], list[Implementation]]] = [], {}


def _in_order(
    registered: list[Implementation], op: str | None, device: str | None, layout: str | None
) -> list[Implementation]:
    order = list(OPS)
    found = [
        i
        for i in registered
        if op in (None, i.op)
        and device in (None, i.device)
        and (layout is None or layouts.same(layout, i.layout))
    ]
    return sorted(found, key=lambda i: (order.index(i.op), i.device, -i.rank, i.name, i.layout))


@dataclass(frozen=True)
class Choice:
    """What `use` has set.

    Attributes
    ----------
    names : tuple of (str, str)
        Names of implementations by op.
    max_error : float, optional
        The largest declared error, where `use` has set one; see `limit`.
    checked : bool
        Whether only what has passed the gate may run.
    tuned : bool
        Whether what `convkit tune` has found runs in the place of the default.
    """

    names: tuple[tuple[str, str], ...] = ()
    max_error: float | None = None
    checked: bool = False
    tuned: bool = True

    def limit(self, math: str) -> float:
        """The largest declared error for that arithmetic: what `use` has set, else what it comes with."""
        if self.max_error is not None:
            return self.max_error
        return 1e-3 if math == "tf32" else 1e-5


#: The choice where `use` has set none.
DEFAULT = Choice()
_choice: ContextVar[Choice] = ContextVar("convkit_choice", default=DEFAULT)


def current_choice() -> Choice:
    """The choice in force here; hashable, so that a plan can be kept for it."""
    return _choice.get()


@contextlib.contextmanager
def use(
    *, max_error: float | None = None, checked: bool | None = None, tuned: bool | None = None, **names: str
) -> Iterator[None]:
    """Choose implementations by name inside a `with` block.

    Parameters
    ----------
    max_error : float, optional
        Largest declared relative RMS error that dispatch may pick. By default 1e-5; 1e-3 for what computes in
        tf32, where a call accepts that.
    checked : bool, optional
        Whether only implementations may run that have passed the gate as they are now, on this engine and in
        all cases; a quick check is not enough. What convkit ships counts as checked.
    tuned : bool, optional
        False: what `convkit tune` has kept for this machine does not count; the highest rank that accepts a
        problem runs.
    **names
        `op=name`, such as `conv2d_fprop="reference"`. A name that does not fit a problem is an error
        when the op is called, never silently replaced.

    Raises
    ------
    NotChecked
        If `checked`, and one of the names has not passed; the message has the command that checks it.

    Examples
    --------
    >>> with ck.use(conv2d_fprop="reference"):
    ...     y = ck.conv2d_fprop(x, w)
    """
    for op, name in names.items():
        if op not in OPS:
            raise unknown("op or setting", op, [*OPS, "checked", "max_error", "tuned"])
        known = {i.name for i in implementations(op, layout=None)}
        if name not in known:
            raise unknown(f"implementation of {op}", name, known)
    current = _choice.get()
    checked = current.checked if checked is None else true_or_false("checked", checked)
    if checked:
        require_checked(names)
    bound = current.max_error if max_error is None else finite("max_error", max_error, 0)
    tuned = current.tuned if tuned is None else true_or_false("tuned", tuned)
    token = _choice.set(Choice(tuple({**dict(current.names), **names}.items()), bound, checked, tuned))
    try:
        yield
    finally:
        _choice.reset(token)


def _layouts(found: Iterable[Implementation]) -> list[str]:
    """The layouts that users' tensors may have, of implementations: not those that a plan alone gives."""
    return sorted({i.layout for i in found if ">" not in i.layout})


def require_checked(names: Mapping[str, str]) -> None:
    """Refuse a name, by op, of which no implementation has passed the gate in all cases.

    Raises
    ------
    NotChecked
    """
    for op, name in names.items():
        reasons = [gate.lacking(i, full=True) for i in implementations(op, layout=None) if i.name == name]
        if reasons and None not in reasons:
            raise NotChecked(str(reasons[0]))


def select(
    op: str,
    problem: Problem,
    *,
    device: str = "cpu",
    impl: str | None = None,
    math: str | None = None,
    layout: str = "NCHW",
    flags: Iterable[str] = (),
) -> Implementation:
    """The implementation that runs a problem: the named one, else the tuned one, else the highest rank.

    Parameters
    ----------
    op : str
    problem : Problem
    device : {"cpu", "cuda"}
    impl : str, optional
        Name; the default is what `use` has chosen, else none.
    math : {"fp32", "tf32", "fp32-emulated"}, optional
        Coarsest arithmetic accepted for float32 data. None means "fp32".
    layout : str
        Of the tensors that are given; as `Implementation.layout`.
    flags : iterable of str
        Flags of the op that are given: what does not take them is passed over.

    Raises
    ------
    OptionError
        If `impl` or `math` is not known.
    NoImplementation
        If none accepts the problem; each one's reason is in the message.
    """
    if math is not None and math not in MATH:
        raise unknown("math", math, MATH)
    choice = _choice.get()
    name = impl if impl is not None else dict(choice.names).get(op)
    candidates = implementations(op, device=device, layout=layout)
    if name is not None:
        named = [i for i in candidates if i.name == name]
        if not named:
            where = device if layout == "NCHW" else f"{device} in {layout}"
            error = unknown(f"implementation of {op} for {where}", name, (i.name for i in candidates))
            if device == "cpu" and any(
                i.name == name for i in implementations(op, device="cuda", layout=layout)
            ):
                error = OptionError(
                    f"the implementation {name!r} is a CUDA kernel: it takes arrays on a GPU, or NumPy's "
                    "inside `with convkit.emulate():`"
                )
            elif elsewhere := _layouts(
                i for i in implementations(op, device=device, layout=None) if i.name == name
            ):
                error = OptionError(
                    f"the implementation {name!r} takes tensors in {' or '.join(elsewhere)}, not in {layout}"
                )
            raise error
        # Naming an implementation accepts the error that it declares.
        candidates = named
    reasons = []

    def refusal(candidate: Implementation) -> str | None:
        max_error = 1.0 if name is not None else choice.limit(candidate.math)
        reason = candidate.refusal(problem, math, max_error, flags)
        return gate.lacking(candidate, full=True) if reason is None and choice.checked else reason

    for candidate in candidates:
        reason = refusal(candidate)
        if reason is None:
            if name is None and choice.tuned:
                faster = tuner(candidate, problem, math or "fp32", tuple(flags))
                if faster is not None and refusal(faster) is None:
                    return faster
            return candidate
        reasons.append(f"\n  {candidate.name}: {reason}")
    where = device if layout == "NCHW" else f"{device}, in {layout},"
    others = implementations(op, device=device, layout=None) if name is None else ()
    if elsewhere := _layouts(i for i in others if refusal(i) is None):
        reasons.append(f"\n  one takes it in {' or '.join(elsewhere)} (convkit.layouts)")
    raise NoImplementation(
        f"no implementation for {where} takes {problem}" + ("".join(reasons) or "; none is registered")
    )
