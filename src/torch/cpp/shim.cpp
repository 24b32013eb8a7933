// What tch lacks and training needs: gradients as views and word of when they are final, the fused
// optimiser step, the norm, deterministic mode, autocast's dtype. See shim.h for the conventions.

#include "shim.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/version.h>

#include <memory>

#include "kernels.h"

namespace trainer {

const Kernels &kernels() {
#if defined(__x86_64__)
  static const Kernels *const table = [] {
    const std::string level = at::get_cpu_capability();
    if (level.rfind("AVX512", 0) == 0) return kernels_avx512();
    if (level.rfind("AVX2", 0) == 0) return kernels_avx2();
    return kernels_generic();
  }();
#else
  static const Kernels *const table = kernels_generic();
#endif
  return *table;
}

namespace {

constexpr int64_t kNormBlock = 4096;

// Who is told during a backward pass; nobody between two.
struct Listener {
  void (*callback)(void *context, int64_t slot) = nullptr;
  void *context = nullptr;
};

// Stands on a parameter, and outlives neither it nor what it tells.
struct GradientHook : torch::autograd::PostAccumulateGradHook {
  GradientHook(std::shared_ptr<Listener> listener, int64_t slot)
      : listener(std::move(listener)), slot(slot) {}

  void operator()(const at::Tensor &) override {
    if (listener->callback) listener->callback(listener->context, slot);
  }

  std::shared_ptr<Listener> listener;
  int64_t slot;
};
// The same blocks as operations of the library, for tensors that are not in this memory; some at a
// time, for float64 takes twice the room.
double sum_of_squares_by_operations(const at::Tensor &flat) {
  constexpr int64_t kPiece = 4096 * kNormBlock;
  const int64_t n = flat.numel();
  std::vector<at::Tensor> partial;
  for (int64_t from = 0; from < n; from += kPiece) {
    const int64_t length = std::min(kPiece, n - from), whole = length / kNormBlock * kNormBlock;
    at::Tensor part = flat.narrow(0, from, length).to(at::kDouble);
    part.mul_(part);
    if (whole > 0)
      partial.push_back(part.narrow(0, 0, whole).view({-1, kNormBlock}).sum({1}));
    if (whole < length)
      partial.push_back(part.narrow(0, whole, length - whole).sum({0}, /*keepdim=*/true));
  }
  if (partial.empty()) return 0;
  const at::Tensor all = at::cat(partial).cpu();
  const double *sums = all.const_data_ptr<double>();
  double sum = 0;
  for (int64_t i = 0; i < all.numel(); i++) sum += sums[i];
  return sum;
}

}  // namespace

// The hooks of one set of parameters.
struct Hooks {
  std::shared_ptr<Listener> listener = std::make_shared<Listener>();
};

}  // namespace trainer

using at::Tensor;

