// The numbers behind dropout: Philox4x32 (Salmon et al., 2011) with seven rounds, the fewest that
// pass BigCrush, eight counters at a time. Integers alone: the same on every instruction set.
#pragma once
#include "transformer.h"
#include "vector.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace trainer {
namespace {

typedef uint64_t vl __attribute__((vector_size(kLanes * 4)));

// The 64-bit products of the lanes' low 32 bits with m.
INLINE vl product(vl a, uint32_t m) {
#if defined(__AVX512F__)
  // The masked form, for GCC 12 warns of its own header at the plain one.
  return (vl)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  __m256i half[2];
  std::memcpy(half, &a, sizeof a);
  for (__m256i &h : half) h = _mm256_mul_epu32(h, _mm256_set1_epi64x(m));
  std::memcpy(&a, half, sizeof a);
  return a;
#else
  return a * uint64_t(m);
#endif
}

// Whether 64 elements are kept: all bits of their lane are set, or none. The elements are number
// 64 * block and following of row `row`.
INLINE void keep_masks(const Dropout &dropout, uint32_t block, uint64_t row, vi kept[4]) {
  constexpr vl kLane = {0, 1, 2, 3, 4, 5, 6, 7};
  constexpr uint64_t kLow = 0xffffffff;
  const vl zero = {};
  vl x0 = kLane + (uint64_t(block) * 8 & kLow), x1 = zero + (row & kLow), x2 = zero + (row >> 32);
  vl x3 = zero;
  uint64_t k0 = dropout.seed & kLow, k1 = dropout.seed >> 32;
  for (int round = 0; round < 7; round++) {
    const vl p0 = product(x0, 0xD2511F53), p1 = product(x2, 0xCD9E8D57);
    x0 = (p1 >> 32) ^ x1 ^ k0;
    x1 = p1 & kLow;
    x2 = (p0 >> 32) ^ x3 ^ k1;
    x3 = p0 & kLow;
    k0 = (k0 + 0x9E3779B9) & kLow;
    k1 = (k1 + 0xBB67AE85) & kLow;
  }
  const vi a = (vi)(x0 | x1 << 32), b = (vi)(x2 | x3 << 32);
  const vi threshold = vi{} + int32_t(dropout.threshold);
  // An arithmetic shift spreads the sign: all ones where the number is below the threshold.
  kept[0] = ~(((a & 0xffff) - threshold) >> 31);
  kept[1] = ~(((a >> 16 & 0xffff) - threshold) >> 31);
  kept[2] = ~(((b & 0xffff) - threshold) >> 31);
  kept[3] = ~(((b >> 16 & 0xffff) - threshold) >> 31);
}

// x where it is kept, else 0. What is dropped does not matter, be it NaN.
INLINE vf keep(vf x, vi kept) { return (vf)((vi)x & kept); }

}  // namespace
}  // namespace trainer
