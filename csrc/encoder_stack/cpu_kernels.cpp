// A stack of encoder layers on packed documents, as a program of steps, on a CPU.
//
// With many rows, blocks of them go through all steps from one attention to the next while they are in the second-level
// cache: two barriers a layer, and nothing wide is ever written to memory. With few rows the time is that of reading
// the weights, so the threads take columns of every product, some at a time, and each keeps its own copy of what the
// products are added to; products are then followed by a barrier. Either way a sum is made of the same parts in the
// same order, whatever the number of threads and of rows.

#include <vector>

#include "common/matrix.h"
#include "encoder_stack/activations.h"
#include "encoder_stack/attention.h"
#include "encoder_stack/bump.h"
#include "encoder_stack/team.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

// Of what attention multiplies, and what it hands on.
template <class E>
struct Around {
  using Attention = BFloat16;
  using Context = std::conditional_t<std::is_same_v<E, Int8>, float, bfloat16>;
};
template <>
struct Around<Float32> {
  using Attention = Float32;
  using Context = float;
};

// Turns the columns before `end` of what is projected: each head's, by the place of the row's token.
struct Turn {
  const float* table;
  int64_t row, head_dim, end;
  const int64_t* places;

  Vector<float> operator()(int64_t r, int64_t c, Vector<float> x) const {
    if (c >= end) return x;
    const auto column = static_cast<uint32_t>(c) % static_cast<uint32_t>(head_dim);
    const float* cosines = table + places[r] * 2 * row + column;
    const auto neighbours = swap_lanes<float, 1>(x, std::make_index_sequence<kLanes>());
    const Vector<float> across = neighbours * load(cosines + row);
    Vector<float> turned = x * load(cosines) + across;
    if (c + kLanes > end) {
      for (int64_t lane = end - c; lane < kLanes; ++lane) turned[lane] = x[lane];
    }
    return turned;
  }
};

template <class E>
class Stack {
  using T = typename E::Element;
  using AttentionElement = typename Around<E>::Attention::Element;
  using Context = typename Around<E>::Context;

 public:
  Stack(const StackCall& call, char* arena, int64_t member) : call_(call), member_(member) {
    hidden_row_ = whole(call.hidden_size);
    inner_row_ = whole(call.inner_size);
    qkv_row_ = whole(call.qkv_size);
    wide_row_ = panels_of(call.wide_size) * kTileColumns;
    Bump bump{arena};
    if (!call.shares_columns) stream_ = bump.take<float>(call.tokens * hidden_row_);
    qkv_ = bump.take<AttentionElement>(call.tokens * qkv_row_ + kLanes * kMostVectors);
    context_ = bump.take<Context>(call.tokens * inner_row_);
    if (call.shares_columns) {
      sums_ = bump.take<float>(call.tokens * hidden_row_);
      wide_ = bump.take<Wide>(call.tokens * wide_row_);
    }
    shared_bytes_ = bump.used;
    Bump count{nullptr};
    take_own(count);
    own_bytes_ = count.used;
    Bump own{arena ? arena + shared_bytes_ + member * own_bytes_ : nullptr};
    take_own(own);
  }

  int64_t bytes(int64_t threads) const { return shared_bytes_ + threads * own_bytes_; }

  void run() {
    if (call_.shares_columns) {
      rows_ = call_.tokens;
      read();
      walk(call_.first, call_.last);
      const int64_t members = call_.team->members();
      write(rows_ * member_ / members, rows_ * (member_ + 1) / members);
      return;
    }
    int64_t step = call_.first;
    while (step < call_.last) {
      if (call_.steps[step].kind == StepKind::attend) {
        call_.team->wait();
        attend(step++);
        continue;
      }
      int64_t end = step;
      while (end < call_.last && call_.steps[end].kind != StepKind::attend) ++end;
      for (int64_t block; (block = draw(step, 0)) < call_.blocks;) {
        row_ = first_row(block);
        rows_ = first_row(block + 1) - row_;
        if (step == call_.first) read();
        walk(step, end);
        if (end == call_.last) write(0, rows_);
      }
      step = end;
    }
  }

 private:
  using Wide = std::conditional_t<std::is_same_v<E, Int8>, float, T>;  // Int8: quantized when a whole chunk is there

