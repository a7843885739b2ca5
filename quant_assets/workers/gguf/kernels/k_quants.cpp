// ggml's K-quants, vectorized across sub-blocks, with byte-identical output.
//
// Source: the reference quantizers in ggml/src/ggml-quants.c, named at each function below.
//
// ggml searches the scale of one sub-block at a time in scalar code; the order of its floating-point
// additions is part of the format's definition in practice. Here each lane of a vector holds one
// sub-block and performs the scalar operations in the same order, so that no bit differs. This
// requires IEEE arithmetic: no -ffast-math, no contraction into fused operations.
//
// The functions at the end convert rows of floats to rows of blocks, with or without importances
// (one per column). Callers compare them with ggml before use.

#include <cstddef>
#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

constexpr int BLOCK = 256;           // values per super-block
constexpr float ALL_ZERO = 1e-15f;   // a group with a smaller maximum counts as zeros
constexpr float ROUNDER = 12582912;  // 1.5 * 2^23: adding it rounds to the nearest integer
constexpr float ROUNDS_BELOW = 4194303;

Floats splat(float value) { return value - Floats{}; }
Ints splat(int value) { return value - Ints{}; }
Floats floats_of(Ints values) { return __builtin_convertvector(values, Floats); }
template <class To, class From> To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From), "different sizes");
    To bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}
template <class T> T larger(T a, T b) { return a > b ? a : b; }
template <class T> T smaller(T a, T b) { return a < b ? a : b; }
// Compilers do not reduce these to one min/max instruction, which returns b for NaNs and for zeros of
// either sign; so do the lines above.
#if defined(__AVX512F__)
template <> Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
template <> Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
#elif defined(__AVX2__)
template <> Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
template <> Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
#endif
Floats magnitude(Floats v) { return bits_of<Floats>(bits_of<Ints>(v) & 0x7fffffff); }
float magnitude(float v) { return __builtin_fabsf(v); }
Floats square_root(Floats v) {
    for (int lane = 0; lane < LANES; ++lane) v[lane] = __builtin_sqrtf(v[lane]);
    return v;
}
bool any(Ints mask) {
    int32_t all = 0;
    for (int lane = 0; lane < LANES; ++lane) all |= mask[lane];
    return all != 0;
}

// The nearest integer, ties to even; beyond 2^22 the low bits of the sum, as in ggml.
int nearest(float v) { return (bits_of<int>(v + ROUNDER) & 0x007fffff) - 0x00400000; }
Ints nearest(Floats v) { return (bits_of<Ints>(v + ROUNDER) & 0x007fffff) - 0x00400000; }

uint16_t half_of(float value) {
    uint32_t bits = bits_of<uint32_t>(value);
    const uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;
    if (bits < 0x38800000)  // adding 0.5 rounds to the precision of a subnormal half
        return sign | (bits_of<uint32_t>(bits_of<float>(bits) + 0.5f) - 0x3f000000);
    bits += 0xfff + (bits >> 13 & 1);
    return sign | ((bits >> 13) - (112 << 10));
}

float float_of(uint16_t half) {
    const uint32_t exponent = half >> 10 & 0x1f;
    const uint32_t mantissa = half & 0x3ff;
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    if (exponent == 0) {
        const float value = static_cast<float>(mantissa) * 0x1p-24f;
        return sign ? -value : value;
    }
    return bits_of<float>(sign | (exponent == 31 ? 0xff : exponent + 112) << 23 | mantissa << 13);
}

// LANES consecutive groups of N values, one group per lane.
template <int N> void load(const float *groups, Floats (&lanes)[N]) {
    for (int i = 0; i < N; ++i)
        for (int lane = 0; lane < LANES; ++lane) lanes[i][lane] = groups[lane * N + i];
}

void store(Floats lanes, float *values) { memcpy(values, &lanes, sizeof(lanes)); }

// LANES super-blocks that are quantized together. `importances` holds one pointer each, or nulls.
struct Batch {
    const float *x;
    const float *importances[LANES];

    bool weighted() const { return importances[0] != nullptr; }
};

Floats sums_of_squares(const Batch &batch) {
    Floats sums = {};
    for (int i = 0; i < BLOCK; ++i) {
        Floats x;
        for (int lane = 0; lane < LANES; ++lane) x[lane] = batch.x[lane * BLOCK + i];
        sums += x * x;
    }
    return sums;
}

