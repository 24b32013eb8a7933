// The selective scan of Mamba (Gu and Dao, 2023, arXiv 2312.00752) on a GPU, forward and backward.
//
// NVRTC compiles this for the numbers of states that a model has: STATES, and CHUNK tokens between
// two saved states (device_chunk in kernels.h). A C++ compiler compiles the same text against
// emulation.h, for tests.
//
// One block is one warp, and lane i computes channel 32 * blockIdx.x + i of sequence blockIdx.y
// from its first token to its last, with all its states in registers: neighbouring lanes read
// neighbouring channels. B and C of a token are the same for all channels and go through shared
// memory. No atomics: every sum has one order, so equal inputs give equal bits.
//
// Backward walks the chunks from the last to the first. It computes a chunk's states once more from
// the saved one, keeps them in shared memory, and then goes back through its tokens. The shares of
// dB and dC of 32 channels are added in the order of lanes; the sum over warps is libtorch's.

#ifdef EMULATION
#include "emulation.h"
#endif
#include "shapes.h"

using namespace trainer;

#define LANES 32
#define TILE (CHUNK < 8 ? CHUNK : 8)  // tokens read ahead in forward
#define PAIRS (2 * STATES)            // B and C of one token
// Of the B and C of a tile, how many numbers one lane reads.
#define SHARES ((TILE * PAIRS + LANES - 1) / LANES)
// Blocks of forward that a multiprocessor should hold at once, which limits their registers.
#define BLOCKS (STATES <= 16 ? 12 : 8)

static __device__ const float kLog2e = 1.44269504088896340736f;
static __device__ const float kLn2 = 0.69314718055994530942f;

static __device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// softplus as PyTorch's: x itself above 20.
static __device__ inline float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// Number `i` of the B and C of tokens from `token` on, PAIRS a token: first B, then C.
static __device__ inline float pair_at(const ScanShape &s, const ScanInput &in, int64_t token,
                                       int i) {
  const int64_t row = (token + i / PAIRS) * s.stride_bc;
  const int n = i % PAIRS;
  return n < STATES ? in.b[row + n] : in.c[row + n - STATES];
}

// A * log2(e) of one channel.
static __device__ inline void load_a(const ScanInput &in, int64_t channel, float *a2) {
#pragma unroll
  for (int n = 0; n < STATES; n++) a2[n] = -expf(in.a_log[channel * STATES + n]) * kLog2e;
}

// A lane's numbers of the next TILE tokens; zeros after the last token.
struct Ahead {
  float dt[TILE], u[TILE], z[TILE], pairs[SHARES];
};

static __device__ inline void read_ahead(const ScanShape &s, const ScanInput &in, int64_t first,
                                         int64_t left, int64_t channel, int lane, Ahead *to) {
#pragma unroll
  for (int i = 0; i < TILE; i++) {
    const bool there = i < left;
    const int64_t at = (first + i) * s.channels + channel;
    to->dt[i] = there ? in.dt[at] : 0.0f;
    to->u[i] = there ? in.u[at] : 0.0f;
    to->z[i] = there ? in.z[(first + i) * s.stride_z + channel] : 0.0f;
  }
#pragma unroll
  for (int k = 0; k < SHARES; k++) {
    const int i = k * LANES + lane;
    to->pairs[k] = i < TILE * PAIRS && i / PAIRS < left ? pair_at(s, in, first, i) : 0.0f;
  }
}

