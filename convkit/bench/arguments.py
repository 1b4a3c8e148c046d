"""What `convkit bench` takes on the command line."""

from __future__ import annotations

import argparse

DESCRIPTION = """\
Time ops of this machine's kernels, each checked before, during and after, in turns with other libraries.

  convkit bench                                        AlexNet's layers, N = 16, float32
  convkit bench --quick                                a first look: a minute or two
  convkit bench --layers conv2,conv4 --batch 1,16 --directions fwd,dgrad
  convkit bench --op lrn_fprop                         AlexNet's cases of an op
  convkit bench --conv 8,64,56,56,128,3,3,stride=2,pad=1
  convkit bench my_kernel.py                           this file's implementation among the rest
  convkit bench --step --forward --batch 1,16          whole training steps, and forward passes
  convkit bench --memory --first-call                  what a process needs, and its first calls
  convkit bench --geometries                           convolutions of other networks
  convkit bench --json run.json                        written after every row; --resume goes on
"""


def add(p: argparse.ArgumentParser) -> None:
    """Add all of it to a parser."""
    what = p.add_argument_group("what is measured")
    what.add_argument(
        "kernels",
        nargs="*",
        metavar="FILE",
        help="a .py, .cpp or .cu file with implementations of your own, as by --kernel",
    )
    what.add_argument("--net", default="alexnet", help="alexnet (default)")
    what.add_argument("--preset", default="paper", help="paper (default), 2012, caffe, owt or small")
    what.add_argument("--layers", metavar="A,B", help="only these, such as conv2,norm1+pool1")
    what.add_argument(
        "--directions", metavar="A,B", help="of fwd,dgrad,wgrad,bgrad,update (default: the first three)"
    )
    what.add_argument("--op", action="append", default=[], help="only this op; repeatable")
    what.add_argument("--conv", action="append", default=[], metavar="N,C,H,W,K,R,S[,stride=2,pad=1,...]",
                      help="a convolution of your own; also dilation=, groups=; repeatable")  # fmt: skip
    what.add_argument(
        "--geometries", action="store_true", help="30 convolutions of other networks, and odd ones"
    )
    what.add_argument("--step", action="store_true", help="whole training steps")
    what.add_argument("--forward", action="store_true", help="whole forward passes")
    what.add_argument(
        "--memory", action="store_true", help="the most memory of a training step, in a process of its own"
    )
    what.add_argument(
        "--first-call", action="store_true", help="an op's first call in a process, minus a later one"
    )
    what.add_argument("--batch", default="16", metavar="N,M", help="images (default: 16)")
    what.add_argument("--dtype", default="float32", metavar="A,B", help="storage (default: float32)")
    what.add_argument(
        "--math",
        default="fp32",
        help="coarsest float32 arithmetic: fp32 (default), fp32-emulated, tf32; marks say where finer runs",
    )

    part = p.add_argument_group("what takes part")
    part.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda where a GPU is found)")
    part.add_argument("--against", metavar="A,B", help="of torch,onnxruntime,jax,cudnn,"
                      "torch-compile, or none (default: those installed, except torch-compile)")  # fmt: skip
    part.add_argument("--kernel", action="append", default=[], metavar="FILE",
                     help="a .py, .cpp or .cu file with implementations of your own; repeatable")  # fmt: skip
    part.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="the longest that one call of such a file may take (default: 60)",
    )
    part.add_argument(
        "--memory-limit",
        type=float,
        default=4.0,
        metavar="GIB",
        help="that its process may take beyond its tensors (default: 4)",
    )
    part.add_argument(
        "--in-process",
        action="store_true",
        help="run such files in this process, for a debugger: what they do to it is not contained",
    )
    part.add_argument("--layouts", default="usual", choices=("usual", "all"),
                     help="of convkit's implementations: NCHW and a network's own, or all")  # fmt: skip
    part.add_argument("--reference", action="store_true", help="the float64 reference too: slow")

    how = p.add_argument_group("how")
    how.add_argument("--quick", action="store_true", help="few rounds; alone, some layers forward at N = 2")
    how.add_argument("--cache", default="cold", help="cold (default) or warm, before each call")
    how.add_argument("--rounds", type=int, help="turns of each entry; fewer than 6 give no verdict")
    how.add_argument(
        "--budget", type=float, metavar="SECONDS", help="of one entry in one row (default: 30; quick: 3)"
    )
    how.add_argument(
        "--turn", type=float, metavar="SECONDS", help="that a turn of short calls is filled with"
    )
    how.add_argument("--pause", type=float, metavar="SECONDS", help="of rest before each turn")
    how.add_argument("--threads", type=int, help="of everyone (default: the CPUs of this process)")
    how.add_argument("--seed", type=int, default=0, help="of the order of turns (default: 0)")
    how.add_argument("--no-gate", action="store_true", help="leave out `convkit check`'s cases; results "
                     "at the timed size are checked in any case")  # fmt: skip

    out = p.add_argument_group("results")
    out.add_argument(
        "--json", metavar="FILE", help="the result file, written after every row ('-': stdout, at the end)"
    )
    out.add_argument("--resume", action="store_true", help="go on with the result file of --json")
    out.add_argument("--overwrite", action="store_true", help="replace the result file of --json")
    out.add_argument("--html", metavar="FILE", help="a report, one self-contained page")
    out.add_argument("--picture", metavar="FILE", help="a PNG (needs matplotlib)")
    out.add_argument("--summary", action="store_true", help="print the closing table only")