// One group of lanes: LANES sub-blocks of N values, from value `first` of the batch on.
template <int N> struct Group {
    Floats x[N], w[N];

    void load_numbers(const Batch &batch, int first) { load(batch.x + first, x); }

    void load_importances(const Batch &batch, int first) {
        float values[N * LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            const int at = first + lane * N;
            memcpy(values + lane * N, batch.importances[at / BLOCK] + at % BLOCK,
                   N * sizeof(float));
        }
        load(values, w);
    }

    // importance * sqrt(mean square of the super-block + x * x)
    void weigh_by_importance(const Batch &batch, int first, Floats mean_squares) {
        load_importances(batch, first);
        Floats mean;
        for (int lane = 0; lane < LANES; ++lane)
            mean[lane] = mean_squares[(first + lane * N) / BLOCK];
        for (int i = 0; i < N; ++i) w[i] = w[i] * square_root(mean + x[i] * x[i]);
    }

    Floats weight() const {
        Floats sum = {};
        for (int i = 0; i < N; ++i) sum += w[i];
        return sum;
    }
};

// The quantization of a group: q = nearest(inverse * (x - from)), or zeros where inverse is zero.
struct Affine {
    Floats scale, low;     // x is about scale * q + low
    Floats inverse, from;  // of the chosen integers, which are kept where a scale rounds to zero
};

struct Steps {
    float first, width;
    int count;
};

// Independent searches run interleaved, because the additions of one search depend on each other.
constexpr int TOGETHER = 2;

// ggml's make_qkx2_quants and make_qkx3_quants: the best scale and minimum of several steps.
// Without WRAPS it returns false if a value is too large to be rounded by addition alone.
template <int N, int MAX, bool ABSOLUTE, bool WRAPS>
bool search_affine(const Group<N> (&groups)[TOGETHER], Steps steps, Affine (&best)[TOGETHER]) {
    const Floats zero = {};
    const Floats top = splat(static_cast<float>(MAX));
    struct {
        Floats least, most, lowest, low, sum_w, sum_x, sum_l, sum_l2, sum_xl, inverse, error;
        Floats scale, minimum, q[N];
        Ints flat;
    } s[TOGETHER];
    bool fits = true;

    auto quantize = [&]() __attribute__((always_inline)) {
        Floats inverse[TOGETHER], low[TOGETHER];
        Floats sum_l[TOGETHER], sum_l2[TOGETHER], sum_xl[TOGETHER];
        for (int g = 0; g < TOGETHER; ++g) {
            inverse[g] = s[g].inverse;
            low[g] = s[g].low;
            sum_l[g] = sum_l2[g] = sum_xl[g] = zero;
            if (!WRAPS) {
                const Ints small =
                    (magnitude(inverse[g] * (s[g].least - low[g])) <= ROUNDS_BELOW) &
                    (magnitude(inverse[g] * (s[g].most - low[g])) <= ROUNDS_BELOW);
                fits = fits && !any(~small & ~s[g].flat);
            }
        }
        for (int i = 0; i < N; ++i)
            for (int g = 0; g < TOGETHER; ++g) {
                const Floats x = groups[g].x[i];
                const Floats value = inverse[g] * (x - low[g]);
                Floats l;
                if (WRAPS)
                    l = floats_of(smaller(larger(nearest(value), splat(0)), splat(MAX)));
                else
                    l = smaller(larger(value + ROUNDER - ROUNDER, zero), top);
                s[g].q[i] = l;
                const Floats wl = groups[g].w[i] * l;
                sum_l[g] += wl;
                sum_l2[g] += wl * l;
                sum_xl[g] += wl * x;
            }
        for (int g = 0; g < TOGETHER; ++g) {
            s[g].sum_l = sum_l[g];
            s[g].sum_l2 = sum_l2[g];
            s[g].sum_xl = sum_xl[g];
        }
    };
    auto measure = [&]() __attribute__((always_inline)) {
        Floats scale[TOGETHER], minimum[TOGETHER], sum[TOGETHER];
        for (int g = 0; g < TOGETHER; ++g) {
            scale[g] = s[g].scale;
            minimum[g] = s[g].minimum;
            sum[g] = zero;
        }
        for (int i = 0; i < N; ++i)
            for (int g = 0; g < TOGETHER; ++g) {
                const Floats difference = scale[g] * s[g].q[i] + minimum[g] - groups[g].x[i];
                sum[g] += groups[g].w[i] *
                          (ABSOLUTE ? magnitude(difference) : difference * difference);
            }
        for (int g = 0; g < TOGETHER; ++g) s[g].error = sum[g];
    };

    Floats best_error[TOGETHER];
    for (int g = 0; g < TOGETHER; ++g) {
        const Floats(&x)[N] = groups[g].x, (&w)[N] = groups[g].w;
        Floats least = x[0], most = x[0], sum_w = w[0], sum_x = w[0] * x[0];
        for (int i = 1; i < N; ++i) {
            least = smaller(x[i], least);
            most = larger(x[i], most);
            sum_w += w[i];
            sum_x += w[i] * x[i];
        }
        s[g].least = least;
        s[g].most = most;
        s[g].sum_w = sum_w;
        s[g].sum_x = sum_x;
        s[g].lowest = s[g].low = s[g].minimum = least > 0 ? zero : least;
        s[g].flat = most == s[g].lowest;
        s[g].inverse = top / (most - s[g].low);
        s[g].scale = 1 / s[g].inverse;
        best[g] = {s[g].scale, s[g].low, s[g].inverse, s[g].low};
    }
    quantize();
    measure();
    for (int g = 0; g < TOGETHER; ++g) best_error[g] = s[g].error;
    for (int step = 0; step <= steps.count; ++step) {
        const float levels = steps.first + steps.width * static_cast<float>(step) + MAX;
        for (int g = 0; g < TOGETHER; ++g) s[g].inverse = levels / (s[g].most - s[g].low);
        quantize();
        Ints solvable[TOGETHER];
        for (int g = 0; g < TOGETHER; ++g) {
            auto &a = s[g];
            const Floats determinant = a.sum_w * a.sum_l2 - a.sum_l * a.sum_l;
            const Floats scale = (a.sum_w * a.sum_xl - a.sum_x * a.sum_l) / determinant;
            const Floats minimum = (a.sum_l2 * a.sum_x - a.sum_l * a.sum_xl) / determinant;
            const Ints above = minimum > 0;
            a.scale = above ? a.sum_xl / a.sum_l2 : scale;
            a.minimum = above ? zero : minimum;
            solvable[g] = determinant > 0;
        }
        measure();
        for (int g = 0; g < TOGETHER; ++g) {
            const Ints better = solvable[g] & (s[g].error < best_error[g]);
            best_error[g] = better ? s[g].error : best_error[g];
            best[g].scale = better ? s[g].scale : best[g].scale;
            best[g].inverse = better ? s[g].inverse : best[g].inverse;
            best[g].from = better ? s[g].low : best[g].from;
            s[g].low = better ? s[g].minimum : s[g].low;
        }
    }
    for (int g = 0; g < TOGETHER; ++g) {
        best[g].scale = s[g].flat ? zero : best[g].scale;
        best[g].inverse = s[g].flat ? zero : best[g].inverse;
        best[g].low = s[g].flat ? s[g].lowest : s[g].low;
    }
    return fits;
}

