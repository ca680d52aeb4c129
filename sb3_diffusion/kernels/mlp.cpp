// Multi-layer perceptrons on a CPU without the passes over memory that a sequence of library calls needs.
//
// A block of rows goes through all layers (and all steps of a diffusion chain) while it is in the cache. Each layer is a matrix
// product whose tiles live in registers, so that bias and activation cost no pass of their own. Everything is float32 and
// row-major. The result of a row does not depend on the rows beside it, nor on the number of threads.
//
// Compiled by library.py and called through loader.py; structures.py mirrors Layer, Network and Step. Nothing here looks at the
// sizes of what it gets: guard.py, network.py and encoded.py do that before.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 12, WIDE = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8, TILE_ROWS = 6, WIDE = 8;
#else
constexpr int LANES = 4, TILE_ROWS = 4, WIDE = 8;
#endif
constexpr int64_t PANEL = 2 * LANES;      // columns of a tile: two vector registers
constexpr int64_t BLOCK = 8 * TILE_ROWS;  // most rows that go through all layers together
constexpr int64_t FEW = 4, MANY = 16;     // rows from which rearranging the weights pays, for a chain and for one evaluation
constexpr int64_t NARROW = 8;             // layers with at most this many outputs are dot products

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

inline vec load(const float* p) { return *reinterpret_cast<const unaligned*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<unaligned*>(p) = v; }
inline vec fill(float x) { return x - vec{}; }
// rows of a block, such that all threads have equally much to do
inline int64_t block_size(int64_t rows, int64_t threads) {
    const int64_t blocks = threads * std::max<int64_t>(1, (rows + threads * BLOCK - 1) / (threads * BLOCK));
    return std::clamp<int64_t>((rows / blocks + 4) / 4 * 4, 4, BLOCK);
}
// a NaN stays a NaN
inline float clip(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
inline int64_t padded(int64_t n) { return (n + 31) / 32 * 32; }  // a multiple of PANEL everywhere

// e^x for x up to 20 to a rounding error (0 below -87): 2^n times the Taylor polynomial of the rest
inline vec exponential(vec x) {
    const vec shifted = x * fill(1.44269504f) + fill(12582912.0f);  // adding 1.5 * 2^23 rounds to an integer
    const vec n = shifted - fill(12582912.0f);
    vec r = x - n * fill(0.693145752f);  // ln 2 in two pieces
    r = r - n * fill(1.42860677e-6f);
    vec p = r * fill(1.0f / 5040) + fill(1.0f / 720);
    p = p * r + fill(1.0f / 120);
    p = p * r + fill(1.0f / 24);
    p = p * r + fill(1.0f / 6);
    p = p * r + fill(0.5f);
    p = p * r + fill(1.0f);
    p = p * r + fill(1.0f);
    const vec result = reinterpret_cast<vec>(reinterpret_cast<ivec>(p) + (reinterpret_cast<ivec>(shifted) << 23));
    return x < fill(-87.0f) ? vec{} : result;
}

// IDENTITY to MISH are applied while a tile is in registers, the others in a pass of their own over a block in the cache: every
// one of the former makes all kinds of tiles once more, and compiling takes long enough
enum Activation : int64_t { IDENTITY = 0, RELU = 1, MISH = 2, ELU = 3, SILU = 4, GELU = 5, TANH = 6 };

struct ValueAndSlope {
    vec value, slope;
};

// x tanh(softplus(x)) = x n / (n + 2) with n = w (w + 2) and w = e^x; beyond 20 the ratio is 1 in float32
inline ValueAndSlope mish_and_slope(vec x) {
    const vec bounded = x > fill(20.0f) ? fill(20.0f) : x;
    const vec w = exponential(bounded);
    const vec n = w * (w + fill(2.0f));
    const vec inverse = fill(1.0f) / (n + fill(2.0f));
    const vec ratio = n * inverse;
    return {x * ratio, ratio + bounded * (w * (w + fill(1.0f)) * inverse) * (fill(4.0f) * inverse)};
}

// x if it is positive, else e^x - 1
inline ValueAndSlope elu_and_slope(vec x) {
    const vec w = exponential(x > vec{} ? vec{} : x);  // 1 where x is positive
    return {x > vec{} ? x : w - fill(1.0f), w};
}

// 1 / (1 + e^-x), without a large exponent
inline vec logistic(vec x) {
    const vec w = exponential(x > vec{} ? -x : x);
    return (x > vec{} ? fill(1.0f) : w) / (fill(1.0f) + w);
}

// x logistic(x)
inline ValueAndSlope silu_and_slope(vec x) {
    const vec s = logistic(x);
    return {x * s, s + x * s * (fill(1.0f) - s)};
}

// x logistic(u), where the argument is twice that of the tanh that approximates the error function
inline ValueAndSlope gelu_and_slope(vec x) {
    const vec square = x * x;
    const vec s = logistic(x * (fill(1.59576912f) + fill(0.0713548163f) * square));
    return {x * s, s + x * s * (fill(1.0f) - s) * (fill(1.59576912f) + fill(0.214064449f) * square)};
}

inline ValueAndSlope tanh_and_slope(vec x) {
    const vec w = exponential(x > vec{} ? fill(-2.0f) * x : fill(2.0f) * x);
    const vec size = (fill(1.0f) - w) / (fill(1.0f) + w);
    return {x > vec{} ? size : -size, fill(1.0f) - size * size};
}

// a NaN stays a NaN in all of them
template <Activation A>
inline ValueAndSlope activate(vec x) {
    if constexpr (A == MISH) return mish_and_slope(x);
    if constexpr (A == RELU) return {x < vec{} ? vec{} : x, x <= vec{} ? vec{} : fill(1.0f)};
    return {x, fill(1.0f)};
}

template <typename Function>
void activate_rows(int64_t rows, int64_t columns, float* y, float* slope, int64_t stride, Function function) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t column = 0; column < columns; column += LANES) {
            float* p = y + r * stride + column;
            const auto [value, derivative] = function(load(p));
            store(p, value);
            if (slope) store(slope + r * stride + column, derivative);
        }
}

