// What is bound by memory, for Python: convkit/cpu/native_call.py calls it.
#pragma once

#include "arrays.hpp"

namespace convkit {
namespace memory {

// Calls f with a value of argmax's type.
template <class F>
void with_index(Object argmax, const F& f) {
  switch (py::reinterpret_borrow<py::array>(argmax).itemsize()) {
    case 1:
      return f(std::uint8_t{});
    case 2:
      return f(std::uint16_t{});
    default:
      return f(std::uint32_t{});
  }
}

// Calls f without Python's lock.
template <class F>
void unlocked(const F& f) {
  const Unlocked guard;
  f();
}

inline void bind_problems(py::module_& m) {
  py::class_<Lrn>(m, "Lrn", py::module_local())
      .def(py::init([](const py::tuple& numbers, double k, double scale, double beta) {
        const Numbers<7> a(numbers);
        return Lrn{a[0],
                   a[1],
                   a[2],
                   a[3],
                   a[4],
                   a[5],
                   a[6],
                   float(k),
                   float(scale),
                   float(beta),
                   float(2 * scale * beta)};
      }));
  py::class_<MaxPool>(m, "MaxPool", py::module_local()).def(py::init([](const py::tuple& numbers) {
    const Numbers<14> a(numbers);
    return MaxPool{a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13]};
  }));
}

inline void bind_lrn(py::module_& m) {
  const auto threads = py::arg("threads");
  m.def(
      "lrn_fprop_rows_blocked",
      [](const Lrn& g, Object x, Object y, int threads) {
        unlocked([&, x = in(x), y = out(y)] { lrn_fprop_rows_blocked(g, x, y, threads); });
      },
      py::arg("g"), py::arg("x"), py::arg("y"), threads);
  m.def(
      "lrn_dgrad_rows_blocked",
      [](const Lrn& g, Object dy, Object x, Object dx, int threads) {
        unlocked(
            [&, dy = in(dy), x = in(x), dx = out(dx)] { lrn_dgrad_rows_blocked(g, dy, x, dx, threads); });
      },
      py::arg("g"), py::arg("dy"), py::arg("x"), py::arg("dx"), threads);
  m.def(
      "lrn_fprop_rows",
      [](const std::string& dtype, const Lrn& g, Object x, Object y, int threads) {
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          unlocked([&, x = in<S>(x), y = out<S>(y)] { lrn_fprop_rows(g, x, y, threads); });
        });
      },
      py::arg("dtype"), py::arg("g"), py::arg("x"), py::arg("y"), threads);
  m.def(
      "lrn_dgrad_rows",
      [](const std::string& dtype, const Lrn& g, Object dy, Object x, Object dx, int threads) {
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          unlocked(
              [&, dy = in<S>(dy), x = in<S>(x), dx = out<S>(dx)] { lrn_dgrad_rows(g, dy, x, dx, threads); });
        });
      },
      py::arg("dtype"), py::arg("g"), py::arg("dy"), py::arg("x"), py::arg("dx"), threads);
}