struct Symmetric {
    Floats scale;    // x is about scale * (q - MAX)
    Floats inverse;  // of the chosen integers; zero for a group of zeros
};

template <int N> Floats extreme(const Floats (&x)[N], Floats &size) {
    Floats value = {};
    size = Floats{};
    for (int i = 0; i < N; ++i) {
        const Ints beyond = magnitude(x[i]) > size;
        value = beyond ? x[i] : value;
        size = beyond ? magnitude(x[i]) : size;
    }
    return value;
}

// ggml's make_qx_quants with its error type 1: the best scale for integers from -MAX to MAX - 1.
template <int N, int MAX>
Symmetric search_symmetric(const Floats (&x)[N], const Floats (&w)[N]) {
    const Floats zero = {};
    Floats size;
    const Floats largest = extreme(x, size);
    const Ints zeros = size < ALL_ZERO;
    Floats wx[N];
    for (int i = 0; i < N; ++i) wx[i] = w[i] * x[i];
    Symmetric best = {};
    Floats best_gain = zero;
    for (int try_ = 0; try_ < 19; ++try_) {
        const int step = try_ == 0 ? 0 : try_ <= 9 ? try_ - 10 : try_ - 9;  // 0, -9 to -1, 1 to 9
        const Floats inverse = -(MAX + 0.1f * static_cast<float>(step)) / largest;
        Floats sum_lx = zero, sum_l2 = zero;
        for (int i = 0; i < N; ++i) {
            // |value| is at most MAX + 0.9, so it can be rounded by addition.
            const Floats rounded = inverse * x[i] + ROUNDER - ROUNDER;
            const Floats l = larger(smaller(rounded, splat(MAX - 1.0f)), splat(-1.0f * MAX));
            sum_lx += wx[i] * l;
            sum_l2 += w[i] * l * l;
        }
        const Floats scale = sum_l2 != 0 ? sum_lx / sum_l2 : zero;
        const Ints better = step == 0 ? splat(-1)
                                      : (sum_l2 > 0) & (sum_lx * sum_lx > best_gain * sum_l2);
        best.scale = better ? scale : best.scale;
        best.inverse = better ? inverse : best.inverse;
        best_gain = better ? scale * sum_lx : best_gain;
    }
    best.scale = zeros ? zero : best.scale;
    best.inverse = zeros ? zero : best.inverse;
    return best;
}

