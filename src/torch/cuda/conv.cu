// SiLU of a depthwise causal convolution on a GPU, forward and backward: Mamba's short filter.
//
// NVRTC compiles this for one number of taps, WIDTH; a C++ compiler compiles the same text against
// emulation.h, for tests. A thread takes one channel and a tile of tokens and slides a window of
// WIDTH numbers over it; neighbouring threads read neighbouring channels. Each thread writes its own
// share of the gradients of weight and bias, and libtorch adds the shares in a fixed order.

#ifdef EMULATION
#include "emulation.h"
#endif
#include "shapes.h"

using namespace trainer;

static __device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// bias + sum of taps[j] * window[j], added in the order of tokens.
static __device__ inline float convolve(const float *taps, const float *window, float bias) {
  float sum = bias;
#pragma unroll
  for (int j = 0; j < WIDTH; j++) sum += taps[j] * window[j];
  return sum;
}

// Threads: x channels, y tiles, z sequences.
extern "C" __global__ void conv_forward(ConvShape s, ConvInput in, float *y) {
  const int64_t channel = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t t0 = (int64_t)blockIdx.y * s.tile, start = (int64_t)blockIdx.z * s.length;
  if (channel >= s.channels) return;
  const int64_t end = t0 + s.tile < s.length ? t0 + s.tile : s.length;
  const float *x = in.x + start * s.stride_x + channel;
  const float bias = in.bias[channel];
  float taps[WIDTH], window[WIDTH];
#pragma unroll
  for (int j = 0; j < WIDTH; j++) {
    taps[j] = in.weight[channel * WIDTH + j];
    // The window of token t0 - 1, but for its first number, which is about to leave.
    const int64_t t = t0 - WIDTH + j;
    window[j] = t >= 0 ? x[t * s.stride_x] : 0.0f;
  }
#pragma unroll 4
  for (int64_t t = t0; t < end; t++) {
#pragma unroll
    for (int j = 0; j + 1 < WIDTH; j++) window[j] = window[j + 1];
    window[WIDTH - 1] = x[t * s.stride_x];
    const float v = convolve(taps, window, bias);
    y[(start + t) * s.channels + channel] = v * sigmoid(v);
  }
}

// Threads as conv_forward.
extern "C" __global__ void conv_backward(ConvShape s, ConvInput in, ConvGrad g) {
  const int64_t channel = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t t0 = (int64_t)blockIdx.y * s.tile, start = (int64_t)blockIdx.z * s.length;
  if (channel >= s.channels) return;
  const int64_t end = t0 + s.tile < s.length ? t0 + s.tile : s.length;
  // The tokens after the tile whose outputs its inputs reach.
  const int64_t last = (end + WIDTH - 1 < s.length ? end + WIDTH - 1 : s.length) - 1;
  const float *x = in.x + start * s.stride_x + channel;
  const float bias = in.bias[channel];
  float taps[WIDTH], window[WIDTH], recent[WIDTH], dtaps[WIDTH], dbias = 0.0f;
#pragma unroll
  for (int j = 0; j < WIDTH; j++) {
    taps[j] = in.weight[channel * WIDTH + j];
    const int64_t t = last + 1 - (WIDTH - 1) + j;  // the window of token last + 1, likewise
    window[j] = t >= 0 && t < s.length ? x[t * s.stride_x] : 0.0f;
    recent[j] = dtaps[j] = 0.0f;
  }
  // From the last token to the first; recent[i] is the gradient before SiLU of token t + i.
#pragma unroll 4
  for (int64_t t = last; t >= t0; t--) {
#pragma unroll
    for (int j = WIDTH - 1; j > 0; j--) {
      window[j] = window[j - 1];
      recent[j] = recent[j - 1];
    }
    const int64_t oldest = t - (WIDTH - 1), at = (start + t) * s.channels + channel;
    window[0] = oldest >= 0 ? x[oldest * s.stride_x] : 0.0f;
    const float v = convolve(taps, window, bias), gate = sigmoid(v);
    recent[0] = g.dy[at] * gate * (1.0f + v * (1.0f - gate));
    if (t >= end) continue;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
      sum += recent[WIDTH - 1 - j] * taps[j];
      dtaps[j] += recent[0] * window[j];
    }
    g.dx[at] = sum;
    dbias += recent[0];
  }
  const int64_t place = ((int64_t)blockIdx.z * gridDim.y + blockIdx.y) * s.channels + channel;
  g.dbias[place] = dbias;
#pragma unroll
  for (int j = 0; j < WIDTH; j++) g.dw[place * WIDTH + j] = dtaps[j];
}