inline void bind_maxpool2d(py::module_& m) {
  const auto threads = py::arg("threads");
  m.def(
      "maxpool2d_fprop_rows_blocked",
      [](const MaxPool& g, Object x, Object y, Object argmax, int threads) {
        with_index(argmax, [&](auto i) {
          unlocked([&, x = in(x), y = out(y), argmax = out<decltype(i)>(argmax)] {
            maxpool2d_fprop_rows_blocked(g, x, y, argmax, threads);
          });
        });
      },
      py::arg("g"), py::arg("x"), py::arg("y"), py::arg("argmax"), threads);
  m.def(
      "maxpool2d_dgrad_rows_blocked",
      [](const MaxPool& g, Object dy, Object argmax, Object dx, int threads) {
        with_index(argmax, [&](auto i) {
          unlocked([&, dy = in(dy), argmax = in<decltype(i)>(argmax), dx = out(dx)] {
            maxpool2d_dgrad_rows_blocked(g, dy, argmax, dx, threads);
          });
        });
      },
      py::arg("g"), py::arg("dy"), py::arg("argmax"), py::arg("dx"), threads);
  m.def(
      "maxpool2d_fprop_rows",
      [](const std::string& dtype, const MaxPool& g, Object x, Object y, Object argmax, int threads) {
        with_storage(dtype, [&](auto s) {
          with_index(argmax, [&](auto i) {
            using S = decltype(s);
            unlocked([&, x = in<S>(x), y = out<S>(y), argmax = out<decltype(i)>(argmax)] {
              maxpool2d_fprop_rows(g, x, y, argmax, threads);
            });
          });
        });
      },
      py::arg("dtype"), py::arg("g"), py::arg("x"), py::arg("y"), py::arg("argmax"), threads);
  m.def(
      "maxpool2d_dgrad_rows",
      [](const std::string& dtype, const MaxPool& g, Object dy, Object argmax, Object dx, int threads) {
        with_storage(dtype, [&](auto s) {
          with_index(argmax, [&](auto i) {
            using S = decltype(s);
            unlocked([&, dy = in<S>(dy), argmax = in<decltype(i)>(argmax), dx = out<S>(dx)] {
              maxpool2d_dgrad_rows(g, dy, argmax, dx, threads);
            });
          });
        });
      },
      py::arg("dtype"), py::arg("g"), py::arg("dy"), py::arg("argmax"), py::arg("dx"), threads);
  // Both passes in one call: `between`, of x's shape, is scratch memory.
  m.def(
      "lrn_maxpool2d_dgrad_two_passes",
      [](const std::string& dtype, const Lrn& lrn, const MaxPool& pool, Object dy, Object argmax, Object x,
         Object dx, Object between, int threads) {
        with_storage(dtype, [&](auto s) {
          with_index(argmax, [&](auto i) {
            using S = decltype(s);
            unlocked([&, dy = in<S>(dy), argmax = in<decltype(i)>(argmax), x = in<S>(x), dx = out<S>(dx),
                      between = out<S>(between)] {
              maxpool2d_dgrad_rows(pool, dy, argmax, between, threads);
              lrn_dgrad_rows(lrn, between, x, dx, threads);
            });
          });
        });
      },
      py::arg("dtype"), py::arg("lrn"), py::arg("pool"), py::arg("dy"), py::arg("argmax"), py::arg("x"),
      py::arg("dx"), py::arg("between"), threads);
  m.def(
      "lrn_maxpool2d_fprop_rows_blocked",
      [](const Lrn& lrn, const MaxPool& pool, Object x, Object y, Object argmax, int threads) {
        with_index(argmax, [&](auto i) {
          unlocked([&, x = in(x), y = out(y), argmax = out<decltype(i)>(argmax)] {
            lrn_maxpool2d_fprop_rows_blocked(lrn, pool, x, y, argmax, threads);
          });
        });
      },
      py::arg("lrn"), py::arg("pool"), py::arg("x"), py::arg("y"), py::arg("argmax"), threads);
  m.def(
      "lrn_maxpool2d_dgrad_rows_blocked",
      [](const Lrn& lrn, const MaxPool& pool, Object dy, Object argmax, Object x, Object dx, bool relu,
         int threads) {
        with_index(argmax, [&](auto i) {
          unlocked([&, dy = in(dy), argmax = in<decltype(i)>(argmax), x = in(x), dx = out(dx)] {
            lrn_maxpool2d_dgrad_rows_blocked(lrn, pool, dy, argmax, x, dx, relu, threads);
          });
        });
      },
      py::arg("lrn"), py::arg("pool"), py::arg("dy"), py::arg("argmax"), py::arg("x"), py::arg("dx"),
      py::arg("relu"), threads);
}

