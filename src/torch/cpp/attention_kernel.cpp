// Attention with dropout and its backward, one head of one sequence after another.
//
// A block of 32 queries lies across the lanes, so that a key's number, once broadcast, serves all
// of them, and softmax and dropout run over lanes that do not meet. Scores are never more than one
// block's. Backward computes them again from the saved logarithms (Dao et al., 2022), and with them
// the same mask.

#include <initializer_list>

#include "mask.h"

namespace trainer {
namespace {

// The products take most of the time, and GCC splits vectors that no register holds badly: here a
// vector is as wide as the registers are, and a block of sums fills most of them.
#if defined(__AVX512F__)
constexpr int kNative = 16, kScoreKeys = 12, kSumRows = 6, kSumColumns = 4;
#elif defined(__AVX__)
constexpr int kNative = 8, kScoreKeys = 3, kSumRows = 6, kSumColumns = 2;
#else
constexpr int kNative = 4, kScoreKeys = 1, kSumRows = 3, kSumColumns = 4;
#endif

typedef float nf __attribute__((vector_size(kNative * 4)));

INLINE nf load_native(const float *p) {
  nf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
INLINE void store_native(float *p, nf v) { std::memcpy(p, &v, sizeof v); }

// Steps of a sum whose operands stay in the first cache.
constexpr int64_t kSumSteps = 64;

constexpr float kLn2 = 0.69314718055994530942f;

// scores[i, :] = <keys[i, :], queries>, for queries [d, kQueryBlock] and keys [KEYS, d].
template <int KEYS>
INLINE void score(const float *queries, const float *keys, int64_t d, float *scores) {
  constexpr int kVectors = kQueryBlock / kNative;
  nf sum[KEYS][kVectors];
  for (int i = 0; i < KEYS; i++)
    for (int j = 0; j < kVectors; j++) sum[i][j] = nf{};
  for (int64_t c = 0; c < d; c++) {
    nf q[kVectors];
    for (int j = 0; j < kVectors; j++) q[j] = load_native(queries + c * kQueryBlock + j * kNative);
    for (int i = 0; i < KEYS; i++)
      for (int j = 0; j < kVectors; j++) sum[i][j] += q[j] * keys[i * d + c];
  }
  for (int i = 0; i < KEYS; i++)
    for (int j = 0; j < kVectors; j++)
      store_native(scores + i * kQueryBlock + j * kNative, sum[i][j]);
}

void score_all(const float *queries, const float *keys, int64_t count, int64_t d, float *scores) {
  int64_t i = 0;
  for (; i + kScoreKeys <= count; i += kScoreKeys)
    score<kScoreKeys>(queries, keys + i * d, d, scores + i * kQueryBlock);
  for (; i < count; i++) score<1>(queries, keys + i * d, d, scores + i * kQueryBlock);
}

// A matrix whose rows are summed with weights: weight of step s in row r is
// weights[r * row + s * step].
struct Weights {
  const float *weights;
  int64_t row, step;
};

// out[r, :] (+)= sum over steps of weight[r, s] * x[s, :]; x and out have rows of d.
template <int ROWS, int COLUMNS>
INLINE void sum_rows(Weights w, const float *x, int64_t steps, int64_t d, float *out, bool add) {
  nf sum[ROWS][COLUMNS];
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLUMNS; c++)
      sum[r][c] = add ? load_native(out + r * d + c * kNative) : nf{};
  for (int64_t s = 0; s < steps; s++) {
    nf v[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) v[c] = load_native(x + s * d + c * kNative);
    for (int r = 0; r < ROWS; r++) {
      const float weight = w.weights[r * w.row + s * w.step];
      for (int c = 0; c < COLUMNS; c++) sum[r][c] += weight * v[c];
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLUMNS; c++) store_native(out + r * d + c * kNative, sum[r][c]);
}

template <int COLUMNS>
void sum_columns(Weights w, int64_t rows, const float *x, int64_t steps, int64_t d, float *out,
                 bool add) {
  const auto from = [&](int64_t r) { return Weights{w.weights + r * w.row, w.row, w.step}; };
  int64_t r = 0;
  for (; r + kSumRows <= rows; r += kSumRows)
    sum_rows<kSumRows, COLUMNS>(from(r), x, steps, d, out + r * d, add);
  for (; r + 2 <= rows; r += 2) sum_rows<2, COLUMNS>(from(r), x, steps, d, out + r * d, add);
  for (; r < rows; r++) sum_rows<1, COLUMNS>(from(r), x, steps, d, out + r * d, add);
}

void sum_all(Weights w, int64_t rows, const float *x, int64_t steps, int64_t d, float *out,
             bool add) {
  for (int64_t first = 0; first < steps; first += kSumSteps) {
    const int64_t count = steps - first < kSumSteps ? steps - first : kSumSteps;
    const Weights own = {w.weights + first * w.step, w.row, w.step};
    const float *from = x + first * d;
    int64_t c = 0;
    for (; c + kSumColumns * kNative <= d; c += kSumColumns * kNative)
      sum_columns<kSumColumns>(own, rows, from + c, count, d, out + c, add || first > 0);
    for (; c < d; c += kNative)
      sum_columns<1>(own, rows, from + c, count, d, out + c, add || first > 0);
  }
}

template <bool DROPS>
INLINE void soften_under(const Dropout &dropout, uint64_t row, float *scores, int64_t keys,
                         const vf max[2], vf sum[2]) {
  sum[0] = sum[1] = vf{};
  for (int64_t key = 0; key < keys; key += 2) {
    vi kept[4];
    if (DROPS) keep_masks(dropout, uint32_t(key / 2), row, kept);
    for (int64_t i = 0; i < 2 && key + i < keys; i++) {
      for (int half = 0; half < 2; half++) {
        float *s = scores + (key + i) * kQueryBlock + half * kLanes;
        vf p = exp2_clamped(load(s) - max[half]);
        sum[half] += p;
        store(s, DROPS ? keep(p, kept[2 * i + half]) : p);
      }
    }
  }
}

// Scores become exp2(score - max), dropped ones 0; the sums are over all, as softmax comes first.
void soften(const Dropout &dropout, uint64_t row, float *scores, int64_t keys, vf max[2],
            vf sum[2]) {
  max[0] = load(scores);
  max[1] = load(scores + kLanes);
  for (int64_t key = 1; key < keys; key++)
    for (int half = 0; half < 2; half++)
      max[half] = vmax(max[half], load(scores + key * kQueryBlock + half * kLanes));
  if (dropout.threshold)
    soften_under<true>(dropout, row, scores, keys, max, sum);
  else
    soften_under<false>(dropout, row, scores, keys, max, sum);
}

// Scores become the weights that values had; the gradients of these become those of the scores
// (without the scale).
template <bool DROPS>
INLINE void soften_backward(const Dropout &dropout, uint64_t row, float *scores, float *gradients,
                            int64_t keys, const vf lse[2], const vf delta[2]) {
  for (int64_t key = 0; key < keys; key += 2) {
    vi kept[4];
    if (DROPS) keep_masks(dropout, uint32_t(key / 2), row, kept);
    for (int64_t i = 0; i < 2 && key + i < keys; i++) {
      for (int half = 0; half < 2; half++) {
        const int64_t at = (key + i) * kQueryBlock + half * kLanes;
        const vf p = exp2_clamped(load(scores + at) - lse[half]);
        vf weight = p, g = load(gradients + at);
        if (DROPS) {
          weight = keep(p * dropout.scale, kept[2 * i + half]);
          g = keep(g * dropout.scale, kept[2 * i + half]);
        }
        store(scores + at, weight);
        store(gradients + at, p * (g - delta[half]));
      }
    }
  }
}

// Rows of head_dim, `stride` apart, into rows of d that end in zeros, times `factor`.
void pack(const float *x, int64_t stride, int64_t rows, int64_t head_dim, int64_t d, float factor,
          float *out) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < d; c += kLanes) {
      const int64_t lanes = head_dim - c < kLanes ? head_dim - c : kLanes;
      store(out + r * d + c, load(x + r * stride + c, lanes) * factor);
    }
}

void unpack(const float *x, int64_t rows, int64_t head_dim, int64_t d, float factor, float *out,
            int64_t stride) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < head_dim; c += kLanes) {
      const int64_t lanes = head_dim - c < kLanes ? head_dim - c : kLanes;
      store(out + r * stride + c, load(x + r * d + c) * factor, lanes);
    }
}

