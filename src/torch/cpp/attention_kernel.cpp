// Attention with dropout and its backward, one head of one sequence after another.
//
// A block of 32 queries lies across the lanes, so that a key's number, once broadcast, serves all
// of them, and softmax and dropout run over lanes that do not meet. Scores are never more than one
// block's. Backward computes them again from the saved logarithms (Dao et al., 2022), and with them
// the same mask.

#include "mask.h"

namespace trainer {
namespace {

// What fits into the registers: keys of one block of scores, rows and vectors of one sum.
#ifdef __AVX512F__
constexpr int kScoreKeys = 12, kSumRows = 6, kSumColumns = 4;
#else
constexpr int kScoreKeys = 3, kSumRows = 6, kSumColumns = 1;
#endif

// Steps of a sum whose operands stay in the first cache.
constexpr int64_t kSumSteps = 64;

constexpr float kLn2 = 0.69314718055994530942f;

// scores[i, :] = <keys[i, :], queries>, for queries [d, kQueryBlock] and keys [KEYS, d].
template <int KEYS>
INLINE void score(const float *queries, const float *keys, int64_t d, float *scores) {
  vf sum0[KEYS], sum1[KEYS];
  for (int i = 0; i < KEYS; i++) sum0[i] = sum1[i] = vf{};
  for (int64_t c = 0; c < d; c++) {
    const vf q0 = load(queries + c * kQueryBlock), q1 = load(queries + c * kQueryBlock + kLanes);
    for (int i = 0; i < KEYS; i++) {
      sum0[i] += q0 * keys[i * d + c];
      sum1[i] += q1 * keys[i * d + c];
    }
  }
  for (int i = 0; i < KEYS; i++) {
    store(scores + i * kQueryBlock, sum0[i]);
    store(scores + i * kQueryBlock + kLanes, sum1[i]);
  }
}

void score_all(const float *queries, const float *keys, int64_t count, int64_t d, float *scores) {
  int64_t i = 0;
  for (; i + kScoreKeys <= count; i += kScoreKeys)
    score<kScoreKeys>(queries, keys + i * d, d, scores + i * kQueryBlock);
  for (; i + 3 <= count; i += 3) score<3>(queries, keys + i * d, d, scores + i * kQueryBlock);
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
  vf sum[ROWS][COLUMNS];
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLUMNS; c++) sum[r][c] = add ? load(out + r * d + c * kLanes) : vf{};
  for (int64_t s = 0; s < steps; s++) {
    vf v[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) v[c] = load(x + s * d + c * kLanes);
    for (int r = 0; r < ROWS; r++) {
      const float weight = w.weights[r * w.row + s * w.step];
      for (int c = 0; c < COLUMNS; c++) sum[r][c] += weight * v[c];
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < COLUMNS; c++) store(out + r * d + c * kLanes, sum[r][c]);
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
    for (; c + kSumColumns * kLanes <= d; c += kSumColumns * kLanes)
      sum_columns<kSumColumns>(own, rows, from + c, count, d, out + c, add || first > 0);
    for (; c < d; c += kLanes)
      sum_columns<1>(own, rows, from + c, count, d, out + c, add || first > 0);
  }
}

// Scores become exp2(score - max), dropped ones 0; the sums are over all, as softmax comes first.
template <bool DROPS>
INLINE void soften(const Dropout &dropout, uint64_t row, float *scores, int64_t keys,
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

  // The row of random numbers of a block of queries.
  uint64_t random_row(const AttentionShape &shape, int64_t block) const {
    return uint64_t(batch * shape.heads + head) << 32 | uint64_t(block);
  }
};

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
      vf max[2] = {load(scores), load(scores + kLanes)}, sum[2];
      for (int64_t key = 1; key < task.keys; key++)
        for (int half = 0; half < 2; half++)
          max[half] = vmax(max[half], load(scores + key * kQueryBlock + half * kLanes));
      const uint64_t row = task.random_row(shape, first / kQueryBlock);
      if (shape.dropout.threshold)
        soften<true>(shape.dropout, row, scores, task.keys, max, sum);
      else
        soften<false>(shape.dropout, row, scores, task.keys, max, sum);
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
  const int64_t head_dim = shape.head_dim, d = padded_head(head_dim), block_size = kQueryBlock * d;
  const float scale = 1 / std::sqrt((float)head_dim);
  float *keys = scratch, *values = keys + shape.keys * d, *dkeys = values + shape.keys * d;
  float *dvalues = dkeys + shape.keys * d, *queries = dvalues + shape.keys * d;
  float *queries_t = queries + block_size, *douts = queries_t + block_size;
  float *douts_t = douts + block_size, *dqueries = douts_t + block_size;
  float *scores = dqueries + block_size, *gradients = scores + shape.keys * kQueryBlock;
  for (int64_t number = begin; number < end; number++) {
    const Task task(shape, number);
    const float *own_q = q + task.at(shape.q), *own_out = out + task.at(shape.out);
    const float *own_dout = grad.dout + task.at(grad.dout_strides);
    float *dq = grad.dq + task.at(grad.dq_strides);
    pack(k + task.at(shape.k), shape.k.row, task.keys, head_dim, d, 1, keys);
    pack(v + task.at(shape.v), shape.v.row, task.keys, head_dim, d, 1, values);
    for (int64_t first = 0; first < shape.queries; first += kQueryBlock) {
      const int64_t left = shape.queries - first, rows = left < kQueryBlock ? left : kQueryBlock;
      if (task.keys == 0) {
        zero_rows(dq + first * grad.dq_strides.row, grad.dq_strides.row, rows, head_dim);
        continue;
      }
      pack_block(own_q + first * shape.q.row, shape.q.row, rows, head_dim, d, scale * kLog2e,
                 queries, queries_t);
      pack_block(own_dout + first * grad.dout_strides.row, grad.dout_strides.row, rows, head_dim,
                 d, 1, douts, douts_t);
      // <dout, out> is the sum over keys of each weight times its gradient.
      float row_lse[kQueryBlock] = {}, row_delta[kQueryBlock] = {};
      for (int64_t r = 0; r < rows; r++) {
        const float *o = own_out + (first + r) * shape.out.row;
        vf sum = {};
        for (int64_t c = 0; c < head_dim; c += kLanes)
          sum += load(o + c, head_dim - c < kLanes ? head_dim - c : kLanes) *
                 load(douts + r * d + c);
        for (int lane = 0; lane < kLanes; lane++) row_delta[r] += sum[lane];
        row_lse[r] = lse[task.rows_before + first + r];
      }
      const vf block_lse[2] = {load(row_lse), load(row_lse + kLanes)};
      const vf delta[2] = {load(row_delta), load(row_delta + kLanes)};
      score_all(queries_t, keys, task.keys, d, scores);
      score_all(douts_t, values, task.keys, d, gradients);
      const uint64_t row = task.random_row(shape, first / kQueryBlock);
      if (shape.dropout.threshold)
        soften_backward<true>(shape.dropout, row, scores, gradients, task.keys, block_lse, delta);
      else
        soften_backward<false>(shape.dropout, row, scores, gradients, task.keys, block_lse, delta);
      sum_all({scores, kQueryBlock, 1}, task.keys, douts, kQueryBlock, d, dvalues, first > 0);
      sum_all({gradients, kQueryBlock, 1}, task.keys, queries, kQueryBlock, d, dkeys, first > 0);
      sum_all({gradients, 1, kQueryBlock}, kQueryBlock, keys, task.keys, d, dqueries, false);
      unpack(dqueries, rows, head_dim, d, scale, dq + first * grad.dq_strides.row,
             grad.dq_strides.row);
    }
    const HeadStrides &s = grad.dk_strides;
    float *dk = grad.dk + task.at(s), *dv = grad.dv + task.at(s);
    const int64_t seen = shape.queries > 0 ? task.keys : 0;
    // The packed queries carry the scale, and log2(e) on top.
    unpack(dkeys, seen, head_dim, d, kLn2, dk, s.row);
    unpack(dvalues, seen, head_dim, d, 1, dv, s.row);
    zero_rows(dk + seen * s.row, s.row, shape.keys - seen, head_dim);
    zero_rows(dv + seen * s.row, s.row, shape.keys - seen, head_dim);
  }
}

}  // namespace KERNELS_SPACE
}  // namespace trainer
