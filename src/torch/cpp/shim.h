// What Rust calls: C functions over libtorch's tensors. tch's `C_tensor` is `at::Tensor`.
//
// Every function that can throw returns null, or a message that the caller frees with
// trainer_free. Tensors that a function gives back are new `at::Tensor` objects that the caller
// owns.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstring>
#include <exception>

#define TRAINER_TRY(...)                    \
  try {                                     \
    __VA_ARGS__;                            \
    return nullptr;                         \
  } catch (const std::exception &error) {   \
    return strdup(error.what());            \
  }

namespace trainer {
struct Kernels;
// The table for this machine. The environment variable ATEN_CPU_CAPABILITY, which limits libtorch,
// limits it too.
const Kernels &kernels();
}  // namespace trainer
