// What the encoder_stack binding hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/storage.h"

namespace spanbert {

// ops/encoder_stack/steps.py
enum class StepKind : int64_t { project, attend, merge, feed_forward, normalize };
enum class StackActivation : int64_t {
  gelu,
  gelu_tanh,
  quick_gelu,
  clipped_gelu,
  relu,
  relu6,
  relu_squared,
  leaky_relu,
  silu,
  sigmoid,
  tanh,
  identity
};

// A matrix [out_features, in_features] and its bias, where they lie in the region of packed weights.
struct PackedMatrix {
  int64_t panels, bias;  // bytes from the region's beginning
  int64_t out_features, in_features;
};

// Bytes in whole cache lines.
constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// What is read in whole vectors from any place on goes on for so many numbers (ops/encoder_stack/tables.py).
constexpr int64_t kRepeated = 16;

// [positions, 2, row()]: cosines, and sines with the sign with which the neighbour is taken; rows go on from their
// beginning.
struct Rotary {
  int64_t table, positions;  // bytes from the region's beginning; 0 positions: nothing is turned

  static int64_t row(int64_t head_dim) { return (head_dim + 2 * kRepeated - 1) / kRepeated * kRepeated; }
};

// Tables by distance, rows() of them, the distance 0 in the middle: [heads, rows] divided by the scale; and two packed
// matrices [rows, head_dim] a head, each on a cache line, the second backwards. Bytes from the region's beginning; -1:
// there is none.
struct Relative {
  int64_t reach, bias, keys, queries;  // reach: what is further away is like what is so far

  int64_t rows() const { return 2 * (reach + kRepeated) + 1; }
};

struct Step {
  StepKind kind;
  PackedMatrix first;   // normalize: weight and bias of the norm stand where the panels and the bias do
  PackedMatrix second;  // feed_forward: down
  StackActivation activation;
  bool gated;    // feed_forward: panels of up and of the gate in turns
  bool keeps;    // normalize: what is normalized does not take the place of what is added to
  bool centred;  // normalize: the mean is taken away
  int64_t heads, key_heads, head_dim;
  int64_t window;     // attend: how far a query sees; -1: to the ends of its document
  Rotary rotary;      // project
  Relative relative;  // attend
  double constant;    // attend: scale; normalize: epsilon

  int64_t queries_size() const { return heads * head_dim; }
  int64_t keys_size() const { return key_heads * head_dim; }
};

class Team;

constexpr int64_t kPhases = 2;  // of a step: lists of tasks that are drawn from

struct StackCall {
  Precision precision;
  Storage storage;  // of input and output
  const Step* steps;
  int64_t first, last;  // of the steps
  const char* region;
  int64_t tokens, hidden_size;
  int64_t qkv_size, inner_size,
      wide_size;  // qkv: what is projected; inner: heads x head_dim; wide: between up and down
  const int64_t* cu_seqlens;
  int64_t documents, max_seqlen;
  const void* input;  // [tokens, hidden_size], rows input_row elements apart
  int64_t input_row;
  void* output;  // [tokens, hidden_size], dense
  char* arena;
  bool shares_columns;  // few rows: each thread takes columns of every product, not rows of all
  int64_t blocks;       // of rows, otherwise
  Team* team;
};

// Bytes of a packed matrix, and packing it.
SPANBERT_DECLARE_ALL(int64_t encoder_stack_matrix_bytes(Precision precision, int64_t out_features, int64_t in_features))
SPANBERT_DECLARE_ALL(void encoder_stack_pack(Precision precision, Storage storage, const void* weight,
                                             int64_t out_features, int64_t in_features, void* to))
// Bytes of the arena, for so many threads.
SPANBERT_DECLARE_ALL(int64_t encoder_stack_arena_bytes(const StackCall& call, int64_t threads))
// What one member of the team does.
SPANBERT_DECLARE_ALL(void encoder_stack(const StackCall& call, int64_t member))

}  // namespace spanbert
