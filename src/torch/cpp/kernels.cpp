// CPU kernels: selective scan, causal convolution, attention for small heads, GELU.
//
// Everything is vectorised over kLanes channels (or queries) that lie side by side, so no sum ever
// runs across lanes in an inner loop. One source for every instruction set: GCC and Clang lower
// the vector type to what the flags of this compilation allow. Results differ in the last bits
// between instruction sets, as those of libtorch do.

#include <memory>

#include "vector.h"

namespace trainer {
namespace {

// ---------------------------------------------------------------------------- selective scan

// One block of lanes of one sequence: its channels, and what does not depend on the token.
struct Block {
  int64_t batch, channel, lanes;
};

INLINE Block block_of(int64_t task, int64_t channels) {
  const int64_t blocks = (channels + kLanes - 1) / kLanes;
  const int64_t channel = task % blocks * kLanes;
  const int64_t left = channels - channel;
  return {task / blocks, channel, left < kLanes ? left : kLanes};
}

constexpr int64_t kMaxStates = 64;

// A * log2(e) for the block's channels, transposed to [states] vectors over lanes.
INLINE void load_a(const ScanShape &s, const float *a_log, const Block &k, vf *a2) {
  for (int64_t n = 0; n < s.states; n++) {
    vf v = {};
    for (int64_t i = 0; i < k.lanes; i++) v[i] = a_log[(k.channel + i) * s.states + n];
    a2[n] = -exp_(v) * kLog2e;
  }
}

template <int N>
void scan_forward_n(const ScanShape &s, const ScanInput &in, float *y, float *states_out,
                    int64_t begin, int64_t end) {
  const int64_t states = N ? N : s.states;
  const int64_t blocks = (s.channels + kLanes - 1) / kLanes;
  const int64_t chunks = (s.length + s.chunk - 1) / s.chunk;
  vf a2[N ? N : kMaxStates], h[N ? N : kMaxStates];
  for (int64_t task = begin; task < end; task++) {
    const Block k = block_of(task, s.channels);
    load_a(s, in.a_log, k, a2);
    for (int64_t n = 0; n < states; n++) h[n] = vf{};
    const vf bias = load(in.dt_bias + k.channel, k.lanes), skip = load(in.d + k.channel, k.lanes);
    for (int64_t t = 0; t < s.length; t++) {
      if (states_out && t % s.chunk == 0) {
        const int64_t place = ((k.batch * chunks + t / s.chunk) * blocks + k.channel / kLanes);
        for (int64_t n = 0; n < states; n++)
          store(states_out + (place * states + n) * kLanes, h[n]);
      }
      const int64_t token = k.batch * s.length + t, at = token * s.channels + k.channel;
      const vf delta = softplus(load(in.dt + at, k.lanes) + bias);
      const vf u = load(in.u + at, k.lanes), z = load(in.z + token * s.stride_z + k.channel, k.lanes);
      const float *b = in.b + token * s.stride_bc, *c = in.c + token * s.stride_bc;
      const vf du = delta * u;
      vf sum = {};
      for (int64_t n = 0; n < states; n++) {
        h[n] = exp2_clamped(delta * a2[n]) * h[n] + du * b[n];
        sum += h[n] * c[n];
      }
      store(y + at, (sum + skip * u) * z * sigmoid(z), k.lanes);
    }
  }
}

// The share of dB and dC of one block of lanes at one token is folded over lanes when all blocks
// of a group have added to it.
INLINE float fold(vf v) {
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; i++) v[i] += v[i + step];
  return v[0];
}

template <int N>
struct BackwardScratch {
  static constexpr int64_t kChunk = 32;
  static constexpr int64_t kStates = N ? N : kMaxStates;
  vf decay[kChunk][kStates];           // exp(delta * A)
  vf state[kChunk + 1][kStates];       // state[t + 1] follows token t of the chunk
  vf db[kChunk][kStates], dc[kChunk][kStates];
  vf carry[kGroup / kLanes][kStates];  // gradient of the state, from the token after
  vf da[kGroup / kLanes][kStates];
};

template <int N>
void scan_backward_n(const ScanShape &s, const ScanInput &in, const float *states_in,
                     const ScanGrad &g, int64_t begin, int64_t end) {
  using Scratch = BackwardScratch<N>;
  const int64_t states = N ? N : s.states;
  const int64_t blocks = (s.channels + kLanes - 1) / kLanes;
  const int64_t chunks = (s.length + s.chunk - 1) / s.chunk;
  const int64_t groups = (s.channels + kGroup - 1) / kGroup;
  // On the heap: as a thread-local it would be taken out of every thread's stack.
  const auto owned = std::make_unique<Scratch>();
  Scratch &scratch = *owned;
  vf a2[N ? N : kMaxStates];
  for (int64_t task = begin; task < end; task++) {
    const int64_t batch = task / groups, group = task % groups;
    const int64_t first = group * kGroup;
    const int64_t last = first + kGroup < s.channels ? first + kGroup : s.channels;
    std::memset(scratch.carry, 0, sizeof scratch.carry);
    std::memset(scratch.da, 0, sizeof scratch.da);
    vf dskip[kGroup / kLanes] = {}, dbias[kGroup / kLanes] = {};
    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
      const int64_t t0 = chunk * s.chunk;
      const int64_t tokens = t0 + s.chunk < s.length ? s.chunk : s.length - t0;
      std::memset(scratch.db, 0, sizeof scratch.db);
      std::memset(scratch.dc, 0, sizeof scratch.dc);
      for (int64_t channel = first; channel < last; channel += kLanes) {
        const int64_t lanes = last - channel < kLanes ? last - channel : kLanes;
        const int64_t own = (channel - first) / kLanes;
        const Block k = {batch, channel, lanes};
        load_a(s, in.a_log, k, a2);
        const vf bias = load(in.dt_bias + channel, lanes), skip = load(in.d + channel, lanes);
        const int64_t place = (batch * chunks + chunk) * blocks + channel / kLanes;
        for (int64_t n = 0; n < states; n++)
          scratch.state[0][n] = load(states_in + (place * states + n) * kLanes);
        for (int64_t t = 0; t < tokens; t++) {  // the states of this chunk once more
          const int64_t token = batch * s.length + t0 + t, at = token * s.channels + channel;
          const vf delta = softplus(load(in.dt + at, lanes) + bias);
          const vf du = delta * load(in.u + at, lanes);
          const float *b = in.b + token * s.stride_bc;
          for (int64_t n = 0; n < states; n++) {
            const vf decay = exp2_clamped(delta * a2[n]);
            scratch.decay[t][n] = decay;
            scratch.state[t + 1][n] = decay * scratch.state[t][n] + du * b[n];
          }
        }
        vf *carry = scratch.carry[own], *da = scratch.da[own];
        for (int64_t t = tokens - 1; t >= 0; t--) {
          const int64_t token = batch * s.length + t0 + t, at = token * s.channels + channel;
          const float *b = in.b + token * s.stride_bc, *c = in.c + token * s.stride_bc;
          const vf raw = load(in.dt + at, lanes) + bias;
          const vf delta = softplus(raw), u = load(in.u + at, lanes);
          const vf z = load(in.z + token * s.stride_z + channel, lanes);
          const vf dy = load(g.dy + at, lanes);
          const vf gate = sigmoid(z), dscan = dy * z * gate, du_state = delta * u;
          vf scan = {}, d_delta = {}, d_du = {};
          for (int64_t n = 0; n < states; n++) {
            const vf h = scratch.state[t + 1][n];
            scan += h * c[n];
            const vf dh = carry[n] + dscan * c[n];
            scratch.dc[t][n] += dscan * h;
            scratch.db[t][n] += dh * du_state;
            d_du += dh * b[n];
            // d(decay) * decay, the part that delta and A share
            const vf shared = dh * scratch.state[t][n] * scratch.decay[t][n];
            d_delta += shared * a2[n];
            da[n] += shared * delta;
            carry[n] = dh * scratch.decay[t][n];
          }
          // a2 carries log2(e); undo it once for the sum.
          d_delta = d_delta * 0.69314718055994530942f + d_du * u;
          const vf draw = raw > 20.0f ? d_delta : d_delta * sigmoid(raw);
          store(g.ddt + at, draw, lanes);
          store(g.du + at, d_du * delta + dscan * skip, lanes);
          store(g.dz + at, dy * (scan + skip * u) * gate * (1.0f + z * (1.0f - gate)), lanes);
          dskip[own] += dscan * u;
          dbias[own] += draw;
        }
      }
      for (int64_t t = 0; t < tokens; t++) {
        const int64_t row = (group * s.batch + batch) * s.length + t0 + t;
        for (int64_t n = 0; n < states; n++) {
          g.db[row * states + n] = fold(scratch.db[t][n]);
          g.dc[row * states + n] = fold(scratch.dc[t][n]);
        }
      }
    }
    for (int64_t channel = first; channel < last; channel += kLanes) {
      const int64_t lanes = last - channel < kLanes ? last - channel : kLanes;
      const int64_t own = (channel - first) / kLanes, at = batch * s.channels + channel;
      load_a(s, in.a_log, {batch, channel, lanes}, a2);
      store(g.dd + at, dskip[own], lanes);
      store(g.ddt_bias + at, dbias[own], lanes);
      for (int64_t n = 0; n < states; n++) {
        // dA/da_log = A
        const vf v = scratch.da[own][n] * a2[n] * 0.69314718055994530942f;
        for (int64_t i = 0; i < lanes; i++) g.da_log[(at + i) * states + n] = v[i];
      }
    }
  }
}