void zero_rows(float *out, int64_t stride, int64_t rows, int64_t head_dim) {
  for (int64_t r = 0; r < rows; r++) std::memset(out + r * stride, 0, head_dim * sizeof(float));
}

// A block's rows [kQueryBlock, d], of which `rows` are given and the others zero, and transposed.
void pack_block(const float *x, int64_t stride, int64_t rows, int64_t head_dim, int64_t d,
                float factor, float *packed, float *transposed) {
  pack(x, stride, rows, head_dim, d, factor, packed);
  std::memset(packed + rows * d, 0, (kQueryBlock - rows) * d * sizeof(float));
  for (int64_t c = 0; c < d; c++)
    for (int64_t r = 0; r < kQueryBlock; r++) transposed[c * kQueryBlock + r] = packed[r * d + c];
}

// One head of one sequence.
struct Task {
  int64_t batch, head, keys;
  int64_t rows_before;  // in tensors [batch, heads, queries]

  Task(const AttentionShape &shape, int64_t number)
      : batch(number % shape.batch), head(number / shape.batch), keys(shape.keys),
        rows_before((batch * shape.heads + head) * shape.queries) {
    if (!shape.lengths) return;
    const int64_t length = shape.lengths[batch];
    keys = length < 0 ? 0 : length < shape.keys ? length : shape.keys;
  }

