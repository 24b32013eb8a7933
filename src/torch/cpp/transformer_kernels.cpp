// Dropout, and what stands around a transformer's linear layers: the residual with its norm, the
// bias with its GELU. Each is one pass over memory, forward and backward; a row stays in the first
// cache between the steps within a pass.

#include "mask.h"

namespace trainer {

// attention_kernel.cpp
namespace KERNELS_SPACE {
void attention_forward(const AttentionShape &, const float *, const float *, const float *, float *,
                       float *, float *, int64_t, int64_t);
void attention_backward(const AttentionShape &, const float *, const float *, const float *,
                        const float *, const float *, const AttentionGrad &, float *, int64_t,
                        int64_t);
}  // namespace KERNELS_SPACE

namespace {

// What along() is given must be part of its loop.
#define ALWAYS_INLINE __attribute__((always_inline))

constexpr float kInverseRoot2Pi = 0.39894228040143267794f;
constexpr float kInverseRoot2 = 0.70710678118654752440f;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The sum of the lanes, always in the same order.
INLINE float fold(vf x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int64_t step = kLanes / 2; step > 0; step /= 2)
    for (int64_t i = 0; i < step; i++) lanes[i] += lanes[i + step];
  return lanes[0];
}

// Calls work(column, lanes) for each vector of a row.
template <typename Work>
INLINE void along(int64_t width, const Work &work) {
  int64_t column = 0;
  for (; column + kLanes <= width; column += kLanes) work(column, kLanes);
  if (column < width) work(column, width - column);
}

// Calls work(column, lanes, kept) for each; `kept` means nothing unless DROPS.
template <bool DROPS, typename Work>
INLINE void along(const Dropout &dropout, uint64_t row, int64_t width, const Work &work) {
  constexpr int64_t kStep = 4 * kLanes;
  vi kept[4] = {};
  int64_t first = 0;
  for (; first + kStep <= width; first += kStep) {
    if (DROPS) keep_masks(dropout, uint32_t(first / kStep), row, kept);
    for (int i = 0; i < 4; i++) work(first + i * kLanes, kLanes, kept[i]);
  }
  if (first == width) return;
  if (DROPS) keep_masks(dropout, uint32_t(first / kStep), row, kept);
  for (int i = 0; first + i * kLanes < width; i++) {
    const int64_t column = first + i * kLanes;
    work(column, least(width - column, kLanes), kept[i]);
  }
}

void dropout(const Dropout &dropout, const float *x, float *y, int64_t n, int64_t begin,
             int64_t end) {
  for (int64_t task = begin; task < end; task++) {
    const float *from = x + task * kDropoutTask;
    float *to = y + task * kDropoutTask;
    along<true>(dropout, task, least(n - task * kDropoutTask, kDropoutTask),
                [&](int64_t c, int64_t lanes, vi kept) ALWAYS_INLINE {
                  store(to + c, keep(load(from + c, lanes) * dropout.scale, kept), lanes);
                });
  }
}

template <bool DROPS>
INLINE void add_norm_row(const AddNorm &norm, int64_t row, float *y, float *stats) {
  const float *x = norm.x + row * norm.width, *residual = norm.residual + row * norm.width;
  float *out = y + row * norm.width;
  vf sum = {};
  along<DROPS>(norm.dropout, row, norm.width, [&](int64_t c, int64_t lanes, vi kept) ALWAYS_INLINE {
    vf v = load(x + c, lanes);
    if (DROPS) v = keep(v * norm.dropout.scale, kept);
    v += load(residual + c, lanes);
    store(out + c, v, lanes);
    sum += v;
  });
  const float mean = fold(sum) / norm.width;
  vf squares = {};
  float square = 0;
  along(norm.width, [&](int64_t c, int64_t lanes) ALWAYS_INLINE {
    const vf v = load(out + c, lanes) - mean;
    if (lanes == kLanes) squares += v * v;
    else
      for (int64_t i = 0; i < lanes; i++) square += v[i] * v[i];
  });
  const float rstd = 1 / std::sqrt((fold(squares) + square) / norm.width + norm.eps);
  along(norm.width, [&](int64_t c, int64_t lanes) ALWAYS_INLINE {
    const vf v = (load(out + c, lanes) - mean) * rstd;
    store(out + c, v * load(norm.weight + c, lanes) + load(norm.bias + c, lanes), lanes);
  });
  stats[2 * row] = mean;
  stats[2 * row + 1] = rstd;
}

void add_norm_forward(const AddNorm &norm, float *y, float *stats, int64_t begin, int64_t end) {
  for (int64_t row = begin * kRowsTask; row < least(end * kRowsTask, norm.rows); row++) {
    if (norm.dropout.threshold)
      add_norm_row<true>(norm, row, y, stats);
    else
      add_norm_row<false>(norm, row, y, stats);
  }
}

// scratch: the row normalised, and the factors that dropout had.
template <bool DROPS>
INLINE void add_norm_row_backward(const AddNorm &norm, int64_t row, const float *stats,
                                  const float *dy, float *dx, float *dresidual, float *dweight,
                                  float *dbias, float *scratch) {
  const int64_t at = row * norm.width;
  const float *x = norm.x + at, *residual = norm.residual + at, mean = stats[2 * row];
  const float rstd = stats[2 * row + 1];
  float *normal = scratch, *factors = scratch + norm.width;
  vf sum = {}, product_sum = {};
  along<DROPS>(norm.dropout, row, norm.width, [&](int64_t c, int64_t lanes, vi kept) ALWAYS_INLINE {
    vf v = load(x + c, lanes);
    if (DROPS) {
      store(factors + c, keep(splat(norm.dropout.scale), kept), lanes);
      v = keep(v * norm.dropout.scale, kept);
    }
    v = (v + load(residual + c, lanes) - mean) * rstd;
    store(normal + c, v, lanes);
    // Beyond the row's end dy and the weight read as zero.
    const vf g = load(dy + at + c, lanes), weighted = g * load(norm.weight + c, lanes);
    sum += weighted;
    product_sum += weighted * v;
    store(dweight + c, load(dweight + c, lanes) + g * v, lanes);
    store(dbias + c, load(dbias + c, lanes) + g, lanes);
  });
  const float a = fold(sum) / norm.width, b = fold(product_sum) / norm.width;
  along(norm.width, [&](int64_t c, int64_t lanes) ALWAYS_INLINE {
    const vf weighted = load(dy + at + c, lanes) * load(norm.weight + c, lanes);
    const vf g = (weighted - a - load(normal + c, lanes) * b) * rstd;
    store(dresidual + at + c, g, lanes);
    if (DROPS) store(dx + at + c, g * load(factors + c, lanes), lanes);
  });
}

void add_norm_backward(const AddNorm &norm, const float *stats, const float *dy, float *dx,
                       float *dresidual, float *dweight, float *dbias, float *scratch,
                       int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; task++) {
    float *weight = dweight + task * norm.width, *bias = dbias + task * norm.width;
    std::memset(weight, 0, norm.width * sizeof(float));
    std::memset(bias, 0, norm.width * sizeof(float));
    const int64_t last = least((task + 1) * kRowsTask, norm.rows);
    for (int64_t row = task * kRowsTask; row < last; row++) {
      if (norm.dropout.threshold)
        add_norm_row_backward<true>(norm, row, stats, dy, dx, dresidual, weight, bias, scratch);
      else
        add_norm_row_backward<false>(norm, row, stats, dy, dx, dresidual, weight, bias, scratch);
    }
  }
}