// ggml's make_q3_quants: one scale, then each integer is adjusted while the error decreases.
template <int N, int MAX> Floats descend(const Floats (&x)[N], Ints (&q)[N]) {
    const Floats zero = {};
    Floats size;
    const Floats inverse = splat(-1.0f * MAX) / extreme(x, size);
    const Ints zeros = size < ALL_ZERO;
    Floats sum_lx = zero, sum_l2 = zero;
    for (int i = 0; i < N; ++i) {
        q[i] = larger(smaller(nearest(inverse * x[i]), splat(MAX - 1)), splat(-MAX));
        const Floats w = x[i] * x[i], l = floats_of(q[i]);
        sum_lx += w * x[i] * l;
        sum_l2 += w * l * l;
    }
    for (int round = 0; round < 5; ++round) {
        Ints changed = {};
        for (int i = 0; i < N; ++i) {
            const Floats w = x[i] * x[i], l = floats_of(q[i]);
            Floats lx = sum_lx - w * x[i] * l;
            Floats l2 = sum_l2 - w * l * l;
            const Ints next =
                larger(smaller(nearest(x[i] * l2 / lx), splat(MAX - 1)), splat(-MAX));
            Ints moves = (lx > 0) & (next != q[i]);
            const Floats n = floats_of(next);
            lx += w * x[i] * n;
            l2 += w * n * n;
            moves &= (l2 > 0) & (lx * lx * sum_l2 > sum_lx * sum_lx * l2);
            q[i] = moves ? next : q[i];
            sum_lx = moves ? lx : sum_lx;
            sum_l2 = moves ? l2 : sum_l2;
            changed |= moves;
        }
        if (!any(changed & ~zeros)) break;
    }
    for (int i = 0; i < N; ++i) q[i] = zeros ? splat(0) : q[i] + MAX;
    return (sum_l2 > 0) & ~zeros ? sum_lx / sum_l2 : zero;
}

// ggml's make_qp_quants: unsigned integers for the scales of a super-block, weighted.
template <int N, int MAX>
Floats fit_positive(const Floats (&x)[N], const Floats (&w)[N], Ints (&q)[N]) {
    const Floats zero = {};
    Floats largest = zero;
    for (int i = 0; i < N; ++i) largest = larger(largest, x[i]);
    const Ints zeros = largest < ALL_ZERO;
    Floats inverse = splat(static_cast<float>(MAX)) / largest;
    Floats best_error = zero;
    for (int step = -5; step <= 4; ++step) {  // the first is the starting point and not clamped
        if (step == 0) continue;
        const bool start = step == -5;
        const Floats tried =
            start ? inverse : (0.1f * static_cast<float>(step) + MAX) / largest;
        const Floats scale = 1 / tried;
        Floats error = zero;
        for (int i = 0; i < N; ++i) {
            const Ints l = nearest(tried * x[i]);
            const Floats difference =
                x[i] - scale * floats_of(start ? l & 0xff : smaller(l, splat(MAX)));
            error += w[i] * difference * difference;
        }
        const Ints better = start ? splat(-1) : error < best_error;
        best_error = better ? error : best_error;
        inverse = better ? tried : inverse;
    }
    Floats sum_lx = zero, sum_l2 = zero;
    for (int i = 0; i < N; ++i) {
        const Ints l = smaller(nearest(inverse * x[i]), splat(MAX));
        q[i] = l & 0xff;
        sum_lx += w[i] * x[i] * floats_of(l);
        sum_l2 += w[i] * floats_of(l) * floats_of(l);
    }
    for (int round = 0; round < 5; ++round) {
        Ints changed = {};
        for (int i = 0; i < N; ++i) {
            const Floats l = floats_of(q[i]);
            Floats lx = sum_lx - w[i] * x[i] * l;
            Floats l2 = sum_l2 - w[i] * l * l;
            const Ints next = smaller(nearest(x[i] * l2 / lx), splat(MAX));
            Ints moves = (lx > 0) & (l2 > 0) & (next != q[i]);
            const Floats n = floats_of(next);
            lx += w[i] * x[i] * n;
            l2 += w[i] * n * n;
            moves &= lx * lx * sum_l2 > sum_lx * sum_lx * l2;
            q[i] = moves ? next & 0xff : q[i];
            sum_lx = moves ? lx : sum_lx;
            sum_l2 = moves ? l2 : sum_l2;
            changed |= moves;
        }
        if (!any(changed & ~zeros)) break;
    }
    for (int i = 0; i < N; ++i) q[i] = zeros ? splat(0) : q[i];
    return (sum_l2 > 0) & ~zeros ? sum_lx / sum_l2 : zero;
}

// Integers of one sub-block from its final scale; by division, as in ggml.
template <int N, int LEAST, int MOST>
void quantize_group(const float *x, float scale, float offset, uint8_t *q) {
    for (int i = 0; i < N; i += LANES) {
        Floats values;
        memcpy(&values, x + i, sizeof(values));
        const Ints l = nearest((values + offset) / scale);
        const Bytes bytes = __builtin_convertvector(
            smaller(larger(l, splat(LEAST)), splat(MOST)) - LEAST, Bytes);
        memcpy(q + i, &bytes, sizeof(bytes));
    }
}

