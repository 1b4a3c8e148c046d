// A launch, from Python's side: arguments in, blocks over OS threads, arguments out; and the two ways in
// which a kernel can be stopped from outside, by a fault and by the watchdog.
//
// Kernels run on this pool's threads only, never on the caller's: the signal mask, the alternate signal
// stack and the handlers of Python's own threads stay as they are. Handlers of SIGSEGV and its like are
// installed for the time of a launch; one that strikes elsewhere goes to whoever had it before.
//
// The watchdog is the caller, who waits with a limit. Past it, `ckemu_cancel` sends SIGURG (ignored by
// default, so a late one does no harm) to each busy worker. A worker that stands in the kernel's own code
// leaves from there, and the interrupted instruction is the location that is reported; one that stands in
// the runtime leaves at its next blocking point, or at the next signal.
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "memory.hpp"

namespace emu {
namespace {

constexpr int kFaults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr int kStop = SIGURG;
constexpr size_t kArena = 256 * 1024, kAltStack = 64 * 1024;

struct Pool {
  std::mutex mutex;
  std::condition_variable start, done;
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<pthread_t> threads;
  uint64_t generation = 0;
  int wanted = 0, pending = 0;
  Launch* launch = nullptr;
  struct sigaction before[5];
  pid_t pid = getpid();
};
Pool* pool = nullptr;  // never destroyed: its threads outlive main()

// ---------------------------------------------------------------------------------------------------
// Signals
// ---------------------------------------------------------------------------------------------------
uint64_t program_counter(const void* context) {
  const auto* u = static_cast<const ucontext_t*>(context);
#if defined(__x86_64__)
  return static_cast<uint64_t>(u->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
  return u->uc_mcontext.pc;
#else
  (void)u;
  return 0;
#endif
}

bool is_write(const void* context) {
#if defined(__x86_64__)
  return static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2;
#else
  (void)context;
  return false;
#endif
}

void describe_fault(Worker& w, int signal, const siginfo_t* info, const void* context) {
  Launch& launch = *w.launch;
  const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  const uint64_t pc = program_counter(context);
  const char* file = w.blame_file;
  const int line = file ? w.blame_line : 0;
  if (signal == SIGFPE) {
    report(w, "division by zero", file, line, pc);
    return;
  }
  if (signal == SIGILL) {
    Report& r = report(w, "trap", file, line, pc);
    snprintf(r.text, sizeof(r.text), "the compiler found this place unreachable, or the code undefined");
    return;
  }
  if (signal == SIGSEGV && info->si_code != SEGV_MAPERR && info->si_code != SEGV_ACCERR) {
    Report& r = report(w, "misaligned access", file, line, pc);
    snprintf(r.text, sizeof(r.text), "a vector access at an address that is not a multiple of its size");
    return;
  }
  for (const Stack& stack : w.stacks) {
    if (!stack.guards(address)) continue;
    Report& r = report(w, "stack overflow", file, line, pc);
    snprintf(r.text, sizeof(r.text), "local variables and calls of one thread take more than %zu bytes",
             Stack::kBytes - Stack::kGuard);
    return;
  }
  const bool write = is_write(context);
  if (address - reinterpret_cast<uintptr_t>(w.arena) < 2 * kArena) {
    Report& r = report(w, "array overrun", file, line, pc);
    snprintf(r.text, sizeof(r.text), "%s dynamic shared memory at offset %lld, of %zu bytes",
             write ? "writes" : "reads",
             static_cast<long long>(address - reinterpret_cast<uintptr_t>(w.dynamic_shared)), launch.shared);
    return;
  }
  const int argument = nearest_argument(launch, address);
  if (argument >= 0) {
    const Slot& slot = launch.slots[static_cast<size_t>(argument)];
    const bool inside = address - slot.data < slot.bytes;
    Report& r = report(w, inside ? "write to an input" : "out of bounds", file, line, pc);
    r.argument = argument;
    r.offset = static_cast<int64_t>(address - slot.data);
    r.is_write = write;
    return;
  }
  Report& r = report(w, address < 65536 ? "null pointer" : "wild access", file, line, pc);
  r.is_write = write;
  snprintf(r.text, sizeof(r.text), "address 0x%llx", static_cast<unsigned long long>(address));
}

void on_fault(int signal, siginfo_t* info, void* context) {
  Worker* w = worker;
  if (w && w->running && w->current) {
    describe_fault(*w, signal, info, context);
    leave(*w);
  }
  // Not ours: put back what was there, and let the instruction fault again.
  for (size_t i = 0; i < 4; ++i)
    if (kFaults[i] == signal) sigaction(signal, &pool->before[i], nullptr);
}

void on_stop(int, siginfo_t*, void* context) {
  Worker* w = worker;
  if (!w || !w->running || !w->launch->stop) return;
  const uint64_t pc = program_counter(context);
  const bool in_kernel = pc >= w->launch->module_low && pc < w->launch->module_high;
  if (!in_kernel || !w->current) return;
  if (w->launch->timeout) report(*w, "timeout", nullptr, 0, pc);
  leave(*w);
}

void install(bool on) {
  if (!on) {
    for (size_t i = 0; i < 4; ++i) sigaction(kFaults[i], &pool->before[i], nullptr);
    sigaction(kStop, &pool->before[4], nullptr);
    return;
  }
  struct sigaction action = {};
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigfillset(&action.sa_mask);
  action.sa_sigaction = on_fault;
  for (size_t i = 0; i < 4; ++i) sigaction(kFaults[i], &action, &pool->before[i]);
  action.sa_sigaction = on_stop;
  action.sa_flags |= SA_RESTART;
  sigaction(kStop, &action, &pool->before[4]);
}

// ---------------------------------------------------------------------------------------------------
// Workers
// ---------------------------------------------------------------------------------------------------
// This OS thread's instance of the thread-locals of the module that `anchor` lies in.
struct Block {
  const void* inside;
  unsigned char* data;
  size_t bytes;
};
int find_block(dl_phdr_info* info, size_t, void* out) {
  auto* block = static_cast<Block*>(out);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_TLS || !info->dlpi_tls_data) continue;
    auto* data = static_cast<unsigned char*>(info->dlpi_tls_data);
    const size_t bytes = info->dlpi_phdr[i].p_memsz;
    if (static_cast<size_t>(static_cast<const unsigned char*>(block->inside) - data) >= bytes) continue;
    block->data = data;
    block->bytes = bytes;
    return 1;
  }
  return 0;
}

void serve(Worker* w, uint64_t seen, int index) {
  worker = w;
  sigset_t mask;
  sigfillset(&mask);
  for (int signal : kFaults) sigdelset(&mask, signal);
  sigdelset(&mask, kStop);
  pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  stack_t alternate = {};
  alternate.ss_sp = new unsigned char[kAltStack];
  alternate.ss_size = kAltStack;
  sigaltstack(&alternate, nullptr);
  // Dynamic shared memory ends where its pages end; as many bytes again stay out of bounds.
  w->arena = static_cast<unsigned char*>(
      mmap(nullptr, 2 * kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  mprotect(w->arena, kArena, PROT_READ | PROT_WRITE);
  std::map<void* (*)(), Block> blocks;
  Pool& p = *pool;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(p.mutex);
      p.start.wait(lock, [&] { return p.generation != seen; });
      seen = p.generation;
      if (index >= p.wanted) continue;
    }
    Launch& launch = *p.launch;
    w->launch = &launch;
    Block& block = blocks[launch.anchor];
    if (!block.data) {
      block.inside = launch.anchor();
      dl_iterate_phdr(find_block, &block);
    }
    w->fixed_shared = block.data;
    w->fixed_bytes = block.bytes;
    w->dynamic_shared = w->arena + kArena - (launch.shared + 127) / 128 * 128;
    w->current = nullptr;
    run_blocks(*w);
    std::lock_guard<std::mutex> lock(p.mutex);
    if (--p.pending == 0) p.done.notify_all();
  }
}

}  // namespace
}  // namespace emu

