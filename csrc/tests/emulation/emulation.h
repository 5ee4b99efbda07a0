// Runs csrc/cuda/*.cu on the CPU, for tests where there is no GPU: what of CUDA the kernels and their launches
// use, for a host compiler. Every thread of a block is a fiber with a stack of its own. Threads are taken in a
// random order, another one in every launch and after every barrier, so that a missing barrier shows as a wrong
// result. Raised as errors: barriers and warp exchanges that not all threads of the block or warp reach in one
// line, launches beyond CUDA's limits, writes just behind dynamic shared memory (which begins as garbage).
// Not shown: reads of __shared__ variables that nobody wrote (they are zero, or what the block before left),
// accesses that are misaligned or out of bounds elsewhere, memory ordering within a warp, a kernel's own limits
// of registers and static shared memory, the device's exp and log, speed.
// tests/ops/emulation.py builds and loads this; the file is included before any .cu file.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <setjmp.h>
#include <torch/library.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

// ---- the language
#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define IF_DYNAMIC_SHARED(name) uint8_t* name = emulation::block->dynamic.data()
#define __syncthreads() emulation::wait(emulation::Wait::kBlock, __LINE__)
#define __syncwarp() emulation::wait(emulation::Wait::kWarp, __LINE__)
#define __shfl_xor_sync(mask, value, offset) emulation::shuffle(mask, value, emulation::lane() ^ (offset), __LINE__)
#define __shfl_sync(mask, value, from) emulation::shuffle(mask, value, from, __LINE__)
#define __shfl_up_sync(mask, value, offset) emulation::shuffle(mask, value, emulation::lane() - (offset), __LINE__)
#define __shfl_down_sync(mask, value, offset) emulation::shuffle(mask, value, emulation::lane() + (offset), __LINE__)
#undef CUDA_KERNEL_ASSERT
#define CUDA_KERNEL_ASSERT(condition) \
  if (!(condition)) throw std::runtime_error("device-side assert: " #condition)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;
using std::max;
using std::min;

namespace emulation {

constexpr int kWarp = 32, kMostThreads = 1024, kMultiprocessors = 3, kBlocksPerMultiprocessor = 2;
constexpr size_t kStack = 64 * 1024, kGuard = 64, kDefaultShared = 48 * 1024, kMostShared = 227 * 1024;
constexpr uint8_t kGarbage = 0xA5;

enum class Wait { kNone, kWarp, kBlock, kGrid, kDone };

struct Thread {
  jmp_buf place;
  bool started = false;
  unsigned index = 0;
  Wait waits = Wait::kNone;
  int line = 0, exchanges = 0;
};

// What all blocks of a launch share.
struct Launch {
  std::function<void()> kernel;
  unsigned number = 0, blocks = 0;
  int threads = 0;
  size_t dynamic_bytes = 0;
  std::barrier<>* meeting = nullptr;  // of a cooperative launch
  std::mutex writing;
  std::string failure;  // the first one
  std::atomic<bool> failed = false;

  void fail(const std::string& what) {
    const std::lock_guard lock(writing);
    if (!failed) failure = what;
    failed = true;
  }
};

// Memory for a block's stacks, kept for the next block: fresh pages are what would cost most.
class Stacks {
 public:
  explicit Stacks(size_t bytes) : kept_{bytes, nullptr} {
    const std::lock_guard lock(busy());
    auto& idle = pool();
    const auto found = std::find_if(idle.begin(), idle.end(), [&](const Kept& one) { return one.bytes >= bytes; });
    if (found == idle.end()) {
      kept_.memory.reset(new uint8_t[bytes]);
    } else {
      kept_ = std::move(*found);
      idle.erase(found);
    }
  }
  ~Stacks() {
    const std::lock_guard lock(busy());
    pool().push_back(std::move(kept_));
  }
  uint8_t* of_thread(unsigned i) { return kept_.memory.get() + i * kStack; }

 private:
  struct Kept {
    size_t bytes;
    std::unique_ptr<uint8_t[]> memory;
  };
  static std::vector<Kept>& pool() {
    static std::vector<Kept> made;
    return made;
  }
  static std::mutex& busy() {
    static std::mutex made;
    return made;
  }
  Kept kept_;
};

// A block at work; of a cooperative launch each has an operating system's thread, hence its own __shared__ variables.
struct Block {
  Launch& launch;
  std::vector<Thread> threads;
  Stacks stacks;
  std::vector<uint64_t> exchanged;  // [2, threads]: in turn, so that a fast lane does not write what a slow one reads
  std::vector<uint8_t> dynamic;
  jmp_buf scheduler;  // _setjmp and _longjmp, as swapcontext makes two system calls at every switch
  Thread* running = nullptr;
  int meetings = 0;

  explicit Block(Launch& launch)
      : launch(launch),
        threads(size_t(launch.threads)),
        stacks(size_t(launch.threads) * kStack),
        exchanged(2 * size_t(launch.threads)),
        dynamic(launch.dynamic_bytes + kGuard) {}

  void run(unsigned index);
  void resume(Thread& thread);
  std::vector<size_t> released();
  bool together(size_t begin, size_t end, Wait what) const;
};

inline thread_local Block* block = nullptr;

inline int lane() { return int(threadIdx.x % kWarp); }

// Gives way to the scheduler until all others of the warp, block or grid have come as far.
inline void wait(Wait what, int line) {
  Block& mine = *block;
  mine.running->waits = what, mine.running->line = line;
  if (!_setjmp(mine.running->place)) _longjmp(mine.scheduler, 1);
}

template <typename T>
T shuffle(unsigned mask, T value, int from, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  if (mask != 0xffffffffu) throw std::runtime_error("only whole warps exchange values here");
  Thread& me = *block->running;
  uint64_t* slots = block->exchanged.data() + size_t(me.exchanges++ % 2) * block->threads.size();
  std::memcpy(slots + me.index, &value, sizeof(T));
  wait(Wait::kWarp, line);
  if (from >= 0 && from < kWarp) std::memcpy(&value, slots + me.index - me.index % kWarp + from, sizeof(T));
  return value;
}

// A fiber is started once and then runs its thread of one block after another.
inline void thread_main() {
  for (;;) {
    try {
      block->launch.kernel();
    } catch (const std::exception& error) {
      block->launch.fail(error.what());
    }
    wait(Wait::kDone, 0);
  }
}

inline void Block::resume(Thread& thread) {
  running = &thread;
  thread.waits = Wait::kNone;
  threadIdx = {thread.index, 0, 0};
  if (_setjmp(scheduler)) return;
  if (thread.started) _longjmp(thread.place, 1);
  thread.started = true;
  ucontext_t fresh;
  getcontext(&fresh);
  fresh.uc_stack.ss_sp = stacks.of_thread(thread.index), fresh.uc_stack.ss_size = kStack;
  makecontext(&fresh, thread_main, 0);
  setcontext(&fresh);
}

// Whether all of [begin, end) wait for `what` at one place in the code.
inline bool Block::together(size_t begin, size_t end, Wait what) const {
  return std::all_of(threads.begin() + begin, threads.begin() + end, [&](const Thread& thread) {
    return thread.waits == what && (thread.line == threads[begin].line);
  });
}

// The threads that may go on. None: the block has ended, or can never go on.
inline std::vector<size_t> Block::released() {
  const size_t count = threads.size();
  const bool grid = together(0, count, Wait::kGrid), all = grid || together(0, count, Wait::kBlock);
  if (grid && !launch.meeting) return {};
  if (grid) launch.meeting->arrive_and_wait(), ++meetings;
  std::vector<size_t> ready;
  for (size_t first = 0; first < count; first += kWarp)
    if (all || together(first, first + kWarp, Wait::kWarp))
      for (size_t i = first; i < first + kWarp; ++i) ready.push_back(i);
  return ready;
}

inline void Block::run(unsigned index) {
  block = this;
  blockIdx = {index, 0, 0}, gridDim = {launch.blocks, 1, 1}, blockDim = {unsigned(launch.threads), 1, 1};
  std::fill(dynamic.begin(), dynamic.end(), kGarbage);
  std::mt19937 random(launch.number * 7919 + index);
  std::vector<size_t> ready(threads.size());
  for (size_t i = 0; i < threads.size(); ++i) {
    ready[i] = i;
    threads[i].index = unsigned(i), threads[i].exchanges = 0;
  }
  for (; !ready.empty() && !launch.failed; ready = released()) {
    std::shuffle(ready.begin(), ready.end(), random);
    for (size_t i : ready) resume(threads[i]);
  }
  if (!together(0, threads.size(), Wait::kDone))
    launch.fail("not all threads of a block, warp or grid came to the barrier or exchange in line " +
                std::to_string(threads[0].line));
  if (std::any_of(dynamic.end() - kGuard, dynamic.end(), [](uint8_t byte) { return byte != kGarbage; }))
    launch.fail("a block wrote behind its dynamic shared memory");
}

// Blocks one after another, in random order too.
inline void run_in_turn(Launch& launch) {
  std::vector<unsigned> order(launch.blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), std::mt19937(launch.number));
  Block made(launch);
  for (size_t i = 0; i < order.size() && !launch.failed; ++i) made.run(order[i]);
}

inline void run_at_once(Launch& launch) {
  std::barrier<> meeting(launch.blocks);
  launch.meeting = &meeting;
  std::vector<int> meetings(launch.blocks);
  std::vector<std::thread> running;
  for (unsigned i = 0; i < launch.blocks; ++i)
    running.emplace_back([&launch, &meeting, &meetings, i] {
      Block made(launch);
      made.run(i);
      meetings[i] = made.meetings;
      meeting.arrive_and_drop();  // whoever still waits goes on, and is counted out below
    });
  for (auto& thread : running) thread.join();
  if (std::any_of(meetings.begin(), meetings.end(), [&](int count) { return count != meetings[0]; }))
    launch.fail("not all blocks came to the grid's barrier");
}

inline std::map<const void*, size_t>& allowed_shared() {
  static std::map<const void*, size_t> made;
  return made;
}

inline std::mutex& busy() {
  static std::mutex made;
  return made;
}

}  // namespace emulation