// the activations that IDENTITY leaves to do, of y (rows, columns) in place
void activate_rows(int64_t activation, int64_t rows, int64_t columns, float* y, float* slope, int64_t stride) {
    switch (activation) {
        case ELU: return activate_rows(rows, columns, y, slope, stride, elu_and_slope);
        case SILU: return activate_rows(rows, columns, y, slope, stride, silu_and_slope);
        case GELU: return activate_rows(rows, columns, y, slope, stride, gelu_and_slope);
        case TANH: return activate_rows(rows, columns, y, slope, stride, tanh_and_slope);
    }
}

// ROWS x VECS registers of a matrix product: finish(row, vector, start(row, vector) + in @ weight); the rows of `in` may be
// columns in memory
template <int ROWS, int VECS, bool TRANSPOSED = false, typename Start, typename Finish>
inline __attribute__((always_inline)) void tile(const float* in, int64_t in_stride, int64_t depth, const float* weight,
                                                int64_t weight_stride, Start start, Finish finish) {
    vec sum[ROWS][VECS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int v = 0; v < VECS; v++) sum[r][v] = start(r, v);
    for (int64_t k = 0; k < depth; k++) {
        vec w[VECS];
#pragma GCC unroll 16
        for (int v = 0; v < VECS; v++) w[v] = load(weight + k * weight_stride + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const vec x = fill(TRANSPOSED ? in[k * in_stride + r] : in[r * in_stride + k]);
#pragma GCC unroll 16
            for (int v = 0; v < VECS; v++) sum[r][v] += x * w[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int v = 0; v < VECS; v++) finish(r, v, sum[r][v]);
}

struct Free {
    void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer allocate(int64_t n) {
    void* p = std::aligned_alloc(64, static_cast<size_t>((n * 4 + 63) / 64 * 64));
    if (!p) throw std::bad_alloc();
    return Buffer(static_cast<float*>(p));
}

}  // namespace

extern "C" {
struct Layer {
    const float* weight;  // (inputs, outputs)
    const float* bias;    // (outputs), or null; that of the first layer is part of the context
    int64_t inputs, outputs;
};
struct Network {
    const Layer* layers;
    int64_t n_layers;
    int64_t activation;  // of all layers but the last
};
}

namespace {

// A matrix in panels of PANEL columns, padded with zeros; or as it is, where rearranging does not pay.
struct Matrix {
    int64_t in, out, width;  // `width` is `out` with padding
    const float* panels;
    int64_t stride;  // between the rows of a panel
    Buffer own;

    Matrix(const float* weight, int64_t in, int64_t out, bool rearrange) : in(in), out(out), width(padded(out)) {
        if (!rearrange && width == out) {
            panels = weight, stride = out;
            return;
        }
        own = allocate(in * width);
        float* panel = own.get();
        for (int64_t column = 0; column < width; column += PANEL)
            for (int64_t k = 0; k < in; k++, panel += PANEL) {
                const float* row = weight + k * out + column;
                if (column + PANEL <= out)
                    store(panel, load(row)), store(panel + LANES, load(row + LANES));
                else
                    std::fill(std::copy(row, std::max(row, weight + k * out + out), panel), panel + PANEL, 0.0f);
            }
        panels = own.get(), stride = PANEL;
    }

    template <int ROWS, int VECS, typename Start, typename Finish>
    inline __attribute__((always_inline)) void part(int64_t row, int64_t column, const float* x, int64_t x_stride, Start start,
                                                    Finish finish) const {
        const float* weight = panels + (own ? column * in : column);
        tile<ROWS, VECS>(
            x + row * x_stride, x_stride, in, weight, stride,
            [&](int r, int v) { return start(row + r, column + v * LANES); },
            [&](int r, int v, vec sum) { finish(row + r, column + v * LANES, sum); });
    }

    // finish(row, column, start(row, column) + x @ matrix), a register at a time
    template <typename Start, typename Finish>
    void multiply(int64_t rows, const float* x, int64_t x_stride, Start start, Finish finish) const {
        if (!own) {
            int64_t r = 0;
            const auto row = [&](auto rows) {  // or several, which read the weights once
                constexpr int ROWS = decltype(rows)::value, VECS = WIDE / ROWS;
                int64_t column = 0;
                for (; column + VECS * LANES <= width; column += VECS * LANES) part<ROWS, VECS>(r, column, x, x_stride, start, finish);
                for (; column < width; column += PANEL) part<ROWS, 2>(r, column, x, x_stride, start, finish);
                r += ROWS;
            };
            while (r + 2 <= rows) row(std::integral_constant<int, 2>());
            if (r < rows) row(std::integral_constant<int, 1>());
            return;
        }
        for (int64_t column = 0; column < width; column += PANEL) {
            int64_t r = 0;
            for (; r + TILE_ROWS <= rows; r += TILE_ROWS) part<TILE_ROWS, 2>(r, column, x, x_stride, start, finish);
            if (TILE_ROWS > 8 && r + 8 <= rows) part<8, 2>(r, column, x, x_stride, start, finish), r += 8;
            if (r + 4 <= rows) part<4, 2>(r, column, x, x_stride, start, finish), r += 4;
            if (r + 2 <= rows) part<2, 2>(r, column, x, x_stride, start, finish), r += 2;
            if (r < rows) part<1, 2>(r, column, x, x_stride, start, finish);
        }
    }
};

// y (rows, n) = x @ weights^T + bias, for few rows of `weights` (n, depth); bias may be null
void dot_products(int64_t rows, int64_t n, int64_t depth, const float* x, int64_t x_stride, const float* weights,
                  const float* bias, float* y) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < n; j++) {
            const float *a = x + r * x_stride, *w = weights + j * depth;
            vec sum[4] = {};
            int64_t k = 0;
            for (; k + 4 * LANES <= depth; k += 4 * LANES)
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++) sum[v] += load(a + k + v * LANES) * load(w + k + v * LANES);
            const vec total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            float result = bias ? bias[j] : 0.0f;
            for (int l = 0; l < LANES; l++) result += total[l];
            for (; k < depth; k++) result += a[k] * w[k];
            y[r * n + j] = result;
        }
}