// Q2_K, Q4_K and Q5_K: a scale and a minimum per sub-block of N values.
template <int N, int MAX, int SCALE_MAX, bool ABSOLUTE> struct AffineBatch {
    static constexpr int GROUPS = BLOCK / N;  // per super-block
    static constexpr int ALL = GROUPS * LANES;
    float scales[ALL], offsets[ALL], inverses[ALL], lows[ALL], weights[ALL];

    AffineBatch(const Batch &batch, Steps plain, Steps weighted, float mean_factor) {
        Floats mean_squares = {};
        if (batch.weighted())
            mean_squares = mean_factor * sums_of_squares(batch) / splat(1.0f * BLOCK);
        for (int at = 0; at < ALL; at += TOGETHER * LANES) {
            Group<N> groups[TOGETHER];
            for (int g = 0; g < TOGETHER; ++g)
                prepare(batch, at + g * LANES, mean_squares, groups[g]);
            Affine found[TOGETHER];
            if (batch.weighted())
                search<false>(groups, weighted, found);
            else
                search<ABSOLUTE>(groups, plain, found);
            for (int g = 0; g < TOGETHER; ++g) {
                store(found[g].scale, scales + at + g * LANES);
                store(-found[g].low, offsets + at + g * LANES);
                store(found[g].inverse, inverses + at + g * LANES);
                store(found[g].from, lows + at + g * LANES);
            }
        }
    }

    void prepare(const Batch &batch, int at, Floats mean_squares, Group<N> &group) {
        group.load_numbers(batch, at * N);
        if (batch.weighted()) {
            group.weigh_by_importance(batch, at * N, mean_squares);
            store(group.weight(), weights + at);
        } else if (ABSOLUTE) {
            for (int i = 0; i < N; ++i) group.w[i] = magnitude(group.x[i]);
        } else {
            Floats sum = {};
            for (int i = 0; i < N; ++i) sum += group.x[i] * group.x[i];
            const Floats mean = square_root(sum / static_cast<float>(N));
            for (int i = 0; i < N; ++i) group.w[i] = mean + magnitude(group.x[i]);
        }
    }

    template <bool BY_MAGNITUDE>
    static void search(const Group<N> (&groups)[TOGETHER], Steps steps,
                       Affine (&found)[TOGETHER]) {
        if (!search_affine<N, MAX, BY_MAGNITUDE, false>(groups, steps, found))
            search_affine<N, MAX, BY_MAGNITUDE, true>(groups, steps, found);
    }

    // One integer scale and offset per sub-block, and the units that they are multiples of.
    struct Scales {
        uint8_t scale[LANES][GROUPS], offset[LANES][GROUPS];
        float scale_unit[LANES], offset_unit[LANES];
    };

    Scales weighted_scales() const {
        Scales result;
        fit(scales, result.scale, result.scale_unit);
        fit(offsets, result.offset, result.offset_unit);
        return result;
    }

    void fit(const float *values, uint8_t (&q)[LANES][GROUPS], float (&unit)[LANES]) const {
        Floats x[GROUPS], w[GROUPS];
        Ints integers[GROUPS];
        load(values, x);
        load(weights, w);
        store(fit_positive<GROUPS, SCALE_MAX>(x, w, integers), unit);
        for (int i = 0; i < GROUPS; ++i)
            for (int lane = 0; lane < LANES; ++lane)
                q[lane][i] = static_cast<uint8_t>(integers[i][lane]);
    }

    Scales plain_scales() const {
        Scales result;
        for (int lane = 0; lane < LANES; ++lane) {
            fit(scales + lane * GROUPS, result.scale[lane], result.scale_unit[lane]);
            fit(offsets + lane * GROUPS, result.offset[lane], result.offset_unit[lane]);
        }
        return result;
    }

    static void fit(const float *values, uint8_t (&q)[GROUPS], float &unit) {
        float most = 0;
        for (int i = 0; i < GROUPS; ++i) most = larger(values[i], most);
        const float inverse = most > 0 ? SCALE_MAX / most : 0;
        for (int i = 0; i < GROUPS; ++i)
            q[i] = most > 0 ? static_cast<uint8_t>(nearest(inverse * values[i])) : 0;
        unit = most > 0 ? most / SCALE_MAX : 0;
    }

    // The integers of super-block `block`, whose units are already rounded to half precision.
    void integers(const float *x, int block, float scale_unit, float offset_unit,
                  const uint8_t *scale, const uint8_t *offset, uint8_t (&q)[BLOCK]) const {
        for (int i = 0; i < GROUPS; ++i) {
            const float step = scale_unit * scale[i];
            const float *group = x + i * N;
            if (step != 0) {
                quantize_group<N, 0, MAX>(group, step, offset_unit * offset[i], q + i * N);
                continue;
            }
            const float inverse = inverses[block * GROUPS + i], low = lows[block * GROUPS + i];
            for (int j = 0; j < N; ++j) {
                const int l = nearest(inverse * (group[j] - low));
                q[i * N + j] =
                    inverse == 0 ? 0 : static_cast<uint8_t>(smaller(larger(l, 0), MAX));
            }
        }
    }
};