inline void bind_elementwise(py::module_& m) {
  const auto threads = py::arg("threads");
  m.def(
      "relu_fprop_vectors",
      [](const std::string& dtype, int64_t size, Object x, Object y, int threads) {
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          unlocked([&, x = in<S>(x), y = out<S>(y)] { relu_fprop_vectors(size, x, y, threads); });
        });
      },
      py::arg("dtype"), py::arg("size"), py::arg("x"), py::arg("y"), threads);
  m.def(
      "relu_dgrad_vectors",
      [](const std::string& dtype, int64_t size, Object dy, Object y, Object dx, int threads) {
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          unlocked([&, dy = in<S>(dy), y = in<S>(y), dx = out<S>(dx)] {
            relu_dgrad_vectors(size, dy, y, dx, threads);
          });
        });
      },
      py::arg("dtype"), py::arg("size"), py::arg("dy"), py::arg("y"), py::arg("dx"), threads);
  m.def(
      "crop_images_rows",
      [](const std::string& dtype, const py::tuple& problem, bool moves, bool reverse, Object images,
         Object crops, Object mean, Object shift, Object factor, Object x, int threads) {
        const Numbers<7> n(problem);
        const CropImages g{n[0], n[1], n[2], n[3], n[4], n[5], n[6], moves, reverse};
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          unlocked([&, images = in<std::uint8_t>(images), crops = in<int32_t>(crops), mean = in(mean),
                    shift = in(shift), factor = in(factor),
                    x = out<S>(x)] { crop_images_rows(g, images, crops, mean, shift, factor, x, threads); });
        });
      },
      py::arg("dtype"), py::arg("problem"), py::arg("moves"), py::arg("reverse"), py::arg("images"),
      py::arg("crops"), py::arg("mean"), py::arg("shift"), py::arg("factor"), py::arg("x"), threads);
  m.def(
      "dropout_fprop_vectors",
      [](const std::string& dtype, int64_t size, Object x, Object y, std::uint64_t seed, std::uint64_t offset,
         std::uint64_t limit, double scale, int threads) {
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          const Dropout o{seed, offset, limit, float(scale)};
          unlocked([&, x = in<S>(x), y = out<S>(y)] { dropout_fprop_vectors(o, size, x, y, threads); });
        });
      },
      py::arg("dtype"), py::arg("size"), py::arg("x"), py::arg("y"), py::arg("seed"), py::arg("offset"),
      py::arg("limit"), py::arg("scale"), threads);
  m.def(
      "sgd_momentum_vectors",
      [](const std::string& dtype, int64_t size, Object w, Object dw, Object v, Object w_new, Object v_new,
         double lr, double momentum, double weight_decay, double dampening, bool nesterov,
         bool lr_in_velocity, int threads) {
        const Sgd o{float(lr), float(momentum), float(weight_decay), float(1 - dampening),
                    nesterov,  lr_in_velocity};
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          unlocked(
              [&, w = in<S>(w), dw = in<S>(dw), v = in<S>(v), w_new = out<S>(w_new), v_new = out<S>(v_new)] {
                sgd_momentum_vectors(o, size, w, dw, v, w_new, v_new, threads);
              });
        });
      },
      py::arg("dtype"), py::arg("size"), py::arg("w"), py::arg("dw"), py::arg("v"), py::arg("w_new"),
      py::arg("v_new"), py::arg("lr"), py::arg("momentum"), py::arg("weight_decay"), py::arg("dampening"),
      py::arg("nesterov"), py::arg("lr_in_velocity"), threads);
  const auto N = py::arg("N"), K = py::arg("K");
  m.def(
      "softmax_xent_fprop_vectors",
      [](const std::string& dtype, int64_t N, int64_t K, Object logits, Object labels, Object loss,
         Object probs, int threads) {
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          unlocked([&, logits = in<S>(logits), labels = in<int64_t>(labels), loss = out(loss),
                    probs = out<S>(probs)] {
            softmax_xent_fprop_vectors(N, K, logits, labels, loss, probs, threads);
          });
        });
      },
      py::arg("dtype"), N, K, py::arg("logits"), py::arg("labels"), py::arg("loss"), py::arg("probs"),
      threads);
  m.def(
      "softmax_xent_dgrad_vectors",
      [](const std::string& dtype, int64_t N, int64_t K, Object probs, Object labels, Object dloss,
         Object dlogits, int threads) {
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          unlocked([&, probs = in<S>(probs), labels = in<int64_t>(labels), dloss = in(dloss),
                    dlogits = out<S>(dlogits)] {
            softmax_xent_dgrad_vectors(N, K, probs, labels, dloss, dlogits, threads);
          });
        });
      },
      py::arg("dtype"), N, K, py::arg("probs"), py::arg("labels"), py::arg("dloss"), py::arg("dlogits"),
      threads);
  m.def(
      "label_rank_vectors",
      [](const std::string& dtype, int64_t N, int64_t K, Object logits, Object labels, Object rank,
         int threads) {
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          unlocked([&, logits = in<S>(logits), labels = in<int64_t>(labels), rank = out<int32_t>(rank)] {
            label_rank_vectors(N, K, logits, labels, rank, threads);
          });
        });
      },
      py::arg("dtype"), N, K, py::arg("logits"), py::arg("labels"), py::arg("rank"), threads);
  m.def(
      "loss_summary_vectors",
      [](bool wide, int64_t N, Object loss, Object rank, Object total, Object errors, Object finite) {
        const auto run = [&](auto l) {
          unlocked([&, loss = in<decltype(l)>(loss), rank = in<int32_t>(rank), total = out<double>(total),
                    errors = out<int64_t>(errors), finite = out<int32_t>(finite)] {
            loss_summary_vectors(N, loss, rank, total, errors, finite);
          });
        };
        wide ? run(double{}) : run(float{});
      },
      py::arg("wide"), N, py::arg("loss"), py::arg("rank"), py::arg("total"), py::arg("errors"),
      py::arg("finite"));
}

