// A transformer layer's operations in training on the CPU, as operations on tensors with their own
// backward. See shim.h for the conventions and transformer.h for the kernels.

#include "transformer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <mutex>

#include "kernels.h"
#include "shim.h"

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace trainer {

const TransformerKernels &transformer_kernels() {
#if defined(__x86_64__)
  static const TransformerKernels *const table = [] {
    const std::string level = kernels().name;
    if (level == "avx512") return transformer_kernels_avx512();
    if (level == "avx2") return transformer_kernels_avx2();
    return transformer_kernels_generic();
  }();
#else
  static const TransformerKernels *const table = transformer_kernels_generic();
#endif
  return *table;
}

namespace {

int64_t blocks_of(int64_t n, int64_t block) { return (n + block - 1) / block; }

// A call's own seed, drawn from libtorch's default generator where something is to be dropped.
Dropout draw(double p) {
  TORCH_CHECK(p >= 0 && p < 1, "dropout wants a probability of at least 0 and below 1, not ", p);
  const uint32_t threshold = std::min<uint32_t>(uint32_t(std::lround(p * 65536)), 65535);
  if (threshold == 0) return {0, 0, 1};
  auto *generator = at::get_generator_or_default<at::CPUGeneratorImpl>(
      std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  return {generator->random64(), threshold, 65536.0f / float(65536 - threshold)};
}

void save(AutogradContext *context, const Dropout &dropout) {
  context->saved_data["seed"] = int64_t(dropout.seed);
  context->saved_data["threshold"] = int64_t(dropout.threshold);
}

Dropout saved(AutogradContext *context) {
  const auto threshold = uint32_t(context->saved_data["threshold"].toInt());
  return {uint64_t(context->saved_data["seed"].toInt()), threshold,
          65536.0f / float(65536 - threshold)};
}

void check_floats(const Tensor &x) {
  TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == at::kFloat, "float32 on the CPU wanted");
}

// `count` floats for each thread.
struct Scratch {
  int64_t stride;
  Tensor all;

  explicit Scratch(int64_t count)
      : stride(blocks_of(count, 16) * 16),
        all(at::empty({at::get_num_threads(), stride}, at::kFloat)) {}

  float *own() const { return all.data_ptr<float>() + at::get_thread_num() * stride; }
};

struct DropoutFunction : torch::autograd::Function<DropoutFunction> {
  static Tensor run(const Tensor &x, const Dropout &dropout) {
    const Tensor in = x.contiguous();
    Tensor y = at::empty_like(in);
    const float *from = in.const_data_ptr<float>();
    float *to = y.data_ptr<float>();
    at::parallel_for(0, blocks_of(in.numel(), kDropoutTask), 8, [&](int64_t begin, int64_t end) {
      transformer_kernels().dropout(dropout, from, to, in.numel(), begin, end);
    });
    return y;
  }

  static Tensor forward(AutogradContext *context, const Tensor &x, double p) {
    check_floats(x);
    const Dropout dropout = draw(p);
    if (context) save(context, dropout);
    return run(x, dropout);
  }

  static variable_list backward(AutogradContext *context, const variable_list &gradients) {
    return {run(gradients[0], saved(context)), Tensor()};
  }
};

struct Attention : torch::autograd::Function<Attention> {
  // [batch, heads, length, head_dim], laid out so that the heads of a token are neighbours: what
  // the linear layers around attention want.
  static Tensor heads_last(const Tensor &like, int64_t head_dim) {
    const int64_t b = like.size(0), h = like.size(1), l = like.size(2), d = head_dim;
    return at::empty_strided({b, h, l, d}, {l * h * d, d, h * d, 1}, like.options());
  }

  static HeadStrides strides(const Tensor &x) { return {x.stride(0), x.stride(1), x.stride(2)}; }

  static Tensor dense_rows(const Tensor &x) {
    return x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
  }

  static AttentionShape shape_of(const Tensor &q, const Tensor &k, const Tensor &v,
                                 const Tensor &out, const Tensor &lengths,
                                 const Dropout &dropout) {
    return {q.size(0), q.size(1), q.size(2), k.size(2), q.size(3),
            lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr,
            strides(q), strides(k), strides(v), strides(out), dropout};
  }

  static void check(const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &lengths) {
    for (const Tensor &x : {q, k, v}) check_floats(x);
    TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes() && q.size(3) > 0 &&
                    q.size(0) == k.size(0) && q.size(1) == k.size(1) && q.size(3) == k.size(3),
                "attention wants q, k and v [B, H, L, D], not ", q.sizes(), ", ", k.sizes(),
                " and ", v.sizes());
    if (!lengths.defined()) return;
    TORCH_CHECK(lengths.device().is_cpu() && lengths.scalar_type() == at::kLong &&
                    lengths.dim() == 1 && lengths.size(0) == q.size(0),
                "attention wants lengths [B] of int64 on the CPU");
  }

  static Tensor forward(AutogradContext *context, const Tensor &q_in, const Tensor &k_in,
                        const Tensor &v_in, const std::optional<Tensor> &lengths_in, double p) {
    // Autograd refuses an undefined tensor among its inputs, so none is no tensor.
    const Tensor lengths = lengths_in ? lengths_in->contiguous() : Tensor();
    check(q_in, k_in, v_in, lengths);
    const Tensor q = dense_rows(q_in), k = dense_rows(k_in), v = dense_rows(v_in);
    Tensor out = heads_last(q, q.size(3));
    Tensor lse = at::empty({q.size(0), q.size(1), q.size(2)}, q.options());
    const Dropout dropout = draw(p);
    const AttentionShape shape = shape_of(q, k, v, out, lengths, dropout);
    const Scratch scratch(attention_forward_scratch(shape.keys, shape.head_dim));
    const float *from_q = q.const_data_ptr<float>(), *from_k = k.const_data_ptr<float>();
    const float *from_v = v.const_data_ptr<float>();
    float *to = out.data_ptr<float>(), *to_lse = lse.data_ptr<float>();
    at::parallel_for(0, shape.batch * shape.heads, 1, [&](int64_t begin, int64_t end) {
      transformer_kernels().attention_forward(shape, from_q, from_k, from_v, to, to_lse,
                                              scratch.own(), begin, end);
    });
    if (context) {
      context->save_for_backward({q, k, v, out, lse, lengths});
      save(context, dropout);
    }
    return out;
  }

  static variable_list backward(AutogradContext *context, const variable_list &gradients) {
    const variable_list x = context->get_saved_variables();
    const Tensor &q = x[0], &k = x[1], &v = x[2], &out = x[3], &lse = x[4], &lengths = x[5];
    const Tensor dout = dense_rows(gradients[0]);
    Tensor dq = heads_last(q, q.size(3)), dk = heads_last(k, k.size(3)), dv = at::empty_like(dk);
    const AttentionShape shape = shape_of(q, k, v, out, lengths, saved(context));
    const AttentionGrad grad = {dout.const_data_ptr<float>(), strides(dout),
                                dq.data_ptr<float>(), dk.data_ptr<float>(),
                                dv.data_ptr<float>(), strides(dq), strides(dk)};
    const Scratch scratch(attention_backward_scratch(shape.keys, shape.head_dim));
    const float *from_q = q.const_data_ptr<float>(), *from_k = k.const_data_ptr<float>();
    const float *from_v = v.const_data_ptr<float>(), *from_out = out.const_data_ptr<float>();
    const float *from_lse = lse.const_data_ptr<float>();
    at::parallel_for(0, shape.batch * shape.heads, 1, [&](int64_t begin, int64_t end) {
      transformer_kernels().attention_backward(shape, from_q, from_k, from_v, from_out, from_lse,
                                               grad, scratch.own(), begin, end);
    });
    return {dq, dk, dv, Tensor(), Tensor()};
  }
};

struct AddNormFunction : torch::autograd::Function<AddNormFunction> {
  static AddNorm arguments(const Tensor &x, const Tensor &residual, const Tensor &weight,
                           const Tensor &bias, double eps, const Dropout &dropout) {
    return {x.numel() / x.size(-1), x.size(-1), x.const_data_ptr<float>(),
            residual.const_data_ptr<float>(), weight.const_data_ptr<float>(),
            bias.const_data_ptr<float>(), float(eps), dropout};
  }

  static Tensor forward(AutogradContext *context, const Tensor &x_in, const Tensor &residual_in,
                        const Tensor &weight_in, const Tensor &bias_in, double eps, double p) {
    const Tensor x = x_in.contiguous(), residual = residual_in.contiguous();
    const Tensor weight = weight_in.contiguous(), bias = bias_in.contiguous();
    for (const Tensor &t : {x, residual, weight, bias}) check_floats(t);
    TORCH_CHECK(x.dim() > 0 && x.size(-1) > 0 && x.sizes() == residual.sizes() &&
                    weight.numel() == x.size(-1) && bias.numel() == x.size(-1),
                "add_norm wants x and residual alike, not ", x.sizes(), " and ",
                residual.sizes());
    const AddNorm norm = arguments(x, residual, weight, bias, eps, draw(p));
    Tensor y = at::empty_like(x), stats = at::empty({norm.rows, 2}, x.options());
    float *to = y.data_ptr<float>(), *to_stats = stats.data_ptr<float>();
    at::parallel_for(0, blocks_of(norm.rows, kRowsTask), 1, [&](int64_t begin, int64_t end) {
      transformer_kernels().add_norm_forward(norm, to, to_stats, begin, end);
    });
    if (context) {
      context->save_for_backward({x, residual, weight, bias, stats});
      context->saved_data["eps"] = eps;
      save(context, norm.dropout);
    }
    return y;
  }

  static variable_list backward(AutogradContext *context, const variable_list &gradients) {
    const variable_list saved_x = context->get_saved_variables();
    const Tensor dy = gradients[0].contiguous(), &stats = saved_x[4];
    const AddNorm norm = arguments(saved_x[0], saved_x[1], saved_x[2], saved_x[3],
                                   context->saved_data["eps"].toDouble(), saved(context));
    const int64_t tasks = blocks_of(norm.rows, kRowsTask);
    Tensor dresidual = at::empty_like(dy);
    Tensor dx = norm.dropout.threshold ? at::empty_like(dy) : dresidual;
    Tensor dweight = at::empty({tasks, norm.width}, dy.options()), dbias = at::empty_like(dweight);
    const Scratch scratch(2 * norm.width);
    const float *from = dy.const_data_ptr<float>(), *from_stats = stats.const_data_ptr<float>();
    float *to_x = dx.data_ptr<float>(), *to_residual = dresidual.data_ptr<float>();
    float *to_weight = dweight.data_ptr<float>(), *to_bias = dbias.data_ptr<float>();
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      transformer_kernels().add_norm_backward(norm, from_stats, from, to_x, to_residual, to_weight,
                                              to_bias, scratch.own(), begin, end);
    });
    return {dx, dresidual, dweight.sum(0), dbias.sum(0), Tensor(), Tensor()};
  }
};