  // What a member has of its own.
  void take_own(Bump& own) {
    const int64_t rows = block_rows();
    attention_ = own.take<char>(attention_bytes());
    normed_ = own.take<float>(rows * hidden_row_);
    input_ = own.take<T>(rows * std::max(hidden_row_, inner_row_));
    scales_ = own.take<float>(rows);
    places_ = own.take<int64_t>(rows);
    activated_ = own.take<float>(rows * kTileColumns);
    if (call_.shares_columns) {
      stream_ = own.take<float>(rows * hidden_row_);
      chunk_ = own.take<T>(rows * wide_row_);
    } else {
      sums_ = own.take<float>(rows * hidden_row_);
      wide_ = own.take<Wide>(rows * kChunk);
      chunk_ = own.take<T>(rows * kChunk);
    }
    chunk_scales_ = own.take<float>(rows * chunks_of(call_.wide_size));
  }

  // Blocks of nearly equal size, in whole tiles.
  int64_t first_row(int64_t block) const {
    const int64_t tiles = (call_.tokens + kTileRows - 1) / kTileRows;
    return std::min(tiles * block / call_.blocks * kTileRows, call_.tokens);
  }
  int64_t block_rows() const {
    if (call_.shares_columns) return call_.tokens;
    int64_t most = 0;
    for (int64_t block = 0; block < call_.blocks; ++block)
      most = std::max(most, first_row(block + 1) - first_row(block));
    return most;
  }
  int64_t attention_bytes() const {
    int64_t most = 0;
    for (int64_t index = call_.first; index < call_.last; ++index) {
      const Step& step = call_.steps[index];
      if (step.kind == StepKind::attend) {
        most =
            std::max(most, Attention<typename Around<E>::Attention>(nullptr, call_.max_seqlen, nullptr, step).bytes());
      }
    }
    return most;
  }

  // Rows of the shared stream in this block; a member's own copy when columns are shared.
  float* stream() const { return stream_ + row_ * hidden_row_; }
  float* sums() const { return sums_; }

  void read() {
    with_storage(call_.storage, [&](auto s) {
      using S = decltype(s);
      if constexpr (!std::is_same_v<S, double>) {
        for (int64_t r = 0; r < rows_; ++r) {
          const S* from = static_cast<const S*>(call_.input) + (row_ + r) * call_.input_row;
          for (int64_t c = 0; c < call_.hidden_size; c += kLanes) {
            const auto count = static_cast<int>(std::min<int64_t>(kLanes, call_.hidden_size - c));
            store(stream() + r * hidden_row_ + c, load_up_to(from + c, count));
          }
        }
      }
    });
  }

  void write(int64_t first, int64_t last) const {
    with_storage(call_.storage, [&](auto s) {
      using S = decltype(s);
      if constexpr (!std::is_same_v<S, double>) {
        for (int64_t r = first; r < last; ++r) {
          S* to = static_cast<S*>(call_.output) + (row_ + r) * call_.hidden_size;
          for (int64_t c = 0; c < call_.hidden_size; c += kLanes) {
            const auto count = static_cast<int>(std::min<int64_t>(kLanes, call_.hidden_size - c));
            store_up_to(to + c, load(stream() + r * hidden_row_ + c), count);
          }
        }
      }
    });
  }

  void walk(int64_t first, int64_t last) {
    latest_ = stream();
    for (int64_t index = first; index < last; ++index) {
      const Step& step = call_.steps[index];
      switch (step.kind) {
        case StepKind::project:
          project(index);
          break;
        case StepKind::attend:
          attend(index);
          break;
        case StepKind::merge:
          merge(index);
          break;
        case StepKind::feed_forward:
          feed_forward(index);
          break;
        case StepKind::normalize:
          normalize(step);
          break;
      }
    }
    keep();
  }

  // What was added up becomes the stream, unless a normalization has made it so.
  void keep() {
    if (latest_ == sums()) std::memcpy(stream(), sums(), rows_ * hidden_row_ * sizeof(float));
    if (latest_ != normed_) latest_ = stream();
  }