void scan_forward(const ScanShape &s, const ScanInput &in, float *y, float *states_out,
                  int64_t begin, int64_t end) {
  if (s.states == 16) return scan_forward_n<16>(s, in, y, states_out, begin, end);
  scan_forward_n<0>(s, in, y, states_out, begin, end);
}

void scan_backward(const ScanShape &s, const ScanInput &in, const float *states_in,
                   const ScanGrad &g, int64_t begin, int64_t end) {
  if (s.states == 16) return scan_backward_n<16>(s, in, states_in, g, begin, end);
  scan_backward_n<0>(s, in, states_in, g, begin, end);
}

// ------------------------------------------------------------------------ causal convolution

constexpr int64_t kMaxWidth = 8;

INLINE void load_taps(const float *weight, const Block &k, int64_t width, vf *taps) {
  for (int64_t j = 0; j < width; j++) {
    vf v = {};
    for (int64_t i = 0; i < k.lanes; i++) v[i] = weight[(k.channel + i) * width + j];
    taps[j] = v;
  }
}

INLINE vf convolve(const float *x, int64_t stride, const vf *taps, vf bias, int64_t t,
                   int64_t width, int64_t lanes) {
  vf sum = bias;
  for (int64_t j = 0; j < width; j++) {
    const int64_t from = t - (width - 1) + j;
    if (from >= 0) sum += taps[j] * load(x + from * stride, lanes);
  }
  return sum;
}

