// Enough of CUDA for a C++ compiler to run scan.cu and conv.cu on the CPU, for tests.
//
// The threads of a block are coroutines of one thread, run in turn from one __syncwarp to the next:
// what one of them wrote before it, all others see after it. Blocks run one after another.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct Dimension {
  unsigned x, y, z;
};

static thread_local Dimension threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

struct Coroutine {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
};

static thread_local ucontext_t scheduler;
static thread_local Coroutine *running;
static thread_local void (*body)(void *);
static thread_local void *argument;

inline void enter() {
  body(argument);
  running->done = true;
  swapcontext(&running->context, &scheduler);
}

inline void run_block() {
  std::vector<Coroutine> threads(blockDim.x);
  for (Coroutine &thread : threads) {
    thread.stack.resize(256 << 10);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
  }
  for (size_t left = threads.size(); left > 0;) {
    for (size_t i = 0; i < threads.size(); i++) {
      if (threads[i].done) continue;
      running = &threads[i];
      threadIdx = {(unsigned)i, 0, 0};
      swapcontext(&scheduler, &threads[i].context);
      left -= threads[i].done;
    }
  }
}

// Runs `kernel` for every thread of `grid` blocks of `threads`.
template <typename Kernel>
void launch(Dimension grid, unsigned threads, Kernel kernel) {
  gridDim = grid;
  blockDim = {threads, 1, 1};
  body = [](void *p) { (*static_cast<Kernel *>(p))(); };
  argument = &kernel;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        blockIdx = {x, y, z};
        run_block();
      }
}

}  // namespace emulation

inline void __syncwarp() {
  swapcontext(&emulation::running->context, &emulation::scheduler);
}