// ---------------------------------------------------------------------------------------------------
// What Python calls (by ctypes, one launch at a time)
// ---------------------------------------------------------------------------------------------------
using namespace emu;

struct Spec {  // keep convkit/cuda/emulator.py in step
  void (*entry)(void**);
  void* (*anchor)();
  uint32_t grid[3], block[3];
  uint64_t shared, seed;
  int32_t seeded, check, counters, threads, unit, arguments;
  const uint64_t* guards;
  uint64_t guard_count;
};
struct ArgumentSpec {
  void* data;
  uint64_t bytes;
  int32_t pointer, writable, readable, unit;
};

static std::vector<uintptr_t> pointers;
static std::vector<void*> packed;

static int find_module(dl_phdr_info* info, size_t, void* out) {
  auto* launch = static_cast<Launch*>(out);
  const auto entry = reinterpret_cast<uint64_t>(launch->entry);
  uint64_t low = ~0ull, high = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
    const uint64_t start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
    if (start < low) low = start;
    if (start + info->dlpi_phdr[i].p_memsz > high) high = start + info->dlpi_phdr[i].p_memsz;
  }
  if (entry < low || entry >= high) return 0;
  launch->module_low = low;
  launch->module_high = high;
  return 1;
}

extern "C" {
#pragma GCC visibility push(default)

// Starts a launch; 0, or -1 where there is no memory for the arguments.
int ckemu_begin(const Spec* spec, const ArgumentSpec* arguments) {
  if (!pool || pool->pid != getpid()) pool = new Pool;  // after a fork the parent's threads are not there
  Pool& p = *pool;
  auto launch = std::make_unique<Launch>();
  launch->entry = spec->entry;
  launch->anchor = spec->anchor;
  launch->grid = {spec->grid[0], spec->grid[1], spec->grid[2]};
  launch->block = {spec->block[0], spec->block[1], spec->block[2]};
  launch->threads = spec->block[0] * spec->block[1] * spec->block[2];
  launch->warps = (launch->threads + 31) / 32;
  launch->blocks = static_cast<uint64_t>(spec->grid[0]) * spec->grid[1] * spec->grid[2];
  launch->shared = spec->shared;
  launch->seeded = spec->seeded;
  launch->seed = spec->seed;
  launch->check = spec->check;
  launch->counters = spec->counters;
  launch->unit = static_cast<uint32_t>(spec->unit);
  launch->guards.assign(spec->guards, spec->guards + spec->guard_count);
  dl_iterate_phdr(find_module, launch.get());
  const bool check = launch->check;

  const size_t count = static_cast<size_t>(spec->arguments);
  launch->slots.resize(count);
  pointers.assign(count, 0);
  packed.assign(count, nullptr);
  for (size_t i = 0; i < count; ++i) {
    const ArgumentSpec& a = arguments[i];
    packed[i] = a.pointer ? &pointers[i] : a.data;
    if (!a.pointer || !a.data) continue;
    size_t same = 0;  // an output in an input's place is one array here too: what is written is what is read
    while (same < i &&
           (launch->slots[same].null || arguments[same].data != a.data || arguments[same].bytes != a.bytes))
      ++same;
    if (same < i) {
      Slot& slot = launch->slots[same];
      slot.writable |= a.writable != 0;
      slot.readable |= a.readable != 0;
      pointers[i] = slot.data;
      continue;
    }
    Slot& slot = launch->slots[i];
    slot.writable = a.writable;
    slot.readable = a.readable;
    slot.unit = static_cast<uint32_t>(a.unit);
    // A NaN around inputs. Around outputs something else: a copy of what lies past an input must show there.
    slot.filler = a.writable ? 0x9b : 0xff;
    if (!place_argument(static_cast<int>(i), a.data, a.bytes, !check, slot)) return -1;
    pointers[i] = slot.data;
  }
  for (const Slot& slot : launch->slots)
    if (!slot.null && !slot.writable) protect_argument(slot);
  launch->arguments = packed.data();

  uint64_t wanted = static_cast<uint64_t>(spec->threads);
  if (wanted > launch->blocks) wanted = launch->blocks;
  install(true);
  std::lock_guard<std::mutex> lock(p.mutex);
  delete p.launch;
  p.launch = launch.release();
  while (p.workers.size() < wanted) {
    p.workers.push_back(std::make_unique<Worker>());
    std::thread thread(serve, p.workers.back().get(), p.generation, static_cast<int>(p.workers.size()) - 1);
    p.threads.push_back(thread.native_handle());
    thread.detach();
  }
  p.wanted = p.pending = static_cast<int>(wanted);
  ++p.generation;
  p.start.notify_all();
  return 0;
}

// Waits up to `seconds`: 1 when all is done, 2 while workers are still to stop after a failure, else 0.
int ckemu_wait(double seconds) {
  Pool& p = *pool;
  std::unique_lock<std::mutex> lock(p.mutex);
  if (p.done.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return p.pending == 0; })) return 1;
  return p.launch->stop ? 2 : 0;
}

