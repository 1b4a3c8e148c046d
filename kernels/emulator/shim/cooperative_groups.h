// CUDA's <cooperative_groups.h> for a kernel on the CPU: the block of threads, tiles of a warp, and groups of
// lanes that run together. Everything is a barrier, a shuffle or a vote of warp.hpp, and watched like those.
//
// coalesced_threads() is the calling lane alone: a GPU may answer with any lanes that run together, and a
// kernel has to be right for each answer. this_grid() has ranks and sizes; its barrier needs a cooperative
// launch, which no kernel file has.
#pragma once

#include "../warp.hpp"

namespace cooperative_groups {

class thread_block {
 public:
  static void sync(CONVKIT_SITE) { __syncthreads(file, line); }
  static unsigned thread_rank() {
    return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  }
  static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
  static unsigned size() { return num_threads(); }
  static dim3 group_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
  static dim3 thread_index() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
  static dim3 dim_threads() { return {blockDim.x, blockDim.y, blockDim.z}; }
  static dim3 group_dim() { return dim_threads(); }
};
static inline thread_block this_thread_block() { return {}; }

class grid_group {
 public:
  static unsigned long long block_rank() {
    return (static_cast<unsigned long long>(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  }
  static unsigned long long num_blocks() {
    return static_cast<unsigned long long>(gridDim.x) * gridDim.y * gridDim.z;
  }
  static unsigned long long thread_rank() {
    return block_rank() * thread_block::num_threads() + thread_block::thread_rank();
  }
  static unsigned long long num_threads() { return num_blocks() * thread_block::num_threads(); }
  static unsigned long long size() { return num_threads(); }
  static dim3 dim_blocks() { return {gridDim.x, gridDim.y, gridDim.z}; }
  static dim3 block_index() { return thread_block::group_index(); }
};
static inline grid_group this_grid() { return {}; }

namespace details {
// The lanes `mask` of a warp, whose ranks are their order among each other.
class lanes {
 protected:
  unsigned mask, first;  // first lane of a tile
  unsigned up_to(unsigned lane) const { return mask & ((1u << lane) - 1); }

 public:
  constexpr lanes(unsigned mask, unsigned first) : mask(mask), first(first) {}
  static unsigned lane() { return thread_block::thread_rank() & 31; }
  unsigned num_threads() const { return static_cast<unsigned>(__popc(mask)); }
  unsigned size() const { return num_threads(); }
  unsigned thread_rank() const { return static_cast<unsigned>(__popc(up_to(lane()))); }
  void sync(CONVKIT_SITE) const { __syncwarp(mask, file, line); }
  int any(int predicate, CONVKIT_SITE) const { return __any_sync(mask, predicate, file, line); }
  int all(int predicate, CONVKIT_SITE) const { return __all_sync(mask, predicate, file, line); }
};
}  // namespace details

template <unsigned Size, class Parent = void>
class thread_block_tile : public details::lanes {
  static_assert(Size >= 1 && Size <= 32 && !(Size & (Size - 1)),
                "the emulator has tiles of 1, 2, 4, 8, 16 and 32 threads");
  static constexpr unsigned kWhole = Size == 32 ? ~0u : (1u << Size % 32) - 1;
  static unsigned start() { return lane() & ~(Size - 1); }

 public:
  thread_block_tile() : lanes(kWhole << start(), start()) {}
  template <class Other>
  thread_block_tile(const thread_block_tile<Size, Other>&) : thread_block_tile() {}
  static constexpr unsigned num_threads() { return Size; }
  static constexpr unsigned size() { return Size; }
  static unsigned thread_rank() { return lane() & (Size - 1); }
  static unsigned meta_group_size() { return (thread_block::num_threads() + Size - 1) / Size; }
  static unsigned meta_group_rank() { return thread_block::thread_rank() / Size; }

  template <class T>
  T shfl(T value, int rank, CONVKIT_SITE) const {
    return convkit_emulator::shuffle(CKEMU_SHFL_IDX, mask, value, static_cast<int>(rank), Size, file, line);
  }
  template <class T>
  T shfl_up(T value, unsigned delta, CONVKIT_SITE) const {
    return convkit_emulator::shuffle(CKEMU_SHFL_UP, mask, value, static_cast<int>(delta), Size, file, line);
  }
  template <class T>
  T shfl_down(T value, unsigned delta, CONVKIT_SITE) const {
    return convkit_emulator::shuffle(CKEMU_SHFL_DOWN, mask, value, static_cast<int>(delta), Size, file, line);
  }
  template <class T>
  T shfl_xor(T value, unsigned lanes, CONVKIT_SITE) const {
    return convkit_emulator::shuffle(CKEMU_SHFL_XOR, mask, value, static_cast<int>(lanes), Size, file, line);
  }
  unsigned ballot(int predicate, CONVKIT_SITE) const {
    return __ballot_sync(mask, predicate, file, line) >> first;
  }
  template <class T>
  unsigned match_any(T value, CONVKIT_SITE) const {
    return __match_any_sync(mask, value, file, line) >> first;
  }
};

namespace details {
// A tile of a tile has the number of its place in that tile; one of a block, of its place in the block.
template <unsigned Size, unsigned Outer, class Parent>
class inner_tile : public thread_block_tile<Size, thread_block_tile<Outer, Parent>> {
 public:
  static constexpr unsigned meta_group_size() { return Outer / Size; }
  static unsigned meta_group_rank() { return (lanes::lane() & (Outer - 1)) / Size; }
};
}  // namespace details

template <unsigned Size>
thread_block_tile<Size, thread_block> tiled_partition(const thread_block&) {
  return {};
}
template <unsigned Size, unsigned Outer, class Parent>
details::inner_tile<Size, Outer, Parent> tiled_partition(const thread_block_tile<Outer, Parent>&) {
  static_assert(Size <= Outer, "a part is not larger than the whole");
  return {};
}

class coalesced_group : public details::lanes {
 public:
  coalesced_group() : lanes(1u << lane(), lane()) {}
  static unsigned meta_group_size() { return 1; }
  static unsigned meta_group_rank() { return 0; }
  template <class T>
  T shfl(T value, int, CONVKIT_SITE) const {
    return convkit_emulator::shuffle(CKEMU_SHFL_IDX, mask, value, static_cast<int>(first), 32, file, line);
  }
  template <class T>
  T shfl_up(T value, unsigned) const {
    return value;
  }
  template <class T>
  T shfl_down(T value, unsigned) const {
    return value;
  }
  unsigned ballot(int predicate) const { return predicate != 0; }
  template <class T>
  unsigned match_any(T) const {
    return 1;
  }
};
static inline coalesced_group coalesced_threads() { return {}; }

// Functions that take any group.
template <class Group>
void sync(const Group& group, CONVKIT_SITE) {
  group.sync(file, line);
}
template <class Group>
auto thread_rank(const Group& group) -> decltype(group.thread_rank()) {
  return group.thread_rank();
}
template <class Group>
auto group_size(const Group& group) -> decltype(group.size()) {
  return group.size();
}

}  // namespace cooperative_groups
