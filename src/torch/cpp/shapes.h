// What a kernel of Mamba's sequence operations is given, on the CPU (kernels.cpp) and on a GPU
// (../cuda/*.cu, ../cuda/launch.rs). Includes nothing where NVRTC compiles it. Every member is
// eight bytes long: Rust mirrors these structs and hands them over by value.
#pragma once
#ifdef __CUDACC_RTC__
typedef long long int64_t;
#else
#include <cstdint>
#endif

namespace trainer {

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

// Depthwise causal convolution and SiLU, channel last.
struct ConvShape {
  int64_t batch, length, channels, width;
  int64_t stride_x;  // from one token's x to the next token's
  int64_t tile;      // tokens of one thread
};

struct ConvInput {
  const float *x;       // [batch, length, channels], rows stride_x apart
  const float *weight;  // [channels, width]
  const float *bias;    // [channels]
};

struct ConvGrad {
  const float *dy;  // [batch, length, channels], gradient of the output
  float *dx;        // [batch, length, channels]
  float *dw;        // [batch, tiles, channels, width], to be summed over batch and tiles
  float *dbias;     // [batch, tiles, channels], likewise
};

}  // namespace trainer
