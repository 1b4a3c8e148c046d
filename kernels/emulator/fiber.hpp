// Fibers: a CUDA thread that waits must keep its stack while its neighbours run, and a block has up to 1024
// of them. OS threads cost microseconds per switch, ucontext two system calls (it saves the signal mask);
// saving six registers and the stack pointer by hand costs nanoseconds, so that is done on x86-64, and
// ucontext elsewhere.
//
// A fiber stays on the OS thread that started it, since compilers keep the addresses of thread-locals in
// registers across calls. Stacks are pooled per OS thread, each above a page that may not be touched
// (kernels are compiled with -fstack-clash-protection, so that no frame jumps over it), and their tops are
// staggered: equal frames at equal page offsets would all fall into the same few sets of the cache.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#if !defined(__x86_64__) && !defined(CONVKIT_UCONTEXT)
#define CONVKIT_UCONTEXT
#endif
#if defined(CONVKIT_UCONTEXT)
#include <ucontext.h>
#endif

namespace emu {

struct Stack {
  static constexpr size_t kGuard = 4096, kBytes = 128 * 1024;
  unsigned char* low = nullptr;  // of the mapping, the guard page included
  size_t stagger = 0;

  unsigned char* top() const { return low + kBytes - stagger; }
  bool holds(uintptr_t a) const { return a - reinterpret_cast<uintptr_t>(low) < kBytes; }
  bool guards(uintptr_t a) const { return a - reinterpret_cast<uintptr_t>(low) < kGuard; }

  static Stack make(size_t index) {
    void* p =
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return {};
    mprotect(p, kGuard, PROT_NONE);  // where the kernel's table of mappings is full, there is no guard
    return {static_cast<unsigned char*>(p), (index % 15) * 256 + 64};
  }
};

#if defined(CONVKIT_UCONTEXT)

struct Fiber {
  ucontext_t context;
};
inline void prepare(Fiber& fiber, const Stack& stack, void (*body)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack.low + Stack::kGuard;
  fiber.context.uc_stack.ss_size = static_cast<size_t>(stack.top() - stack.low) - Stack::kGuard;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, body, 0);
}
inline void switch_to(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#else

struct Fiber {
  void* sp;
};
// Saves what the ABI says a callee keeps, stores the stack pointer in *from, and goes on where `to` was
// saved.
extern "C" void ckemu_switch(void** from, void* to);
inline void prepare(Fiber& fiber, const Stack& stack, void (*body)()) {
  // Six registers, the address that `ret` goes to, and a null return address, after which the stack pointer
  // stands as if `body` had just been called.
  auto* top = reinterpret_cast<uintptr_t*>(stack.top());
  for (int i = 1; i <= 8; ++i) top[-i] = 0;
  top[-2] = reinterpret_cast<uintptr_t>(body);
  fiber.sp = top - 8;
}
inline void switch_to(Fiber& from, Fiber& to) { ckemu_switch(&from.sp, to.sp); }

#endif

}  // namespace emu