// sums (in, padded out) += x (rows, in)^T @ y (rows, padded out)
void add_products(int64_t rows, const float* x, int64_t x_stride, int64_t in, const float* y, int64_t y_stride, int64_t out,
                  float* sums) {
    const int64_t width = padded(out);
    for (int64_t column = 0; column < width; column += PANEL) {
        const auto add = [&](auto size, int64_t i) {
            float* corner = sums + i * width + column;
            tile<decltype(size)::value, 2, true>(
                x + i, x_stride, rows, y + column, y_stride, [&](int r, int v) { return load(corner + r * width + v * LANES); },
                [&](int r, int v, vec sum) { store(corner + r * width + v * LANES, sum); });
        };
        int64_t i = 0;
        for (; i + TILE_ROWS <= in; i += TILE_ROWS) add(std::integral_constant<int, TILE_ROWS>(), i);
        for (; i + 4 <= in; i += 4) add(std::integral_constant<int, 4>(), i);
        for (; i < in; i++) add(std::integral_constant<int, 1>(), i);
    }
}

// sums (n) += the rows of y (rows, n)
void add_rows(int64_t rows, const float* y, int64_t y_stride, int64_t n, float* sums) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < n; j++) sums[j] += y[r * y_stride + j];
}

Buffer transposed(const float* weight, int64_t in, int64_t out) {
    Buffer result = allocate(in * out);
    constexpr int64_t SQUARE = 16;  // so that reads and writes stay in the cache
    for (int64_t k0 = 0; k0 < in; k0 += SQUARE)
        for (int64_t j0 = 0; j0 < out; j0 += SQUARE)
            for (int64_t j = j0; j < std::min(out, j0 + SQUARE); j++)
                for (int64_t k = k0; k < std::min(in, k0 + SQUARE); k++) result[j * in + k] = weight[k * out + j];
    return result;
}

