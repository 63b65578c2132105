// What all losses of rows have in common, a block to a row: sums of exponentials, and what a column adds to the value of a term. Printed before
// this text: TERMS and STATS, how many terms and temperatures; kind_of(term) and stat_of(term); GRADIENT or values only; LABELS; ALIGNED, whether
// rows are for eight at once; MOST, the length of the lists of settings; THREADS of a block. Temperature 0 is 1.
#define FLOOR -1e30f
#define EXCLUDED -1e20f
// The next bf16 below FLOOR, twice.
#define FLOORS 0xf14af14au

enum { FORWARD, REVERSE, JENSEN_SHANNON, SKEWED_FORWARD, SKEWED_REVERSE, TOTAL_VARIATION, SOFT_CROSS_ENTROPY, LOGITS_MSE };

struct Settings {
    // Of each temperature.
    float inverse[MOST];
    // Of each term: the value's factor, the gradient's with everything but the inverse temperature, and the divergence's parameter.
    float value_factor[MOST], gradient_factor[MOST], parameter[MOST];
    float t, a, difficulty, label_factor, soft_cap;
};

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * LOG2E); }

// Log-sum-exps at all temperatures, counted from the greatest logit, and where that is.
struct Sums {
    float most;
    int at;
    float sum[STATS];
};

__device__ __forceinline__ void begin(Sums& s) {
    s.most = 2.0f * FLOOR;
    s.at = 0x7fffffff;
    for (int i = 0; i < STATS; i++) s.sum[i] = 0.0f;
}

__device__ __forceinline__ void raise(Sums& s, float most, const float* inverse) {
#pragma unroll
    for (int i = 0; i < STATS; i++) s.sum[i] *= exp_fast((s.most - most) * inverse[i]);
    s.most = most;
}

__device__ __forceinline__ void take(Sums& s, const float z[8], int first, const float* inverse) {
    float most = z[0];
#pragma unroll
    for (int i = 1; i < 8; i++) most = fmaxf(most, z[i]);
    if (most > s.most) {
        raise(s, most, inverse);
#pragma unroll
        for (int i = 7; i >= 0; i--) if (z[i] == most) s.at = first + i;
    }
#pragma unroll
    for (int stat = 0; stat < STATS; stat++) {
        float factor = inverse[stat] * LOG2E, shift = s.most * factor;
#pragma unroll
        for (int i = 0; i < 8; i++) s.sum[stat] += exp2_fast(z[i] * factor - shift);
    }
}

__device__ __forceinline__ void join(Sums& s, const Sums& o, const float* inverse) {
    float most = fmaxf(s.most, o.most);
    if (o.most > s.most || (o.most == s.most && o.at < s.at)) s.at = o.at;
#pragma unroll
    for (int i = 0; i < STATS; i++)
        s.sum[i] = s.sum[i] * exp_fast((s.most - most) * inverse[i]) + o.sum[i] * exp_fast((o.most - most) * inverse[i]);
    s.most = most;
}

// Where warps leave what N joins need of each other.
template <int N>
struct Room {
    float most[N][THREADS / 32];
    int at[N][THREADS / 32];
    float sum[N][STATS][THREADS / 32];
};

// Of all threads of a block; every thread has the results. The greatest come first, so that a thread's sums are raised once.
template <int N>
__device__ __forceinline__ void join_block(Sums (&s)[N], Room<N>& room, const float* inverse) {
    const int WARPS = THREADS / 32;
    static_assert(WARPS <= 32, "a lane to a warp");
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, of = lane % WARPS;
#pragma unroll
    for (int n = 0; n < N; n++) {
        float most = greatest_of_warp(s[n].most);
        if (lane == 0) room.most[n][warp] = most;
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) {
        float most = greatest_of_warp(room.most[n][of]);
        int at = __reduce_min_sync(0xffffffffu, s[n].most == most ? s[n].at : 0x7fffffff);
        raise(s[n], most, inverse);
        if (lane == 0) room.at[n][warp] = at;
#pragma unroll
        for (int i = 0; i < STATS; i++) {
            float sum = sum_of_warp(s[n].sum[i]);
            if (lane == 0) room.sum[n][i][warp] = sum;
        }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) {
        s[n].at = __reduce_min_sync(0xffffffffu, room.at[n][of]);
#pragma unroll
        for (int i = 0; i < STATS; i++) s[n].sum[i] = sum_of_warp(lane < WARPS ? room.sum[n][i][lane] : 0.0f);
    }
    __syncthreads();
}

__device__ __forceinline__ void unpack_floored(uint4 x, float z[8]) {
    unpack8(make_uint4(greater_bf16(x.x, FLOORS), greater_bf16(x.y, FLOORS), greater_bf16(x.z, FLOORS), greater_bf16(x.w, FLOORS)), z);
}

