// Kernels of a transformer layer in training on the CPU: attention with dropout, dropout, and what
// stands around the linear layers. One table per instruction set, as in kernels.h, whose rules hold
// here too.
//
// Every operation is cut into tasks whose results do not depend on one another, and within a task
// the order of all sums is fixed: bits do not depend on the number of threads.
#pragma once
#include <cstdint>

namespace trainer {

// Which elements are dropped. The number that decides over an element is a function of the seed and
// of the element's place, so backward finds it again, and threads and their order do not matter.
struct Dropout {
  uint64_t seed;
  uint32_t threshold;  // an element is dropped where its 16 random bits are below; 0: none is
  float scale;         // what the others are multiplied with: 65536 / (65536 - threshold)
};

// Elements of one task of `dropout`.
constexpr int64_t kDropoutTask = 4096;

// Rows whose shares of a bias's gradient are folded together.
constexpr int64_t kRowsTask = 32;

// Rows of a tensor [batch, heads, length, head_dim] whose last dimension is dense.
struct HeadStrides {
  int64_t batch, head, row;
};

struct AttentionShape {
  int64_t batch, heads, queries, keys, head_dim;
  const int64_t *lengths;  // [batch]: how many keys are seen; null: all
  HeadStrides q, k, v, out;
  Dropout dropout;
};

struct AttentionGrad {
  const float *dout;
  HeadStrides dout_strides;
  float *dq, *dk, *dv;  // lie as out, k's and v's with their own length
  HeadStrides dq_strides, dk_strides;
};

// y = norm(dropout(x) + residual) over rows of `width`.
struct AddNorm {
  int64_t rows, width;
  const float *x, *residual, *weight, *bias;
  float eps;
  Dropout dropout;
};

struct TransformerKernels {
  // y = dropout(x) of n elements; tasks are blocks of kDropoutTask elements. Its own backward.
  void (*dropout)(const Dropout &, const float *x, float *y, int64_t n, int64_t begin,
                  int64_t end);
  // Tasks are (head, sequence), the sequence running fastest. lse: [batch, heads, queries], the
  // logarithm with base 2 of each query's sum of exponentials, for backward. scratch: floats for
  // this thread alone, attention_forward_scratch() of them.
  void (*attention_forward)(const AttentionShape &, const float *q, const float *k, const float *v,
                            float *out, float *lse, float *scratch, int64_t begin, int64_t end);
  void (*attention_backward)(const AttentionShape &, const float *q, const float *k,
                             const float *v, const float *out, const float *lse,
                             const AttentionGrad &, float *scratch, int64_t begin, int64_t end);
  // stats: [rows, 2], mean and reciprocal deviation. Tasks are blocks of kRowsTask rows.
  void (*add_norm_forward)(const AddNorm &, float *y, float *stats, int64_t begin, int64_t end);
  // dx may be dresidual where nothing is dropped. dweight and dbias: [tasks, width], to be summed.
  // scratch: 2 * width floats for this thread alone.
  void (*add_norm_backward)(const AddNorm &, const float *stats, const float *dy, float *dx,
                            float *dresidual, float *dweight, float *dbias, float *scratch,
                            int64_t begin, int64_t end);
  // y = gelu(x + bias), the exact GELU. Tasks are blocks of kRowsTask rows.
  void (*bias_gelu_forward)(const float *x, const float *bias, float *y, int64_t rows,
                            int64_t width, int64_t begin, int64_t end);
  // dbias: [tasks, width], to be summed.
  void (*bias_gelu_backward)(const float *x, const float *bias, const float *dy, float *dx,
                             float *dbias, int64_t rows, int64_t width, int64_t begin,
                             int64_t end);
};

// Queries of one block of attention: two vectors of lanes.
constexpr int64_t kQueryBlock = 32;

// A head's width as the kernels lay it out.
inline int64_t padded_head(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

inline int64_t attention_forward_scratch(int64_t keys, int64_t head_dim) {
  const int64_t d = padded_head(head_dim);
  return 2 * keys * d                // keys, values
         + 2 * kQueryBlock * d       // a block's queries, transposed, and its output
         + keys * kQueryBlock;       // its scores
}

inline int64_t attention_backward_scratch(int64_t keys, int64_t head_dim) {
  const int64_t d = padded_head(head_dim);
  return 4 * keys * d                // keys, values and their gradients
         + 5 * kQueryBlock * d       // a block's queries and dout, both ways round, and its dq
         + 2 * keys * kQueryBlock;   // weights and their gradients
}

const TransformerKernels *transformer_kernels_generic();
#if defined(__x86_64__)
const TransformerKernels *transformer_kernels_avx2();
const TransformerKernels *transformer_kernels_avx512();
#endif

// The table for this machine.
const TransformerKernels &transformer_kernels();

}  // namespace trainer
