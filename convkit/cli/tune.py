"""`convkit tune`: measure which implementation is the fastest for each call, and keep the choice."""

from __future__ import annotations

import argparse
import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from ..options import integer

if TYPE_CHECKING:
    from ..tune.gpus import Gpu
    from ..tune.jobs import Job
    from ..tune.run import Tuner
    from ..tuned import Store

DESCRIPTION = """\
Measure, for each op call of a network's training step, which implementation is the fastest here, and on a
GPU with which tile. Each candidate passes the gate first. What is faster than the default beyond doubt is
kept in a file, and runs from then on wherever nothing is named. CONVKIT_TUNED=off, or ck.use(tuned=False),
does without.

  convkit tune                                         AlexNet's step, N = 16, float32
  convkit tune --preset 2012 --batch 128 --device cuda
  convkit tune --layers conv3,conv4 --directions fwd,dgrad
  convkit tune --op lrn_fprop                          the calls of one op
  convkit tune --conv 8,64,56,56,128,3,3,stride=2,pad=1
  convkit tune --dry-run                               what would be tried
  convkit tune --why conv3.dgrad                       what was tried, and why it was chosen
  convkit tune --forget                                all that is kept
"""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "tune",
        help="measure which implementation is the fastest for each call, and keep the choice",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what is tuned")
    what.add_argument("--preset", default="paper", help="paper (default), 2012, caffe, owt or small")
    what.add_argument("--layers", metavar="A,B", help="only these, such as conv2,pool1")
    what.add_argument("--directions", metavar="A,B", help="of fwd,dgrad,wgrad,bgrad,update (default: all)")
    what.add_argument("--op", action="append", default=[], help="only this op; repeatable")
    what.add_argument("--conv", action="append", default=[], metavar="N,C,H,W,K,R,S[,stride=2,pad=1,...]",
                      help="a convolution of your own, in place of the network; repeatable")  # fmt: skip
    what.add_argument("--batch", default="16", metavar="N,M", help="images (default: 16)")
    what.add_argument("--dtype", default="float32", metavar="A,B", help="storage (default: float32)")
    what.add_argument("--math", default="fp32", help="coarsest float32 arithmetic (default: fp32)")
    what.add_argument("--layout", default="NCHW", metavar="LAYOUT",
                      help='with --conv: of its tensors, such as "NHWC, KRSC" (default: NCHW)')  # fmt: skip
    what.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda where a GPU is found)")
    what.add_argument("--kernel", action="append", default=[], metavar="FILE",
                      help="a CUDA kernel file of your own, among the candidates; repeatable")  # fmt: skip

    how = parser.add_argument_group("how")
    how.add_argument("--quick", action="store_true", help="few rounds and short turns")
    how.add_argument("--rounds", type=int, help="turns of the default and its best rivals (default: 12)")
    how.add_argument("--threads", type=int, help="of the CPU's kernels (default: the CPUs of this process)")
    how.add_argument("--jobs", type=int, help="processes that compile (default: one for each CPU)")
    how.add_argument("--again", action="store_true", help="measure anew what is kept")

    out = parser.add_argument_group("what is kept")
    out.add_argument(
        "--file", metavar="FILE", help="in this file (default: CONVKIT_TUNED, else among the caches)"
    )
    out.add_argument("--dry-run", action="store_true", help="print what would be tried, and measure nothing")
    out.add_argument("--why", metavar="CALL", help="explain a choice: conv3.dgrad, or an op")
    out.add_argument(
        "--forget",
        action="store_true",
        help="take out what was chosen for the calls that are named, else all",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune, or say what would be tried, why something was chosen, or forget."""
    from ..bench.command import use_threads
    from ..bench.measure.conditions import device_of
    from ..devices import gpu_found, on_gpu
    from ..tune.gpus import H200, here

    if sum(map(bool, (args.dry_run, args.why, args.forget))) > 1:
        raise OptionError("--dry-run, --why and --forget are for one run each")
    use_threads(args.threads)
    wanted = args.device or ("cuda" if gpu_found() else "cpu")
    if args.dry_run and wanted.startswith("cuda") and not gpu_found():
        print(f"no GPU was found: what follows is for an {H200.name}")
        return _run_on("cuda", args, H200)
    if args.why and wanted.startswith("cuda") and not gpu_found():
        raise OptionError("no GPU was found: what is kept is kept for a GPU, and read there")
    device = device_of(args.device)
    with contextlib.nullcontext() if device == "cpu" else on_gpu(device, "--device cpu tunes the CPU's"):
        gpu = here() if device != "cpu" else H200
        return _run_on(device.partition(":")[0], args, gpu)


def _run_on(device: str, args: argparse.Namespace, gpu: Gpu) -> int:
    from ..discovery import register
    from ..tune import show
    from ..tune.candidates import of_job
    from ..tune.jobs import at
    from ..tune.measure import settings_of
    from ..tune.run import Tuner

    for file in args.kernel:
        if not file.endswith(".cu"):
            raise OptionError(
                f"--kernel takes CUDA kernel files (.cu), not {file!r}: `convkit bench` times others"
            )
        register(file)
    store = _store(args.file, writes=not (args.dry_run or args.why))
    if args.forget and not _named(args):
        count = len(store.choices)
        store.put(dict.fromkeys(store.choices), dict.fromkeys(store.gates))
        print(f"{store.path}: {count} choices forgotten")
        return 0
    jobs = _jobs(device, args)
    if args.why:
        jobs = at(jobs, args.why)
    if args.dry_run:
        for job in jobs:
            print(show.plan(job, of_job(job, gpu), every=len(jobs) <= 3) + "\n")
        print(f"{len(jobs)} calls")
        return 0
    if args.rounds is not None and not 1 <= args.rounds < 10**6:
        raise OptionError(f"--rounds must be at least 1 and below 1e6, not {args.rounds}")
    if args.jobs is not None:
        integer("--jobs", args.jobs, 1)
    settings = settings_of(args.quick, args.rounds)
    tuner = Tuner(store, settings, device, gpu, args.again, args.jobs)
    if args.why:
        return _why(tuner, jobs)
    if args.forget:
        known = [tuner.key(job) for job in jobs if tuner.key(job) in store.choices]
        store.put(dict.fromkeys(known))
        print(f"{store.path}: {len(known)} choices forgotten")
        return 0
    return _tune(tuner, jobs)


def _named(args: argparse.Namespace) -> bool:
    """Whether some calls were named."""
    usual = {"preset": "paper", "batch": "16", "dtype": "float32", "math": "fp32"}
    given = [getattr(args, name) != value for name, value in usual.items()]
    return any((*given, args.layers, args.directions, args.op, args.conv))


def _store(file: str | None, writes: bool) -> Store:
    """What is kept, for this run. A file that is not understood is an error: it would be overwritten."""
    from .. import tuned

    path = Path(file).expanduser().absolute() if file else tuned.default_path()
    if path is None and writes:
        raise OptionError(f"{tuned.VARIABLE}={tuned.OFF}: name the file that keeps the choices, --file FILE")
    try:
        return tuned.Store.read(path)
    except OptionError as error:
        remedy = "remove it, or name another file" if path is not None and path.is_file() else "name a file"
        raise OptionError(f"{error}; {remedy}: --file FILE") from None


def _jobs(device: str, args: argparse.Namespace) -> list[Job]:
    from ..bench import command, work
    from ..registry import MATH
    from ..tune import jobs

    words, batches = command._words, command._batches(args.batch)
    layers, directions = words("--layers", args.layers), words("--directions", args.directions)
    dtypes = words("--dtype", args.dtype) or ("float32",)
    work.check_names("dtype", dtypes, work.ALL_DTYPES)
    work.check_names("op", args.op, work.OPS)
    work.check_names("math", (args.math,), MATH)
    if args.conv:
        if layers or args.op:
            raise OptionError("--conv stands in the place of the network: it takes neither --layers nor --op")
        wanted = work.Wanted(directions=directions, convs=tuple(args.conv), dtypes=dtypes, math=args.math)
        return _possible(jobs.of_items(work.items(wanted), device, args.layout))
    if args.layout != "NCHW":
        raise OptionError("--layout is for --conv: a network's layouts are those of its plan")
    found: list[Job] = []
    for dtype in dtypes:
        for batch in batches:
            found += jobs.of_network(args.preset, batch, dtype, args.math, device)
    inside = {job.item.op for job in found}
    outside = [op for op in args.op if op not in inside]
    if outside and not layers:  # ops that no AlexNet has: on the layers that their own cases name
        more = [
            i for op in outside for d in dtypes for n in batches for i in work.of_cases(op, n, d, args.math)
        ]
        rest = [op for op in args.op if op in inside]
        found = (jobs.only(found, (), directions, rest) if rest else []) + jobs.of_items(more, device)
        return _possible(found)
    return _possible(jobs.only(found, layers, directions, args.op))


def _possible(found: list[Job]) -> list[Job]:
    """Those that something runs: a network in 16 bits may lack a kernel here and there."""
    possible = [job for job in found if job.default() is not None]
    if not possible:
        raise OptionError(f"nothing to tune: no implementation takes {found[0].item.text}")
    return possible


def _why(tuner: Tuner, jobs: list[Job]) -> int:
    from ..tune import show
    from ..tune.candidates import of_job

    shown = []
    for job in jobs:
        entry = tuner.entry(job)
        if entry is None:
            shown.append(
                f"nothing was tuned for this call\n\n{show.plan(job, of_job(job, tuner.gpu), every=True)}"
            )
            continue
        text = show.why(entry)
        if tuner.kept(job) is None:
            text += "\nit no longer holds: the candidates, or their sources, are others now"
        shown.append(text)
    print(f"\n\n{'-' * 80}\n".join(shown))
    return 0


def _tune(tuner: Tuner, jobs: list[Job]) -> int:
    """Tune them; a polite kill is a Ctrl-C. What was measured by then is kept."""
    from .. import tuned
    from ..bench.command import Progress
    from ..tune import show

    def terminate(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    progress, entries, kept = Progress(), [], 0
    tuner.say = progress.say
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        progress.begin(len(jobs))
        for job in jobs:
            entry, now = tuner.tune(job)
            entries.append(entry)
            kept += not now
            if progress.bar is not None:
                progress.bar.update(1)
    except KeyboardInterrupt:
        print(f"interrupted: {len(entries)} of {len(jobs)} calls are kept; the same command goes on")
    finally:
        signal.signal(signal.SIGTERM, previous)
        progress.close()
        tuned.reload()
    if entries:
        print(show.results(entries))
    if kept:
        print(f"{kept} of them were kept from before; --again measures them anew")
    print(f"kept in {tuner.store.path}")
    return 0 if len(entries) == len(jobs) else 130
