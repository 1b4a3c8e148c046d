"""The PTX runner: what NVRTC made of a kernel, run on the CPU by a machine that knows PTX's instructions.

`parse` reads the text, `assemble` makes a program of it, `library` builds the machine (`kernels/ptx/`) and
hands it over, `executor` takes launches. Nothing here is shared with the emulator, which runs the CUDA
source: what that cannot see, such as the compiler's reading and the code behind `#if`, runs here.
"""