void bias_gelu_forward(const float *x, const float *bias, float *y, int64_t rows, int64_t width,
                       int64_t begin, int64_t end) {
  for (int64_t row = begin * kRowsTask; row < least(end * kRowsTask, rows); row++) {
    const float *from = x + row * width;
    float *to = y + row * width;
    along(width, [&](int64_t c, int64_t lanes) ALWAYS_INLINE {
      store(to + c, gelu(load(from + c, lanes) + load(bias + c, lanes)), lanes);
    });
  }
}

// Phi(x) + x phi(x)
INLINE vf gelu_slope(vf x) {
  const vf a = x < 0.0f ? -x : x;
  const vf tail = 0.5f * erfc_positive(a * kInverseRoot2);
  const vf density = kInverseRoot2Pi * exp_(-0.5f * x * x);
  return (x < 0.0f ? tail : 1.0f - tail) + x * density;
}

void bias_gelu_backward(const float *x, const float *bias, const float *dy, float *dx,
                        float *dbias, int64_t rows, int64_t width, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; task++) {
    float *sums = dbias + task * width;
    std::memset(sums, 0, width * sizeof(float));
    for (int64_t row = task * kRowsTask; row < least((task + 1) * kRowsTask, rows); row++) {
      const int64_t at = row * width;
      along(width, [&](int64_t c, int64_t lanes) ALWAYS_INLINE {
        const vf slope = gelu_slope(load(x + at + c, lanes) + load(bias + c, lanes));
        const vf g = load(dy + at + c, lanes) * slope;
        store(dx + at + c, g, lanes);
        store(sums + c, load(sums + c, lanes) + g, lanes);
      });
    }
  }
}

}  // namespace
const TransformerKernels *TRANSFORMER_FUNCTION() {
  static const TransformerKernels table = {dropout,
                                           KERNELS_SPACE::attention_forward,
                                           KERNELS_SPACE::attention_backward,
                                           add_norm_forward,
                                           add_norm_backward,
                                           bias_gelu_forward,
                                           bias_gelu_backward};
  return &table;
}

}  // namespace trainer
