// The functions of schedules/cuda/ptx.py on the CPU: asynchronous copies, fragments of matrices, products of a warp.
//
// Included by emulator.h. Dynamic shared memory is an array for each block of a cluster, whose addresses are offsets in it.
#pragma once

namespace emulator {

constexpr uint32_t SHARED_BYTES = 232448;  // what a block of the largest device may have
alignas(1024) static uchar shared[MOST_BLOCKS][SHARED_BYTES];
static uint32_t shared_bytes;  // what the launch asked for
// Copies land, products of warpgroups are done when they are waited for, not before. All kinds of device are allowed.
enum { LATE_COPIES = 1, LATE_PRODUCTS = 2 };
static int late;

// By chunk of shared memory: written by a thread (1 + its number) that has not fenced it yet, so that wgmma may not see it.
static uint16_t unfenced[MOST_BLOCKS][SHARED_BYTES / 16];
static std::vector<std::vector<uint32_t>> written;  // the chunks, by thread of the cluster

struct Copy {
  uint32_t to;
  uchar data[16];
};
static std::vector<std::vector<std::vector<Copy>>> copies;  // by thread: groups in order, the last one open

static void fail(const char *what) {
  auto [x, y, z] = running->block;
  std::snprintf(failure, sizeof failure, "%s by thread %d of block (%d, %d, %d)", what, running->number, x, y, z);
  for (;;) wait();
}

// ---- wgmma: products of a warpgroup of operands in shared memory, done when they are waited for, or (not LATE_PRODUCTS) at once.

constexpr int GROUP = 128;
struct Begun {
  float *sums[GROUP];
  const uint32_t *words[GROUP];  // of the left operand, where it is in registers
  uint64_t a, b;
  void (*work)(const Begun &);
};
struct Warpgroup {
  Meeting meeting;
  std::vector<Begun> begun;
  std::vector<size_t> ends;  // of groups, in `begun`
};
static std::vector<Warpgroup> groups;

static void begin_copies();

// What begins with every block.
static void begin_shared(int threads) {
  for (int rank = 0; rank < cluster_size; rank++) {
    std::memset(shared[rank], 0xFF, shared_bytes);
    std::memset(unfenced[rank], 0, sizeof unfenced[rank]);
  }
  copies.assign(threads * cluster_size, {{}});
  written.assign(threads * cluster_size, {});
  groups.assign((threads + GROUP - 1) / GROUP * cluster_size, {});
  begin_copies();
}

static uchar *at(uint32_t address, uint32_t size, uint32_t alignment, int rank) {
  if (address % alignment) fail("misaligned access to shared memory");
  if (address + size > shared_bytes) fail("access outside of shared memory");
  return shared[rank] + address;
}
static uchar *at(uint32_t address, uint32_t size, uint32_t alignment) { return at(address, size, alignment, running->rank); }

static void land(const Copy &copy) {
  std::memcpy(at(copy.to, 16, 16), copy.data, 16);
  unfenced[running->rank][copy.to / 16] = uint16_t(running->number + 1);
  written[among(1)].push_back(copy.to / 16);
}

static void wait_copies(size_t newest) {
  auto &groups = copies[among(1)];
  while (groups.size() > newest + 1) {
    for (auto &copy : groups.front()) land(copy);
    groups.erase(groups.begin());
  }
}

// All lanes of a warp; `Lane` is what each brings along.
template <class Lane>
static void as_warp(Lane &own, void (*work)(Lane **)) {
  if (threads_of_block() % WARP) fail("a block without whole warps");
  warps[among(WARP)].join(WARP, running->number % WARP, &own,
                          [&](void **lanes) { work(reinterpret_cast<Lane **>(lanes)); });
}

struct Load {
  uint32_t from, words[4];
};

template <bool transposed>
static void load_four(Load **lanes) {
  for (int matrix = 0; matrix < 4; matrix++) {
    uint16_t element[8][8];
    for (int row = 0; row < 8; row++) std::memcpy(element[row], at(lanes[matrix * 8 + row]->from, 16, 16), 16);
    for (int lane = 0; lane < WARP; lane++) {
      int row = lane / 4, column = lane % 4 * 2;
      uint32_t low = transposed ? element[column][row] : element[row][column];
      uint32_t high = transposed ? element[column + 1][row] : element[row][column + 1];
      lanes[lane]->words[matrix] = high << 16 | low;
    }
  }
}

struct Half {
  static constexpr int PACKED = 2, BYTES = 2;
  static float get(uint32_t word, int part) { return (float)bits<half>(uint16_t(word >> 16 * part)); }
};
struct Brain {
  static constexpr int PACKED = 2, BYTES = 2;
  static float get(uint32_t word, int part) { return bits<float>(word >> 16 * part << 16); }
};
struct Tf32 {
  static constexpr int PACKED = 1, BYTES = 4;
  static float get(uint32_t word, int) { return bits<float>(word & 0xFFFFE000u); }
};

struct Fragments {
  float *sum;
  const uint32_t *a, *b;
};

// m16n8k16 of half floats, m16n8k8 of TF32: see the PTX ISA for who holds what.
template <class Kind>
static void multiply(Fragments **lanes) {
  constexpr int packed = Kind::PACKED, half_depth = 4 * packed, depth = 2 * half_depth;
  float a[16][depth], b[depth][8];
  for (int lane = 0; lane < WARP; lane++)
    for (int part = 0; part < packed; part++) {
      int group = lane / 4, k = lane % 4 * packed + part;
      for (int i = 0; i < 4; i++) a[group + i % 2 * 8][k + i / 2 * half_depth] = Kind::get(lanes[lane]->a[i], part);
      for (int i = 0; i < 2; i++) b[k + i * half_depth][group] = Kind::get(lanes[lane]->b[i], part);
    }
  for (int lane = 0; lane < WARP; lane++)
    for (int i = 0; i < 4; i++) {
      float &sum = lanes[lane]->sum[i];
      for (int k = 0; k < depth; k++) sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
    }
}

struct f16 : Half {};
struct bf16 : Brain {};
struct tf32 : Tf32 {};

// `size` bytes at (line, element) behind a descriptor's start: lines of 128 bytes, permuted by the bits of the address.
static float operand(uint64_t descriptor, int line, int element, bool across, int size, float (*get)(uint32_t, int)) {
  uint32_t start = uint32_t(descriptor & 0x3FFF) << 4, leading = uint32_t(descriptor >> 16 & 0x3FFF) << 4;
  uint32_t stride = uint32_t(descriptor >> 32 & 0x3FFF) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("a descriptor of a form that is not known");
  // `across`: `line` is of the summed dim, elements lie in panels of 64.
  uint32_t place = start + line / 8 * stride + line % 8 * 128;
  place += across ? element / 64 * leading + element % 64 * 2 : element * size;
  place ^= (place >> 7 & 7) << 4;
  if (unfenced[running->rank][place / 16]) fail("wgmma reads what was not fenced");
  uint32_t word = 0;
  std::memcpy(&word, at(place, size, size), size);
  return get(word, 0);
}

template <class Kind, int columns, bool across, bool first = false>
static void multiply_group(const Begun &begun) {
  constexpr int size = Kind::BYTES, depth = 32 / size;
  static_assert(size == 2 || !across);
  static float a[64][depth], b[depth][columns];
  for (int row = 0; row < 64; row++)
    for (int k = 0; k < depth; k++) a[row][k] = operand(begun.a, row, k, false, size, Kind::get);
  for (int k = 0; k < depth; k++)
    for (int column = 0; column < columns; column++)
      b[k][column] = across ? operand(begun.b, k, column, true, size, Kind::get)
                            : operand(begun.b, column, k, false, size, Kind::get);
  for (int thread = 0; thread < GROUP; thread++)
    for (int i = 0; i < columns / 2; i++) {
      int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      float &sum = begun.sums[thread][i];
      if (first) sum = 0;
      for (int k = 0; k < depth; k++) sum += a[row][k] * b[k][column];
    }
}

// The left operand as fragments of m16n8k16 lie, in words of each thread that are read when the products are done.
template <class Kind, int columns>
static void multiply_registers(const Begun &begun) {
  static float a[64][16], b[16][columns];
  for (int thread = 0; thread < GROUP; thread++)
    for (int i = 0; i < 8; i++) {
      int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, k = i / 4 * 8 + thread % 4 * 2 + i % 2;
      a[row][k] = Kind::get(begun.words[thread][i / 2], i % 2);
    }
  for (int k = 0; k < 16; k++)
    for (int column = 0; column < columns; column++) b[k][column] = operand(begun.b, k, column, true, 2, Kind::get);
  for (int thread = 0; thread < GROUP; thread++)
    for (int i = 0; i < columns / 2; i++) {
      int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      for (int k = 0; k < 16; k++) begun.sums[thread][i] += a[row][k] * b[k][column];
    }
}

// The oldest `count` of what a warpgroup has begun.
static void finish(Warpgroup &group, size_t count) {
  for (size_t i = 0; i < count; i++) group.begun[i].work(group.begun[i]);
  group.begun.erase(group.begun.begin(), group.begun.begin() + count);
  for (auto &end : group.ends) end -= std::min(end, count);
}

static void as_group(void *own, const std::function<void(void **)> &work) {
  if (threads_of_block() % GROUP) fail("a block without whole warpgroups");
  groups[among(GROUP)].meeting.join(GROUP, running->number % GROUP, own, work);
}

}  // namespace emulator