enum Passes { FORWARD = 1, BACKWARD = 2, BOTH = 3 };

// The layers of a network in the form in which all threads read them.
struct Prepared {
    const Network& network;
    std::vector<Matrix> matrices;    // for the forward pass: all layers but a narrow last one
    std::vector<Matrix> transposes;  // for the backward pass: of the layers after the first
    std::vector<Buffer> biases;      // of the layers after the first, padded
    Buffer narrow;                   // the last layer, by output
    Buffer zeros;                    // a bias of nothing
    int64_t width = 32;              // of the widest layer

    Prepared(const Network& network, Passes passes, bool rearrange = true) : network(network) {
        for (int64_t i = 0; i < network.n_layers; i++) {
            const Layer& layer = network.layers[i];
            width = std::max(width, padded(layer.outputs));
            if (i > 0) {
                biases.push_back(allocate(padded(layer.outputs)));
                float* bias = biases.back().get();
                std::fill(bias, bias + padded(layer.outputs), 0.0f);
                if (layer.bias) std::copy(layer.bias, layer.bias + layer.outputs, bias);
            }
            if (passes & FORWARD) {
                if (i + 1 == network.n_layers && layer.outputs <= NARROW)
                    narrow = transposed(layer.weight, layer.inputs, layer.outputs);
                else
                    matrices.emplace_back(layer.weight, layer.inputs, layer.outputs, rearrange);
            }
            if (passes & BACKWARD && i > 0)
                transposes.emplace_back(transposed(layer.weight, layer.inputs, layer.outputs).get(), layer.outputs, layer.inputs,
                                        true);
        }
        zeros = allocate(width);
        std::fill(zeros.get(), zeros.get() + width, 0.0f);
    }
    int64_t in() const { return network.layers[0].inputs; }
    int64_t out() const { return network.layers[network.n_layers - 1].outputs; }
    int64_t n_hidden() const { return network.n_layers - 1; }
    int64_t first_width() const { return padded(network.layers[0].outputs); }
};

// Gradients with respect to the parameters, one behind the other, see UnguardedNetwork._places in unguarded.py: the weights
// (in, padded out), but the last one (out, padded in), and the biases of the layers after the first.
struct Gradients {
    std::vector<float*> weights, biases;

    Gradients(const Network& network, float* memory) {
        const int64_t last = network.n_layers - 1;
        for (int64_t i = 0; i <= last; i++) {
            const Layer& layer = network.layers[i];
            weights.push_back(memory);
            memory += i < last ? layer.inputs * padded(layer.outputs) : layer.outputs * padded(layer.inputs);
        }
        biases.push_back(nullptr);
        for (int64_t i = 1; i <= last; i++) {
            biases.push_back(memory);
            memory += padded(network.layers[i].outputs);
        }
    }
};

// What one thread needs to take a block of rows through a network.
struct Worker {
    const Prepared& net;
    Buffer a, b;
    std::vector<Buffer> own_slopes;
    std::vector<float*> values, slopes;  // of the hidden layers
    std::vector<const float*> context;

    explicit Worker(const Prepared& net, bool gradient = false)
        : net(net), a(allocate(BLOCK * net.width)), b(allocate(BLOCK * net.width)), context(BLOCK) {
        for (int64_t i = 0; i < net.n_hidden(); i++) {
            values.push_back(i % 2 ? b.get() : a.get());
            if (gradient) own_slopes.push_back(allocate(BLOCK * net.width));
            slopes.push_back(gradient ? own_slopes.back().get() : nullptr);
        }
    }

    // each row of `rows_of_context` serves `repeat` rows
    void set_context(const float* rows_of_context, int64_t repeat, int64_t first, int64_t rows) {
        for (int64_t r = 0; r < rows; r++) context[r] = rows_of_context + (first + r) / repeat * net.first_width();
    }

