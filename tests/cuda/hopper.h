// The functions of schedules/cuda/bulk.py on the CPU: barriers in shared memory, the copy unit, clusters of blocks.
//
// Included by tensor_cores.h, which has the shared memory.
#pragma once

namespace emulator {

// A barrier that counts arrivals and bytes. `phase` is how many phases have ended.
struct Barrier {
  int count, pending;
  long bytes;
  unsigned phase;
  int owner;  // the thread that initialised it, and has not told the copy unit; -1: it has
};
static std::map<std::pair<int, uint32_t>, Barrier> barriers;  // by rank and address

static Barrier &barrier_at(uint32_t address, int rank) {
  at(address, 8, 8, rank);
  auto found = barriers.find({rank, address});
  if (found == barriers.end()) fail("a barrier that was not initialised");
  return found->second;
}

static Barrier &barrier_at(uint32_t address) { return barrier_at(address, running->rank); }

static void end_phase(Barrier &barrier) {
  if (barrier.pending || barrier.bytes) return;
  barrier.phase++;
  barrier.pending = barrier.count;
  progress++;
}

static void arrive(Barrier &barrier, long bytes) {
  if (--barrier.pending < 0) fail("more arrivals at a barrier than it counts");
  barrier.bytes += bytes;
  progress++;
  end_phase(barrier);
}

// A copy of a box to one block, which has begun and not landed.
struct BulkCopy {
  uint32_t to, barrier;
  int rank;
  tensor_maps::Tensor tensor;
  int places[5], offsets[3];
};
static std::vector<BulkCopy> bulk_copies;

static uint32_t rounded_to_tf32(uint32_t x) {
  if ((x & 0x7F800000u) == 0x7F800000u) return x;
  return (x + 0xFFFu + (x >> 13 & 1)) & 0xFFFFE000u;
}

// An element to its place: 16 bytes are permuted within 128 by the bits of the address above.
static void put(const BulkCopy &copy, uint32_t offset, const int64_t *index) {
  const auto &tensor = copy.tensor;
  uint32_t size = tensor.element_bytes(), place = copy.to + offset, word = 0;
  place ^= (place >> 7 & 7) << 4;
  bool inside = true;
  uint64_t address = tensor.address + uint64_t(index[0]) * size;
  for (int i = 0; i < tensor.rank; i++) {
    inside = inside && index[i] >= 0 && index[i] < tensor.sizes[i];
    if (i) address += uint64_t(index[i]) * tensor.strides[i - 1];
  }
  if (inside) std::memcpy(&word, reinterpret_cast<const void *>(address), size);
  if (tensor.kind == tensor_maps::TFLOAT32) word = rounded_to_tf32(word);
  std::memcpy(at(place, size, size, copy.rank), &word, size);
  unfenced[copy.rank][place / 16] = 0;
}

static uint32_t put_box(const BulkCopy &copy) {
  const auto &tensor = copy.tensor;
  uint32_t count = 1;
  for (int i = 0; i < tensor.rank; i++) count *= tensor.box[i];
  for (uint32_t number = 0; number < count; number++) {
    int64_t index[5];
    uint32_t rest = number;
    for (int i = 0; i < tensor.rank; i++) index[i] = copy.places[i] + int64_t(rest % tensor.box[i]), rest /= tensor.box[i];
    put(copy, number * tensor.element_bytes(), index);
  }
  return count * tensor.element_bytes();
}

static uint32_t put_pixels(const BulkCopy &copy) {
  const auto &tensor = copy.tensor;
  int space = tensor.rank - 2;
  int64_t pixel[4];
  for (int i = 0; i <= space; i++) pixel[i] = copy.places[1 + i];
  for (uint32_t number = 0; number < tensor.box[1]; number++) {
    for (uint32_t channel = 0; channel < tensor.box[0]; channel++) {
      int64_t index[5] = {copy.places[0] + int64_t(channel)};
      for (int i = 0; i < space; i++) index[1 + i] = pixel[i] + copy.offsets[i];
      index[1 + space] = pixel[space];
      put(copy, (number * tensor.box[0] + channel) * tensor.element_bytes(), index);
    }
    for (int i = 0; i <= space; i++) {
      pixel[i] += i < space ? tensor.steps[1 + i] : 1;
      if (i == space || pixel[i] < int64_t(tensor.sizes[1 + i]) + tensor.upper[i]) break;
      pixel[i] = tensor.lower[i];
    }
  }
  return tensor.box[0] * tensor.box[1] * tensor.element_bytes();
}

static void land_bulk(const BulkCopy &copy) {
  if (!alive[copy.rank]) {
    std::snprintf(failure, sizeof failure, "a copy lands in a block of the cluster that has ended");
    return;
  }
  auto &barrier = barrier_at(copy.barrier, copy.rank);
  barrier.bytes -= copy.tensor.im2col ? put_pixels(copy) : put_box(copy);
  progress++;
  end_phase(barrier);
}

// Where nothing else goes on, the copy that began last lands.
static bool land_one() {
  if (bulk_copies.empty()) return false;
  BulkCopy copy = bulk_copies.back();
  bulk_copies.pop_back();
  land_bulk(copy);
  return true;
}

// Where all threads of a cluster meet.
static int cluster_arrived;
static long cluster_generation;

static void begin_copies() {
  barriers.clear();
  bulk_copies.clear();
  cluster_arrived = 0;
}

// To the blocks of `mask`, a bit for each rank of the cluster; 0: to the own one.
static void tensor_copy(uint32_t to, const void *map, uint32_t barrier, int rank, const int *places, const int *offsets,
                        uint32_t mask) {
  BulkCopy copy{to, barrier, running->rank};
  std::memcpy(&copy.tensor, map, sizeof copy.tensor);
  if (copy.tensor.magic != tensor_maps::MAGIC) fail("a descriptor of no tensor");
  if (copy.tensor.rank != rank || bool(copy.tensor.im2col) != bool(offsets)) fail("a tensor of another form");
  if (to % 128) fail("a copy of a tensor to a misaligned address");
  if (!mask) mask = 1u << running->rank;
  if (mask >> cluster_size) fail("a copy to a block that the cluster does not have");
  for (int block = 0; block < cluster_size; block++)
    if (mask >> block & 1 && barrier_at(barrier, block).owner >= 0) fail("a barrier that the copy unit may not see yet");
  std::memcpy(copy.places, places, rank * sizeof(int));
  for (int i = 0; offsets && i < rank - 2; i++) {
    copy.offsets[i] = offsets[i];
    if (offsets[i] < 0 || offsets[i] >= (rank == 3 ? 65536 : rank == 4 ? 256 : 32)) fail("an offset that is too large");
  }
  for (copy.rank = 0; copy.rank < cluster_size; copy.rank++)
    if (!(mask >> copy.rank & 1))
      continue;
    else if (late & LATE_COPIES)
      bulk_copies.push_back(copy);
    else
      land_bulk(copy);
}

}  // namespace emulator