struct BiasGelu : torch::autograd::Function<BiasGelu> {
  static Tensor forward(AutogradContext *context, const Tensor &x_in, const Tensor &bias_in) {
    const Tensor x = x_in.contiguous(), bias = bias_in.contiguous();
    check_floats(x);
    check_floats(bias);
    TORCH_CHECK(x.dim() > 0 && bias.numel() == x.size(-1) && x.size(-1) > 0,
                "bias_gelu wants a bias of x's width");
    Tensor y = at::empty_like(x);
    const int64_t width = x.size(-1), rows = x.numel() / width;
    const float *from = x.const_data_ptr<float>(), *add = bias.const_data_ptr<float>();
    float *to = y.data_ptr<float>();
    at::parallel_for(0, blocks_of(rows, kRowsTask), 1, [&](int64_t begin, int64_t end) {
      transformer_kernels().bias_gelu_forward(from, add, to, rows, width, begin, end);
    });
    if (context) context->save_for_backward({x, bias});
    return y;
  }

  static variable_list backward(AutogradContext *context, const variable_list &gradients) {
    const variable_list saved_x = context->get_saved_variables();
    const Tensor dy = gradients[0].contiguous();
    const int64_t width = dy.size(-1), rows = dy.numel() / width;
    const int64_t tasks = blocks_of(rows, kRowsTask);
    Tensor dx = at::empty_like(dy), dbias = at::empty({tasks, width}, dy.options());
    const float *x = saved_x[0].const_data_ptr<float>(), *add = saved_x[1].const_data_ptr<float>();
    const float *from = dy.const_data_ptr<float>();
    float *to = dx.data_ptr<float>(), *to_bias = dbias.data_ptr<float>();
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      transformer_kernels().bias_gelu_backward(x, add, from, to, to_bias, rows, width, begin, end);
    });
    return {dx, dbias.sum(0)};
  }
};