  void normalize(const Step& step) {
    const auto* weight = reinterpret_cast<const float*>(call_.region + step.first.panels);
    const auto* bias = reinterpret_cast<const float*>(call_.region + step.first.bias);
    if (step.keeps) keep();
    float* to = step.keeps ? normed_ : stream();
    const float* from = step.keeps ? stream() : latest_;
    for (int64_t r = 0; r < rows_; ++r) {
      normalize_row(from + r * hidden_row_, call_.hidden_size, weight, bias, static_cast<float>(step.constant),
                    step.centred, to + r * hidden_row_);
    }
    latest_ = to;
  }

  // Rows of float32 as a product takes them.
  Input prepare(const float* from, int64_t from_row, int64_t columns, T* to, int64_t to_row, float* scales) const {
    if constexpr (std::is_same_v<E, Float32>) {
      return {reinterpret_cast<const char*>(from), from_row * static_cast<int64_t>(sizeof(float))};
    } else {
      for (int64_t r = 0; r < rows_; ++r) {
        if constexpr (std::is_same_v<E, Int8>) {
          scales[r] = quantize_row(from + r * from_row, columns, to + r * to_row);
        } else {
          round_row(from + r * from_row, columns, to + r * to_row);
        }
      }
      return {reinterpret_cast<const char*>(to), to_row * static_cast<int64_t>(sizeof(T)), scales};
    }
  }
  Input prepare_latest() const {
    return prepare(latest_, hidden_row_, call_.hidden_size, input_, hidden_row_, scales_);
  }

  Matrix<E> matrix_of(const PackedMatrix& packed) const {
    return {packed.out_features, packed.in_features, call_.region + packed.panels,
            reinterpret_cast<const float*>(call_.region + packed.bias)};
  }

  // The next task of a step's phase.
  int64_t draw(int64_t index, int64_t phase) const { return call_.team->draw(kPhases * (index - call_.first) + phase); }

  // f(product) of all columns of a matrix, or, some at a time, of those that this member draws. So many panels are
  // drawn `together`.
  template <class F>
  void share(int64_t index, int64_t phase, const Matrix<E>& matrix, Input input, const F& f,
             int64_t together = 1) const {
    if (!call_.shares_columns) return f(Product<E>{matrix, input, rows_, 0, matrix.count()});
    const int64_t count = matrix.count() / together;
    // Several draws a member, so that one that was kept from its core holds up the others with little.
    const int64_t each = std::max<int64_t>(1, count / (8 * call_.team->members()));
    int64_t next;
    for (int64_t task = draw(index, phase) * each; task < count; task = next) {
      next = draw(index, phase) * each;
      f(Product<E>{matrix, input, rows_, task * together, std::min(task + each, count) * together, next * together});
    }
  }

  void meet() const {
    if (call_.shares_columns) call_.team->wait();
  }

  // Of the block's rows, in their documents.
  void find_places() const {
    const int64_t* offsets = call_.cu_seqlens;
    int64_t document = std::upper_bound(offsets, offsets + call_.documents, row_) - offsets - 1;
    for (int64_t r = 0; r < rows_; ++r) {
      while (offsets[document + 1] <= row_ + r) ++document;
      places_[r] = row_ + r - offsets[document];
    }
  }

  void project(int64_t index) {
    const Step& step = call_.steps[index];
    const Matrix<E> matrix = matrix_of(step.first);
    AttentionElement* to = qkv_ + row_ * qkv_row_;
    if (step.rotary.positions > 0) find_places();
    const Turn turn{reinterpret_cast<const float*>(call_.region + step.rotary.table), Rotary::row(step.head_dim),
                    step.head_dim, step.queries_size() + step.keys_size(), places_};
    share(index, 0, matrix, prepare_latest(), [&](const Product<E>& product) {
      if (step.rotary.positions > 0) {
        product.run([&](int64_t r, int64_t c, Vector<float> x) __attribute__((always_inline)) {
          round_to(to + r * qkv_row_ + c, turn(r, c, x + load(matrix.bias + c)));
        });
      } else {
        product.run([&](int64_t r, int64_t c, Vector<float> x)
                        __attribute__((always_inline)) { round_to(to + r * qkv_row_ + c, x + load(matrix.bias + c)); });
      }
    });
    meet();
  }