void conv_forward(const float *x, int64_t stride_x, const float *weight, const float *bias,
                  float *y, int64_t, int64_t length, int64_t channels, int64_t width,
                  int64_t begin, int64_t end) {
  vf taps[kMaxWidth];
  for (int64_t task = begin; task < end; task++) {
    const Block k = block_of(task, channels);
    load_taps(weight, k, width, taps);
    const vf b = load(bias + k.channel, k.lanes);
    const float *own = x + k.batch * length * stride_x + k.channel;
    for (int64_t t = 0; t < length; t++) {
      const vf v = convolve(own, stride_x, taps, b, t, width, k.lanes);
      store(y + (k.batch * length + t) * channels + k.channel, v * sigmoid(v), k.lanes);
    }
  }
}

void conv_backward(const float *x, int64_t stride_x, const float *weight, const float *bias,
                   const float *dy, float *dx, float *dw, float *dbias, int64_t, int64_t length,
                   int64_t channels, int64_t width, int64_t begin, int64_t end) {
  vf taps[kMaxWidth], dtaps[kMaxWidth], recent[kMaxWidth];
  for (int64_t task = begin; task < end; task++) {
    const Block k = block_of(task, channels);
    load_taps(weight, k, width, taps);
    const vf b = load(bias + k.channel, k.lanes);
    const float *own = x + k.batch * length * stride_x + k.channel;
    vf db = {};
    for (int64_t j = 0; j < width; j++) dtaps[j] = recent[j] = vf{};
    // From the last token to the first; recent[i] is the gradient before SiLU of token t + i.
    for (int64_t t = length - 1; t >= 0; t--) {
      for (int64_t j = width - 1; j > 0; j--) recent[j] = recent[j - 1];
      const int64_t at = (k.batch * length + t) * channels + k.channel;
      const vf v = convolve(own, stride_x, taps, b, t, width, k.lanes), gate = sigmoid(v);
      recent[0] = load(dy + at, k.lanes) * gate * (1.0f + v * (1.0f - gate));
      db += recent[0];
      vf sum = {};
      for (int64_t j = 0; j < width; j++) sum += recent[width - 1 - j] * taps[j];
      store(dx + at, sum, k.lanes);
      for (int64_t j = 0; j < width; j++) {
        const int64_t from = t - (width - 1) + j;
        if (from >= 0) dtaps[j] += recent[0] * load(own + from * stride_x, k.lanes);
      }
    }
    store(dbias + k.batch * channels + k.channel, db, k.lanes);
    for (int64_t j = 0; j < width; j++)
      for (int64_t i = 0; i < k.lanes; i++)
        dw[(k.batch * channels + k.channel + i) * width + j] = dtaps[j][i];
  }
}