// With gradients as a node of autograd's graph, without as the computation alone.
template <typename Operation, typename... Arguments>
Tensor call(const Arguments &...arguments) {
  if (at::GradMode::is_enabled()) return Operation::apply(arguments...);
  return Operation::forward(nullptr, arguments...);
}

}  // namespace
}  // namespace trainer

extern "C" {

// y = dropout(x)
char *trainer_dropout(Tensor **result, Tensor *x, double p) {
  TRAINER_TRY(*result = new Tensor(trainer::call<trainer::DropoutFunction>(*x, p)))
}

// q, k, v: [batch, heads, length, head_dim]; lengths: int64 [batch], or null
char *trainer_attention(Tensor **result, Tensor *q, Tensor *k, Tensor *v, Tensor *lengths,
                        double p) {
  TRAINER_TRY(*result = new Tensor(trainer::call<trainer::Attention>(
                  *q, *k, *v, lengths ? std::optional(*lengths) : std::nullopt, p)))
}

// y = norm(dropout(x) + residual) over the last dimension
char *trainer_add_norm(Tensor **result, Tensor *x, Tensor *residual, Tensor *weight, Tensor *bias,
                       double eps, double p) {
  TRAINER_TRY(*result = new Tensor(trainer::call<trainer::AddNormFunction>(
                  *x, *residual, *weight, *bias, eps, p)))
}

// y = gelu(x + bias)
char *trainer_bias_gelu_train(Tensor **result, Tensor *x, Tensor *bias) {
  TRAINER_TRY(*result = new Tensor(trainer::call<trainer::BiasGelu>(*x, *bias)))
}

}  // extern "C"