  void attend(int64_t index) {
    const Step& step = call_.steps[index];
    Attention<typename Around<E>::Attention> attention(attention_, call_.max_seqlen, call_.region, step);
    const int64_t inner = step.queries_size(), shared = step.heads / step.key_heads;
    for (int64_t task; (task = draw(index, 0)) < call_.documents * step.heads;) {
      const int64_t document = task / step.heads, head = task % step.heads, column = head * step.head_dim;
      const int64_t first = call_.cu_seqlens[document], tokens = call_.cu_seqlens[document + 1] - first;
      const AttentionElement* query = qkv_ + first * qkv_row_;
      const AttentionElement* key = query + inner + head / shared * step.head_dim;
      Context* to = context_ + first * inner_row_;
      if (head + 1 == step.heads) {
        for (int64_t r = 0; r < tokens; ++r)
          std::fill(to + r * inner_row_ + inner, to + (r + 1) * inner_row_, Context{});
      }
      attention.run(head, query + column, key, key + step.keys_size(), qkv_row_, tokens, to + column, inner_row_);
    }
    call_.team->wait();
  }

  // sums = stream + product + bias.
  auto add_to_stream(const Matrix<E>& matrix) {
    return [this, &matrix](int64_t r, int64_t c, Vector<float> x) __attribute__((always_inline)) {
      store(sums() + r * hidden_row_ + c, x + load(matrix.bias + c) + load(stream() + r * hidden_row_ + c));
    };
  }

  void merge(int64_t index) {
    keep();
    const Matrix<E> matrix = matrix_of(call_.steps[index].first);
    const Context* from = context_ + row_ * inner_row_;
    Input input{reinterpret_cast<const char*>(from), inner_row_ * static_cast<int64_t>(sizeof(Context))};
    if constexpr (std::is_same_v<E, Int8>) {
      input = prepare(from, inner_row_, call_.inner_size, input_, inner_row_, scales_);
    }
    share(index, 0, matrix, input, [&](const Product<E>& product) { product.run(add_to_stream(matrix)); });
    latest_ = sums();
    meet();
  }

  void widen(Wide* to, Vector<float> x) const {
    if constexpr (std::is_same_v<Wide, float>) {
      store(to, x);
    } else {
      round_to(to, x);
    }
  }

  // The product's columns of the wide activations, from column `origin` of `wide_` on.
  void up(const Product<E>& product, StackActivation activation, int64_t origin, int64_t row) {
    with_activation(activation, [&](auto f, auto usual) {
      product.template run<usual()>([&](int64_t r, int64_t c, Vector<float> x) __attribute__((always_inline)) {
        widen(wide_ + r * row + c - origin, f(x + load(product.matrix.bias + c)));
      });
    });
  }

  // The same where panels of the gate stand behind those of up.
  void up_gated(Product<E> product, StackActivation activation, int64_t origin, int64_t row) {
    const int64_t last = product.last_panel, next = product.next_panel;
    for (int64_t panel = product.first_panel; panel < last; panel += 2) {
      const auto alone = [&](int64_t one, int64_t ahead) {
        product.first_panel = one;
        product.last_panel = one + 1;
        product.next_panel = ahead;
      };
      alone(panel, panel + 1);
      with_activation(activation, [&](auto f, auto usual) {
        product.template run<usual()>([&](int64_t r, int64_t c, Vector<float> x) __attribute__((always_inline)) {
          store(activated_ + r * kTileColumns + c - panel * kTileColumns, f(x + load(product.matrix.bias + c)));
        });
      });
      alone(panel + 1, panel + 2 < last ? panel + 2 : next);
      const int64_t column = panel / 2 * kTileColumns - origin;
      product.run([&](int64_t r, int64_t c, Vector<float> x) __attribute__((always_inline)) {
        const int64_t within = c - (panel + 1) * kTileColumns;
        const Vector<float> gate = x + load(product.matrix.bias + c);
        widen(wide_ + r * row + column + within, load(activated_ + r * kTileColumns + within) * gate);
      });
    }
  }

  // A chunk of the wide activations as `down` takes it.
  Input chunk(int64_t index, int64_t columns, int64_t place, int64_t row) const {
    const Wide* from = wide_ + place;
    if constexpr (std::is_same_v<E, Int8>) {
      return prepare(from, row, columns, chunk_ + place, row, chunk_scales_ + index * rows_);
    } else {
      return {reinterpret_cast<const char*>(from), row * static_cast<int64_t>(sizeof(T))};
    }
  }