struct WgmmaLane {
  float *sum;
  uint64_t a, b;
  const uint32_t *words;
};

static void wgmma_of(WgmmaLane own, void (*work)(const emulator::Begun &)) {
  using namespace emulator;
  auto &group = groups[among(GROUP)];
  as_group(&own, [&](void **lanes) {
    Begun begun{{}, {}, own.a, own.b, work};
    for (int i = 0; i < GROUP; i++) {
      auto &lane = *static_cast<WgmmaLane *>(lanes[i]);
      if (lane.a != own.a || lane.b != own.b) fail("wgmma with descriptors that differ within a warpgroup");
      begun.sums[i] = lane.sum, begun.words[i] = lane.words;
    }
    group.begun.push_back(begun);
    if (!(late & LATE_PRODUCTS)) finish(group, group.begun.size());
  });
}
template <class Kind, int columns, bool across>
static void wgmma(float *sum, uint64_t a, uint64_t b) {
  wgmma_of({sum, a, b, nullptr}, emulator::multiply_group<Kind, columns, across>);
}
template <class Kind, int columns>
static void group_first(float *sum, uint64_t a, uint64_t b) {
  wgmma_of({sum, a, b, nullptr}, emulator::multiply_group<Kind, columns, false, true>);
}
template <class Kind, int columns>
static void group_registers(float *sum, const uint32_t *words, uint64_t b) {
  wgmma_of({sum, 0, b, words}, emulator::multiply_registers<Kind, columns>);
}
static void wgmma_begin() {}
static void wgmma_end_group() {
  using namespace emulator;
  auto &group = groups[among(GROUP)];
  as_group(nullptr, [&](void **) { group.ends.push_back(group.begun.size()); });
}
// Waits for all groups but the newest.
static void wgmma_pending(size_t newest) {
  using namespace emulator;
  auto &group = groups[among(GROUP)];
  as_group(nullptr, [&](void **) {
    if (group.ends.size() <= newest) return;
    size_t done = group.ends.size() - newest;
    finish(group, group.ends[done - 1]);
    group.ends.erase(group.ends.begin(), group.ends.begin() + done);
  });
}
static void wgmma_wait() { wgmma_pending(0); }
static void fence_async() {
  using namespace emulator;
  for (uint32_t chunk : written[among(1)])
    if (unfenced[running->rank][chunk] == running->number + 1) unfenced[running->rank][chunk] = 0;
  written[among(1)].clear();
}

