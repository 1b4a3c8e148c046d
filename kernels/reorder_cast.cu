// reorder_cast
//   y = x, rounded to nearest: from float32 to 16 bits, in the order in which it lies
//
// Tiling   a thread makes ELEMENTS elements, four at a time: an access of 16 bytes for x, of 8 for y. All are read
//          before any is written.
// Traffic  6 bytes for each element
// Bound    DRAM bandwidth; predicted 90 % of the copy rate
//
// /// kernel
// op     = "reorder"
// dtypes = ["float16/float32", "bfloat16/float32"]
// tile   = { THREADS = 256, ELEMENTS = 16 }
// tune   = { THREADS = [128, 256, 512], ELEMENTS = [8, 16, 32] }
// grid   = ["blocks"]
// block  = ["THREADS"]
// when   = "blocks < 2147483648"
// rank   = 10
// [let]
// blocks = "ceil_div(N*C*H*W, THREADS * ELEMENTS)"
// ///

#include "storage.cuh"

constexpr int CHUNK = 4, CHUNKS = ELEMENTS / CHUNK;
static_assert(ELEMENTS % CHUNK == 0 && sizeof(param_t) == 4 && sizeof(storage_t) == 2, "float32 to 16 bits");

struct Floats {
  float4 words;
  __device__ __forceinline__ float& operator[](int i) { return reinterpret_cast<float*>(&words)[i]; }
};
struct alignas(8) Rounded {
  storage_t elements[CHUNK];
};

extern "C" __launch_bounds__(THREADS) __global__
    void reorder_cast(GEOMETRY(Reorder), const param_t* __restrict__ x, storage_t* __restrict__ y) {
  const long long size = static_cast<long long>(g.N) * g.C * g.H * g.W;
  const bool vector_x = aligned(x), vector_y = reinterpret_cast<unsigned long long>(y) % sizeof(Rounded) == 0;
  const long long first = static_cast<long long>(blockIdx.x) * THREADS * ELEMENTS + threadIdx.x * CHUNK;
  Floats read[CHUNKS];
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    const long long i = first + chunk * CHUNK * THREADS;
    if (vector_x && i + CHUNK <= size) {
      read[chunk].words = *reinterpret_cast<const float4*>(x + i);
    } else {
#pragma unroll
      for (int j = 0; j < CHUNK; ++j) read[chunk][j] = i + j < size ? x[i + j] : 0.0f;
    }
  }
#pragma unroll
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    const long long i = first + chunk * CHUNK * THREADS;
    Rounded made;
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) made.elements[j] = from_float(read[chunk][j]);
    if (vector_y && i + CHUNK <= size) {
      *reinterpret_cast<Rounded*>(y + i) = made;
    } else {
#pragma unroll
      for (int j = 0; j < CHUNK; ++j)
        if (i + j < size) y[i + j] = made.elements[j];
    }
  }
}