static void barrier_init(unsigned barrier, unsigned count) {
  emulator::at(barrier, 8, 8);
  int rank = emulator::running->rank;
  if (emulator::barriers.count({rank, barrier})) emulator::fail("a barrier that is initialised again");
  emulator::barriers[{rank, barrier}] = {int(count), int(count), 0, 0, emulator::running->number};
}
static void barriers_ready() {
  for (auto &[place, barrier] : emulator::barriers)
    if (place.first == emulator::running->rank && barrier.owner == emulator::running->number) barrier.owner = -1;
}
static void barrier_expect(unsigned barrier, unsigned bytes) { emulator::arrive(emulator::barrier_at(barrier), bytes); }
static void barrier_arrive(unsigned barrier) { emulator::arrive(emulator::barrier_at(barrier), 0); }
static void barrier_arrive_at(unsigned address, int rank) {
  using namespace emulator;
  if (rank < 0 || rank >= cluster_size) fail("an arrival at a block that the cluster does not have");
  if (!alive[rank]) fail("an arrival at a block of the cluster that has ended");
  auto &barrier = barrier_at(address, rank);
  if (barrier.owner >= 0) fail("an arrival at a barrier that other blocks may not see yet");
  arrive(barrier, 0);
}
static void store_shared_at(unsigned to, int rank, float x) {
  using namespace emulator;
  if (rank < 0 || rank >= cluster_size) fail("a store in a block that the cluster does not have");
  if (!alive[rank]) fail("a store in a block of the cluster that has ended");
  std::memcpy(at(to, 4, 4, rank), &x, 4);
}
static void barrier_wait(unsigned address, int parity) {
  while (int(emulator::barrier_at(address).phase & 1) == parity) emulator::wait();
}
static void cluster_meets() {
  using namespace emulator;
  progress++;
  long mine = cluster_generation;
  if (++cluster_arrived == threads_of_block() * cluster_size) {
    cluster_arrived = 0;
    cluster_generation++;
  } else {
    while (cluster_generation == mine) wait();
  }
}
