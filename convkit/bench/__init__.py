"""Benchmarks that can be believed: what is measured, by what clock, beside what, and what it is worth.

    work, steps, geometries    what is measured: ops of layers, whole networks, other convolutions
    status                     which kernels a GPU has run
    measure/                   the timing loop, clocks, fresh inputs, checks and defences, statistics
    peers/                     other libraries, cuDNN among them
    results/                   a run and its result file; one that is verified, compared, measured again
    show/                      tables, charts, pictures, the page
    command                    `convkit bench`, `verify`, `compare`, `report`

Each line may import those above it; `peers` and `measure` stand side by side, but entries are `measure`'s.
Importing this imports none of them.
"""
