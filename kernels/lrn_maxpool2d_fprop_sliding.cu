// lrn_maxpool2d_fprop_sliding
//   z = x * d^-3/4, d = k + alpha/size * sum of x^2 over a window of channels, as lrn_fprop has it; y and
//   argmax = the maximum of z over 3 x 3 pixels at stride 2 and where it is, as maxpool2d_fprop has them. z
//   is not stored.
//
// Tiling   a lane owns two columns of 2 * ROWS + 1 rows of pixels, which make ROWS outputs below each other,
//          and walks SEGMENT channels. The channels of its windows stay in registers: the loop is unrolled
//          `size` times, so that the newest channel takes the place of the oldest, and nothing moves. The
//          third column of a pooling window is the first one of the next lane: a shuffle for each row. No
//          shared memory, no barrier. AlexNet's windows all lie inside the image; where some do not, another
//          entry runs, which needs more registers.
// Traffic  x is read once from DRAM; and again, from L1 or L2, where lanes or blocks meet: 1 of 2 * ROWS rows
//          and size - 1 of SEGMENT channels, 17 % each. y and argmax are written once. In all some 22 bytes
//          for each output in fp32, and 11 in the 16-bit types. The two kernels apart write z and read it: 55
//          and 28.
// Bound    a lane's step, of 14 values to normalise and 3 windows, takes 320 instructions (counted in the
//          code for sm_90a). With idle lanes and rows made twice, that is 114 for each output of 27 x 27, 137
//          of 13 x 13. About 150 fit into the time of its bytes in fp32, 75 in the 16-bit types: so DRAM
//          bandwidth in fp32, issue in the others. An SM holds 16 warps, with 14 loads a lane under way.
//          Predicted: in fp32 75 % of the copy rate for 27 x 27, and 65 % for 13 x 13; in the 16-bit types 50
//          %.
//
// /// kernel
// op     = "lrn_maxpool2d_fprop"
// dtypes = ["float32", "float16", "bfloat16"]
// tile   = { THREADS = 128, ROWS = 3, SEGMENT = 24 }
// tune   = { THREADS = [64, 128], ROWS = [1, 2, 3], SEGMENT = [16, 24, 32, 48] }
// when   = """within == 0 and (size == 3 or size == 5) and 4*beta == 3 and k >= 1 and R == 3 and S == 3 \
//          and stride_h == 2 and stride_w == 2 and dilation_h == 1 and dilation_w == 1 \
//          and C*H*W < 2147483648 and blocks < 2147483648"""
// rank   = 20
//
// [let]
// segments = "groups * ceil_div(C // groups, SEGMENT)"
// blocks   = "segments * ceil_div(N * ceil_div(P, ROWS) * (Q + 1), THREADS // 32 * 31)"
// inside   = "pad_top == 0 and pad_left == 0 and 2*P < H and 2*Q < W and P >= ROWS"
//
// [[launch]]
// entry = "lrn_maxpool2d_fprop_sliding"
// grid  = ["blocks if inside else 0"]
// block = ["THREADS"]
//
// [[launch]]
// entry = "lrn_maxpool2d_fprop_sliding_edges"
// grid  = ["0 if inside else blocks"]
// block = ["THREADS"]
// ///

#include "convkit.cuh"
#include "storage.cuh"

// Threads that an SM is to hold. It has 65536 registers, so that a thread may have 128, or 168 where windows
// reach beyond the image: room for the windows of 14 pixels.
constexpr int RESIDENT = 512, RESIDENT_EDGES = 384;
constexpr int IN_ROWS = 2 * ROWS + 1;
constexpr unsigned WARP = 0xffffffffu;

// What a lane makes. It owns the columns `column` and `column + 1` of rows `row` to `row + IN_ROWS - 1`.
struct Patch {
  long long n;
  int p, q;         // the first output
  int row, column;  // the first pixel
  unsigned stores;  // bit t: output row p + t is this lane's to store
};