// Two-bit integers: each of 32 bytes holds the values at distances 0, 32, 64 and 96.
void pack_2_bits(const uint8_t *q, uint8_t *packed) {
    for (int half = 0; half < BLOCK; half += 128)
        for (int i = 0; i < 32; ++i) {
            const uint8_t *p = q + half + i;
            packed[half / 4 + i] =
                static_cast<uint8_t>(p[0] | p[32] << 2 | p[64] << 4 | p[96] << 6);
        }
}

struct Q2 {
    struct Block {
        uint8_t scales[16], q[64];
        uint16_t d, dmin;
    };

    static void quantize(const Batch &batch, Block *blocks) {
        using Search = AffineBatch<16, 3, 15, true>;
        const Search search(batch, {-0.5f, 0.1f, 15}, {-0.9f, 0.05f, 36}, 1);
        const Search::Scales scales =
            batch.weighted() ? search.weighted_scales() : search.plain_scales();
        for (int lane = 0; lane < LANES; ++lane) {
            Block &block = blocks[lane];
            block.d = half_of(scales.scale_unit[lane]);
            block.dmin = half_of(scales.offset_unit[lane]);
            uint8_t scale[16], offset[16], q[BLOCK];
            for (int i = 0; i < 16; ++i) {
                block.scales[i] =
                    static_cast<uint8_t>(scales.scale[lane][i] | scales.offset[lane][i] << 4);
                scale[i] = block.scales[i] & 15;
                offset[i] = block.scales[i] >> 4;
            }
            search.integers(batch.x + lane * BLOCK, lane, float_of(block.d), float_of(block.dmin),
                            scale, offset, q);
            pack_2_bits(q, block.q);
        }
    }
};

// Q3_K and Q6_K: a signed scale per sub-block of 16 values.
struct SymmetricBatch {
    static constexpr int N = 16, GROUPS = BLOCK / N, ALL = GROUPS * LANES;
    float scales[ALL], inverses[ALL], weights[ALL];

    template <int MAX> void search(const Group<N> &group, int at) {
        const Symmetric found = search_symmetric<N, MAX>(group.x, group.w);
        store(found.scale, scales + at);
        store(found.inverse, inverses + at);
    }

    template <int MAX> void keep_integers(const float *x, int at, uint8_t *q) const {
        for (int i = 0; i < N; ++i) {
            const int l = smaller(larger(nearest(inverses[at] * x[i]), -MAX), MAX - 1);
            q[i] = inverses[at] == 0 ? 0 : static_cast<uint8_t>(l + MAX);
        }
    }

    // The scale of largest magnitude in a super-block.
    float largest(int block) const {
        float value = 0, size = 0;
        for (int i = block * GROUPS; i < (block + 1) * GROUPS; ++i)
            if (magnitude(scales[i]) > size) {
                size = magnitude(scales[i]);
                value = scales[i];
            }
        return value;
    }
};

struct Q3 {
    struct Block {
        uint8_t high[32], q[64], scales[12];
        uint16_t d;
    };
    static constexpr int MAX = 4, SCALE_MAX = 32, N = SymmetricBatch::N;

    static void quantize(const Batch &batch, Block *blocks) {
        SymmetricBatch search;
        uint8_t q[BLOCK * LANES];
        uint8_t scales[LANES][SymmetricBatch::GROUPS];
        Floats mean_squares = {};
        if (batch.weighted()) mean_squares = 2.0f * sums_of_squares(batch) / splat(1.0f * BLOCK);
        for (int at = 0; at < SymmetricBatch::ALL; at += LANES) {
            Group<N> group;
            group.load_numbers(batch, at * N);
            if (batch.weighted()) {
                group.weigh_by_importance(batch, at * N, mean_squares);
                store(group.weight(), search.weights + at);
                search.search<MAX>(group, at);
                for (int i = at; i < at + LANES; ++i)
                    search.keep_integers<MAX>(batch.x + i * N, i, q + i * N);
            } else {
                Ints integers[N];
                store(descend<N, MAX>(group.x, integers), search.scales + at);
                for (int i = 0; i < N; ++i)
                    for (int lane = 0; lane < LANES; ++lane)
                        q[(at + lane) * N + i] = static_cast<uint8_t>(integers[i][lane]);
            }
        }
        if (batch.weighted())
            weighted_scales(search, scales, blocks);
        else
            plain_scales(search, scales, blocks);
        for (int lane = 0; lane < LANES; ++lane)
            finish(batch.x + lane * BLOCK, scales[lane], q + lane * BLOCK, blocks[lane]);
    }

