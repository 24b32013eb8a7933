// The CPU kernels as plain functions over raw pointers, one table per instruction set.
//
// kernels.cpp is compiled once per instruction set (see build.rs) and must include nothing of
// ATen: an inline function of a header, compiled with AVX-512 and picked by the linker for
// everybody, would crash on older machines. shim.cpp picks a table at run time.
#pragma once
#include <cstdint>

namespace trainer {

// Lanes of one vector of channels or queries.
constexpr int64_t kLanes = 16;

// Inputs of the selective scan (Gu and Dao, 2023), channel last. Row strides are in elements.
struct ScanShape {
  int64_t batch, length, channels, states;
  int64_t stride_bc;  // from one token's B (or C) to the next token's
  int64_t stride_z;   // the same for z
  int64_t chunk;      // tokens between two saved states
};

struct ScanInput {
  const float *u;        // [batch, length, channels]
  const float *dt;       // [batch, length, channels], before bias and softplus
  const float *dt_bias;  // [channels]
  const float *a_log;    // [channels, states]; A = -exp(a_log)
  const float *b;        // [batch, length, states], rows stride_bc apart
  const float *c;        // as b
  const float *d;        // [channels], the skip
  const float *z;        // [batch, length, channels], rows stride_z apart; the gate
};

struct ScanGrad {
  const float *dy;            // [batch, length, channels], gradient of the output
  float *du, *ddt;            // [batch, length, channels]
  float *dz;                  // [batch, length, channels]
  float *da_log;              // [batch, channels, states], to be summed over batch
  float *dd, *ddt_bias;       // [batch, channels], to be summed over batch
  float *db, *dc;             // [groups, batch, length, states], to be summed over groups
};

// Channels whose share of dB and dC is folded together; a fixed number, so that the sums do not
// depend on the number of threads.
constexpr int64_t kGroup = 128;

struct Kernels {
  const char *name;
  // Tasks are (batch, block of kLanes channels): batch * ceil(channels / kLanes) of them.
  // states_out: [batch, chunks, channels padded to kLanes, states], or null where no gradient is
  // wanted.
  void (*scan_forward)(const ScanShape &, const ScanInput &, float *y, float *states_out,
                       int64_t begin, int64_t end);
  // Tasks are (batch, group of kGroup channels).
  void (*scan_backward)(const ScanShape &, const ScanInput &, const float *states_in,
                        const ScanGrad &, int64_t begin, int64_t end);
  // Depthwise causal convolution and SiLU; x rows are stride_x apart, y is contiguous.
  // Tasks as scan_forward.
  void (*conv_forward)(const float *x, int64_t stride_x, const float *weight, const float *bias,
                       float *y, int64_t batch, int64_t length, int64_t channels, int64_t width,
                       int64_t begin, int64_t end);
  // dw: [batch, channels, width], dbias: [batch, channels], to be summed over batch.
  void (*conv_backward)(const float *x, int64_t stride_x, const float *weight, const float *bias,
                        const float *dy, float *dx, float *dw, float *dbias, int64_t batch,
                        int64_t length, int64_t channels, int64_t width, int64_t begin,
                        int64_t end);
  // Attention over packed sequences with rotary positions. qkv: [tokens, 3, heads, head_dim];
  // cumulative lengths: [sequences + 1]; cosines and sines: [longest, head_dim / 2];
  // out: [tokens, heads, head_dim]. Tasks are (sequence, head). scratch: attention_scratch()
  // floats for this thread alone.
  void (*attention)(const float *qkv, const int64_t *offsets, const float *cosines,
                    const float *sines, float *out, int64_t heads, int64_t head_dim,
                    float *scratch, int64_t begin, int64_t end);
  // x[r, :] = gelu(x[r, :] + bias), the exact GELU, rows begin..end.
  void (*bias_gelu)(float *x, const float *bias, int64_t width, int64_t begin, int64_t end);
};

// Floats that one thread's attention needs for sequences up to `longest` tokens.
inline int64_t attention_scratch(int64_t longest, int64_t head_dim) {
  const int64_t padded = (longest + 31) / 32 * 32;
  return 2 * padded * head_dim   // rotated keys, values
         + padded * head_dim     // rotated queries, transposed in blocks
         + padded * 32           // scores of one block of queries
         + 64;
}

const Kernels *kernels_generic();
#if defined(__x86_64__)
const Kernels *kernels_avx2();
const Kernels *kernels_avx512();
#endif

}  // namespace trainer
