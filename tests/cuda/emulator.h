// CUDA kernels on the CPU, one block (or cluster of blocks) after the other: a thread is a fiber that runs until it has
// to wait.
//
// Included before the kernels' own text. What it checks and what it cannot show: README.md beside it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "tensor_maps.h"

using std::isinf;
using std::isnan;
typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct Index {
  int x, y, z;
};

namespace emulator {

// ---- fibers: switch_stack saves the registers that a call keeps (System V ABI, x86-64) and takes up another stack.

struct Fiber {
  void *stack_pointer = nullptr;
  std::unique_ptr<char[]> stack;
  Index thread{}, block{};
  int number = 0;  // in the block, which is that of `rank` in its cluster
  int rank = 0;
  bool finished = false;
};

extern "C" void switch_stack(void **from, void *to);
__asm__(R"(
.text
.type switch_stack, @function
switch_stack:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");

constexpr int STACK_BYTES = 256 * 1024;
constexpr int WARP = 32;
constexpr int MOST_BLOCKS = 8;  // of a cluster

static std::vector<Fiber> fibers;
static Fiber *running;
static void *scheduler;
static std::function<void()> kernel;
static Index grid, block_size;
static int cluster_size;
static int alive[MOST_BLOCKS];  // threads of each block of the cluster
static long progress;  // of anything: a round over all threads without any is a deadlock
static long block_number;
static char failure[200];
static void begin_shared(int threads);
static bool land_one();
static const char *left_over();
static void fail(const char *what);

static void wait() { switch_stack(&running->stack_pointer, scheduler); }

static void enter() {
  kernel();
  running->finished = true;
  alive[running->rank]--;
  progress++;
  wait();
}

static void prepare(Fiber &fiber, Index block, int rank, int number) {
  if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);  // not filled: what no thread reaches takes no memory
  fiber.block = block;
  fiber.rank = rank;
  fiber.number = number;
  fiber.finished = false;
  fiber.thread = {number % block_size.x, number / block_size.x % block_size.y, number / (block_size.x * block_size.y)};
  auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + STACK_BYTES) & ~uintptr_t(15);
  auto slots = reinterpret_cast<void **>(top) - 8;
  std::memset(slots, 0, 8 * sizeof(void *));
  slots[6] = reinterpret_cast<void *>(&enter);  // where the first switch returns to, past six saved registers
  fiber.stack_pointer = slots;
}

// ---- what threads wait for

// A meeting of `size` threads: the last one to come does `work`, all go on after it.
struct Meeting {
  int arrived = 0;
  long generation = 0;
  void *values[1024];
  void join(int size, int place, void *value, const std::function<void(void **)> &work) {
    values[place] = value;
    progress++;
    long mine = generation;
    if (++arrived == size) {
      work(values);
      arrived = 0;
      generation++;
    } else {
      while (generation == mine) wait();
    }
  }
};

static std::vector<Meeting> everybody;  // by block of the cluster
static std::vector<Meeting> warps;      // of all blocks of the cluster

static int threads_of_block() { return block_size.x * block_size.y * block_size.z; }
// Where the running thread, its warp or its warpgroup (of `size` threads) is among those of the cluster.
static int among(int size) {
  return running->rank * ((threads_of_block() + size - 1) / size) + running->number / size;
}

// Shared memory holds NaNs and large numbers at the start of every block, not what the last one left.
template <class T, size_t N>
static void fresh(T (&memory)[N], long &last) {
  if (cluster_size > 1) fail("shared memory of a form that clusters do not have here");
  if (last != block_number) {
    std::memset(memory, 0xFF, sizeof memory);
    last = block_number;
  }
}

template <class T>
static T exchange(T value, const std::function<int(int)> &source) {
  struct Entry {
    T in, out;
  } entry{value, value};
  int lane = running->number % WARP;
  int size = std::min(WARP, threads_of_block() - running->number / WARP * WARP);
  warps[among(WARP)].join(size, lane, &entry, [&](void **entries) {
    for (int i = 0; i < size; i++) {
      int from = source(i);
      auto &entry = *static_cast<Entry *>(entries[i]);
      entry.out = from >= 0 && from < size ? static_cast<Entry *>(entries[from])->in : entry.in;
    }
  });
  return entry.out;
}

// Runs the threads of a block of the cluster until all of them wait for others; how many have not ended.
static int run_block(int rank, int order) {
  int count = threads_of_block();
  for (;;) {
    long before = progress;
    for (int i = 0; i < count; i++) {
      running = &fibers[rank * count + (order > 0 ? i : count - 1 - i)];
      if (running->finished) continue;
      switch_stack(&scheduler, running->stack_pointer);
      if (failure[0]) return 0;
    }
    if (progress == before) return alive[rank];
  }
}