    static void plain_scales(const SymmetricBatch &search,
                             uint8_t (&scales)[LANES][SymmetricBatch::GROUPS], Block *blocks) {
        for (int lane = 0; lane < LANES; ++lane) {
            const float largest = search.largest(lane);
            const float inverse = -32.f / largest;
            blocks[lane].d = half_of(largest != 0 ? 1 / inverse : 0);
            for (int i = 0; i < SymmetricBatch::GROUPS; ++i) {
                const float scale = search.scales[lane * SymmetricBatch::GROUPS + i];
                const int l = static_cast<int8_t>(nearest(inverse * scale));
                scales[lane][i] =
                    largest != 0 ? static_cast<uint8_t>(smaller(larger(l, -32), 31) + 32) : 0;
            }
        }
    }

    static void weighted_scales(const SymmetricBatch &search,
                                uint8_t (&scales)[LANES][SymmetricBatch::GROUPS], Block *blocks) {
        Floats x[SymmetricBatch::GROUPS], w[SymmetricBatch::GROUPS];
        load(search.scales, x);
        load(search.weights, w);
        const Symmetric found = search_symmetric<SymmetricBatch::GROUPS, SCALE_MAX>(x, w);
        for (int lane = 0; lane < LANES; ++lane) {
            blocks[lane].d = half_of(found.scale[lane]);
            for (int i = 0; i < SymmetricBatch::GROUPS; ++i) {
                const int l = nearest(found.inverse[lane] * x[i][lane]);
                scales[lane][i] = found.inverse[lane] == 0
                                      ? 0
                                      : static_cast<uint8_t>(smaller(larger(l, -32), 31) + 32);
            }
        }
    }

    static void finish(const float *x, const uint8_t *scales, uint8_t *q, Block &block) {
        memset(block.scales, 0, sizeof(block.scales));
        memset(block.high, 0, sizeof(block.high));
        for (int i = 0; i < SymmetricBatch::GROUPS; ++i) {
            block.scales[i % 8] |= static_cast<uint8_t>((scales[i] & 15) << (i < 8 ? 0 : 4));
            block.scales[8 + i % 4] |= static_cast<uint8_t>((scales[i] >> 4) << 2 * (i / 4));
            const float scale = float_of(block.d) * static_cast<float>(scales[i] - 32);
            if (scale != 0) quantize_group<N, -MAX, MAX - 1>(x + i * N, scale, 0, q + i * N);
        }
        for (int i = 0; i < BLOCK; ++i) {
            block.high[i % 32] |= static_cast<uint8_t>((q[i] > 3) << i / 32);
            q[i] = q[i] > 3 ? q[i] - 4 : q[i];
        }
        pack_2_bits(q, block.q);
    }
};

// Q4_K and Q5_K: eight six-bit scales and offsets in twelve bytes.
void pack_6_bits(const uint8_t *scale, const uint8_t *offset, uint8_t *packed) {
    for (int i = 0; i < 4; ++i) {
        packed[i] = static_cast<uint8_t>(scale[i] | (scale[i + 4] >> 4) << 6);
        packed[i + 4] = static_cast<uint8_t>(offset[i] | (offset[i + 4] >> 4) << 6);
        packed[i + 8] = static_cast<uint8_t>((scale[i + 4] & 15) | (offset[i + 4] & 15) << 4);
    }
}

template <int BITS> struct Q45 {
    struct Block {
        uint16_t d, dmin;
        uint8_t scales[12];
        uint8_t high[BITS == 5 ? 32 : 0];
        uint8_t q[128];
    };
    static constexpr int MAX = (1 << BITS) - 1;

    static void quantize(const Batch &batch, Block *blocks) {
        using Search = AffineBatch<32, MAX, 63, false>;
        const Steps plain = BITS == 4 ? Steps{-1, 0.1f, 20} : Steps{-0.5f, 0.1f, 15};
        const Search search(batch, plain, {-0.9f, 0.05f, 36}, 2);
        typename Search::Scales scales =
            batch.weighted() ? search.weighted_scales() : search.plain_scales();
        for (int lane = 0; lane < LANES; ++lane) {
            Block &block = blocks[lane];
            uint8_t scale[8], offset[8], q[BLOCK];
            for (int i = 0; i < 8; ++i) {
                // They fit six bits, except for those that rounding wrapped below zero.
                scale[i] = smaller<uint8_t>(scales.scale[lane][i], 63);
                offset[i] = smaller<uint8_t>(scales.offset[lane][i], 63);
            }
            block.d = half_of(scales.scale_unit[lane]);
            block.dmin = half_of(scales.offset_unit[lane]);
            pack_6_bits(scale, offset, block.scales);
            search.integers(batch.x + lane * BLOCK, lane, float_of(block.d), float_of(block.dmin),
                            scale, offset, q);
            if (BITS == 5) memset(block.high, 0, sizeof(block.high));
            for (int pair = 0; pair < 4; ++pair)
                for (int i = 0; i < 32; ++i) {
                    const uint8_t first = q[64 * pair + i], second = q[64 * pair + 32 + i];
                    block.q[32 * pair + i] =
                        static_cast<uint8_t>((first & 15) | (second & 15) << 4);
                    if (BITS == 5)
                        block.high[i] |= static_cast<uint8_t>((first >> 4) << 2 * pair |
                                                              (second >> 4) << (2 * pair + 1));
                }
        }
    }
};