// saved: [batch, chunks, STATES, channels], the states before each chunk; null where no gradient
// is wanted.
extern "C" __global__ void __launch_bounds__(LANES, BLOCKS)
    scan_forward(ScanShape s, ScanInput in, float *y, float *saved) {
  __shared__ float pairs[SHARES * LANES];
  const int lane = threadIdx.x;
  const int64_t batch = blockIdx.y, own = (int64_t)blockIdx.x * LANES + lane;
  const bool inside = own < s.channels;
  // Lanes beyond the last channel compute it too and store nothing.
  const int64_t channel = inside ? own : s.channels - 1;
  const int64_t chunks = (s.length + CHUNK - 1) / CHUNK, start = batch * s.length;
  float a2[STATES], h[STATES];
  load_a(in, channel, a2);
#pragma unroll
  for (int n = 0; n < STATES; n++) h[n] = 0.0f;
  const float bias = in.dt_bias[channel], skip = in.d[channel];
  Ahead next;
  read_ahead(s, in, start, s.length, channel, lane, &next);
  for (int64_t t0 = 0; t0 < s.length; t0 += TILE) {
    if (saved && inside && t0 % CHUNK == 0) {
      float *to = saved + (batch * chunks + t0 / CHUNK) * STATES * s.channels + channel;
#pragma unroll
      for (int n = 0; n < STATES; n++) to[n * s.channels] = h[n];
    }
    const Ahead now = next;
    __syncwarp();  // everyone is done with the tile before
#pragma unroll
    for (int k = 0; k < SHARES; k++) pairs[k * LANES + lane] = now.pairs[k];
    __syncwarp();
    if (t0 + TILE < s.length)
      read_ahead(s, in, start + t0 + TILE, s.length - t0 - TILE, channel, lane, &next);
#pragma unroll
    for (int i = 0; i < TILE; i++) {
      if (t0 + i >= s.length) break;
      const float *b = pairs + i * PAIRS, *c = b + STATES;
      const float delta = softplus(now.dt[i] + bias), u = now.u[i], z = now.z[i], du = delta * u;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < STATES; n++) {
        h[n] = exp2f(delta * a2[n]) * h[n] + du * b[n];
        sum += h[n] * c[n];
      }
      if (inside) y[(start + t0 + i) * s.channels + channel] = (sum + skip * u) * z * sigmoid(z);
    }
  }
}

// Adds `shares` of all lanes, PAIRS numbers each, and stores the sums: the first STATES of them
// into db, the others into dc. `room` holds LANES rows of LANES + 1.
static __device__ inline void fold_lanes(const float *shares, float *room, int lane, float *db,
                                         float *dc) {
#pragma unroll
  for (int first = 0; first < PAIRS; first += LANES) {
    __syncwarp();  // everyone is done with the sums before
#pragma unroll
    for (int i = 0; i < LANES; i++)
      if (first + i < PAIRS) room[lane * (LANES + 1) + i] = shares[first + i];
    __syncwarp();
    const int n = first + lane;
    if (n < PAIRS) {
      // Four sums side by side: one alone would wait for every addition.
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int l = 0; l < LANES; l++) sum[l % 4] += room[l * (LANES + 1) + lane];
      const float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      if (n < STATES) db[n] = total;
      else dc[n - STATES] = total;
    }
  }
}

