"""Verdicts in words: a table, and for each implementation what became of it, why, and what to do next."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .causes import cause
from .elements import common
from .verdicts import Verdict

#: Failing cases that are shown, at most and if they all fail alike; lines of each one's reason.
_SHOWN, _ALIKE, _LINES = 3, 2, 6
#: Of a line of a block: what stands before the text, and the width of both.
_INDENT, _WIDTH = 12, 110
#: How a name of a case begins that the user has asked for.
LIKE = "like "


def by_implementation(verdicts: Iterable[Verdict]) -> dict[tuple[str, str, str], list[Verdict]]:
    """The verdicts of each implementation, by op, name and device."""
    found: dict[tuple[str, str, str], list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault((verdict.op, verdict.implementation, verdict.device), []).append(verdict)
    return found


def outcome(verdicts: Sequence[Verdict]) -> str:
    """The verdict on one implementation: "passes", "FAILS", or "not run" where nothing is known about it."""
    kinds = {v.outcome for v in verdicts}
    if "FAILS" in kinds:
        return "FAILS"
    # An empty batch, for which nothing is called, and a launch that is not made say too little.
    judged = (v.outcome == "passes" and not v.unrun and not (v.facts and _work(v) == 0) for v in verdicts)
    return "passes" if any(judged) else "not run"


def complete(verdicts: Sequence[Verdict]) -> bool:
    """Whether one implementation has a verdict on all that it takes: nothing that it needs was missing."""
    return outcome(verdicts) != "not run" and not any(v.missing for v in verdicts)


def summary(verdicts: Iterable[Verdict]) -> str:
    """A table with a row for each implementation: cases passed, worst error, verdict."""
    from tabulate import tabulate

    table: list[list[Any]] = []
    for (op, name, _), mine in by_implementation(verdicts).items():
        run = [v for v in mine if not v.declined]
        passed = sum(v.ok for v in run)
        wide = [v for v in run if v.dtype == "float32"] or run  # 16-bit storage alone brings a ratio near 1
        rms = max((v.rms for v in wide if v.rms == v.rms), default=float("nan"))
        table.append(
            [
                *(op, name, f"{passed}/{len(run)}", len(mine) - len(run) or ""),
                f"{max((v.ratio for v in wide), default=0):.3g}" if run else "",
                f"{rms:.1e}" if rms == rms else "",
                outcome(mine),
            ]
        )
    headers = ["op", "implementation", "passed", "declined", "error/bound", "rms", "verdict"]
    return tabulate(
        table, headers, disable_numparse=True, colalign=("left",) * 2 + ("right",) * 4 + ("left",)
    )


# ---------------------------------------------------------------------------------------------------
# One implementation
# ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Commands:
    """What a user may type about an implementation.

    Attributes
    ----------
    target : str
        Its file, or its name, as `convkit check` takes it.
    options : str
        The options that it was checked with.
    likes : str
        Those that added sizes to the cases.
    file : bool
        Whether `target` is a file.
    runs : bool
        Whether it runs here other than under the emulator, so that it can be timed.
    engine : str
        The options that chose what ran it; the sanitizer is the emulator's.
    """

    target: str
    options: str = ""
    likes: str = ""
    file: bool = False
    runs: bool = True
    engine: str = ""

    def check(self, more: str = "") -> str:
        """The command that checks it again."""
        engine = "" if "--sanitize" in more else self.engine
        return " ".join(word for word in ("convkit check", self.target, self.options, engine, more) if word)

    def after(self) -> str:
        """What comes after it has passed."""
        if not self.file:
            return ""
        bench, swap = f"convkit bench {self.target}", f"convkit swap {self.target}"
        return f"{bench} ; {swap}" if self.runs else f"{swap} ; on a GPU: {bench}"


def block(verdicts: Sequence[Verdict], commands: Commands | None = None) -> str:
    """What became of one implementation: verdict, cause, elements, failing cases, what to do next.

    Parameters
    ----------
    verdicts : sequence of Verdict
        Of this one implementation.
    commands : Commands, optional
        Without it nothing is suggested.
    """
    first, word = verdicts[0], outcome(verdicts)
    failed = [v for v in verdicts if not v.ok]
    run = [v for v in verdicts if not v.declined]
    name = f"{first.op} {first.implementation!r}"
    rows: list[tuple[str, str]] = []
    if word == "not run":
        title = f"{name} was not run: no verdict"
        rows += [("because", reason) for reason in dict.fromkeys(_why_not_run(verdicts))]
        return _laid_out(title, rows)
    if word == "passes":
        title = f"{name} passes {len(run)} cases"
    else:
        title = f"{name} FAILS {len(failed)} of {len(run)} cases"
        rows += _why(verdicts, failed)
    rows += _own_sizes(verdicts)
    rows += _not_run(verdicts)
    if failed or len(run) < len(verdicts) // 2:
        rows += _declined(verdicts)
    rows += _sanitizer(verdicts, failed, commands)
    if commands is not None:
        rows += _next(failed, verdicts, commands)
    return _laid_out(title, rows)


def _why(verdicts: Sequence[Verdict], failed: list[Verdict]) -> list[tuple[str, str]]:
    rows = []
    if text := cause(verdicts).text:
        rows.append(("cause", text))
    rows += [("elements", line) for line in common(v.places for v in failed)]
    rows += [("line", text) for text in _lines(failed)[:3]]
    shown = _shown(failed)
    for verdict in shown:
        lines = verdict.reason.splitlines()
        if len(lines) > _LINES:  # the last one may say what was not tried
            lines = [*lines[: _LINES - 1], lines[-1]]
        reason = "\n".join(f"    {row}" for row in lines)
        rows.append(("case", f"{verdict.dtype}, {verdict.case}\n{reason}"))
    if more := len(failed) - len(shown):
        rows.append(("", f"{more} more cases fail; --json PATH writes all of them"))
    return rows


#: How the emulator's report gives a place.
_PLACE = re.compile(r"KernelError: \w+:? ([^\n]+)\n\s*at (.+?:\d+)")


#: How the reason gives the line of a Python candidate that raised something.
_RAISED = re.compile(r"raised (?:[\w.]*\.)?_?(\w+)\b.*\((\S+\.py:\d+)\)", re.DOTALL)


def _lines(failed: Sequence[Verdict]) -> list[str]:
    """Lines of a candidate that are at fault: of the sanitizer's reports, of what raised something."""
    told = {v.line.partition(",")[0]: v.line for v in failed if v.line}
    stopped = Counter(
        f"{m[2]}: {m[1]}" for v in failed if (m := _PLACE.search(v.reason) or _RAISED.match(v.reason))
    )
    more = [
        f"{place} ({count} case{'s' if count > 1 else ''})"
        for place, count in stopped.most_common()
        if place not in told
    ]
    return [*told.values(), *more]