// What the last launch has printed, block by block, as much as fits `size` bytes; returns how many there are.
uint64_t ckemu_printed(char* out, uint64_t size) {
  Launch& launch = *pool->launch;
  auto& printed = launch.printed;
  std::stable_sort(printed.begin(), printed.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string all;
  for (const auto& [block, text] : printed) all += text;
  if (launch.dropped_bytes)
    all += "... " + std::to_string(launch.dropped_bytes) + " more bytes of printf's output were dropped\n";
  memcpy(out, all.data(), std::min<uint64_t>(size, all.size()));
  return all.size();
}

// Asks the workers to stop, as a timeout if nothing has failed yet; to be repeated until ckemu_wait says 1.
void ckemu_cancel() {
  Pool& p = *pool;
  std::lock_guard<std::mutex> lock(p.mutex);
  if (!p.launch->failed) p.launch->timeout = true;
  p.launch->stop = true;
  for (size_t i = 0; i < p.workers.size(); ++i)
    if (p.workers[i]->running) pthread_kill(p.threads[i], kStop);
}

// Ends a launch: copies the outputs back and returns 0, or fills the report, touches nothing and returns 1.
int ckemu_end(const ArgumentSpec* arguments, Report* report, uint64_t* module_low) {
  install(false);
  Launch& launch = *pool->launch;
  if (launch.timeout && !launch.failed) {  // every worker saw it between two blocks
    memset(&launch.report, 0, sizeof(launch.report));
    snprintf(launch.report.kind, sizeof(launch.report.kind), "timeout");
    launch.report.argument = -1;
    launch.failed = true;
  }
  for (size_t i = 0; i < launch.slots.size() && !launch.failed && !launch.check; ++i) {
    int64_t offset;
    if (launch.slots[i].null || !launch.slots[i].writable || !touched_outside(launch.slots[i], offset))
      continue;
    Report& r = launch.report;
    memset(&r, 0, sizeof(r));
    snprintf(r.kind, sizeof(r.kind), "out of bounds");
    snprintf(r.text, sizeof(r.text),
             "found after the launch; check mode (--sanitize) says which line did it");
    r.argument = static_cast<int32_t>(i);
    r.offset = offset;
    r.is_write = 1;
    r.at.line = -1;  // unknown, and so are block and thread
    launch.failed = true;
  }
  const bool failed = launch.failed;
  *module_low = launch.module_low;
  if (failed) *report = launch.report;
  for (size_t i = 0; i < launch.slots.size(); ++i) {
    const Slot& slot = launch.slots[i];
    if (slot.null) continue;
    if (!failed && slot.writable && slot.bytes)
      memcpy(arguments[i].data, reinterpret_cast<const void*>(slot.data), slot.bytes);
    release_argument(static_cast<int>(i));
  }
  return failed;
}
#pragma GCC visibility pop
}
