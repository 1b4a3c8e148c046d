// Counters: how well a kernel's accesses to memory fit the hardware, per instruction (and so per source
// line).
//
// A GPU serves the 32 lanes of a warp together; here they run one after the other. Lanes are put together
// again by counting: the n-th time that each lane executes an instruction since the last block barrier is
// taken for one warp-wide access, which is what happens wherever lanes do not diverge.
//
// Shared memory has 32 banks of 4 bytes and serves one word of each bank at a time, a wavefront; 8-byte
// accesses go by half-warps, 16-byte ones by quarter-warps. Ideal is what the distinct words would need
// side by side. Global memory moves sectors of 32 bytes; ideal is the fewest that hold the distinct bytes.
// Sectors are counted from an argument's first byte, as if it began at a multiple of 256: cudaMalloc's memory
// does, NumPy's does not.
#include <algorithm>
#include <unordered_map>

#include "check.hpp"

namespace emu {

struct Row {  // keep convkit/cuda/emulator.py in step
  uint64_t pc;
  int32_t shared, write;
  uint64_t accesses, actual, ideal;
};

struct Group {  // one warp-wide access
  uint32_t pc, bytes;
  bool shared, write;
  std::vector<uint64_t> addresses;  // by lane, as they came
  std::vector<uint8_t> lanes;
};

struct Counters {
  std::unordered_map<uint64_t, uint32_t> times;  // (thread, instruction) -> executions since the barrier
  std::unordered_map<uint64_t, size_t> open;     // (warp, execution, instruction) -> index of its group
  std::vector<Group> groups;
  std::unordered_map<uint32_t, Row> rows;  // by instruction
  std::vector<Site> sites;                 // of rows whose pc is none
};

static Counters totals;  // of the last launch that counted; check mode has one worker

static uint64_t distinct(std::vector<uint64_t>& v) {
  std::sort(v.begin(), v.end());
  return static_cast<uint64_t>(std::unique(v.begin(), v.end()) - v.begin());
}

static void measure_shared(const Group& g, uint64_t& actual, uint64_t& ideal) {
  const uint32_t lanes = g.bytes <= 4 ? 32 : g.bytes <= 8 ? 16 : 8;  // that are served together
  for (uint32_t phase = 0; phase < 32; phase += lanes) {
    std::vector<uint64_t> words;
    for (size_t i = 0; i < g.addresses.size(); ++i) {
      if (g.lanes[i] < phase || g.lanes[i] >= phase + lanes) continue;
      for (uint64_t word = g.addresses[i] / 4; word <= (g.addresses[i] + g.bytes - 1) / 4; ++word)
        words.push_back(word);
    }
    if (words.empty()) continue;
    const uint64_t count = distinct(words);
    uint32_t banks[32] = {}, most = 0;
    for (uint64_t i = 0; i < count; ++i) most = std::max(most, ++banks[words[i] % 32]);
    actual += most;
    ideal += (count + 31) / 32;
  }
}

static void measure_global(const Group& g, uint64_t& actual, uint64_t& ideal) {
  std::vector<uint64_t> sectors, bytes;
  for (uint64_t a : g.addresses) {
    for (uint64_t s = a / 32; s <= (a + g.bytes - 1) / 32; ++s) sectors.push_back(s);
    for (uint64_t b = a; b < a + g.bytes; ++b) bytes.push_back(b);
  }
  actual += distinct(sectors);
  ideal += (distinct(bytes) + 31) / 32;
}

void count(Worker& w, bool shared, bool write, uint64_t address, uint32_t bytes, uint32_t pc) {
  Counters& c = totals;
  const uint64_t thread = w.current->index;
  const uint32_t n = c.times[thread << 32 | pc]++;
  // pc is an offset in a library of at most some megabytes, n a loop's trips between two barriers.
  const uint64_t key = thread >> 5 << 58 | static_cast<uint64_t>(n & 0x3ffffff) << 32 | pc;
  const auto [at, fresh] = c.open.try_emplace(key, c.groups.size());
  if (fresh) c.groups.push_back({pc, bytes, shared, write, {}, {}});
  Group& g = c.groups[at->second];
  g.addresses.push_back(address);
  g.lanes.push_back(static_cast<uint8_t>(thread & 31));
}

void counters_begin(Worker&) { totals = Counters{}; }

void counters_flush(Worker&) {
  Counters& c = totals;
  for (const Group& g : c.groups) {
    Row& row = c.rows[g.pc];
    row.pc = g.pc;
    row.shared = g.shared;
    row.write = g.write;
    ++row.accesses;
    if (g.shared)
      measure_shared(g, row.actual, row.ideal);
    else
      measure_global(g, row.actual, row.ideal);
  }
  c.groups.clear();
  c.open.clear();
  c.times.clear();
}

void counters_end(Worker& w) { totals.sites = w.shadow->sites; }

}  // namespace emu

// Copies at most `most` rows of the last launch that counted; returns how many. `pc` is an offset in the
// library, or what ckemu_site knows.
extern "C" __attribute__((visibility("default"))) int ckemu_counters(emu::Row* rows, int most) {
  int n = 0;
  for (const auto& entry : emu::totals.rows)
    if (n < most) rows[n++] = entry.second;
  return n;
}

// File and line of a `pc` that stands for a place in the source: the line, or 0 where it is an instruction.
extern "C" __attribute__((visibility("default"))) int ckemu_site(uint64_t pc, const char** file) {
  const size_t i = emu::site_index(static_cast<uint32_t>(pc));
  if (!(pc & emu::kSite) || i >= emu::totals.sites.size()) return 0;
  *file = emu::totals.sites[i].file;
  return emu::totals.sites[i].line;
}