static unsigned shared_address(const void *p) {
  return unsigned((const uchar *)p - emulator::shared[emulator::running->rank]);
}

static void copy_async(unsigned to, const void *from, int bytes) {
  using namespace emulator;
  if (reinterpret_cast<uintptr_t>(from) % 16) fail("misaligned copy");
  if (bytes != 0 && bytes != 16) fail("a copy of part of a chunk");
  at(to, 16, 16);
  Copy copy{to, {}};
  if (bytes) std::memcpy(copy.data, from, 16);
  if (late & LATE_COPIES)
    copies[among(1)].back().push_back(copy);
  else
    land(copy);
}
static void copies_end_group() { emulator::copies[emulator::among(1)].emplace_back(); }
template <int newest>
static void copies_wait() { emulator::wait_copies(newest); }

template <bool transposed>
static void load_four(unsigned *to, unsigned from) {
  emulator::Load own{from, {}};
  emulator::as_warp(own, emulator::load_four<transposed>);
  std::memcpy(to, own.words, sizeof own.words);
}
static void load_matrices(unsigned *to, unsigned from) { load_four<false>(to, from); }
static void load_transposed(unsigned *to, unsigned from) { load_four<true>(to, from); }

template <class Kind>
static void multiply(float *sum, const unsigned *a, const unsigned *b) {
  emulator::Fragments own{sum, a, b};
  emulator::as_warp(own, emulator::multiply<Kind>);
}
static void mma_f16(float *sum, const unsigned *a, const unsigned *b) { multiply<emulator::Half>(sum, a, b); }
static void mma_bf16(float *sum, const unsigned *a, const unsigned *b) { multiply<emulator::Brain>(sum, a, b); }
static void mma_tf32(float *sum, const unsigned *a, const unsigned *b) { multiply<emulator::Tf32>(sum, a, b); }