    // The next pass leaves the values of the hidden layers, and the derivatives of their activations, in `record`
    // (2, hidden layers, all rows, width) from row `first` on, or finds them there.
    void use(float* record, int64_t all_rows, int64_t first) {
        for (int64_t i = 0; i < net.n_hidden(); i++) {
            values[i] = record + (i * all_rows + first) * net.width;
            slopes[i] = record + ((net.n_hidden() + i) * all_rows + first) * net.width;
        }
    }

    template <Activation A, typename Start>
    void layer(const Matrix& matrix, int64_t rows, const float* x, int64_t x_stride, Start start, float* y, float* slope) {
        const int64_t stride = net.width;
        if (A != IDENTITY && slope)
            matrix.multiply(rows, x, x_stride, start, [&](int64_t r, int64_t column, vec sum) {
                const auto result = activate<A>(sum);
                store(y + r * stride + column, result.value), store(slope + r * stride + column, result.slope);
            });
        else
            matrix.multiply(rows, x, x_stride, start, [&](int64_t r, int64_t column, vec sum) {
                store(y + r * stride + column, activate<A>(sum).value);
            });
    }

    // y (rows, out) = network(x (rows, in)), where the first layer adds the context and `extra`
    template <Activation A>
    void forward(int64_t rows, const float* x, const float* extra, float* y) {
        const int64_t n_hidden = net.n_hidden(), stride = net.width, out = net.out();
        if (!extra) extra = net.zeros.get();
        const auto activate_all = [&](int64_t i) {
            if (A == IDENTITY)
                activate_rows(net.network.activation, rows, padded(net.network.layers[i].outputs), values[i], slopes[i], stride);
        };
        layer<A>(
            net.matrices[0], rows, x, net.in(),
            [&](int64_t r, int64_t column) { return load(context[r] + column) + load(extra + column); }, values[0], slopes[0]);
        activate_all(0);
        for (int64_t i = 1; i <= n_hidden; i++) {
            const float *bias = net.biases[i - 1].get(), *before = values[i - 1];
            const auto start = [&](int64_t, int64_t column) { return load(bias + column); };
            if (i < n_hidden) {
                layer<A>(net.matrices[i], rows, before, stride, start, values[i], slopes[i]);
                activate_all(i);
            } else if (net.narrow) {
                dot_products(rows, out, net.network.layers[i].inputs, before, stride, net.narrow.get(), bias, y);
            } else {
                float* wide = i % 2 ? b.get() : a.get();
                layer<IDENTITY>(net.matrices[i], rows, before, stride, start, wide, nullptr);
                for (int64_t r = 0; r < rows; r++) std::copy(wide + r * stride, wide + r * stride + out, y + r * out);
            }
        }
    }

    void forward(int64_t rows, const float* x, const float* extra, float* y) {
        switch (net.network.activation) {
            case RELU: return forward<RELU>(rows, x, extra, y);
            case MISH: return forward<MISH>(rows, x, extra, y);
            default: return forward<IDENTITY>(rows, x, extra, y);
        }
    }

    // After forward(): from the gradient with respect to y (`y_stride` between rows, 0 for one that all rows share) to that with
    // respect to x (rows, in). The slopes are replaced by the gradients with respect to the arguments of the activations. Adds
    // to the gradients of the parameters, unless that is null.
    void backward(int64_t rows, const float* x, const float* y_gradient, int64_t y_stride, float* x_gradient,
                  const Gradients* sums = nullptr) {
        const int64_t stride = net.width, last = net.n_hidden();
        for (int64_t i = last; i > 0; i--) {
            const Layer& layer = net.network.layers[i];
            if (sums && i == last)
                add_products(rows, y_gradient, y_stride, layer.outputs, values[i - 1], stride, layer.inputs, sums->weights[i]);
            else if (sums)
                add_products(rows, values[i - 1], stride, layer.inputs, y_gradient, y_stride, layer.outputs, sums->weights[i]);
            if (sums) add_rows(rows, y_gradient, y_stride, layer.outputs, sums->biases[i]);
            float* slope = slopes[i - 1];
            net.transposes[i - 1].multiply(
                rows, y_gradient, y_stride, [](int64_t, int64_t) { return vec{}; },
                [&](int64_t r, int64_t column, vec sum) {
                    float* p = slope + r * stride + column;
                    store(p, sum * load(p));
                });
            y_gradient = slope, y_stride = stride;
        }
        const Layer& first = net.network.layers[0];
        if (sums) add_products(rows, x, first.inputs, first.inputs, y_gradient, stride, first.outputs, sums->weights[0]);
        dot_products(rows, first.inputs, first.outputs, y_gradient, stride, first.weight, nullptr, x_gradient);
    }
};

