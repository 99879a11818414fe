// Descriptors of tensors (CUtensorMap) of the emulator and of the stand-in for the driver, and what a driver asks of them.
#pragma once
#include <cstdint>
#include <cstring>

struct alignas(64) CUtensorMap {
  uint64_t opaque[16];
};

namespace tensor_maps {

constexpr uint32_t MAGIC = 0x544D4150;
enum { UINT16 = 1, FLOAT32 = 7, TFLOAT32 = 11 };  // CUtensorMapDataType
enum { SWIZZLE_128 = 3 };

struct Tensor {
  uint32_t magic;
  uint8_t kind, rank, im2col, swizzled;
  uint64_t address;
  uint64_t strides[4];  // bytes, of the dims behind the innermost
  uint32_t sizes[5];
  uint16_t box[5];  // im2col: channels, pixels
  uint8_t steps[5];
  int16_t lower[3], upper[3];
  uint32_t element_bytes() const { return kind == UINT16 ? 2 : 4; }
};
static_assert(sizeof(Tensor) <= sizeof(CUtensorMap));

// "" or what a driver would refuse (CUDA driver API, tensor map object management).
static const char *encode(CUtensorMap *result, int kind, uint32_t rank, uint64_t address, const uint64_t *sizes,
                          const uint64_t *strides, const uint32_t *box, const int *lower, const int *upper,
                          const uint32_t *steps, int interleave, int swizzle, int fill) {
  Tensor tensor{};
  bool im2col = lower;
  if (reinterpret_cast<uintptr_t>(result) % 64) return "the descriptor is not aligned to 64 bytes";
  if (kind != UINT16 && kind != FLOAT32 && kind != TFLOAT32) return "elements that are not known here";
  if (rank > 5 || rank < (im2col ? 3 : 1)) return "the rank";
  if (!address || address % 16) return "the address is not aligned to 16 bytes";
  if (interleave || fill || swizzle != SWIZZLE_128) return "a layout that is not known here";
  tensor = {MAGIC, uint8_t(kind), uint8_t(rank), im2col, 1, address};
  uint64_t element = tensor.element_bytes();
  for (uint32_t i = 0; i < rank; i++) {
    if (!sizes[i] || sizes[i] > uint64_t(1) << 32) return "a size is 0 or more than 2^32";
    if (sizes[i] >> 31) return "a size that is too large for the emulator";
    if (i && (strides[i - 1] % 16 || strides[i - 1] >> 40)) return "a stride that is no multiple of 16, or 2^40 or more";
    if (!steps[i] || steps[i] > 8) return "a step that is 0 or more than 8";
    tensor.sizes[i] = uint32_t(sizes[i]);
    if (i) tensor.strides[i - 1] = strides[i - 1];
    tensor.steps[i] = uint8_t(steps[i]);
  }
  for (uint32_t i = 0; i < (im2col ? 2 : rank); i++) {
    if (!box[i] || box[i] > (im2col && i ? 1024u : 256u)) return "a box that is empty or too large";
    tensor.box[i] = uint16_t(box[i]);
  }
  if (box[0] * element % 16 || box[0] * element > 128) return "a box whose lines are not of 16 to 128 bytes";
  int bits = rank == 3 ? 16 : rank == 4 ? 8 : 5;
  for (uint32_t i = 0; im2col && i < rank - 2; i++) {
    for (int corner : {lower[i], upper[i]})
      if (corner < -(1 << (bits - 1)) || corner >= 1 << (bits - 1)) return "a corner that is too far away";
    if (int64_t(sizes[1 + i]) + upper[i] - lower[i] <= 0) return "an empty space between the corners";
    tensor.lower[i] = int16_t(lower[i]), tensor.upper[i] = int16_t(upper[i]);
  }
  std::memcpy(result, &tensor, sizeof tensor);
  return "";
}

}  // namespace tensor_maps