// Slots are numbered along the columns of a row of patches, then along the rows of patches, then along the
// images. A row has Q + 1 slots, the last of which has no output, and lends its first column to the one
// before it. So does lane 31: the slot is lane 0 of the next warp as well.
__device__ __forceinline__ Patch patch_of_lane(const LrnMaxPool2d& g, long long block) {
  const int lane = threadIdx.x % 32, bands = (g.P + ROWS - 1) / ROWS;
  const long long slots = static_cast<long long>(g.N) * bands * (g.Q + 1);
  const long long slot = (block * (THREADS / 32) + threadIdx.x / 32) * 31 + lane;
  const long long held = min(slot, slots - 1);  // lanes behind the last slot repeat it, and store nothing
  const int band = static_cast<int>(held / (g.Q + 1) % bands);
  Patch patch;
  patch.n = held / (g.Q + 1) / bands;
  patch.q = static_cast<int>(held % (g.Q + 1));
  // The last band begins early rather than end beyond the image; what the one before it makes, it does not
  // store.
  patch.p = max(min(band * ROWS, g.P - ROWS), 0);
  patch.row = 2 * patch.p - g.pad_top;
  patch.column = 2 * patch.q - g.pad_left;
  patch.stores = 0;
  if (slot < slots && lane < 31 && patch.q < g.Q)
    for (int t = 0; t < ROWS; ++t)
      if (patch.p + t >= band * ROWS && patch.p + t < g.P) patch.stores |= 1u << t;
  return patch;
}

// The maximum so far, and where it is; `value` takes its place where it is greater, or the first NaN.
struct Best {
  float value;
  int position;
  __device__ __forceinline__ void meet(float other, int other_position) {
    if (!(other <= value) && value == value) {
      value = other;
      position = other_position;
    }
  }
};

// EDGES: some window may reach beyond the image.
template <int SIZE, bool EDGES>
__device__ __forceinline__ void slide(const LrnMaxPool2d& g, const Patch& patch, int first, int last,
                                      int begin, int end, const storage_t* __restrict__ x,
                                      storage_t* __restrict__ y, unsigned char* __restrict__ argmax) {
  constexpr int BEHIND = (SIZE - 1) / 2, AHEAD = SIZE / 2;
  const float scale = g.alpha / g.taps;
  const int step = g.H * g.W, step_out = g.P * g.Q;

  // Beyond the image stands its border, repeated: a repeated value comes behind the one that it repeats,
  // which has won by then. At the top and on the left it comes first, and is given the position of what it
  // repeats.
  const int top = EDGES ? max(patch.row, 0) : patch.row;
  const int left = EDGES ? min(max(patch.column, 0), g.W - 1) : patch.column;
  const bool second = EDGES ? left == patch.column && left + 1 < g.W : left + 1 < g.W;
  const int first_s = EDGES ? max(-patch.column, 0) : 0;
  const auto first_r = [&](int r) { return EDGES ? max(-patch.row - r, 0) : 0; };

  // values[r][s][(c - first + i) % SIZE] is channel c - BEHIND + i of pixel (r, s): no value ever moves.
  float values[IN_ROWS][2][SIZE];
  const auto load = [&](int channel, int slot) {
    const bool exists = channel >= begin && channel < end;
    const storage_t* const plane = x + static_cast<long long>(channel) * step;
#pragma unroll
    for (int r = 0; r < IN_ROWS; ++r) {
      const unsigned row = (EDGES ? min(max(patch.row + r, 0), g.H - 1) - top : r) * g.W;
      if (!exists) {
        values[r][0][slot] = values[r][1][slot] = 0.0f;
      } else {
        values[r][0][slot] = to_float(plane[row]);
        if (second) values[r][1][slot] = to_float(plane[row + 1LL]);
      }
    }
  };
  x += (patch.n * g.C * g.H + top) * g.W + left;
  const long long output =
      (patch.n * g.C + first) * step_out + static_cast<long long>(patch.p) * g.Q + patch.q;
  y += output;
  argmax += output;
#pragma unroll
  for (int i = 0; i < SIZE; ++i) {
#pragma unroll
    for (int r = 0; r < IN_ROWS; ++r) values[r][0][i] = values[r][1][i] = 0.0f;
    if (i < SIZE - 1) load(first - BEHIND + i, i);
  }

  for (int c = first;;) {
#pragma unroll
    for (int phase = 0; phase < SIZE; ++phase, ++c, y += step_out, argmax += step_out) {
      if (c == last) return;
      load(c + AHEAD, (phase + SIZE - 1) % SIZE);
      Best best[ROWS];
#pragma unroll
      for (int r = 0; r < IN_ROWS; ++r) {
        float normal[2];
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          float sum = 0.0f;
#pragma unroll
          for (int i = 0; i < SIZE; ++i) {
            const float value = values[r][s][(phase + i) % SIZE];
            sum = fmaf(value, value, sum);
          }
          const float root = rsqrt_normal(fmaf(scale, sum, g.k));  // d^-3/4 = d^-1/2 * (d^-1/2)^1/2
          normal[s] = values[r][s][(phase + BEHIND) % SIZE] * (root * sqrt_normal(root));
        }
        if (EDGES && !second) normal[1] = normal[0];
        Best row = {normal[0], first_s};
        row.meet(normal[1], 1);
        row.meet(__shfl_down_sync(WARP, normal[0], 1), 2);
        if (r % 2 == 1) best[r / 2].meet(row.value, 3 + row.position);
        if (r % 2 == 0 && r > 0) {
          const int t = r / 2 - 1;
          best[t].meet(row.value, 6 + row.position);
          if (patch.stores >> t & 1) {
            y[static_cast<unsigned>(t * g.Q)] = from_float(best[t].value);
            argmax[static_cast<unsigned>(t * g.Q)] = static_cast<unsigned char>(best[t].position);
          }
        }
        if (r % 2 == 0 && r < 2 * ROWS) best[r / 2] = {row.value, row.position + 3 * first_r(r)};
      }
    }
  }
}