// --------------------------------------------------------------------------------- attention

// Queries of one block: two vectors of lanes, so that each key's number, once broadcast, is used
// twice.
constexpr int64_t kQueries = 2 * kLanes;

// Adds to two vectors of queries the products with `count` (at most kColumns) numbers a key.
constexpr int64_t kColumns = 12;

template <int COLUMNS>
INLINE void weigh_values(const float *scores, const float *values, int64_t keys, int64_t head_dim,
                         vf inverse0, vf inverse1, float *out, int64_t stride, int64_t queries) {
  vf sum0[COLUMNS], sum1[COLUMNS];
  for (int c = 0; c < COLUMNS; c++) sum0[c] = sum1[c] = vf{};
  for (int64_t key = 0; key < keys; key++) {
    const vf p0 = load(scores + key * kQueries), p1 = load(scores + key * kQueries + kLanes);
    const float *v = values + key * head_dim;
    for (int c = 0; c < COLUMNS; c++) {
      sum0[c] += p0 * v[c];
      sum1[c] += p1 * v[c];
    }
  }
  for (int c = 0; c < COLUMNS; c++) {
    sum0[c] *= inverse0;
    sum1[c] *= inverse1;
  }
  for (int64_t q = 0; q < queries; q++)
    for (int c = 0; c < COLUMNS; c++)
      out[q * stride + c] = q < kLanes ? sum0[c][q] : sum1[c][q - kLanes];
}

// Scores of KEYS keys against one block of queries.
template <int KEYS>
INLINE void score_keys(const float *queries, const float *keys, int64_t head_dim, float *scores,
                       vf &max0, vf &max1) {
  vf sum0[KEYS], sum1[KEYS];
  for (int i = 0; i < KEYS; i++) sum0[i] = sum1[i] = vf{};
  for (int64_t d = 0; d < head_dim; d++) {
    const vf q0 = load(queries + d * kQueries), q1 = load(queries + d * kQueries + kLanes);
    for (int i = 0; i < KEYS; i++) {
      sum0[i] += q0 * keys[i * head_dim + d];
      sum1[i] += q1 * keys[i * head_dim + d];
    }
  }
  for (int i = 0; i < KEYS; i++) {
    max0 = vmax(max0, sum0[i]);
    max1 = vmax(max1, sum1[i]);
    store(scores + i * kQueries, sum0[i]);
    store(scores + i * kQueries + kLanes, sum1[i]);
  }
}