// work(worker, first row, rows) for all blocks of rows, shared among the threads
template <typename Work>
void for_all_blocks(const Prepared& net, bool gradient, int64_t rows, int64_t threads, Work work) {
    const int64_t size = block_size(rows, threads), blocks = (rows + size - 1) / size;
#pragma omp parallel num_threads(static_cast<int>(std::clamp<int64_t>(blocks, 1, threads)))
    {
        Worker worker(net, gradient);
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < blocks; block++) work(worker, block * size, std::min(size, rows - block * size));
    }
}

// The same with memory (threads, n_sums) that each thread adds to, work(worker, sums, first row, rows), and that is added up
// in the first row. Which blocks a thread gets is fixed, so that the sums are always the same.
template <typename Work>
void sum_over_blocks(const Prepared& net, float* sums, int64_t n_sums, int64_t rows, int64_t threads, Work work) {
    const int64_t size = block_size(rows, threads), blocks = (rows + size - 1) / size;
    const int64_t shares = std::clamp<int64_t>(blocks, 1, threads);
#pragma omp parallel for num_threads(static_cast<int>(shares))
    for (int64_t share = 0; share < shares; share++) {
        Worker worker(net);
        for (int64_t block = share; block < blocks; block += shares)
            work(worker, sums + share * n_sums, block * size, std::min(size, rows - block * size));
    }
    for (int64_t share = 1; sums && share < shares; share++) add_rows(1, sums + share * n_sums, 0, n_sums, sums);
}

}  // namespace

