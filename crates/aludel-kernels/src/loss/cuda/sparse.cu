// Values and gradient of an objective against known columns of a teacher. Printed besides: KNOWN, what they are and what becomes of the rest;
// tail_of(stat), the place of a temperature among a row's tails, of which there are TAILS; ONE, whether temperature 1 is among them.
//
// The logits of known columns are put aside and taken out of the row, whose other columns share one factor of the softmax.
enum { BUCKET, RENORMALISED, IGNORED, DRAWN };

// What is known of a row's columns at a temperature.
struct Shares {
    float inverse, most, log_sum, shift, scale;
};

__device__ __forceinline__ Point known_point(Shares s, float z, float log_p) {
    Point x;
    x.log_q = ((z - s.most) * s.inverse - s.log_sum) * LOG2E;
    x.q = exp2_fast(x.log_q);
    // A tail that has everything leaves nothing to the columns.
    x.log_p = fmaxf(log_p * s.scale - s.shift, 2.0f * FLOOR) * LOG2E;
    x.p = exp2_fast(x.log_p);
    return x;
}

__device__ __forceinline__ float known_flow(int kind, float parameter, Point x) { return slope_unit(kind, parameter) * flow_of(kind, parameter, x); }

__device__ __forceinline__ float floored(float z) { return z < FLOOR ? FLOOR : z; }

extern "C" __global__ void __launch_bounds__(THREADS) sparse_rows(
    const Settings* settings, const u32* labels, const u32* starts, const u32* ids, const float* log_p, const float* tails, const float* log_sums,
    const float* entropies, const u32* likeliest, half_bits* student, i64 stored, int valid, int common, float* aside, float* slopes, float* values
) {
    const int COLUMNS = TERMS + 5;
    __shared__ Room<1> room;
    __shared__ float sums_room[32];
    half_bits* row = student + (i64)blockIdx.x * stored;
    u32 label = labels[blockIdx.x];
    values += (i64)blockIdx.x * COLUMNS;
    if (label == 0xffffffffu) {
        if (threadIdx.x < COLUMNS) values[threadIdx.x] = 0.0f;
#if GRADIENT
        for (i64 i = threadIdx.x; i < stored; i += THREADS) row[i] = 0;
#endif
        return;
    }
    u32 first = starts[blockIdx.x];
    int count = (int)(starts[blockIdx.x + 1] - first);
    ids += first; log_p += first; aside += first; slopes += first;
    float inverse[STATS];
    for (int i = 0; i < STATS; i++) inverse[i] = settings->inverse[i];
    float at_label = floored(from_bf16(row[label]));
    __syncthreads();

    Sums of_known[1], of_others[1], of_rest[1], &known = of_known[0], &others = of_others[0], &rest = of_rest[0];
    begin(known); begin(others); begin(rest);
    for (int j = threadIdx.x; j < count; j += THREADS) {
        float z = from_bf16(row[ids[j]]);
        aside[j] = z;
        slopes[j] = 0.0f;
        float a[8] = {floored(z), FLOOR, FLOOR, FLOOR, FLOOR, FLOOR, FLOOR, FLOOR};
        take(known, a, ids[j], inverse);
        row[ids[j]] = to_bf16(2.0f * FLOOR);
    }
    __syncthreads();
    for (int at = 8 * threadIdx.x; at < common; at += 8 * THREADS) {
        float a[8];
        read8(row, 2, at, common, a);
        take(others, a, at, inverse);
    }
    for (int at = common + threadIdx.x; at < valid; at += THREADS) {
        float a[8] = {floored(from_bf16(row[at])), FLOOR, FLOOR, FLOOR, FLOOR, FLOOR, FLOOR, FLOOR};
        take(rest, a, at, inverse);
    }
    join_block(of_known, room, inverse);
    join_block(of_others, room, inverse);
    Sums s = known;
    join(s, others, inverse);
    Sums whole = s;
    if (valid > common) {
        join_block(of_rest, room, inverse);
        join(whole, rest, inverse);
    }
    float whole_log = logf(whole.sum[0]);
    float cross_entropy = whole.most - at_label + whole_log;

    Shares shares[STATS];
    float log_others[STATS], tail[STATS], share[STATS];
    for (int i = 0; i < STATS; i++) {
        Shares& at = shares[i];
        at.inverse = inverse[i];
        at.scale = KNOWN == DRAWN ? 1.0f : inverse[i];
        at.most = s.most;
        at.log_sum = logf(s.sum[i]);
        log_others[i] = (others.most - s.most) * inverse[i] + logf(others.sum[i]) - at.log_sum;
        float sum = 0.0f;
        for (int j = threadIdx.x; j < count; j += THREADS) sum += exp_fast(log_p[j] * at.scale);
        sum = sum_of_block(sum, sums_room);
        tail[i] = KNOWN == DRAWN || tail_of(i) >= TAILS ? 0.0f : fminf(fmaxf(tails[(i64)blockIdx.x * TAILS + tail_of(i)], 0.0f), 1.0f);
        at.shift = logf(sum) - (KNOWN == RENORMALISED ? 0.0f : log1pf(-tail[i]));
        share[i] = 0.0f;
    }

    float value[TERMS + 1] = {}, more[TERMS + 1] = {};
#pragma unroll
    for (int term = 0; term < TERMS; term++) {
        int kind = kind_of(term), stat = stat_of(term);
        Shares at = shares[stat];
        float parameter = settings->parameter[term], weight = settings->gradient_factor[term] * at.inverse;
        if (kind == LOGITS_MSE) {
            float most = log_sums[blockIdx.x], each = 1.0f / fmaxf((float)count, 1.0f);
            for (int j = threadIdx.x; j < count; j += THREADS) {
                float d = (floored(aside[j]) - log_p[j] - most) * at.inverse;
                value[term] += d * d * each;
                slopes[j] += weight * 2.0f * d * each;
            }
            continue;
        }
        float sum = 0.0f;
        for (int j = threadIdx.x; j < count; j += THREADS) {
            Point x = known_point(at, floored(aside[j]), log_p[j]);
            value[term] += KNOWN == DRAWN ? (x.p == 0.0f ? 0.0f : -x.p * x.log_q * LN2) : value_of(kind, parameter, x);
            sum += known_flow(kind, parameter, x);
        }
        Point bucket;
        bucket.log_q = log_others[stat] * LOG2E;
        bucket.q = exp2_fast(bucket.log_q);
        bucket.p = KNOWN == BUCKET ? tail[stat] : 0.0f;
        bucket.log_p = bucket.p > 0.0f ? log2f(bucket.p) : 2.0f * FLOOR;
        float flow = 0.0f;
        if ((KNOWN == BUCKET || KNOWN == RENORMALISED) && bucket.q > 0.0f) {
            more[term] = value_of(kind, parameter, bucket);
            flow = known_flow(kind, parameter, bucket);
        }
        if (KNOWN == DRAWN && kind == FORWARD && entropies) more[term] = -entropies[blockIdx.x];
        float mean = sum_of_block(sum, sums_room) + flow;
        for (int j = threadIdx.x; j < count; j += THREADS) {
            Point x = known_point(at, floored(aside[j]), log_p[j]);
            slopes[j] += weight * (known_flow(kind, parameter, x) - x.q * mean);
        }
        if (bucket.q > 0.0f) share[stat] += weight * (flow / bucket.q - mean);
    }

    float forward = 0.0f, reverse = 0.0f;
#if GRADIENT
    float label_factor = LABELS ? settings->label_factor : 0.0f, cap = settings->soft_cap;
    for (int at = 8 * threadIdx.x; at < stored; at += 8 * THREADS) {
        float a[8], g[8];
        read8(row, 2, at, valid, a);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            g[i] = 0.0f;
            if (at + i >= valid) continue;
            if (LABELS) {
                g[i] = label_factor * exp_fast(a[i] - whole.most - whole_log);
                if (at + i == label) g[i] -= label_factor;
            }
            if (at + i < common) {
#pragma unroll
                for (int stat = 0; stat < STATS; stat++)
                    g[i] += share[stat] * exp_fast((a[i] - s.most) * inverse[stat] - shares[stat].log_sum);
            }
            if (cap > 0.0f) g[i] *= 1.0f - (a[i] / cap) * (a[i] / cap);
        }
#if ALIGNED
        store8(row, at, 2, g);
#else
        for (int i = 0; i < 8; i++) if (at + i < stored) row[at + i] = to_bf16(g[i]);
#endif
    }
    __syncthreads();
    for (int j = threadIdx.x; j < count; j += THREADS) {
        float z = floored(aside[j]), g = slopes[j];
        if (LABELS) g += label_factor * (exp_fast(z - whole.most - whole_log) - (ids[j] == label ? 1.0f : 0.0f));
        if (cap > 0.0f) g *= 1.0f - (z / cap) * (z / cap);
        row[ids[j]] = to_bf16(g);
    }