// Runs the kernel over a grid; `order` 1 takes the threads of a block from the first, -1 from the last: kernels whose
// result depends on it lack a barrier. So many `neighbours` along x run together. Returns what went wrong, or an empty
// text.
static const char *run(Index groups, Index threads, int order, int neighbours, std::function<void()> body) {
  failure[0] = 0;
  if (neighbours < 1 || neighbours > MOST_BLOCKS || groups.x % neighbours) return "a grid that is not of whole clusters";
  grid = groups;
  cluster_size = neighbours;
  block_size = threads;
  kernel = std::move(body);
  int threads_each = threads_of_block(), count = threads_each * cluster_size;
  fibers.resize(count);
  // Every kernel is a library of its own, which stays: the stacks of its threads do not.
  struct Release {
    ~Release() { std::vector<Fiber>().swap(fibers); }
  } release;
  everybody.resize(cluster_size);
  warps.resize((threads_each + WARP - 1) / WARP * cluster_size);
  Index block;
  for (block.z = 0; block.z < grid.z; block.z++)
    for (block.y = 0; block.y < grid.y; block.y++)
      for (block.x = 0; block.x < grid.x; block.x += cluster_size) {
        block_number++;
        for (auto &all : everybody) all = Meeting();
        begin_shared(threads_each);
        for (auto &warp : warps) warp = Meeting();
        for (int i = 0; i < count; i++) {
          int rank = i / threads_each;
          prepare(fibers[i], {block.x + rank, block.y, block.z}, rank, i % threads_each);
        }
        for (int rank = 0; rank < cluster_size; rank++) alive[rank] = threads_each;
        for (int left = count; left;) {
          long before = progress;
          left = 0;
          for (int turn = 0; turn < cluster_size; turn++) {
            left += run_block(order > 0 ? turn : cluster_size - 1 - turn, order);
            if (failure[0]) return failure;
          }
          if (left && progress == before && !land_one()) {
            std::snprintf(failure, sizeof failure, "deadlock in block (%d, %d, %d): %d of %d threads wait", block.x, block.y,
                          block.z, left, count);
            return failure;
          }
          if (failure[0]) return failure;
        }
        if (const char *left = left_over(); *left) {
          std::snprintf(failure, sizeof failure, "block (%d, %d, %d) ends with %s", block.x, block.y, block.z, left);
          return failure;
        }
      }
  return "";
}

}  // namespace emulator

#define threadIdx (emulator::running->thread)
#define blockIdx (emulator::running->block)
#define gridDim (emulator::grid)
#define blockDim (emulator::block_size)

static void __syncthreads() {
  // Threads that have ended take no part on a GPU either, but a kernel must not count on it.
  using namespace emulator;
  everybody[running->rank].join(threads_of_block(), running->number, nullptr, [](void **) {});
}
static void __syncwarp(unsigned = ~0u) {
  using namespace emulator;
  int size = std::min(WARP, threads_of_block() - running->number / WARP * WARP);
  warps[among(WARP)].join(size, running->number % WARP, nullptr, [](void **) {});
}
template <class T>
static T __shfl_sync(unsigned, T value, int lane, int = 32) {
  return emulator::exchange(value, [=](int) { return lane; });
}
template <class T>
static T __shfl_down_sync(unsigned, T value, int delta, int = 32) {
  return emulator::exchange(value, [=](int lane) { return lane + delta; });
}
template <class T>
static T __shfl_up_sync(unsigned, T value, int delta, int = 32) {
  return emulator::exchange(value, [=](int lane) { return lane - delta; });
}
template <class T>
static T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return emulator::exchange(value, [=](int lane) { return lane ^ mask; });
}

// ---- types and functions of CUDA's headers

#define CUDART_INF_F __builtin_inff()
#define CUDART_INF __builtin_inf()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_NAN __builtin_nan("")
template <class T>
static T max(T a, T b) { return a > b ? a : b; }
template <class T>
static T min(T a, T b) { return a < b ? a : b; }
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static double rsqrt(double x) { return 1.0 / sqrt(x); }
template <class To, class From>
static To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}
static int __float_as_int(float x) { return bits<int>(x); }
static float __int_as_float(int x) { return bits<float>(x); }

typedef _Float16 half;
static half __float2half_rn(float x) { return half(x); }
struct nv_bfloat16 {
  uint16_t stored;
  nv_bfloat16() = default;
  nv_bfloat16(float value) {  // to nearest, ties to even
    auto word = bits<uint32_t>(value);
    stored = value != value ? 0x7FFF : uint16_t((word + 0x7FFF + (word >> 16 & 1)) >> 16);
  }
  operator float() const { return bits<float>(uint32_t(stored) << 16); }
};
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static int2 make_int2(int x, int y) { return {x, y}; }
static int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
struct uint2 { uint x, y; };
struct uint4 { uint x, y, z, w; };

// For callers: a descriptor of a tensor; "" or what is wrong with it.
extern "C" const char *encode_tensor_map(CUtensorMap *result, int kind, uint32_t rank, uint64_t address,
                                         const uint64_t *sizes, const uint64_t *strides, const uint32_t *box,
                                         const int *lower, const int *upper, const uint32_t *steps) {
  return tensor_maps::encode(result, kind, rank, address, sizes, strides, box, lower, upper, steps, 0,
                             tensor_maps::SWIZZLE_128, 0);
}

#include "tensor_cores.h"