extern "C" {

// One evaluation of a chain and the update of the state behind it, see generative/solvers.py and generative/flow.py, which fill
// the rows; flags are 0 or 1.
struct Step {
    float estimate_state, estimate_noise, low, high, state, noise, previous, noise_std;
    float needs_estimate, clip_estimate, clip_state, is_midpoint;
};

// What structures.py has to agree with: where the fields of a structure are, and how large; the one of an empty name is the
// structure as a whole.
struct Field {
    const char *structure, *name;
    int64_t offset, size;
};

const Field* structure_fields(int64_t* n) {
#define WHOLE(structure) {#structure, "", 0, sizeof(structure)}
#define FIELD(structure, name) {#structure, #name, offsetof(structure, name), sizeof(structure::name)}
    static const Field fields[] = {
        WHOLE(Layer), FIELD(Layer, weight), FIELD(Layer, bias), FIELD(Layer, inputs), FIELD(Layer, outputs),
        WHOLE(Network), FIELD(Network, layers), FIELD(Network, n_layers), FIELD(Network, activation),
        WHOLE(Step), FIELD(Step, estimate_state), FIELD(Step, estimate_noise), FIELD(Step, low), FIELD(Step, high),
        FIELD(Step, state), FIELD(Step, noise), FIELD(Step, previous), FIELD(Step, noise_std), FIELD(Step, needs_estimate),
        FIELD(Step, clip_estimate), FIELD(Step, clip_state), FIELD(Step, is_midpoint),
    };
#undef WHOLE
#undef FIELD
    *n = sizeof(fields) / sizeof(Field);
    return fields;
}

// y (rows, out) = network(x (rows, in)), and the gradient (rows, in) of the first output unless that is null; each row of
// `context` (rows / repeat, padded width) serves `repeat` rows of x. With `record` (2, hidden layers, rows, width) the
// evaluation can be followed by pull_back().
void evaluate(const Network* network, const float* context, int64_t repeat, const float* x, float* y, float* gradient,
              float* record, int64_t rows, int64_t threads) {
    const Prepared net(*network, gradient ? BOTH : FORWARD, rows >= MANY);
    const Buffer first_output = allocate(net.out());
    std::fill(first_output.get(), first_output.get() + net.out(), 0.0f);
    first_output[0] = 1.0f;
    for_all_blocks(net, gradient != nullptr, rows, threads, [&](Worker& worker, int64_t first, int64_t n) {
        worker.set_context(context, repeat, first, n);
        if (record) worker.use(record, rows, first);
        worker.forward(n, x + first * net.in(), nullptr, y + first * net.out());
        if (gradient) worker.backward(n, nullptr, first_output.get(), 0, gradient + first * net.in());
    });
}

// The backward pass of evaluate(): from the gradient with respect to y to that with respect to x, and to the parameters, see
// Gradients: sums (threads, n_sums), or null. The second half of the record becomes the gradients with respect to the
// arguments of the activations.
void pull_back(const Network* network, const float* x, float* record, const float* y_gradient, float* x_gradient, float* sums,
               int64_t n_sums, int64_t rows, int64_t threads) {
    const Prepared net(*network, BACKWARD);
    sum_over_blocks(net, sums, n_sums, rows, threads, [&](Worker& worker, float* own, int64_t first, int64_t n) {
        const Gradients gradients(*network, own);
        worker.use(record, rows, first);
        worker.backward(n, x + first * net.in(), y_gradient + first * net.out(), net.out(), x_gradient + first * net.in(),
                        sums ? &gradients : nullptr);
    });
}

// A whole chain: points (n_steps + 1, rows, in), of which the first is given; a midpoint is where a step is continued from the
// point before it. `times` (n_steps, padded width), `draws` (n_noisy, rows, in). `predictions` (n_steps, rows, in) and `record`
// (2, hidden layers, n_steps, rows, width) are for pull_back_chain(), or null.
void run_chain(const Network* network, const float* context, int64_t repeat, const float* times, const Step* steps,
               int64_t n_steps, const float* draws, int64_t n_noisy, float clip_low, float clip_high, float* points,
               float* predictions, float* record, int64_t rows, int64_t threads) {
    const Prepared net(*network, FORWARD, rows >= FEW);
    const int64_t dim = net.in();
    for_all_blocks(net, false, rows, threads, [&](Worker& worker, int64_t first, int64_t n) {
        worker.set_context(context, repeat, first, n);
        const Buffer scratch = allocate(n * dim), estimate = allocate(n * dim);
        std::fill(estimate.get(), estimate.get() + n * dim, 0.0f);
        const float* base = points + first * dim;
        for (int64_t k = 0; k < n_steps; k++) {
            const Step& step = steps[k];
            const float* point = points + (k * rows + first) * dim;
            float *next = points + ((k + 1) * rows + first) * dim, *prediction = scratch.get();
            if (record) {
                prediction = predictions + (k * rows + first) * dim;
                worker.use(record, n_steps * rows, k * rows + first);
            }
            worker.forward(n, point, times + k * net.first_width(), prediction);
            const float* draw = k < n_noisy ? draws + (k * rows + first) * dim : nullptr;
            for (int64_t i = 0; i < n * dim; i++) {
                float value = base[i] * step.state + prediction[i] * step.noise + estimate[i] * step.previous;
                if (step.needs_estimate != 0.0f) {
                    const float clean = base[i] * step.estimate_state + prediction[i] * step.estimate_noise;
                    estimate[i] = step.clip_estimate != 0.0f ? clip(clean, step.low, step.high) : clean;
                    value += estimate[i];
                }
                if (draw) value += draw[i] * step.noise_std;
                next[i] = step.clip_state != 0.0f ? clip(value, clip_low, clip_high) : value;
            }
            if (step.is_midpoint == 0.0f) base = next;
        }
    });
}

// run_chain() from `start` (rows, in), with contexts that another network computes from `features` (n_states, in), of which
// each serves rows / n_states rows.
void encode_and_run_chain(const Network* state_network, const float* state_bias, const float* features, int64_t n_states,
                          const Network* network, const float* times, const Step* steps, int64_t n_steps, const float* draws,
                          int64_t n_noisy, float clip_low, float clip_high, const float* start, float* points, int64_t rows,
                          int64_t threads) {
    const int64_t out = network->layers[0].outputs, width = padded(out), repeat = std::max<int64_t>(n_states, 1);
    const Buffer context = allocate(n_states * width);
    float* y = context.get();
    evaluate(state_network, state_bias, repeat, features, y, nullptr, nullptr, n_states, threads);
    for (int64_t r = n_states - 1; r >= 0 && out < width; r--) {  // make room for the padding, from the last row on
        std::copy_backward(y + r * out, y + (r + 1) * out, y + r * width + out);
        std::fill(y + r * width + out, y + (r + 1) * width, 0.0f);
    }
    std::copy(start, start + rows * network->layers[0].inputs, points);
    run_chain(network, y, rows / repeat, times, steps, n_steps, draws, n_noisy, clip_low, clip_high, points, nullptr, nullptr,
              rows, threads);
}

// The backward pass of run_chain(), from the last step to the first. `gradients` (n_steps + 1, rows, in) are those with respect
// to the points, of which the first becomes that of the starting point. `encoded` (rows, padded width) takes the gradients with
// respect to the context of each row, `sums` (threads, n_sums) those with respect to the parameters, see Gradients, and behind
// them the times (n_steps, padded width). Consumes predictions and record.
void pull_back_chain(const Network* network, const Step* steps, int64_t n_steps, float clip_low, float clip_high,
                     const float* points, float* gradients, float* predictions, float* record, float* encoded, float* sums,
                     int64_t n_sums, int64_t rows, int64_t threads) {
    const Prepared net(*network, BACKWARD);
    const int64_t dim = net.in(), width = net.first_width();
    sum_over_blocks(net, sums, n_sums, rows, threads, [&](Worker& worker, float* own, int64_t first, int64_t n) {
        const Gradients parameters(*network, own);
        float* times = own + n_sums - n_steps * width;
        const Buffer scratch = allocate(n * dim), estimate = allocate(n * dim);
        std::fill(estimate.get(), estimate.get() + n * dim, 0.0f);
        for (int64_t k = n_steps - 1; k >= 0; k--) {
            const Step& step = steps[k];
            int64_t start = k;  // where the step began
            while (start > 0 && steps[start - 1].is_midpoint != 0.0f) start--;
            const auto at = [&](auto* values, int64_t point) { return values + (point * rows + first) * dim; };
            const float *base = at(points, start), *next = at(points, k + 1), *next_gradient = at(gradients, k + 1);
            float *base_gradient = at(gradients, start), *gradient = at(gradients, k), *prediction = at(predictions, k);
            for (int64_t i = 0; i < n * dim; i++) {
                const bool stopped = step.clip_state != 0.0f && (next[i] <= clip_low || next[i] >= clip_high);
                const float out = stopped ? 0.0f : next_gradient[i];
                float to_base = out * step.state, to_prediction = out * step.noise;
                if (step.needs_estimate != 0.0f) {
                    const float clean = base[i] * step.estimate_state + prediction[i] * step.estimate_noise;
                    const bool clipped = step.clip_estimate != 0.0f && (clean < step.low || clean > step.high);
                    const float to_clean = clipped ? 0.0f : out + estimate[i];
                    to_base += to_clean * step.estimate_state, to_prediction += to_clean * step.estimate_noise;
                    estimate[i] = 0.0f;
                }
                estimate[i] += out * step.previous;
                base_gradient[i] += to_base;
                prediction[i] = to_prediction;
            }
            worker.use(record, n_steps * rows, k * rows + first);
            worker.backward(n, at(points, k), prediction, dim, scratch.get(), &parameters);
            for (int64_t i = 0; i < n * dim; i++) gradient[i] += scratch[i];
            add_rows(n, worker.slopes[0], net.width, width, times + k * width);
            for (int64_t r = 0; r < n; r++) add_rows(1, worker.slopes[0] + r * net.width, 0, width, encoded + (first + r) * width);
        }
    });
}

// out = mish(x), and its derivative unless `slope` is null; n numbers, `out` may be `x`
void mish(const float* x, float* out, float* slope, int64_t n, int64_t threads) {
    constexpr int64_t CHUNK = 16384;
    const int64_t chunks = (n + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(static_cast<int>(std::clamp<int64_t>(chunks, 1, threads)))
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const int64_t end = std::min(n, (chunk + 1) * CHUNK);
        for (int64_t i = chunk * CHUNK; i < end; i += LANES) {
            float rest[3][LANES] = {};  // the last numbers, fewer than a register
            const bool whole = i + LANES <= end;
            if (!whole) std::copy(x + i, x + end, rest[0]);
            const vec value = whole ? load(x + i) : load(rest[0]);
            const auto [result, derivative] = mish_and_slope(value);
            if (whole) {
                store(out + i, result);
                if (slope) store(slope + i, derivative);
            } else {
                store(rest[1], result), store(rest[2], derivative);
                std::copy(rest[1], rest[1] + (end - i), out + i);
                if (slope) std::copy(rest[2], rest[2] + (end - i), slope + i);
            }
        }
    }
}

// `n` pieces of memory of `sizes` bytes, one behind the other
void copy_pieces(const char* const* pieces, const int64_t* sizes, int64_t n, char* copy) {
    for (int64_t i = 0; i < n; copy += sizes[i], i++) std::memcpy(copy, pieces[i], sizes[i]);
}

bool pieces_equal(const char* const* pieces, const int64_t* sizes, int64_t n, const char* copy) {
    for (int64_t i = 0; i < n; copy += sizes[i], i++)
        if (std::memcmp(copy, pieces[i], sizes[i]) != 0) return false;
    return true;
}
}
