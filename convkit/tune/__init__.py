"""The tuner: which implementation, with which tile, is the fastest for a call on this machine.

`jobs` says what is tuned: the op calls of a network's plan, or single ones. `candidates` lists what could run
a job and leaves out what need not be tried; `compiling` makes machine code of the rest, in parallel.
`measure` puts each one through the gate and lets them take turns under the bench's clock. `run` goes through
jobs and keeps each result at once. `convkit.tuned` reads what it kept.
"""
