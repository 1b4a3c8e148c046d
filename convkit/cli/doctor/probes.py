"""The table of probes."""

from __future__ import annotations

from . import cpu, cuda, cudnn, driver, environment, packages
from .row import Probe


def probes(imports: bool = False) -> list[tuple[str, Probe, bool]]:
    """In the order of the table: the row's name, its probe, and whether that belongs in a child process."""

    def neighbour(about: tuple[str, str, str, str, str]) -> tuple[str, Probe, bool]:
        return about[0], lambda: packages.optional(*about, imports), imports

    return [
        ("convkit", cpu.convkit, False),
        ("Python", cpu.python, False),
        ("NumPy", packages.numpy, False),
        ("core packages", packages.core, False),
        ("Numba", packages.numba, False),
        ("C++ extension", cpu.cpp_extension, False),
        ("C++ kernels", cpu.cpu_kernels, False),
        ("threads", cpu.cpu_threads, False),
        ("C++ compiler", cpu.compiler, False),
        ("CUDA kernels", cpu.kernel_files, False),
        ("GPU", driver.gpu, True),
        ("CuPy", cuda.cupy, True),
        ("NVRTC", cuda.compiler_of_kernels, True),
        ("nvdisasm", cuda.nvdisasm, True),
        ("cuDNN", cudnn.cudnn, True),
        ("cuDNN frontend", cudnn.cudnn_frontend, True),
        *map(neighbour, packages.OPTIONAL),
        ("disk cache", environment.disk_cache, False),
        ("tuned choices", environment.tuned_choices, False),
        ("variables", environment.variables, False),
    ]
