// Values and gradient of an objective for rows of logits, a block to a row. Printed before this text: TERMS and STATS, how many terms and
// temperatures; kind_of(term) and stat_of(term); TARGET, 0 the teacher, 1 interpolated logits, 2 a mixture; GRADIENT or values only; LABELS;
// TEACHER, whether there is one, and TEACHER_TYPE; ALIGNED, whether rows are for eight at once; MOST, the length of the lists of settings.
// Temperature 0 is 1.
#define THREADS 512
#define FLOOR -1e30f
#define EXCLUDED -1e20f
#define LOG2E 1.4426950408889634f

enum { FORWARD, REVERSE, JENSEN_SHANNON, SKEWED_FORWARD, SKEWED_REVERSE, TOTAL_VARIATION, SOFT_CROSS_ENTROPY, LOGITS_MSE };

struct Settings {
    // Of each temperature.
    float inverse[MOST];
    // Of each term: the value's factor, the gradient's with everything but the inverse temperature, and the divergence's parameter.
    float value_factor[MOST], gradient_factor[MOST], parameter[MOST];
    float t, a, difficulty, label_factor, soft_cap;
};

__device__ __forceinline__ float exp_fast(float x) { return __expf(x); }

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
#pragma unroll
        for (int i = 0; i < 8; i++) s.sum[stat] += exp_fast((z[i] - s.most) * inverse[stat]);
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

__device__ void join_block(Sums& s, Sums* room, const float* inverse) {
    for (int step = 16; step > 0; step >>= 1) {
        Sums o;
        o.most = __shfl_xor_sync(0xffffffffu, s.most, step);
        o.at = __shfl_xor_sync(0xffffffffu, s.at, step);
        for (int i = 0; i < STATS; i++) o.sum[i] = __shfl_xor_sync(0xffffffffu, s.sum[i], step);
        join(s, o, inverse);
    }
    if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = s;
    __syncthreads();
    s = room[0];
    for (int i = 1; i < THREADS / 32; i++) join(s, room[i], inverse);
    __syncthreads();
}