__device__ __forceinline__ void read8(const void* row, int type, int at, int end, float z[8]) {
#if ALIGNED
    if (at + 8 <= end) {
        if (type == 2) return unpack_floored(*(const uint4*)((const half_bits*)row + at), z);
        load8(row, at, type, z);
#pragma unroll
        for (int i = 0; i < 8; i++) if (z[i] < FLOOR) z[i] = FLOOR;
        return;
    }
#endif
#pragma unroll
    for (int i = 0; i < 8; i++) {
        z[i] = at + i < end ? load(row, at + i, type) : FLOOR;
        if (z[i] < FLOOR) z[i] = FLOOR;
    }
}

// One column: what it adds to the value of a term, and its slope, or its flow where the kind is balanced. Logarithms are finite, and of base 2, as the
// device has them. Columns are added up in parts and flows, with as few multiplications as there can be: a term's value is `value_unit` times `whole_of`
// both sums, its slopes and flows `slope_unit` times theirs.
struct Point { float p, q, log_p, log_q; };

// Of both probabilities; where it is too small for a logarithm, whatever it is multiplied by is 0.
__device__ __forceinline__ float mean(float parameter, Point x) { return parameter * x.p + ((1.0f - parameter) * x.q + 1e-37f); }

__device__ __forceinline__ constexpr bool is_balanced(int kind) { return kind == FORWARD || kind == SOFT_CROSS_ENTROPY || kind == LOGITS_MSE; }

__device__ __forceinline__ constexpr float value_unit(int kind) { return kind == TOTAL_VARIATION || kind == LOGITS_MSE ? 1.0f : LN2; }

__device__ __forceinline__ float slope_unit(int kind, float parameter) {
    return kind == JENSEN_SHANNON ? LN2 * (1.0f - parameter) : kind == REVERSE || kind == SKEWED_REVERSE ? LN2 : 1.0f;
}

__device__ __forceinline__ float whole_of(int kind, float parameter, float part, float flow) {
    return kind == JENSEN_SHANNON ? parameter * part + (1.0f - parameter) * flow : part;
}

__device__ __forceinline__ float part_of(int kind, float parameter, Point x) {
    switch (kind) {
    case FORWARD: return x.p * (x.log_p - x.log_q);
    case REVERSE: return x.log_p < EXCLUDED ? 0.0f : (x.q == 0.0f ? 0.0f : x.q * (x.log_q - x.log_p)) + (x.p - x.q) * LOG2E;
    case JENSEN_SHANNON: return x.p * (x.log_p - log2_fast(mean(parameter, x)));
    case SKEWED_FORWARD: {
        float m = parameter * x.p + (1.0f - parameter) * x.q;
        return x.p < 1e-37f ? 0.0f : x.p * (x.log_p - log2_fast(m));
    }
    case SKEWED_REVERSE: {
        float m = (1.0f - parameter) * x.p + parameter * x.q;
        return x.q < 1e-37f ? 0.0f : x.q * (x.log_q - log2_fast(m));
    }
    case TOTAL_VARIATION: return 0.5f * fabsf(x.p - x.q);
    case SOFT_CROSS_ENTROPY: return x.p == 0.0f ? 0.0f : -x.p * x.log_q;
    }
    return 0.0f;
}

__device__ __forceinline__ float slope_of(int kind, float parameter, Point x) {
    switch (kind) {
    case REVERSE: return x.log_p < EXCLUDED ? 0.0f : x.log_q - x.log_p;
    case JENSEN_SHANNON: return x.log_q - log2_fast(mean(parameter, x));
    case SKEWED_FORWARD: {
        float m = parameter * x.p + (1.0f - parameter) * x.q;
        return m < 1e-37f ? 0.0f : -(1.0f - parameter) * x.p / m;
    }
    case SKEWED_REVERSE: {
        float m = (1.0f - parameter) * x.p + parameter * x.q;
        return m < 1e-37f ? 0.0f : x.log_q - log2_fast(m) + (1.0f - parameter * x.q / m) * LOG2E;
    }
    case TOTAL_VARIATION: return x.q == x.p ? 0.0f : x.q > x.p ? 0.5f : -0.5f;
    }
    return 0.0f;
}

// `Q g`, which has a bound where the slope has none.
__device__ __forceinline__ float flow_of(int kind, float parameter, Point x) {
    if (kind == FORWARD || kind == SOFT_CROSS_ENTROPY) return -x.p;
    if (kind == JENSEN_SHANNON) return x.q * slope_of(kind, parameter, x);
    return x.q > 0.0f ? x.q * slope_of(kind, parameter, x) : 0.0f;
}

// One column alone.
__device__ __forceinline__ float value_of(int kind, float parameter, Point x) {
    float flow = kind == JENSEN_SHANNON ? flow_of(kind, parameter, x) : 0.0f;
    return value_unit(kind) * whole_of(kind, parameter, part_of(kind, parameter, x), flow);
}