extern "C" {

void trainer_free(char *message) { std::free(message); }

const char *trainer_kernels_name() { return trainer::kernels().name; }

const char *trainer_torch_version() { return TORCH_VERSION; }

// Makes `view` the gradient of `parameter`; backward then adds into it in place.
char *trainer_set_grad(Tensor *parameter, Tensor *view) {
  TRAINER_TRY(parameter->mutable_grad() = *view)
}

trainer::Hooks *trainer_hooks_new() { return new trainer::Hooks; }

void trainer_hooks_free(trainer::Hooks *hooks) { delete hooks; }

// From now on a backward pass through trainer_backward tells of `parameter` as `slot`.
char *trainer_hooks_add(trainer::Hooks *hooks, Tensor *parameter, int64_t slot) {
  TRAINER_TRY(torch::autograd::impl::set_post_acc_grad_hooks(
      *parameter, std::make_unique<trainer::GradientHook>(hooks->listener, slot)))
}

// Backward from `loss`. As soon as a parameter's gradient has its last value, `callback` is called
// with its slot: on this thread where the parameter is on the CPU, on autograd's own thread where
// it is not. It must not throw.
char *trainer_backward(trainer::Hooks *hooks, Tensor *loss,
                       void (*callback)(void *context, int64_t slot), void *context) {
  struct Told {
    trainer::Listener &listener;
    ~Told() { listener = {}; }
  } told{*hooks->listener};
  told.listener = {callback, context};
  TRAINER_TRY(loss->backward())
}

// One AdamW step (Loshchilov and Hutter, 2019) over a flat segment, in place. The gradient is
// divided by `grad_divisor` first. `step` counts from 1.
char *trainer_adamw(Tensor *parameter, Tensor *gradient, Tensor *exp_avg, Tensor *exp_avg_sq,
                    double step, double lr, double beta1, double beta2, double weight_decay,
                    double eps, double grad_divisor) {
  TRAINER_TRY({
    at::NoGradGuard guard;
    const auto options = parameter->options().dtype(at::kFloat);
    std::optional<Tensor> divisor;
    if (grad_divisor != 1.0) divisor = at::full({}, grad_divisor, options);
    at::_fused_adamw_({*parameter}, {*gradient}, {*exp_avg}, {*exp_avg_sq}, {},
                      {at::full({}, step, options)}, lr, beta1, beta2, weight_decay, eps,
                      /*amsgrad=*/false, /*maximize=*/false, divisor, {});
  })
}

// Sum of squares in float64: blocks of 4096 elements, folded in order, so that neither threads nor
// their number change a bit. Non-finite elements make it non-finite. `by_operations`: for tensors
// that are not on the CPU.
char *trainer_sum_of_squares(Tensor *flat, bool by_operations, double *result) {
  TRAINER_TRY({
    at::NoGradGuard guard;
    TORCH_CHECK(flat->is_contiguous() && flat->scalar_type() == at::kFloat, "flat float32 wanted");
    if (by_operations) {
      *result = trainer::sum_of_squares_by_operations(*flat);
      return nullptr;
    }
    TORCH_CHECK(flat->device().is_cpu(), "a tensor on the CPU wanted");
    const float *x = flat->const_data_ptr<float>();
    const int64_t n = flat->numel(), blocks = (n + trainer::kNormBlock - 1) / trainer::kNormBlock;
    std::vector<double> partial(blocks);
    at::parallel_for(0, blocks, 8, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; b++) {
        const int64_t from = b * trainer::kNormBlock;
        const int64_t to = std::min(n, from + trainer::kNormBlock);
        double lanes[8] = {};
        int64_t i = from;
        for (; i + 8 <= to; i += 8)
          for (int l = 0; l < 8; l++) lanes[l] += double(x[i + l]) * double(x[i + l]);
        for (; i < to; i++) lanes[i % 8] += double(x[i]) * double(x[i]);
        for (int l = 1; l < 8; l++) lanes[0] += lanes[l];
        partial[b] = lanes[0];
      }
    });
    double sum = 0;
    for (double p : partial) sum += p;
    *result = sum;
  })
}

// A copy in memory that a GPU reads by itself, without stopping the CPU.
char *trainer_pin(Tensor **result, Tensor *x) {
  TRAINER_TRY(*result = new Tensor(x->pin_memory()))
}

// The most bytes of tensors that GPU number `index` has held at once; 0 before its first.
char *trainer_peak_bytes(int64_t index, int64_t *result) {
  TRAINER_TRY({
    auto *allocator = c10::getDeviceAllocator(at::kCUDA);
    constexpr auto kAll = size_t(c10::CachingAllocator::StatType::AGGREGATE);
    *result = allocator->initialized()
                  ? allocator->getDeviceStats(index).allocated_bytes[kAll].peak
                  : 0;
  })
}

// Only kernels whose result does not depend on scheduling; an operation without one throws.
char *trainer_set_deterministic(bool on) {
  TRAINER_TRY({
    at::globalContext().setDeterministicAlgorithms(on, /*warn_only=*/false);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  })
}

// Turns autocast on or off for a device type ("cpu", "cuda"); kind 0: off, 1: bfloat16, 2: float16.
char *trainer_set_autocast(bool cuda, int kind) {
  TRAINER_TRY({
    const auto device = cuda ? at::kCUDA : at::kCPU;
    at::autocast::set_autocast_enabled(device, kind != 0);
    if (kind == 0) {
      at::autocast::clear_cache();
    } else {
      at::autocast::set_autocast_dtype(device, kind == 1 ? at::kBFloat16 : at::kHalf);
    }
  })
}

// How many threads at::parallel_for really uses for a large range.
int64_t trainer_parallel_width() {
  std::atomic<uint64_t> seen{0};
  const int64_t n = at::get_num_threads();
  at::parallel_for(0, n, 1, [&](int64_t, int64_t) { seen |= 1ull << (at::get_thread_num() % 64); });
  return __builtin_popcountll(seen.load());
}

}  // extern "C"
