"""Benchmarks that can be believed: what is measured, by what clock, against whom, and what it is worth.

`timing.race` lets entries take turns; `trial` sees to it that none of them is paid for work it did not
do; `stats` says what the samples show; `conditions` what state the machine was in meanwhile. What is
measured is in `work`, other libraries are in `peers`, a run's record is a `capsule`.

Importing this imports none of them.
"""