template <bool EDGES>
__device__ __forceinline__ void lrn_maxpool(const LrnMaxPool2d& g, const storage_t* __restrict__ x,
                                            storage_t* __restrict__ y, unsigned char* __restrict__ argmax) {
  // Blocks that make neighbouring segments of the same pixels have neighbouring indices, and so run side by
  // side.
  const int channels = g.C / g.groups, segments = ceil_div(channels, SEGMENT);
  const unsigned parts = static_cast<unsigned>(segments) * g.groups;
  const int part = static_cast<int>(blockIdx.x % parts);
  const int each = ceil_div(channels, segments);
  const int begin = part / segments * channels, end = begin + channels;
  const int first = begin + part % segments * each, last = min(first + each, end);
  const Patch patch = patch_of_lane(g, blockIdx.x / parts);
  if (g.size == 5)
    slide<5, EDGES>(g, patch, first, last, begin, end, x, y, argmax);
  else
    slide<3, EDGES>(g, patch, first, last, begin, end, x, y, argmax);
}

extern "C" __launch_bounds__(THREADS, RESIDENT / THREADS) __global__
    void lrn_maxpool2d_fprop_sliding(GEOMETRY(LrnMaxPool2d), const storage_t* __restrict__ x,
                                     storage_t* __restrict__ y, unsigned char* __restrict__ argmax) {
  lrn_maxpool<false>(g, x, y, argmax);
}

extern "C" __launch_bounds__(THREADS, RESIDENT_EDGES / THREADS) __global__
    void lrn_maxpool2d_fprop_sliding_edges(GEOMETRY(LrnMaxPool2d), const storage_t* __restrict__ x,
                                           storage_t* __restrict__ y, unsigned char* __restrict__ argmax) {
  lrn_maxpool<true>(g, x, y, argmax);
}
