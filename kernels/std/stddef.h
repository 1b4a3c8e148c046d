// One of the headers of the C++ library that kernels may include, for NVRTC, which has none of its own, and
// for the emulator alike: what a GPU can run of it.
#pragma once
#if !defined(NULL)
#define NULL 0
#endif
#if !defined(offsetof)
#define offsetof(type, member) __builtin_offsetof(type, member)
#endif