inline void bind_sums(py::module_& m) {
  const auto N = py::arg("N"), K = py::arg("K"), pixels = py::arg("pixels"), threads = py::arg("threads");
  m.def(
      "conv2d_bgrad_registers",
      [](const std::string& dtype, int64_t N, int64_t K, int64_t pixels, Object dy, Object db, int threads) {
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          unlocked([&, dy = in<S>(dy), db = out<S>(db)] {
            conv2d_bgrad_registers(N, K, pixels, dy, db, threads);
          });
        });
      },
      py::arg("dtype"), N, K, pixels, py::arg("dy"), py::arg("db"), threads);
  m.def(
      "linear_bgrad_registers",
      [](const std::string& dtype, int64_t N, int64_t K, Object dy, Object db, int threads) {
        with_storage(dtype, [&](auto s) {
          using S = decltype(s);
          unlocked([&, dy = in<S>(dy), db = out<S>(db)] { linear_bgrad_registers(N, K, dy, db, threads); });
        });
      },
      py::arg("dtype"), N, K, py::arg("dy"), py::arg("db"), threads);
  m.def(
      "conv2d_bgrad_registers_blocked",
      [](int64_t N, int64_t K, int64_t pixels, Object dy, Object db, int threads) {
        unlocked([&, dy = in(dy), db = out(db)] {
          conv2d_bgrad_registers_blocked(N, K, pixels, dy, db, threads);
        });
      },
      N, K, pixels, py::arg("dy"), py::arg("db"), threads);
  m.def(
      "reorder_transpose_block",
      [](int64_t N, int64_t C, int64_t pixels, Object x, Object y, int threads) {
        unlocked([&, x = in(x), y = out(y)] { reorder_transpose_block(N, C, pixels, x, y, threads); });
      },
      N, py::arg("C"), pixels, py::arg("x"), py::arg("y"), threads);
  m.def(
      "reorder_transpose_unblock",
      [](int64_t N, int64_t C, int64_t pixels, Object x, Object y, int threads) {
        unlocked([&, x = in(x), y = out(y)] { reorder_transpose_unblock(N, C, pixels, x, y, threads); });
      },
      N, py::arg("C"), pixels, py::arg("x"), py::arg("y"), threads);
}

inline void bind(py::module_& m) {
  bind_problems(m);
  bind_lrn(m);
  bind_maxpool2d(m);
  bind_elementwise(m);
  bind_sums(m);
}

}  // namespace memory
}  // namespace convkit
