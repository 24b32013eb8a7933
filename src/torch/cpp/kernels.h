// The CPU kernels as plain functions over raw pointers, one table per instruction set.
//
// The files of build.rs's list KERNELS are compiled once per instruction set and must include
// nothing of ATen: an inline function of a header, compiled with AVX-512 and picked by the linker
// for everybody, would crash on older machines. shim.cpp picks a table at run time.
#pragma once
#include "shapes.h"

namespace trainer {

// Lanes of one vector of channels or queries.
constexpr int64_t kLanes = 16;

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

// The same two operations on another device than the CPU (../cuda/). Each function gives null, or
// what went wrong, to be freed with free(); work is put on `stream`.
struct DeviceKernels {
  // saved: [batch, chunks of shape.chunk tokens, states, channels], or null.
  char *(*scan_forward)(const ScanShape *, const ScanInput *, float *y, float *saved,
                        int64_t device, void *stream);
  // Groups of kDeviceGroup channels.
  char *(*scan_backward)(const ScanShape *, const ScanInput *, const float *saved,
                         const ScanGrad *, int64_t device, void *stream);
  char *(*conv_forward)(const ConvShape *, const ConvInput *, float *y, int64_t device,
                        void *stream);
  char *(*conv_backward)(const ConvShape *, const ConvInput *, const ConvGrad *, int64_t device,
                         void *stream);
};

constexpr int64_t kDeviceGroup = 32;  // LANES in scan.cu
constexpr int64_t kDeviceTile = 64;   // tokens of one thread of the convolution

// Tokens between two saved states: a chunk's states of 32 channels fit into 32 KiB.
constexpr int64_t device_chunk(int64_t states) {
  return states <= 16 ? 16 : states <= 32 ? 8 : 4;
}

// What a device's tensors are computed with; null for the CPU's own kernels.
const DeviceKernels *device_kernels(bool cpu);

const Kernels *kernels_generic();
#if defined(__x86_64__)
const Kernels *kernels_avx2();
const Kernels *kernels_avx512();
#endif

}  // namespace trainer