  int64_t at(const HeadStrides &s) const { return batch * s.batch + head * s.head; }

  // The row of random numbers of the block of queries that begins at `first`.
  uint64_t random_row(const AttentionShape &shape, int64_t first) const {
    return uint64_t(batch * shape.heads + head) << 32 | uint64_t(first / kQueryBlock);
  }
};

// Where backward keeps a task's numbers.
struct BackwardScratch {
  float *keys, *values, *dkeys, *dvalues;       // [keys, d]
  float *queries, *douts, *dqueries;            // a block's, [kQueryBlock, d]
  float *queries_t, *douts_t;                   // the same transposed
  float *scores, *gradients;                    // [keys, kQueryBlock]
  float lse[kQueryBlock], delta[kQueryBlock];

  BackwardScratch(float *scratch, int64_t keys_count, int64_t d) {
    for (float **p : {&keys, &values, &dkeys, &dvalues}) scratch = (*p = scratch) + keys_count * d;
    for (float **p : {&queries, &douts, &dqueries, &queries_t, &douts_t})
      scratch = (*p = scratch) + kQueryBlock * d;
    for (float **p : {&scores, &gradients}) scratch = (*p = scratch) + keys_count * kQueryBlock;
  }
};

// Each row's logarithm, and <dout, out>, which is the sum over keys of a weight times its gradient.
void take_rows(const float *out, int64_t stride, const float *lse, int64_t rows, int64_t head_dim,
               int64_t d, BackwardScratch &s) {
  for (int64_t r = 0; r < kQueryBlock; r++) s.lse[r] = s.delta[r] = 0;
  for (int64_t r = 0; r < rows; r++) {
    vf sum = {};
    for (int64_t c = 0; c < head_dim; c += kLanes) {
      const int64_t lanes = head_dim - c < kLanes ? head_dim - c : kLanes;
      sum += load(out + r * stride + c, lanes) * load(s.douts + r * d + c);
    }
    for (int lane = 0; lane < kLanes; lane++) s.delta[r] += sum[lane];
    s.lse[r] = lse[r];
  }
}

// A block of queries whose rows are packed: adds to dkeys and dvalues, and makes dqueries.
void backward_block(const Dropout &dropout, uint64_t row, int64_t keys, int64_t d, bool first,
                    BackwardScratch &s) {
  const vf lse[2] = {load(s.lse), load(s.lse + kLanes)};
  const vf delta[2] = {load(s.delta), load(s.delta + kLanes)};
  score_all(s.queries_t, s.keys, keys, d, s.scores);
  score_all(s.douts_t, s.values, keys, d, s.gradients);
  if (dropout.threshold)
    soften_backward<true>(dropout, row, s.scores, s.gradients, keys, lse, delta);
  else
    soften_backward<false>(dropout, row, s.scores, s.gradients, keys, lse, delta);
  sum_all({s.scores, kQueryBlock, 1}, keys, s.douts, kQueryBlock, d, s.dvalues, !first);
  sum_all({s.gradients, kQueryBlock, 1}, keys, s.queries, kQueryBlock, d, s.dkeys, !first);
  sum_all({s.gradients, 1, kQueryBlock}, kQueryBlock, s.keys, keys, d, s.dqueries, false);
}

}  // namespace

