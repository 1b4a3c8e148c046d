"""What is done so that only the work that was asked for is timed.

====================  ===================================================================================
defence               what it stops
====================  ===================================================================================
gate                  wrong results in small and awkward cases: `convkit.check`, once per implementation
before, after         wrong results at the timed size, of every element; other bits for the same inputs
poison                work that is skipped, or done in part: outputs are full of NaN before each call
fresh                 results that are kept, or moved by some elements: no two calls of convkit's own have the
                      same inputs, nor any that are a shifted copy of others (but labels, probabilities and
                      positions in windows, which are moved by whole rows)
looks                 being right only while it is checked: a call of each turn, chosen at random, is
                      compared with float64, in a part of its outputs chosen at random; that part is copied
                      as soon as the call returns, so that work which ends later comes too late
glance                returning before the work is done: outputs are read at once, and again later
inputs                changing the inputs, for the next entry or for itself
bands                 writing outside the outputs
wall                  on a GPU: work that the events do not see; the wall clock must agree
device                on a GPU: events that were replaced, lines of L2 that survive the flush
held                  on a GPU: work on another stream that is over before the one that is timed goes on
ceilings              figures that beat what the machine was measured to do
====================  ===================================================================================

For each there is a candidate in tests/bench/cheats that this defence alone catches; with the defences that
catch it switched off, it gets through (tests/bench/test_bench_core.py). Other libraries are compared in the
same way, but their own copies of the inputs are renewed once a turn only.

What a candidate could do to the process that measures (its clock, its hooks, its problems, its other
implementations, what it holds against a declared error) needs no defence: on a CPU a user's file runs in a
process of its own (`contained`), which gets inputs and outputs and no answers, and stands still unless it is
asked. Such an entry is marked "contained".

A user's CUDA kernel on a GPU, and what was registered by a program that calls the bench, run in this process
and are marked "not contained". Their source must be read.
"""

from __future__ import annotations

#: Names of the defences that are switched off; for the tests of the defences.
_off: frozenset[str] = frozenset()


def on(defence: str) -> bool:
    """Whether a defence, by its name in the table above, is switched on."""
    return defence not in _off
