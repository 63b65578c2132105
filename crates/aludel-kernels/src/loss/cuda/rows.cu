// Values and gradient of an objective for rows of logits against whole rows of a teacher, or none; a block to a row. Printed besides: TARGET, 0 the
// teacher, 1 interpolated logits, 2 a mixture; TEACHER, whether there is one, and TEACHER_TYPE.
__device__ __forceinline__ float interpolate(float t, float s, float z) { return t == 0.0f ? s : (1.0f - t) * s + t * z; }

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
                    if (!is_balanced(kind)) flow[term] += flow_of(kind, settings->parameter[term], x);
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