#else
    float more_forward = 0.0f, more_reverse = 0.0f;
#if ONE
    for (int j = threadIdx.x; j < count; j += THREADS) {
        Point x = known_point(shares[0], floored(aside[j]), log_p[j]);
        if (KNOWN == DRAWN) {
            forward -= x.p == 0.0f ? 0.0f : x.p * x.log_q * LN2;
        } else {
            forward += value_of(FORWARD, 0.0f, x);
            reverse += value_of(REVERSE, 0.0f, x);
        }
    }
    Point bucket;
    bucket.log_q = log_others[0] * LOG2E;
    bucket.q = exp2_fast(bucket.log_q);
    bucket.p = KNOWN == BUCKET ? tail[0] : 0.0f;
    bucket.log_p = bucket.p > 0.0f ? log2f(bucket.p) : 2.0f * FLOOR;
    if ((KNOWN == BUCKET || KNOWN == RENORMALISED) && bucket.q > 0.0f) {
        more_forward = value_of(FORWARD, 0.0f, bucket);
        more_reverse = value_of(REVERSE, 0.0f, bucket);
    }
    if (KNOWN == DRAWN && entropies) more_forward = -entropies[blockIdx.x];
#endif
    forward = sum_of_block(forward, sums_room) + more_forward;
    reverse = sum_of_block(reverse, sums_room) + more_reverse;
    for (int j = threadIdx.x; j < count; j += THREADS) row[ids[j]] = to_bf16(aside[j]);
#endif
#pragma unroll
    for (int term = 0; term < TERMS; term++) {
        float sum = sum_of_block(value[term], sums_room) + more[term];
        if (sum > 1e20f) sum = __int_as_float(0x7f800000);
        if (threadIdx.x == 0) values[term] = sum * settings->value_factor[term];
    }
    if (threadIdx.x == 0) {
        values[TERMS] = cross_entropy;
        values[TERMS + 1] = whole.at == (int)label ? 1.0f : 0.0f;
        values[TERMS + 2] = likeliest[blockIdx.x] == (u32)s.at ? 1.0f : 0.0f;
        values[TERMS + 3] = forward > 1e20f ? __int_as_float(0x7f800000) : forward;
        values[TERMS + 4] = reverse;
    }
}