struct Q6 {
    struct Block {
        uint8_t low[128], high[64];
        int8_t scales[16];
        uint16_t d;
    };
    static constexpr int MAX = 32, N = SymmetricBatch::N;

    static void quantize(const Batch &batch, Block *blocks) {
        SymmetricBatch search;
        for (int at = 0; at < SymmetricBatch::ALL; at += LANES) {
            Group<N> group;
            group.load_numbers(batch, at * N);
            if (batch.weighted())
                group.load_importances(batch, at * N);
            else
                for (int i = 0; i < N; ++i) group.w[i] = group.x[i] * group.x[i];
            search.search<MAX>(group, at);
        }
        for (int lane = 0; lane < LANES; ++lane)
            finish(batch.x + lane * BLOCK, search, lane, blocks[lane]);
    }

    static void finish(const float *x, const SymmetricBatch &search, int lane, Block &block) {
        const float largest = search.largest(lane);
        if (magnitude(largest) < ALL_ZERO) {
            memset(&block, 0, sizeof(block));
            return;
        }
        uint8_t q[BLOCK];
        const float inverse = -128.f / largest;
        block.d = half_of(1 / inverse);
        for (int i = 0; i < SymmetricBatch::GROUPS; ++i) {
            const int at = lane * SymmetricBatch::GROUPS + i;
            block.scales[i] =
                static_cast<int8_t>(smaller(nearest(inverse * search.scales[at]), 127));
            const float scale = float_of(block.d) * block.scales[i];
            if (scale != 0)
                quantize_group<N, -MAX, MAX - 1>(x + i * N, scale, 0, q + i * N);
            else
                search.keep_integers<MAX>(x + i * N, at, q + i * N);
        }
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < 32; ++i) {
                const uint8_t *p = q + 128 * half + i;
                uint8_t *low = block.low + 64 * half + i;
                low[0] = static_cast<uint8_t>((p[0] & 15) | (p[64] & 15) << 4);
                low[32] = static_cast<uint8_t>((p[32] & 15) | (p[96] & 15) << 4);
                block.high[32 * half + i] = static_cast<uint8_t>(
                    p[0] >> 4 | p[32] >> 4 << 2 | p[64] >> 4 << 4 | p[96] >> 4 << 6);
            }
    }
};

template <class Type>
void quantize_rows(const float *x, void *blocks, int64_t n_rows, int64_t row_elements,
                   const float *importances) {
    const int64_t n_blocks = n_rows * row_elements / BLOCK;
    typename Type::Block made[LANES];
    float padded[LANES * BLOCK];
    for (int64_t at = 0; at < n_blocks; at += LANES) {
        const int64_t count = smaller<int64_t>(LANES, n_blocks - at);
        Batch batch = {x + at * BLOCK, {}};
        if (count < LANES) {
            memset(padded, 0, sizeof(padded));
            memcpy(padded, batch.x, count * BLOCK * sizeof(float));
            batch.x = padded;
        }
        if (importances != nullptr)
            for (int lane = 0; lane < LANES; ++lane)
                batch.importances[lane] = importances + (at + lane) * BLOCK % row_elements;
        Type::quantize(batch, made);
        memcpy(static_cast<typename Type::Block *>(blocks) + at, made,
               count * sizeof(typename Type::Block));
    }
}

}  // namespace

#define KERNEL(NAME, TYPE, BYTES)                                                               \
    static_assert(sizeof(TYPE::Block) == BYTES, "the layout of " #NAME);                        \
    extern "C" __attribute__((visibility("default"))) void NAME(                                \
        const float *x, void *blocks, int64_t n_rows, int64_t row_elements,                     \
        const float *importances) {                                                             \
        quantize_rows<TYPE>(x, blocks, n_rows, row_elements, importances);                      \
    }

KERNEL(quantize_q2_k, Q2, 84)
KERNEL(quantize_q3_k, Q3, 110)
KERNEL(quantize_q4_k, Q45<4>, 144)
KERNEL(quantize_q5_k, Q45<5>, 176)
KERNEL(quantize_q6_k, Q6, 210)
