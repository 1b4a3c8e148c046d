// adjust_loss_scale_thread
//   a good step (sound is not 0): steps + 1; where that is `interval`, scale * growth, and 0 steps
//   a bad one:                    scale * backoff, at least 1, and 0 steps
//   A scale that would leave float32 stays as it is.
//
// Tiling   a thread for each scale. A network has one.
// Traffic  20 bytes for each.
// Bound    the launch, and one trip to L2. Predicted about 2 us; within a graph, less.
//
// /// kernel
// op     = "adjust_loss_scale"
// dtypes = ["float32"]
// tile   = { THREADS = 32 }
// tune   = { THREADS = [32, 256] }
// grid   = ["ceil_div(N, THREADS)"]
// block  = ["THREADS"]
// rank   = 10
// [options]
// growth = "float"
// backoff = "float"
// interval = "int"
// ///

// The new numbers may lie in the place of the old ones, hence no __restrict__.
extern "C" __launch_bounds__(THREADS) __global__
    void adjust_loss_scale_thread(GEOMETRY(LossScale), const float* scale, const int* steps, const int* sound,
                                  float* scale_new, int* steps_new, float growth, float backoff,
                                  int interval) {
  const long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= g.N) return;
  float now = scale[i];
  int good = 0;
  if (sound[i] == 0) {
    now = fmaxf(now * backoff, 1.0f);
  } else {
    good = steps[i] + 1;
    if (good >= interval) {
      const float larger = now * growth;
      if (larger <= 3.402823466e38f) now = larger;
      good = 0;
    }
  }
  scale_new[i] = now;
  steps_new[i] = good;
}