template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = T(before + value);
  return before;
}

// ---- the runtime
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration, cudaErrorInvalidValue };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
using cudaStream_t = void*;

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulation::kMultiprocessors : int(emulation::kMostShared);
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || size_t(value) > emulation::kMostShared) return cudaErrorInvalidValue;
  const std::lock_guard lock(emulation::busy());
  emulation::allowed_shared()[reinterpret_cast<const void*>(kernel)] = size_t(value);
  return cudaSuccess;
}

// Few, so that a block of a cooperative launch has several groups to work on, one after another.
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  return *blocks = emulation::kBlocksPerMultiprocessor, cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::lock_guard lock(emulation::busy());
  static unsigned number = 0;
  const bool cooperative = config->numAttrs > 0 && config->attrs->val.cooperative;
  const unsigned blocks = config->gridDim.x, threads = config->blockDim.x;
  const size_t allowed = emulation::allowed_shared()[reinterpret_cast<const void*>(kernel)];
  if (blocks == 0 || blocks >= 1u << 31 || threads == 0 || threads > emulation::kMostThreads ||
      threads % emulation::kWarp != 0 || config->dynamicSmemBytes > std::max(allowed, emulation::kDefaultShared))
    return cudaErrorInvalidConfiguration;
  if (cooperative && blocks > emulation::kMultiprocessors * emulation::kBlocksPerMultiprocessor)
    return cudaErrorInvalidConfiguration;
  emulation::Launch launch;
  launch.kernel = [=] { kernel(Parameters(arguments)...); };
  launch.number = ++number, launch.blocks = blocks, launch.threads = int(threads);
  launch.dynamic_bytes = config->dynamicSmemBytes;
  cooperative ? emulation::run_at_once(launch) : emulation::run_in_turn(launch);
  TORCH_CHECK(!launch.failed, "emulated kernel: ", launch.failure);
  return cudaSuccess;
}

namespace cooperative_groups {
struct Grid {
  int line;
  void sync() const { emulation::wait(emulation::Wait::kGrid, line); }
};
inline Grid this_grid(int line = __builtin_LINE()) { return {line}; }
}  // namespace cooperative_groups

// ---- torch's side of it
#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess, "CUDA refuses: " #call)

namespace c10::cuda {
struct CUDAGuard {
  explicit CUDAGuard(const c10::Device&) {}
};
inline cudaStream_t getCurrentCUDAStream(c10::DeviceIndex = -1) { return nullptr; }
}  // namespace c10::cuda

// The kernels are registered beside the CPU's, under a name of their own and for tensors in main memory.
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, key, m) _TORCH_LIBRARY_IMPL(interlude_fast_emulated, CPU, m, C10_UID)
