// A stream beside libtorch's own, for work that goes on while libtorch computes. All of it goes
// through libtorch's device-independent interface, because libtorch_cuda.so is not linked against;
// on the CPU there are no streams, and everything is done at once. See shim.h for the conventions.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "shim.h"

namespace trainer {

struct Lane {
  c10::Device device{c10::DeviceType::CPU};
  std::optional<c10::Stream> stream;
  // Reused: a wait refers to what was recorded last when it was posted.
  std::optional<c10::Event> before, after;

  c10::Stream current() const {
    return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  }

  // `n` floats as a tensor that owns nothing.
  at::Tensor numbers(const float *data, int64_t n) const {
    return at::from_blob(const_cast<float *>(data), {n}, {1}, [](void *) {},
                         at::TensorOptions().dtype(at::kFloat).device(device), device);
  }
};

}  // namespace trainer

extern "C" {

// `gpu` below 0: the CPU. `handle` is the stream as the driver knows it, null on the CPU. The GPU is
// made this thread's current one, for libraries that ask which that is.
char *trainer_lane_new(int64_t gpu, trainer::Lane **result, void **handle) {
  TRAINER_TRY({
    auto lane = std::make_unique<trainer::Lane>();
    *handle = nullptr;
    if (gpu >= 0) {
      lane->device = c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(gpu));
      const c10::impl::VirtualGuardImpl guard(lane->device.type());
      guard.setDevice(lane->device);
      lane->stream = guard.getStreamFromGlobalPool(lane->device, /*isHighPriority=*/true);
      lane->before.emplace(lane->device.type());
      lane->after.emplace(lane->device.type());
      *handle = lane->stream->native_handle();
    }
    *result = lane.release();
  })
}

void trainer_lane_free(trainer::Lane *lane) { delete lane; }

// What the lane is given from now on comes after what this thread's current stream has been given.
char *trainer_lane_follow(trainer::Lane *lane) {
  TRAINER_TRY({
    if (lane->stream) {
      lane->before->record(lane->current());
      lane->before->block(*lane->stream);
    }
  })
}

// The reverse.
char *trainer_lane_lead(trainer::Lane *lane) {
  TRAINER_TRY({
    if (lane->stream) {
      lane->after->record(*lane->stream);
      lane->after->block(lane->current());
    }
  })
}

// Whether all that the lane was given is done.
char *trainer_lane_idle(trainer::Lane *lane, bool *idle) {
  TRAINER_TRY(*idle = !lane->stream || lane->stream->query())
}

// into += from, on the lane.
char *trainer_lane_add(trainer::Lane *lane, float *into, const float *from, int64_t n) {
  TRAINER_TRY({
    at::NoGradGuard no_grad;
    c10::OptionalStreamGuard guard(lane->stream);
    lane->numbers(into, n).add_(lane->numbers(from, n));
  })
}

// into = from, on the lane.
char *trainer_lane_copy(trainer::Lane *lane, float *into, const float *from, int64_t n) {
  TRAINER_TRY({
    at::NoGradGuard no_grad;
    c10::OptionalStreamGuard guard(lane->stream);
    lane->numbers(into, n).copy_(lane->numbers(from, n), /*non_blocking=*/true);
  })
}

}  // extern "C"
