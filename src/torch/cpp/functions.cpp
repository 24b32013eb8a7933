// The fused kernels as operations on tensors: with their own backward through autograd, or in place
// for inference. See shim.h for the conventions and kernels.h for shapes.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels.h"
#include "shim.h"

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace trainer {
namespace {

constexpr int64_t kScanChunk = 32;  // BackwardScratch::kChunk in kernels.cpp
constexpr int64_t kMostStates = 64, kMostTaps = 8;

int64_t blocks_of(int64_t n, int64_t block) { return (n + block - 1) / block; }

// The last dimension dense, rows any constant stride apart.
Tensor with_rows(const Tensor &x) {
  const bool rows = x.stride(-1) == 1 && x.stride(0) == x.size(1) * x.stride(1);
  return rows ? x : x.contiguous();
}

// Where a call on a device goes: which device, and its current stream.
struct Place {
  const DeviceKernels *kernels;
  int64_t device = 0;
  void *stream = nullptr;

  explicit Place(const Tensor &x) : kernels(device_kernels(x.device().is_cpu())) {
    if (x.device().is_cpu()) return;
    TORCH_CHECK(kernels, "there are no kernels for ", x.device());
    device = x.device().index();
    const c10::impl::VirtualGuardImpl guard(x.device().type());
    stream = guard.getStream(x.device()).native_handle();
  }
};

// Throws what a device's kernel complained of.
void check(char *message) {
  if (!message) return;
  const std::string text = message;
  std::free(message);
  TORCH_CHECK(false, text);
}

struct Scan : torch::autograd::Function<Scan> {
  static ScanShape shape_of(const Tensor &u, const Tensor &b, const Tensor &z, int64_t chunk) {
    return {u.size(0), u.size(1), u.size(2), b.size(2), b.stride(1), z.stride(1), chunk};
  }

  static ScanInput input_of(const variable_list &x) {
    return {x[0].const_data_ptr<float>(), x[1].const_data_ptr<float>(),
            x[2].const_data_ptr<float>(), x[3].const_data_ptr<float>(),
            x[4].const_data_ptr<float>(), x[5].const_data_ptr<float>(),
            x[6].const_data_ptr<float>(), x[7].const_data_ptr<float>()};
  }

  static int64_t chunk_of(const Place &place, int64_t states) {
    return place.kernels ? device_chunk(states) : kScanChunk;
  }

  static Tensor forward(AutogradContext *context, const Tensor &u, const Tensor &dt,
                        const Tensor &dt_bias, const Tensor &a_log, const Tensor &b,
                        const Tensor &c, const Tensor &d, const Tensor &z) {
    TORCH_CHECK(u.scalar_type() == at::kFloat, "float32 wanted");
    TORCH_CHECK(b.size(2) <= kMostStates, "at most 64 states");
    const Place place(u);
    const variable_list x = {u.contiguous(), dt.contiguous(), dt_bias.contiguous(),
                             a_log.contiguous(), with_rows(b), with_rows(c).to(b.dtype()),
                             d.contiguous(), with_rows(z)};
    for (const Tensor &t : x) TORCH_CHECK(t.device() == u.device(), "all on one device");
    TORCH_CHECK(x[4].stride(1) == x[5].stride(1), "B and C must lie alike");
    const ScanShape shape = shape_of(x[0], x[4], x[7], chunk_of(place, b.size(2)));
    const int64_t blocks = blocks_of(shape.channels, kLanes);
    const int64_t chunks = blocks_of(shape.length, shape.chunk);
    Tensor y = at::empty_like(x[0]), states;
    float *saved = nullptr;
    if (context) {
      states = place.kernels
                   ? at::empty({shape.batch, chunks, shape.states, shape.channels}, u.options())
                   : at::empty({shape.batch, chunks, blocks, shape.states, kLanes}, u.options());
      saved = states.data_ptr<float>();
    }
    const ScanInput input = input_of(x);
    float *out = y.data_ptr<float>();
    if (place.kernels) {
      check(place.kernels->scan_forward(&shape, &input, out, saved, place.device, place.stream));
    } else {
      at::parallel_for(0, shape.batch * blocks, 1, [&](int64_t begin, int64_t end) {
        kernels().scan_forward(shape, input, out, saved, begin, end);
      });
    }
    if (context) {
      variable_list keep = x;
      keep.push_back(states);
      context->save_for_backward(keep);
    }
    return y;
  }

  static variable_list backward(AutogradContext *context, const variable_list &gradients) {
    const variable_list x = context->get_saved_variables();
    const Tensor dy = gradients[0].contiguous();
    const Place place(x[0]);
    const ScanShape shape = shape_of(x[0], x[4], x[7], chunk_of(place, x[4].size(2)));
    const auto options = x[0].options();
    const int64_t groups = blocks_of(shape.channels, place.kernels ? kDeviceGroup : kGroup);
    Tensor du = at::empty_like(dy), ddt = at::empty_like(dy), dz = at::empty_like(dy);
    Tensor da_log = at::empty({shape.batch, shape.channels, shape.states}, options);
    Tensor dd = at::empty({shape.batch, shape.channels}, options), dbias = at::empty_like(dd);
    Tensor db = at::empty({groups, shape.batch, shape.length, shape.states}, options);
    Tensor dc = at::empty_like(db);
    const ScanGrad grad = {dy.const_data_ptr<float>(), du.data_ptr<float>(),
                           ddt.data_ptr<float>(),      dz.data_ptr<float>(),
                           da_log.data_ptr<float>(),   dd.data_ptr<float>(),
                           dbias.data_ptr<float>(),    db.data_ptr<float>(),
                           dc.data_ptr<float>()};
    const ScanInput input = input_of(x);
    const float *states = x[8].const_data_ptr<float>();
    if (place.kernels) {
      check(place.kernels->scan_backward(&shape, &input, states, &grad, place.device,
                                         place.stream));
    } else {
      at::parallel_for(0, shape.batch * groups, 1, [&](int64_t begin, int64_t end) {
        kernels().scan_backward(shape, input, states, grad, begin, end);
      });
    }
    return {du, ddt, dbias.sum(0), da_log.sum(0), db.sum(0), dc.sum(0), dd.sum(0), dz};
  }
};

struct Conv : torch::autograd::Function<Conv> {
  static ConvShape shape_of(const Tensor &x, const Tensor &weight) {
    return {x.size(0), x.size(1), x.size(2), weight.size(-1), x.stride(1), kDeviceTile};
  }

  static Tensor forward(AutogradContext *context, const Tensor &x_in, const Tensor &weight_in,
                        const Tensor &bias_in) {
    TORCH_CHECK(x_in.scalar_type() == at::kFloat, "float32 wanted");
    const Place place(x_in);
    const Tensor x = with_rows(x_in), weight = weight_in.contiguous(), bias = bias_in.contiguous();
    TORCH_CHECK(weight.device() == x.device() && bias.device() == x.device(), "all on one device");
    const ConvShape s = shape_of(x, weight);
    TORCH_CHECK(s.width <= kMostTaps, "at most 8 taps");
    Tensor y = at::empty({s.batch, s.length, s.channels}, x.options());
    const ConvInput in = {x.const_data_ptr<float>(), weight.const_data_ptr<float>(),
                          bias.const_data_ptr<float>()};
    float *out = y.data_ptr<float>();
    if (place.kernels) {
      check(place.kernels->conv_forward(&s, &in, out, place.device, place.stream));
    } else {
      at::parallel_for(0, s.batch * blocks_of(s.channels, kLanes), 1, [&](int64_t a, int64_t z) {
        kernels().conv_forward(in.x, s.stride_x, in.weight, in.bias, out, s.batch, s.length,
                               s.channels, s.width, a, z);
      });
    }
    if (context) context->save_for_backward({x, weight, bias});
    return y;
  }

  static variable_list backward(AutogradContext *context, const variable_list &gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    const Tensor dy = gradients[0].contiguous();
    const Place place(x);
    const ConvShape s = shape_of(x, weight);
    // Shares of the weight's gradient that are added below.
    const int64_t shares = place.kernels ? s.batch * blocks_of(s.length, s.tile) : s.batch;
    Tensor dx = at::empty_like(dy), dw = at::empty({shares, s.channels, s.width}, dy.options());
    Tensor dbias = at::empty({shares, s.channels}, dy.options());
    const ConvInput in = {x.const_data_ptr<float>(), weight.const_data_ptr<float>(),
                          bias.const_data_ptr<float>()};
    const ConvGrad grad = {dy.const_data_ptr<float>(), dx.data_ptr<float>(), dw.data_ptr<float>(),
                           dbias.data_ptr<float>()};
    if (place.kernels) {
      check(place.kernels->conv_backward(&s, &in, &grad, place.device, place.stream));
    } else {
      at::parallel_for(0, s.batch * blocks_of(s.channels, kLanes), 1, [&](int64_t a, int64_t z) {
        kernels().conv_backward(in.x, s.stride_x, in.weight, in.bias, grad.dy, grad.dx, grad.dw,
                                grad.dbias, s.batch, s.length, s.channels, s.width, a, z);
      });
    }
    return {dx, dw.sum(0).view_as(weight), dbias.sum(0)};
  }
};

// Rows in another order. The library's own index_select has to add in its backward, because an
// index may name a row twice; a permutation never does.
struct PermuteRows : torch::autograd::Function<PermuteRows> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &index,
                        const Tensor &inverse) {
    context->save_for_backward({inverse});
    return x.index_select(0, index);
  }

  static variable_list backward(AutogradContext *context, const variable_list &gradients) {
    return {gradients[0].index_select(0, context->get_saved_variables()[0]), {}, {}};
  }
};