__device__ __forceinline__ void read8(const void* row, int type, int at, int end, float z[8]) {
#if ALIGNED
    if (at + 8 <= end) {
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

__device__ __forceinline__ float interpolate(float t, float s, float z) { return t == 0.0f ? s : (1.0f - t) * s + t * z; }

// One column: what it adds to the value of a term, and its slope, or its flow where the kind is balanced.
struct Point { float p, q, log_p, log_q; };

__device__ __forceinline__ constexpr bool is_balanced(int kind) { return kind == FORWARD || kind == SOFT_CROSS_ENTROPY || kind == LOGITS_MSE; }

__device__ __forceinline__ float value_of(int kind, float parameter, Point x) {
    switch (kind) {
    case FORWARD: return x.p == 0.0f ? 0.0f : x.p * (x.log_p - x.log_q);
    case REVERSE: return x.log_p < EXCLUDED ? 0.0f : (x.q == 0.0f ? 0.0f : x.q * (x.log_q - x.log_p)) - x.q + x.p;
    case JENSEN_SHANNON: {
        float m = parameter * x.p + (1.0f - parameter) * x.q;
        if (m < 1e-37f) return 0.0f;
        float log_m = __logf(m);
        return parameter * (x.p == 0.0f ? 0.0f : x.p * (x.log_p - log_m)) + (1.0f - parameter) * (x.q == 0.0f ? 0.0f : x.q * (x.log_q - log_m));
    }
    case SKEWED_FORWARD: {
        float m = parameter * x.p + (1.0f - parameter) * x.q;
        return x.p < 1e-37f ? 0.0f : x.p * (x.log_p - __logf(m));
    }
    case SKEWED_REVERSE: {
        float m = (1.0f - parameter) * x.p + parameter * x.q;
        return x.q < 1e-37f ? 0.0f : x.q * (x.log_q - __logf(m));
    }
    case TOTAL_VARIATION: return 0.5f * fabsf(x.p - x.q);
    case SOFT_CROSS_ENTROPY: return x.p == 0.0f ? 0.0f : -x.p * x.log_q;
    }
    return 0.0f;
}

__device__ __forceinline__ float slope_of(int kind, float parameter, Point x) {
    switch (kind) {
    case REVERSE: return x.log_p < EXCLUDED ? 0.0f : x.log_q - x.log_p;
    case JENSEN_SHANNON: {
        float m = parameter * x.p + (1.0f - parameter) * x.q;
        return m < 1e-37f ? 0.0f : (1.0f - parameter) * (x.log_q - __logf(m));
    }
    case SKEWED_FORWARD: {
        float m = parameter * x.p + (1.0f - parameter) * x.q;
        return m < 1e-37f ? 0.0f : -(1.0f - parameter) * x.p / m;
    }
    case SKEWED_REVERSE: {
        float m = (1.0f - parameter) * x.p + parameter * x.q;
        return m < 1e-37f ? 0.0f : x.log_q - __logf(m) + 1.0f - parameter * x.q / m;
    }
    case TOTAL_VARIATION: return x.q == x.p ? 0.0f : x.q > x.p ? 0.5f : -0.5f;
    }
    return 0.0f;
}

// What a row's columns are seen by, once its sums are known.
struct Scene {
    const float* inverse;
    float s_most, t_most, x_most;
    float s_log[STATS], t_log[STATS], x_log[STATS];
    float t, a;
};

__device__ __forceinline__ Point point(const Scene& scene, int stat, int target, float s, float z) {
    Point x;
    float inverse = scene.inverse[stat];
    x.log_q = (s - scene.s_most) * inverse - scene.s_log[stat];
    x.q = exp_fast(x.log_q);
    if (target == 1) {
        x.log_p = (interpolate(scene.t, s, z) - scene.x_most) * inverse - scene.x_log[stat];
        x.p = exp_fast(x.log_p);
    } else {
        x.log_p = (z - scene.t_most) * inverse - scene.t_log[stat];
        x.p = exp_fast(x.log_p);
        if (target == 2) {
            x.p = scene.a * x.p + (1.0f - scene.a) * x.q;
            x.log_p = __logf(x.p);
        }
    }
    return x;
}

// A squared difference of logits, and its root.
__device__ __forceinline__ float difference(const Scene& scene, int stat, float s, float z) {
#if TARGET == 1
    z = interpolate(scene.t, s, z);
#endif
    return z <= FLOOR ? 0.0f : (s - z) * scene.inverse[stat];
}

extern "C" __global__ void __launch_bounds__(THREADS) loss_rows(
    const Settings* settings, const u32* labels, half_bits* student, i64 stored, int valid,
    const void* teacher, i64 teacher_stored, int common, float* values
) {
    const int COLUMNS = TERMS + 5;
    __shared__ Sums room[THREADS / 32];
    __shared__ float sums_room[32];
    half_bits* s_row = student + (i64)blockIdx.x * stored;
    const void* t_row = (const char*)teacher + (i64)blockIdx.x * teacher_stored * (TEACHER_TYPE == 0 ? 4 : 2);
    u32 label = labels[blockIdx.x];
    values += (i64)blockIdx.x * COLUMNS;
    if (label == 0xffffffffu) {
        if (threadIdx.x < COLUMNS) values[threadIdx.x] = 0.0f;
#if GRADIENT
        for (i64 i = threadIdx.x; i < stored; i += THREADS) s_row[i] = 0;
#endif
        return;
    }
    float inverse[STATS];
    for (int i = 0; i < STATS; i++) inverse[i] = settings->inverse[i];
    float t = settings->t;

    Sums s, z, x, rest;
    begin(s); begin(z); begin(x); begin(rest);
    for (int at = 8 * threadIdx.x; at < common; at += 8 * THREADS) {
        float a[8], b[8];
        read8(s_row, 2, at, common, a);
        take(s, a, at, inverse);
#if TEACHER
        read8(t_row, TEACHER_TYPE, at, common, b);
        take(z, b, at, inverse);
#if TARGET == 1
        for (int i = 0; i < 8; i++) b[i] = a[i] <= FLOOR && at + i >= common ? FLOOR : interpolate(t, a[i], b[i]);
        take(x, b, at, inverse);
#endif
#endif
    }
    for (int at = common + threadIdx.x; at < valid; at += THREADS) {
        float a[8] = {from_bf16(s_row[at]), FLOOR, FLOOR, FLOOR, FLOOR, FLOOR, FLOOR, FLOOR};
        take(rest, a, at, inverse);
    }
    join_block(s, room, inverse);
#if TEACHER
    join_block(z, room, inverse);
#if TARGET == 1
    join_block(x, room, inverse);
#endif
#endif
    Sums whole = s;
    if (valid > common) {
        join_block(rest, room, inverse);
        join(whole, rest, inverse);
    }
    float whole_log = logf(whole.sum[0]);
    float at_label = from_bf16(s_row[label]);
    if (at_label < FLOOR) at_label = FLOOR;
    float cross_entropy = whole.most - at_label + whole_log;
    // Before anybody writes the gradient there.
    __syncthreads();

    Scene scene;
    scene.inverse = inverse;
    scene.s_most = s.most; scene.t_most = z.most; scene.x_most = x.most;
    scene.t = t;
    scene.a = settings->a * (1.0f - settings->difficulty * (1.0f - expf(-cross_entropy)));
    for (int i = 0; i < STATS; i++) {
        scene.s_log[i] = logf(s.sum[i]);
        scene.t_log[i] = logf(z.sum[i]);
        scene.x_log[i] = logf(x.sum[i]);
    }
    float value[TERMS + 1] = {}, flow[TERMS + 1] = {}, forward = 0.0f, reverse = 0.0f;
    bool needs_flows = !GRADIENT;
#pragma unroll
    for (int term = 0; term < TERMS; term++) needs_flows |= !is_balanced(kind_of(term));
#if TEACHER
    if (needs_flows) {
        for (int at = 8 * threadIdx.x; at < common; at += 8 * THREADS) {
            float a[8], b[8];
            read8(s_row, 2, at, common, a);
            read8(t_row, TEACHER_TYPE, at, common, b);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (at + i >= common) break;
#pragma unroll
                for (int term = 0; term < TERMS; term++) {
                    int kind = kind_of(term);
                    if (GRADIENT && is_balanced(kind)) continue;
                    if (kind == LOGITS_MSE) {
                        float d = difference(scene, stat_of(term), a[i], b[i]);
                        value[term] += d * d;
                        continue;
                    }
                    Point x = point(scene, stat_of(term), TARGET, a[i], b[i]);
                    value[term] += value_of(kind, settings->parameter[term], x);
                    if (!is_balanced(kind) && x.q > 0.0f) flow[term] += x.q * slope_of(kind, settings->parameter[term], x);
                }
                if (!GRADIENT) {
                    Point x = point(scene, 0, 0, a[i], b[i]);
                    forward += value_of(FORWARD, 0.0f, x);
                    reverse += value_of(REVERSE, 0.0f, x);
                }
            }
        }
#pragma unroll
        for (int term = 0; term < TERMS; term++) if (!is_balanced(kind_of(term))) flow[term] = sum_of_block(flow[term], sums_room);
    }
#endif
#if GRADIENT
    float label_factor = LABELS ? settings->label_factor : 0.0f, cap = settings->soft_cap;
    for (int at = 8 * threadIdx.x; at < stored; at += 8 * THREADS) {
        float a[8], b[8], g[8];
        read8(s_row, 2, at, valid, a);
#if TEACHER
        read8(t_row, TEACHER_TYPE, at, common, b);
#endif
#pragma unroll
        for (int i = 0; i < 8; i++) {
            g[i] = 0.0f;
            if (at + i >= valid) continue;
            if (LABELS) {
                g[i] = label_factor * exp_fast(a[i] - whole.most - whole_log);
                if (at + i == label) g[i] -= label_factor;
            }
#if TEACHER
            if (at + i < common) {
#pragma unroll
                for (int term = 0; term < TERMS; term++) {
                    int kind = kind_of(term), stat = stat_of(term);
                    float factor = settings->gradient_factor[term] * inverse[stat];
                    if (kind == LOGITS_MSE) {
                        float d = difference(scene, stat, a[i], b[i]);
                        value[term] += d * d;
                        g[i] += factor * 2.0f * d / (float)common;
                        continue;
                    }
                    Point x = point(scene, stat, TARGET, a[i], b[i]);
                    if (is_balanced(kind)) {
                        value[term] += value_of(kind, settings->parameter[term], x);
                        g[i] += factor * (x.q - x.p);
                    } else if (x.q > 0.0f) {
                        g[i] += factor * x.q * (slope_of(kind, settings->parameter[term], x) - flow[term]);
                    }
                }
            }
#endif
            if (cap > 0.0f) g[i] *= 1.0f - (a[i] / cap) * (a[i] / cap);
        }
#if ALIGNED
        store8(s_row, at, 2, g);
#else
        for (int i = 0; i < 8; i++) if (at + i < stored) s_row[at + i] = to_bf16(g[i]);
#endif
    }
#endif
#pragma unroll
    for (int term = 0; term < TERMS; term++) {
        float sum = sum_of_block(value[term], sums_room);
        if (kind_of(term) == LOGITS_MSE) sum /= (float)common;
        if (sum > 1e20f) sum = __int_as_float(0x7f800000);
        if (threadIdx.x == 0) values[term] = sum * settings->value_factor[term];
    }
    if (!GRADIENT && TEACHER) {
        forward = sum_of_block(forward, sums_room);
        reverse = sum_of_block(reverse, sums_room);
    }
    if (threadIdx.x == 0) {
        values[TERMS] = cross_entropy;
        values[TERMS + 1] = whole.at == (int)label ? 1.0f : 0.0f;
        values[TERMS + 2] = TEACHER && z.at == s.at ? 1.0f : 0.0f;
        values[TERMS + 3] = forward > 1e20f ? __int_as_float(0x7f800000) : forward;
        values[TERMS + 4] = reverse;
    }
}
