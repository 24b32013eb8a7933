// Vectors of kLanes floats, and the functions of one variable that kernels are made of.
//
// For the files that are compiled once per instruction set (see kernels.h): everything here has
// internal linkage.
#pragma once
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace trainer {
namespace {

typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));

#define INLINE inline __attribute__((always_inline))

INLINE vf splat(float x) { return x - vf{}; }
INLINE vf load(const float *p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
INLINE void store(float *p, vf v) { std::memcpy(p, &v, sizeof v); }
// The first n lanes; the others are zero (or are not written).
INLINE vf load(const float *p, int64_t n) {
  if (n == kLanes) return load(p);
  vf v = {};
  std::memcpy(&v, p, n * sizeof(float));
  return v;
}
INLINE void store(float *p, vf v, int64_t n) {
  if (n == kLanes) return store(p, v);
  std::memcpy(p, &v, n * sizeof(float));
}
INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }

// 2^x for x in about [-126, 126], relative error below 2e-7. The integer part goes into the
// exponent bits of the polynomial's value; `magic` makes the addition round to an integer.
INLINE vf exp2_clamped(vf x) {
  const vf magic = splat(12582912.0f);
  x = x < splat(-125.0f) ? splat(-125.0f) : x;  // NaN stays NaN
  const vf shifted = x + magic;
  const vf f = x - (shifted - magic);
  vf p = splat(1.5403530e-4f);
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return (vf)((vi)p + ((vi)shifted << 23));
}

constexpr float kLog2e = 1.44269504088896340736f;

INLINE vf exp_(vf x) { return exp2_clamped(vmin(x, splat(86.0f)) * kLog2e); }
INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exp_(-x)); }

// ln(1 + x) for x >= 0. With w = 1 + x rounded, ln(1 + x) = ln(w) * x / (w - 1): the rounding of w
// cancels (Goldberg, 1991, theorem 4).
INLINE vf log1p_(vf x) {
  const vf w = 1.0f + x;
  const vi bits = (vi)w;
  // w = m * 2^e with m in [sqrt(1/2), sqrt(2))
  const vi e = (bits - 0x3f3504f3) >> 23;
  const vf m = (vf)(bits - (e << 23));
  const vf r = m - 1.0f;
  vf p = splat(7.0376836292e-2f);
  p = p * r - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  const vf rr = r * r;
  const vf ef = __builtin_convertvector(e, vf);
  vf log_w = r * rr * p + ef * -2.12194440e-4f - 0.5f * rr;
  log_w = log_w + r + ef * 0.693359375f;
  const vf denominator = w - 1.0f;
  const vf small = denominator == 0.0f ? splat(1.0f) : splat(0.0f);
  return denominator == 0.0f ? x : log_w * (x / (denominator + small));
}

// softplus as PyTorch's: x itself above 20.
INLINE vf softplus(vf x) { return x > 20.0f ? x : log1p_(exp_(vmin(x, splat(20.0f)))); }

// erfc(z) for z >= 0 by a Chebyshev fit in 1 / (1 + z/2) (Press et al., Numerical Recipes, 6.2);
// its relative error is below 1.2e-7 everywhere, so the tail of the GELU keeps its digits.
INLINE vf erfc_positive(vf z) {
  const vf t = 1.0f / (1.0f + 0.5f * z);
  vf p = splat(0.17087277f);
  p = p * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  return t * exp_(p - z * z);
}

// x * Phi(x): for x < 0 it is -|x| * erfc(|x| / sqrt 2) / 2, for x > 0 that much less than x.
INLINE vf gelu(vf x) {
  const vf a = x < 0.0f ? -x : x;
  const vf tail = 0.5f * a * erfc_positive(a * 0.70710678118654752440f);
  return x < 0.0f ? -tail : x - tail;
}

}  // namespace
}  // namespace trainer