static unsigned pack_f16(float low, float high) {
  return unsigned(bits<uint16_t>(half(high))) << 16 | bits<uint16_t>(half(low));
}
static unsigned pack_bf16(float low, float high) {
  return unsigned(nv_bfloat16(high).stored) << 16 | nv_bfloat16(low).stored;
}
static void round_to_tf32(unsigned *x) {
  bool finite = (*x & 0x7F800000u) != 0x7F800000u;
  if (finite) *x = (*x + 0x1000u) & 0xFFFFE000u;
}
static void store_shared_pair(unsigned to, float x, float y) {
  float pair[2] = {x, y};
  std::memcpy(emulator::at(to, 8, 8), pair, 8);
}
static void store_shared(unsigned to, float x) { std::memcpy(emulator::at(to, 4, 4), &x, 4); }
static void load_shared_chunk(float *to, unsigned from) { std::memcpy(to, emulator::at(from, 16, 16), 16); }
static float load_shared(unsigned from) {
  float x;
  std::memcpy(&x, emulator::at(from, 4, 4), 4);
  return x;
}
static void store_shared_long(unsigned to, int64_t x) { std::memcpy(emulator::at(to, 8, 8), &x, 8); }
static int64_t load_shared_long(unsigned from) {
  int64_t x;
  std::memcpy(&x, emulator::at(from, 8, 8), 8);
  return x;
}
static void move(void *to, const void *from, int size) {
  auto places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (places % size) emulator::fail("misaligned move");
  std::memcpy(to, from, size);
}
static void move_16(void *to, const void *from) { move(to, from, 16); }
static void stream_16(void *to, const void *from) { move(to, from, 16); }
static void move_4(void *to, const void *from) { move(to, from, 4); }
static void move_8(void *to, const void *from) { move(to, from, 8); }
static float larger(float a, float b) { return fmaxf(a, b); }
static float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
static float power_of_two(float x) { return exp2f(x); }
static void sync_warp() { __syncwarp(); }

#include "hopper.h"

namespace emulator {

static const char *left_over() {
  for (auto &group : groups)
    if (!group.begun.empty()) return "products that nobody waits for";
  return bulk_copies.empty() ? "" : "copies that nobody waits for";
}

}  // namespace emulator