// saved as scan_forward left it. Groups of db and dc are warps: gridDim.x of them.
extern "C" __global__ void __launch_bounds__(LANES)
    scan_backward(ScanShape s, ScanInput in, const float *saved, ScanGrad g) {
  __shared__ float before[CHUNK * STATES * LANES];  // states before each token of the chunk
  __shared__ float pairs[CHUNK * PAIRS];
  __shared__ float room[LANES * (LANES + 1)];
  const int lane = threadIdx.x;
  const int64_t batch = blockIdx.y, own = (int64_t)blockIdx.x * LANES + lane;
  const bool inside = own < s.channels;
  const int64_t channel = inside ? own : s.channels - 1;
  const int64_t chunks = (s.length + CHUNK - 1) / CHUNK, start = batch * s.length;
  float a2[STATES], carry[STATES], da[STATES], h[STATES];
  load_a(in, channel, a2);
#pragma unroll
  for (int n = 0; n < STATES; n++) carry[n] = da[n] = 0.0f;
  const float bias = in.dt_bias[channel], skip = in.d[channel];
  float dskip = 0.0f, dbias = 0.0f;
  for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
    const int64_t t0 = chunk * CHUNK, first = start + t0;
    const int tokens = s.length - t0 < CHUNK ? (int)(s.length - t0) : CHUNK;
    const float *from = saved + (batch * chunks + chunk) * STATES * s.channels + channel;
#pragma unroll
    for (int n = 0; n < STATES; n++) h[n] = from[n * s.channels];
    float dt[CHUNK], us[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      const int64_t at = (first + i) * s.channels + channel;
      dt[i] = i < tokens ? in.dt[at] : 0.0f;
      us[i] = i < tokens ? in.u[at] : 0.0f;
    }
    __syncwarp();
    for (int i = lane; i < tokens * PAIRS; i += LANES) pairs[i] = pair_at(s, in, first, i);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {  // the states of this chunk once more
      if (i >= tokens) break;
      const float *b = pairs + i * PAIRS;
      const float delta = softplus(dt[i] + bias), du = delta * us[i];
#pragma unroll
      for (int n = 0; n < STATES; n++) {
        before[(i * STATES + n) * LANES + lane] = h[n];
        h[n] = exp2f(delta * a2[n]) * h[n] + du * b[n];
      }
    }
    // From here on h are the states after the token; numbers of the next token are read ahead.
    int64_t at = (first + tokens - 1) * s.channels + channel;
    int64_t at_z = (first + tokens - 1) * s.stride_z + channel;
    float next_dt = in.dt[at], next_u = in.u[at], next_z = in.z[at_z], next_dy = g.dy[at];
#pragma unroll 1
    for (int i = tokens - 1; i >= 0; i--) {
      const float *b = pairs + i * PAIRS, *c = b + STATES;
      const float raw = next_dt + bias, u = next_u, z = next_z, dy = inside ? next_dy : 0.0f;
      const int64_t here = at;
      if (i > 0) {
        at -= s.channels;
        at_z -= s.stride_z;
        next_dt = in.dt[at];
        next_u = in.u[at];
        next_z = in.z[at_z];
        next_dy = g.dy[at];
      }
      const float delta = softplus(raw), gate = sigmoid(z), dscan = dy * z * gate;
      const float du_state = delta * u;
      float scan = 0.0f, d_delta = 0.0f, d_du = 0.0f, shares[PAIRS];
#pragma unroll
      for (int n = 0; n < STATES; n++) {
        const float old = before[(i * STATES + n) * LANES + lane];
        const float decay = exp2f(delta * a2[n]), dh = carry[n] + dscan * c[n];
        scan += h[n] * c[n];
        shares[n] = dh * du_state;
        shares[STATES + n] = dscan * h[n];
        d_du += dh * b[n];
        // d(decay) * decay, the part that delta and A share
        const float both = dh * old * decay;
        d_delta += both * a2[n];
        da[n] += both * delta;
        carry[n] = dh * decay;
        h[n] = old;
      }
      // a2 carries log2(e); undo it once for the sum.
      d_delta = d_delta * kLn2 + d_du * u;
      const float draw = raw > 20.0f ? d_delta : d_delta * sigmoid(raw);
      if (inside) {
        g.ddt[here] = draw;
        g.du[here] = d_du * delta + dscan * skip;
        g.dz[here] = dy * (scan + skip * u) * gate * (1.0f + z * (1.0f - gate));
      }
      dskip += dscan * u;
      dbias += draw;
      const int64_t row = ((int64_t)blockIdx.x * s.batch * s.length + first + i) * STATES;
      fold_lanes(shares, room, lane, g.db + row, g.dc + row);
    }
  }
  if (!inside) return;
  const int64_t place = batch * s.channels + channel;
  g.dd[place] = dskip;
  g.ddt_bias[place] = dbias;
  // dA/da_log = A
#pragma unroll
  for (int n = 0; n < STATES; n++) g.da_log[place * STATES + n] = da[n] * a2[n] * kLn2;
}