def _shown(failed: list[Verdict]) -> list[Verdict]:
    """Failing cases to look at first: those of one's own sizes, then such as fail for different reasons."""
    kinds: dict[str, Verdict] = {}
    for verdict in failed:
        # The first words say what kind of a reason it is.
        kinds.setdefault(" ".join(w for w in verdict.reason.split()[:8] if w.isalpha())[:40], verdict)
    own = [v for v in failed if v.case.startswith(LIKE)][:1]
    first = sorted((*kinds.values(), *failed), key=lambda v: _work(v) > 100_000)
    order = {id(v): v for v in (*own, *(v for v in first if v in kinds.values()), *first)}
    # What stopped it all, and stands for the cases behind, is shown in any case.
    most = min(_SHOWN, max(_ALIKE, len(kinds) + len(own)))
    chosen = [*list(order.values())[:most], *(v for v in failed if not v.facts)]
    return [v for v in failed if any(v is c for c in chosen)]


def _own_sizes(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """What became of the sizes that the user has asked for."""
    sizes: dict[str, list[Verdict]] = {}
    for v in verdicts:
        if (name := str(v.facts.get("case", ""))).startswith(LIKE):
            sizes.setdefault(name, []).append(v)
    rows = []
    for name, mine in sizes.items():
        worst = {
            word: [v for v in mine if v.outcome == word] for word in dict.fromkeys(v.outcome for v in mine)
        }
        parts = []
        for word, several in worst.items():
            dtypes = ", ".join(dict.fromkeys(v.dtype for v in several))
            ratio = max(v.ratio for v in several)
            told = f" (error/bound {ratio:.2g})" if word == "passes" else ""
            told = f": {several[0].reason}" if several[0].declined else told
            parts.append(f"{word} in {dtypes}{told}")
        rows.append(("sizes", f"{name.removeprefix(LIKE)} {'; '.join(parts)}"))
    return rows


def _why_not_run(verdicts: Sequence[Verdict]) -> Iterable[str]:
    lacking = [v for v in verdicts if v.missing and v.case != "all cases"]
    return [v.reason for v in lacking or verdicts][:3]


def _not_run(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    lacking = [v for v in verdicts if v.missing]
    if not lacking:
        return []
    return [("not run", f"{len(lacking)} cases: {lacking[0].reason}")]


def _declined(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """Why cases were not run: the reasons most often given, without their numbers."""
    reasons = Counter(v.reason.partition(";")[0] for v in verdicts if v.outcome == "declines" and v.facts)
    return [("declined", f"{count} of its cases: {reason}") for reason, count in reasons.most_common(2)]


def _sanitizer(
    verdicts: Sequence[Verdict], failed: list[Verdict], commands: Commands | None
) -> list[tuple[str, str]]:
    """What is known about races and stray accesses, of a CUDA kernel."""
    if verdicts[0].device != "cuda" or _lines(failed):
        return []
    looked = [v for v in verdicts if v.sanitized]
    if not looked and commands and "--engine ptx" in commands.engine:
        return [("sanitizer", "not run: bounds were checked, races and uninitialised reads not looked for")]
    if not looked:
        return [("sanitizer", "not run: races, bounds and uninitialised reads were not looked for")]
    if failed and all(not v.ok for v in looked):
        return [
            (
                "sanitizer",
                f"ran {len(looked)} of the failing cases, and found no race and no access out of bounds",
            )
        ]
    return (
        [("sanitizer", f"watched {len(looked)} cases, and found nothing but what is told above")]
        if failed
        else []
    )


def _next(failed: list[Verdict], verdicts: Sequence[Verdict], commands: Commands) -> list[tuple[str, str]]:
    rows = []
    if failed:
        own = [v for v in failed if v.facts and v.kind != "compile error"]
        if own:
            one = min(own, key=lambda v: (_work(v), v.case))
            more = f"--seed {one.seed} --case {shlex.quote(_short(one, verdicts))}"
            likes = f"{commands.likes} " if one.case.startswith(LIKE) else ""
            rows.append(("replay", commands.check(likes + more)))
    unwatched = verdicts[0].device == "cuda" and not any(v.sanitized for v in verdicts)
    unwatched = unwatched and not _lines(failed)
    if unwatched:
        rows.append(("next", commands.check(f"{commands.likes} --sanitize".strip())))
    elif not failed and (after := commands.after()):
        rows.append(("next", after))
    if unwatched and not failed and (after := commands.after()):
        rows.append(("", f"then {after}"))
    return rows


def _short(verdict: Verdict, verdicts: Sequence[Verdict]) -> str:
    """As much of a case's name as no other case has in its own."""
    others = {v.case for v in verdicts} - {verdict.case}
    name = str(verdict.facts.get("case", ""))
    for text in (name, verdict.case[: verdict.case.find(")") + 1]):
        if len(text) > 3 and text in verdict.case and not any(text in other for other in others):
            return text
    return verdict.case


def _work(verdict: Verdict) -> int:
    """Elements of the first tensors: the smallest case is the easiest to look into."""
    return sum(int(n) for name, n in verdict.facts.items() if name.startswith("elements of"))


#: A line of a compiler's excerpt: "   12 | float x;".
_CODE = re.compile(r"\s*\d* \| ")


def _laid_out(title: str, rows: list[tuple[str, str]]) -> str:
    """The rows below their title, each behind its word; a word that repeats is not repeated."""
    lines, before = [title], ""
    for word, text in rows:
        shown = "" if word == before else word
        for number, row in enumerate(text.splitlines() or [""]):
            head = (f"  {shown}" if number == 0 else "").ljust(_INDENT)
            body = row.strip()
            inner = " " * (_INDENT + len(row) - len(row.lstrip()))
            # A command and a place are not broken: they are there to be copied.
            if word in ("replay", "next", "line", "") or _CODE.match(row):
                lines.append(head + row)
                continue
            lines += textwrap.wrap(
                body,
                _WIDTH,
                initial_indent=head + inner[len(head) :],
                subsequent_indent=inner + ("  " if number else ""),
                break_long_words=False,
                break_on_hyphens=False,
            ) or [head.rstrip()]
        before = word
    return "\n".join(line.rstrip() for line in lines)


def blocks(
    verdicts: Iterable[Verdict],
    commands: Callable[[Verdict], Commands] | None = None,
    *,
    passing: bool = True,
) -> str:
    """A block for each implementation that needs a look.

    Parameters
    ----------
    verdicts : iterable of Verdict
    commands : callable, optional
        Gives the commands for an implementation by one of its verdicts.
    passing : bool
        Those that pass too, and one for each that was not run; else these share one.
    """
    found: list[str] = []
    lacking: dict[str, list[str]] = {}
    for (op, name, _), mine in by_implementation(verdicts).items():
        word = outcome(mine)
        if word == "not run" and not passing:
            why = next(iter(_why_not_run(mine)), "")
            lacking.setdefault(why, []).append(f"{op} {name!r}")
        elif passing or word != "passes" or _own_sizes(mine):
            found.append(block(mine, commands(mine[0]) if commands else None))
    for why, names in lacking.items():
        found.append(_laid_out(f"not run, no verdict: {why}", [("of", f"{', '.join(names)}")]))
    return "\n\n".join(text for text in found if "\n" in text)  # one line: the table has it