  // sums (+)= columns first .. first + depth - 1 of the wide activations, `input`, by the product's columns of `down`.
  void down(Product<E> product, Input input, int64_t first, int64_t depth) {
    product.input = input;
    product.first = first;
    product.depth = depth;
    if (first == 0) {
      product.run(add_to_stream(product.matrix));
    } else {
      product.run([&](int64_t r, int64_t c, Vector<float> x) __attribute__((always_inline)) {
        float* to = sums() + r * hidden_row_ + c;
        store(to, load(to) + x);
      });
    }
  }

  void feed_forward(int64_t index) {
    const Step& step = call_.steps[index];
    if (latest_ != normed_) keep();
    const Matrix<E> first = matrix_of(step.first), second = matrix_of(step.second);
    const Input input = prepare_latest();
    const int64_t wide = second.depth, chunks = chunks_of(wide), together = step.gated ? 2 : 1;
    const auto columns_of = [&](int64_t chunk) { return std::min(kChunk, wide - chunk * kChunk); };
    const auto widened = [&](const Product<E>& product, int64_t origin, int64_t row) {
      if (step.gated) return up_gated(product, step.activation, origin, row);
      up(product, step.activation, origin, row);
    };
    if (call_.shares_columns) {
      share(index, 0, first, input, [&](const Product<E>& product) { widened(product, 0, wide_row_); }, together);
      meet();
      std::vector<Input> made;
      for (int64_t i = 0; i < chunks; ++i) made.push_back(chunk(i, columns_of(i), i * kChunk, wide_row_));
      share(index, 1, second, {}, [&](const Product<E>& product) {
        for (int64_t i = 0; i < chunks; ++i) down(product, made[i], i * kChunk, columns_of(i));
      });
    } else {
      for (int64_t i = 0; i < chunks; ++i) {
        const int64_t column = i * kChunk, panels = column / kTileColumns, end = panels_of(column + columns_of(i));
        widened({first, input, rows_, panels * together, end * together}, column, kChunk);
        down({second, {}, rows_, 0, second.count()}, chunk(0, columns_of(i), 0, kChunk), column, columns_of(i));
      }
    }
    latest_ = sums();
    meet();
  }

  const StackCall& call_;
  const int64_t member_;
  int64_t hidden_row_, inner_row_, qkv_row_, wide_row_, own_bytes_ = 0, shared_bytes_ = 0;
  int64_t row_ = 0, rows_ = 0;     // of the block
  const float* latest_ = nullptr;  // what the next product or normalization takes
  float *stream_ = nullptr, *sums_ = nullptr, *normed_ = nullptr;
  AttentionElement* qkv_ = nullptr;
  Context* context_ = nullptr;
  Wide* wide_ = nullptr;
  T *input_ = nullptr, *chunk_ = nullptr;
  float *scales_ = nullptr, *chunk_scales_ = nullptr;
  int64_t* places_ = nullptr;
  float* activated_ = nullptr;  // a panel of up, which waits for its gate
  char* attention_ = nullptr;
};

}  // namespace

int64_t encoder_stack_matrix_bytes(Precision precision, int64_t out_features, int64_t in_features) {
  int64_t bytes = 0;
  with_precision(precision, [&](auto e) { bytes = Matrix<decltype(e)>::bytes(out_features, in_features); });
  return bytes;
}

void encoder_stack_pack(Precision precision, Storage storage, const void* weight, int64_t out_features,
                        int64_t in_features, void* to) {
  with_precision(precision, [&](auto e) {
    with_storage(storage, [&](auto s) {
      using S = decltype(s);
      if constexpr (!std::is_same_v<S, double>) {
        pack_matrix<decltype(e)>(static_cast<const S*>(weight), out_features, in_features, static_cast<char*>(to));
      }
    });
  });
}

int64_t encoder_stack_arena_bytes(const StackCall& call, int64_t threads) {
  int64_t bytes = 0;
  with_precision(call.precision, [&](auto e) { bytes = Stack<decltype(e)>(call, nullptr, 0).bytes(threads); });
  return bytes;
}

void encoder_stack(const StackCall& call, int64_t member) {
  with_precision(call.precision, [&](auto e) { Stack<decltype(e)>(call, call.arena, member).run(); });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