// Rotary positions (Su et al., 2021) as ESM-2 uses them: the halves of a head rotate together.
INLINE void rotate(const float *x, const float *cosine, const float *sine, int64_t head_dim,
                   float scale, float *out, int64_t stride) {
  const int64_t half = head_dim / 2;
  for (int64_t d = 0; d < half; d++) {
    const float a = x[d] * scale, b = x[d + half] * scale;
    out[d * stride] = a * cosine[d] - b * sine[d];
    out[(d + half) * stride] = b * cosine[d] + a * sine[d];
  }
}

void attention(const float *qkv, const int64_t *offsets, const float *cosines, const float *sines,
               float *out, int64_t heads, int64_t head_dim, float *scratch, int64_t begin,
               int64_t end) {
  const int64_t half = head_dim / 2, width = heads * head_dim, row = 3 * width;
  // The softmax is taken with base 2, which the queries' scale absorbs.
  const float scale = kLog2e / std::sqrt((float)head_dim);
  for (int64_t task = begin; task < end; task++) {
    const int64_t first = offsets[task / heads], length = offsets[task / heads + 1] - first;
    const int64_t blocks = (length + kQueries - 1) / kQueries;
    const float *base = qkv + first * row + task % heads * head_dim;
    float *keys = scratch, *values = keys + length * head_dim;
    float *queries = values + length * head_dim;
    float *scores = queries + blocks * kQueries * head_dim;
    std::memset(queries + (blocks - 1) * kQueries * head_dim, 0,
                kQueries * head_dim * sizeof(float));
    for (int64_t t = 0; t < length; t++) {
      const float *cosine = cosines + t * half, *sine = sines + t * half, *x = base + t * row;
      rotate(x, cosine, sine, head_dim, scale,
             queries + t / kQueries * kQueries * head_dim + t % kQueries, kQueries);
      rotate(x + width, cosine, sine, head_dim, 1.0f, keys + t * head_dim, 1);
      std::memcpy(values + t * head_dim, x + 2 * width, head_dim * sizeof(float));
    }
    for (int64_t block = 0; block < blocks; block++) {
      const float *own = queries + block * kQueries * head_dim;
      vf max0 = splat(-3e38f), max1 = max0;
      int64_t key = 0;
      for (; key + 8 <= length; key += 8)
        score_keys<8>(own, keys + key * head_dim, head_dim, scores + key * kQueries, max0, max1);
      for (; key < length; key++)
        score_keys<1>(own, keys + key * head_dim, head_dim, scores + key * kQueries, max0, max1);
      vf sum0 = {}, sum1 = {};
      for (key = 0; key < length; key++) {
        float *s = scores + key * kQueries;
        const vf p0 = exp2_clamped(load(s) - max0), p1 = exp2_clamped(load(s + kLanes) - max1);
        sum0 += p0;
        sum1 += p1;
        store(s, p0);
        store(s + kLanes, p1);
      }
      const vf inverse0 = 1.0f / sum0, inverse1 = 1.0f / sum1;
      const int64_t left = length - block * kQueries;
      const int64_t rows = left < kQueries ? left : kQueries;
      float *to = out + (first + block * kQueries) * width + task % heads * head_dim;
      int64_t c = 0;
      for (; c + kColumns <= head_dim; c += kColumns)
        weigh_values<kColumns>(scores, values + c, length, head_dim, inverse0, inverse1, to + c,
                               width, rows);
      for (; c + 4 <= head_dim; c += 4)
        weigh_values<4>(scores, values + c, length, head_dim, inverse0, inverse1, to + c, width,
                        rows);
      for (; c < head_dim; c++)
        weigh_values<1>(scores, values + c, length, head_dim, inverse0, inverse1, to + c, width,
                        rows);
    }
  }
}

void bias_gelu(float *x, const float *bias, int64_t width, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; r++) {
    float *row = x + r * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t lanes = width - i < kLanes ? width - i : kLanes;
      store(row + i, gelu(load(row + i, lanes) + load(bias + i, lanes)), lanes);
    }
  }
}

}  // namespace

const Kernels *KERNELS_FUNCTION() {
  static const Kernels table = {KERNELS_NAME,  scan_forward,  scan_backward, conv_forward,
                                conv_backward, attention,     bias_gelu};
  return &table;
}

}  // namespace trainer
