// The tensor cores of fibers.h: what a warp's lanes hold follows the PTX ISA (sections "Matrix fragments for
// mma.m16n8k16 with floating point type" and "ldmatrix"), not the headers under test.
#pragma once

// The emulation is most of a launch's work: optimised also where the kernels are not.
#pragma GCC push_options
#pragma GCC optimize("O2")

namespace spanbert {

struct Operands {
  uint32_t a[4], b[2];
};

// One lane's part of a warp's product: row `lane / 4` of A and the one 8 below, of which four lanes hold the elements,
// by columns `lane % 4 * 2` and the next of B, each of which four other lanes hold.
template <int Depth, class A, class B>
void emulate_product(float (&c)[4], const unsigned char* slots, const A& elements_a, const B& elements_b) {
  float a[2][Depth], b[Depth][2];
  const unsigned own = threadIdx.x % 32;
  const auto of_lane = [&](unsigned lane) {
    Operands operands;
    std::memcpy(&operands, slots + lane * fibers::kSlot, sizeof(operands));
    return operands;
  };
  for (unsigned t = 0; t < 4; ++t) {
    elements_a(of_lane(own / 4 * 4 + t), t, a);
    for (unsigned j = 0; j < 2; ++j) elements_b(of_lane((own % 4 * 2 + j) * 4 + t), t, j, b);
  }
  for (int i = 0; i < 4; ++i) {
    double sum = c[i];
    for (int k = 0; k < Depth; ++k) sum += static_cast<double>(a[i / 2][k]) * b[k][i % 2];
    float rounded = static_cast<float>(sum);
    // Tensor cores cut off what does not fit.
    if (std::fabs(static_cast<double>(rounded)) > std::fabs(sum) && std::isfinite(sum)) {
      rounded = std::nextafterf(rounded, 0.0f);
    }
    c[i] = rounded;
  }
}

// Every number of 16 bits.
template <class S>
inline const std::vector<float>& all_halves() {
  static const std::vector<float> table = [] {
    std::vector<float> values(65536);
    for (uint32_t bits = 0; bits < 65536; ++bits) values[bits] = to_float(S{static_cast<uint16_t>(bits)});
    return values;
  }();
  return table;
}

template <class S>
inline void multiply_halves(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], S,
                            int place = __builtin_LINE()) {
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const unsigned char* slots = fibers::exchange_all(mine, place);
  const float* value = all_halves<S>().data();
  emulate_product<16>(
      c, slots,
      [value](const Operands& operands, unsigned t, float (&to)[2][16]) {
        for (unsigned i = 0; i < 8; ++i) {
          const unsigned lower_row = i < 2 || (4 <= i && i < 6) ? 0 : 1, column = t * 2 + (i & 1) + (i >= 4 ? 8 : 0);
          to[lower_row][column] = value[operands.a[i / 2] >> 16 * (i % 2) & 0xffff];
        }
      },
      [value](const Operands& operands, unsigned t, unsigned column, float (&to)[16][2]) {
        for (unsigned i = 0; i < 4; ++i) {
          const unsigned row = t * 2 + (i & 1) + (i >= 2 ? 8 : 0);
          to[row][column] = value[operands.b[i / 2] >> 16 * (i % 2) & 0xffff];
        }
      });
}

struct MatrixRow {
  uint16_t numbers[8];
};

// Matrix i, row r: what lane 8 i + r named.
inline uint16_t matrix_element(const unsigned char* slots, unsigned i, unsigned row, unsigned column) {
  MatrixRow found;
  std::memcpy(&found, slots + (8 * i + row) * fibers::kSlot, sizeof(found));
  return found.numbers[column];
}

inline MatrixRow read_row(const void* row) {
  fibers::check_alignment(row, sizeof(MatrixRow));
  MatrixRow mine;
  std::memcpy(&mine, row, sizeof(mine));
  return mine;
}

inline void load_matrices(const void* row, uint32_t (&words)[4], int place = __builtin_LINE()) {
  const unsigned char* slots = fibers::exchange_all(read_row(row), place);
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = 0; i < 4; ++i) {
    words[i] = matrix_element(slots, i, lane / 4, lane % 4 * 2) |
               static_cast<uint32_t>(matrix_element(slots, i, lane / 4, lane % 4 * 2 + 1)) << 16;
  }
}

inline void load_matrices_transposed(const void* row, uint32_t (&words)[4], int place = __builtin_LINE()) {
  const unsigned char* slots = fibers::exchange_all(read_row(row), place);
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = 0; i < 4; ++i) {
    words[i] = matrix_element(slots, i, lane % 4 * 2, lane / 4) |
               static_cast<uint32_t>(matrix_element(slots, i, lane % 4 * 2 + 1, lane / 4)) << 16;
  }
}

}  // namespace spanbert

#pragma GCC pop_options
