// One of the GPU kernels' sources, run on the CPU, as the functions that a GPU's launcher has
// (DeviceKernels in kernels.h). With STATES and CHUNK defined it is the scan, with WIDTH the
// convolution. Tests compile this; the program does not contain it.

#define EMULATION
#ifdef STATES
#include "scan.cu"

extern "C" char *emulated_scan_forward(const ScanShape *s, const ScanInput *in, float *y,
                                       float *saved, int64_t, void *) {
  const Dimension grid = {unsigned((s->channels + LANES - 1) / LANES), unsigned(s->batch), 1};
  emulation::launch(grid, LANES, [&] { scan_forward(*s, *in, y, saved); });
  return nullptr;
}

extern "C" char *emulated_scan_backward(const ScanShape *s, const ScanInput *in,
                                        const float *saved, const ScanGrad *g, int64_t, void *) {
  const Dimension grid = {unsigned((s->channels + LANES - 1) / LANES), unsigned(s->batch), 1};
  emulation::launch(grid, LANES, [&] { scan_backward(*s, *in, saved, *g); });
  return nullptr;
}
#else
#include "conv.cu"

static Dimension grid_of(const ConvShape &s, unsigned threads) {
  return {unsigned((s.channels + threads - 1) / threads),
          unsigned((s.length + s.tile - 1) / s.tile), unsigned(s.batch)};
}

extern "C" char *emulated_conv_forward(const ConvShape *s, const ConvInput *in, float *y, int64_t,
                                       void *) {
  emulation::launch(grid_of(*s, 64), 64, [&] { conv_forward(*s, *in, y); });
  return nullptr;
}

extern "C" char *emulated_conv_backward(const ConvShape *s, const ConvInput *in, const ConvGrad *g,
                                        int64_t, void *) {
  emulation::launch(grid_of(*s, 64), 64, [&] { conv_backward(*s, *in, *g); });
  return nullptr;
}
#endif