// Tables for GPUs, and for tests one that stands in for them on the CPU, on this thread alone.
std::atomic<const DeviceKernels *> gpu_kernels{nullptr};
thread_local const DeviceKernels *cpu_kernels = nullptr;

}  // namespace

const DeviceKernels *device_kernels(bool cpu) { return cpu ? cpu_kernels : gpu_kernels.load(); }

}  // namespace trainer

extern "C" {

// Kernels for tensors on a GPU, or (for tests) for the CPU's on this thread; null: none.
void trainer_set_device_kernels(const trainer::DeviceKernels *table, bool cpu) {
  if (cpu) trainer::cpu_kernels = table;
  else trainer::gpu_kernels = table;
}

// x[index], where inverse undoes index; x: [rows, width]
char *trainer_permute_rows(Tensor **result, Tensor *x, Tensor *index, Tensor *inverse) {
  TRAINER_TRY(*result = new Tensor(trainer::PermuteRows::apply(*x, *index, *inverse)))
}

// y = (scan(u, softplus(dt + dt_bias), -exp(a_log), b, c) + d * u) * silu(z)
char *trainer_selective_scan(Tensor **result, Tensor *u, Tensor *dt, Tensor *dt_bias,
                             Tensor *a_log, Tensor *b, Tensor *c, Tensor *d, Tensor *z) {
  TRAINER_TRY({
    using trainer::Scan;
    *result = new Tensor(at::GradMode::is_enabled()
                             ? Scan::apply(*u, *dt, *dt_bias, *a_log, *b, *c, *d, *z)
                             : Scan::forward(nullptr, *u, *dt, *dt_bias, *a_log, *b, *c, *d, *z));
  })
}

// y = silu(causal depthwise convolution of x); x: [batch, length, channels],
// weight: [channels, 1, width]
char *trainer_causal_conv(Tensor **result, Tensor *x, Tensor *weight, Tensor *bias) {
  TRAINER_TRY({
    using trainer::Conv;
    *result = new Tensor(at::GradMode::is_enabled() ? Conv::apply(*x, *weight, *bias)
                                                    : Conv::forward(nullptr, *x, *weight, *bias));
  })
}

// Attention of packed sequences with rotary positions; inference on the CPU.
// qkv: [tokens, 3, heads, head_dim], offsets: int64 [sequences + 1], cosines and sines:
// [at least the longest, head_dim / 2], out: [tokens, heads * head_dim]
char *trainer_packed_attention(Tensor *out, Tensor *qkv, Tensor *offsets, Tensor *cosines,
                               Tensor *sines, int64_t longest) {
  TRAINER_TRY({
    const int64_t heads = qkv->size(2), head_dim = qkv->size(3), n = offsets->size(0) - 1;
    TORCH_CHECK(qkv->is_contiguous() && out->is_contiguous() && cosines->is_contiguous() &&
                sines->is_contiguous() && cosines->size(0) >= longest, "packed tensors wanted");
    at::parallel_for(0, n * heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(trainer::attention_scratch(longest, head_dim));
      trainer::kernels().attention(qkv->const_data_ptr<float>(),
                                   offsets->const_data_ptr<int64_t>(),
                                   cosines->const_data_ptr<float>(),
                                   sines->const_data_ptr<float>(), out->data_ptr<float>(), heads,
                                   head_dim, scratch.data(), begin, end);
    });
  })
}

// x = gelu(x + bias) in place; x: [rows, width]; inference on the CPU.
char *trainer_bias_gelu(Tensor *x, Tensor *bias) {
  TRAINER_TRY({
    TORCH_CHECK(x->is_contiguous() && bias->is_contiguous() && x->scalar_type() == at::kFloat,
                "contiguous float32 wanted");
    float *data = x->data_ptr<float>();
    const float *add = bias->const_data_ptr<float>();
    const int64_t width = x->size(-1), rows = x->numel() / width;
    at::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
      trainer::kernels().bias_gelu(data, add, width, begin, end);
    });
  })
}

}  // extern "C"