namespace KERNELS_SPACE {

void attention_forward(const AttentionShape &shape, const float *q, const float *k, const float *v,
                       float *out, float *lse, float *scratch, int64_t begin, int64_t end) {
  const int64_t head_dim = shape.head_dim, d = padded_head(head_dim);
  // The softmax is taken with base 2, which the queries' scale absorbs.
  const float scale = kLog2e / std::sqrt((float)head_dim);
  float *keys = scratch, *values = keys + shape.keys * d, *queries = values + shape.keys * d;
  float *block_out = queries + kQueryBlock * d, *scores = block_out + kQueryBlock * d;
  for (int64_t number = begin; number < end; number++) {
    const Task task(shape, number);
    float *to = out + task.at(shape.out);
    if (task.keys == 0) {
      zero_rows(to, shape.out.row, shape.queries, head_dim);
      std::memset(lse + task.rows_before, 0, shape.queries * sizeof(float));
      continue;
    }
    pack(k + task.at(shape.k), shape.k.row, task.keys, head_dim, d, 1, keys);
    pack(v + task.at(shape.v), shape.v.row, task.keys, head_dim, d, 1, values);
    for (int64_t first = 0; first < shape.queries; first += kQueryBlock) {
      const int64_t left = shape.queries - first, rows = left < kQueryBlock ? left : kQueryBlock;
      pack_block(q + task.at(shape.q) + first * shape.q.row, shape.q.row, rows, head_dim, d, scale,
                 block_out, queries);
      score_all(queries, keys, task.keys, d, scores);
      vf max[2], sum[2];
      soften(shape.dropout, task.random_row(shape, first), scores, task.keys, max, sum);
      sum_all({scores, 1, kQueryBlock}, kQueryBlock, values, task.keys, d, block_out, false);
      for (int64_t r = 0; r < rows; r++) {
        const float total = sum[r / kLanes][r % kLanes];
        unpack(block_out + r * d, 1, head_dim, d, shape.dropout.scale / total,
               to + (first + r) * shape.out.row, 0);
        lse[task.rows_before + first + r] = max[r / kLanes][r % kLanes] + std::log2(total);
      }
    }
  }
}

void attention_backward(const AttentionShape &shape, const float *q, const float *k,
                        const float *v, const float *out, const float *lse,
                        const AttentionGrad &grad, float *scratch, int64_t begin, int64_t end) {
  const int64_t head_dim = shape.head_dim, d = padded_head(head_dim);
  const float scale = 1 / std::sqrt((float)head_dim);
  BackwardScratch s(scratch, shape.keys, d);
  for (int64_t number = begin; number < end; number++) {
    const Task task(shape, number);
    const int64_t seen = shape.queries > 0 ? task.keys : 0;
    const HeadStrides &to_q = grad.dq_strides, &to_k = grad.dk_strides;
    float *dq = grad.dq + task.at(to_q), *dk = grad.dk + task.at(to_k);
    float *dv = grad.dv + task.at(to_k);
    zero_rows(dk + seen * to_k.row, to_k.row, shape.keys - seen, head_dim);
    zero_rows(dv + seen * to_k.row, to_k.row, shape.keys - seen, head_dim);
    if (seen == 0) {
      zero_rows(dq, to_q.row, shape.queries, head_dim);
      continue;
    }
    pack(k + task.at(shape.k), shape.k.row, seen, head_dim, d, 1, s.keys);
    pack(v + task.at(shape.v), shape.v.row, seen, head_dim, d, 1, s.values);
    for (int64_t first = 0; first < shape.queries; first += kQueryBlock) {
      const int64_t left = shape.queries - first, rows = left < kQueryBlock ? left : kQueryBlock;
      const int64_t dout_row = grad.dout_strides.row;
      pack_block(q + task.at(shape.q) + first * shape.q.row, shape.q.row, rows, head_dim, d,
                 scale * kLog2e, s.queries, s.queries_t);
      pack_block(grad.dout + task.at(grad.dout_strides) + first * dout_row, dout_row, rows,
                 head_dim, d, 1, s.douts, s.douts_t);
      take_rows(out + task.at(shape.out) + first * shape.out.row, shape.out.row,
                lse + task.rows_before + first, rows, head_dim, d, s);
      backward_block(shape.dropout, task.random_row(shape, first), seen, d, first == 0, s);
      unpack(s.dqueries, rows, head_dim, d, scale, dq + first * to_q.row, to_q.row);
    }
    // The packed queries carry the scale, and log2(e) on top.
    unpack(s.dkeys, seen, head_dim, d, kLn2, dk, to_k.row);
    unpack(s.dvalues, seen, head_dim, d, 1, dv, to_k.row);
  }
}

}  // namespace KERNELS_SPACE
}  // namespace trainer
