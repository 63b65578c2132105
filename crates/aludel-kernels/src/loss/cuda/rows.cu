// Values and gradient of an objective for rows of logits against whole rows of a teacher, or none; CLUSTER blocks to a row. Printed besides: TARGET, 0
// the teacher, 1 interpolated logits, 2 a mixture; TEACHER, whether there is one, and TEACHER_TYPE.
//
// A row is looked at two or three times. Where HELD is not 0, the shared memories of a cluster hold both rows between, so many times eight columns of each
// for a thread.
#define MEMBERS (THREADS * CLUSTER)

__device__ __forceinline__ u32 rank_of_block() {
#if CLUSTER > 1
    return place_in_cluster();
#else
    return 0;
#endif
}

// Blocks of a cluster say that they have come so far, and wait until all have.
__device__ __forceinline__ void come() {
#if CLUSTER > 1
    cluster_arrive();
#endif
}

__device__ __forceinline__ void meet() {
#if CLUSTER > 1
    cluster_wait();
#else
    __syncthreads();
#endif
}

// Puts what the first thread has of a block into every block's list, and says so; `meet` follows.
template <typename T>
__device__ __forceinline__ void tell(const T& own, T (&all)[CLUSTER], u32 rank) {
#if CLUSTER > 1
    const u32 WORDS = sizeof(T) / 4;
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (u32 block = 0; block < CLUSTER; block++) {
            place_there place = there(&all[rank], block);
#pragma unroll
            for (u32 word = 0; word < WORDS; word++) put_there(place, word, ((const u32*)&own)[word]);
        }
    }
#else
    if (threadIdx.x == 0) all[0] = own;
#endif
    come();
}

__device__ __forceinline__ float interpolate(float t, float s, float z) { return t == 0.0f ? s : (1.0f - t) * s + t * z; }

// What a row's columns are seen by, once its sums are known.
struct Scene {
    const float* inverse;
    // Inverse temperatures, and log-sum-exps of what is divided by the temperatures, to base 2.
    float scale[STATS], s_log[STATS], t_log[STATS], x_log[STATS];
    float t, a;
};

__device__ __forceinline__ Point point(const Scene& scene, int stat, int target, float s, float z) {
    Point x;
    float scale = scene.scale[stat];
    x.log_q = s * scale - scene.s_log[stat];
    x.q = exp2_fast(x.log_q);
    if (target == 1) {
        x.log_p = interpolate(scene.t, s, z) * scale - scene.x_log[stat];
        x.p = exp2_fast(x.log_p);
    } else {
        x.log_p = z * scale - scene.t_log[stat];
        x.p = exp2_fast(x.log_p);
        if (target == 2) {
            x.p = scene.a * x.p + (1.0f - scene.a) * x.q;
            x.log_p = log2_fast(fmaxf(x.p, 1e-37f));
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

// Pieces of both rows, which only the thread that has brought them looks at again.
extern __shared__ uint4 held[];

__device__ __forceinline__ uint4* place(int piece, int of_teacher) { return held + (piece * (1 + TEACHER) + of_teacher) * THREADS + threadIdx.x; }

__device__ __forceinline__ void hold(int piece, int of_teacher, const void* row, int at, int end) {
#if HELD
    if (at + 8 <= end) bring16(place(piece, of_teacher), (const half_bits*)row + at);
#endif
}

// Until a piece is there; at most so many later ones are left on their way.
#define AHEAD 3
__device__ __forceinline__ void await_piece(int piece) {
    int later = HELD - 1 - piece;
    if (later >= AHEAD) wait<AHEAD>();
    else if (later == 2) wait<2>();
    else if (later == 1) wait<1>();
    else wait<0>();
}

__device__ __forceinline__ void see(int piece, int of_teacher, const void* row, int type, int at, int end, float z[8]) {
#if HELD
    if (at + 8 <= end) {
        unpack_floored(*place(piece, of_teacher), z);
        return;
    }
#endif
    read8(row, type, at, end, z);
}

// Where one term alone needs its slopes twice, they take the place of the teacher's logits, as f16, whose range ends beyond all that matters: a slope that is
// cut there has a probability of 0 beside it.
#define KEEPS (HELD && GRADIENT && TEACHER && TERMS == 1 && !is_balanced(kind_of(0)))

__device__ __forceinline__ void keep(int piece, const float slopes[8]) {
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = finite_f16(pack_f16(slopes[2 * i], slopes[2 * i + 1]));
    *place(piece, 1) = make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ void kept(int piece, float slopes[8]) {
    uint4 x = *place(piece, 1);
    u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 8; i++) slopes[i] = from_f16((half_bits)(words[i / 2] >> 16 * (i % 2)));
}

// All pieces of a row that are a thread's: `f(piece, first column)`. Where they are read again they are gone through backwards: what was read last is still
// in the cache.
template <typename F>
__device__ __forceinline__ void each_piece(int member, int end, bool backwards, F f) {
    int pieces = (end + 8 * MEMBERS - 1) / (8 * MEMBERS);
    for (int i = 0; i < pieces; i++) {
        int piece = backwards ? pieces - 1 - i : i, at = 8 * (member + piece * MEMBERS);
        if (at < end) f(piece, at);
    }
}

// The student's, the teacher's, and what lies between.
#define JOINED (1 + TEACHER + (TEACHER && TARGET == 1))
struct Reduced { Sums sums[JOINED]; };
struct Flows { float flow[TERMS + 1]; };
struct Values { float value[TERMS + 1], forward, reverse; };

// As many at once on a multiprocessor that one waits for memory, one for its cluster, and one computes.
#define RESIDENT 3
#if CLUSTER > 1
#define BLOCKS __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, RESIDENT)
#else
#define BLOCKS __launch_bounds__(THREADS, RESIDENT)
#endif

extern "C" __global__ void BLOCKS loss_rows(
    const Settings* settings, const u32* labels, half_bits* student, i64 stored, int valid,
    const void* teacher, i64 teacher_stored, int common, float* values
) {
    const int COLUMNS = TERMS + 5;
    __shared__ Room<JOINED> room;
    __shared__ Room<1> rest_room;
    __shared__ float sums_room[32];
    __shared__ Reduced all_sums[CLUSTER], all_rests[CLUSTER];
    __shared__ Flows all_flows[CLUSTER];
    __shared__ Values all_values[CLUSTER];
    i64 row = blockIdx.x / CLUSTER;
    u32 rank = rank_of_block();
    int member = rank * THREADS + threadIdx.x;
    // Nobody writes into a block that has not begun.
    come();
    half_bits* s_row = student + row * stored;
    const void* t_row = (const char*)teacher + row * teacher_stored * (TEACHER_TYPE == 0 ? 4 : 2);
    u32 label = labels[row];
    values += row * COLUMNS;
    if (label == 0xffffffffu) {
        if (member < COLUMNS) values[member] = 0.0f;
#if GRADIENT
        for (i64 i = member; i < stored; i += MEMBERS) s_row[i] = 0;
#endif
        meet();
        return;
    }
    float inverse[STATS];
    for (int i = 0; i < STATS; i++) inverse[i] = settings->inverse[i];
    float t = settings->t;

    // Before anybody writes the gradient there.
    float at_label = from_bf16(s_row[label]);
    if (at_label < FLOOR) at_label = FLOOR;

    // Where there is no teacher, or nothing between, what is said of them is not looked at.
    Sums sums[JOINED], of_rest[1], &s = sums[0], &z = sums[TEACHER], &x = sums[JOINED - 1], &rest = of_rest[0];
    for (int i = 0; i < JOINED; i++) begin(sums[i]);
    begin(rest);
    auto look = [&](const float a[8], float b[8], int at) {
        take(s, a, at, inverse);
#if TEACHER
        take(z, b, at, inverse);
#if TARGET == 1
        for (int i = 0; i < 8; i++) b[i] = a[i] <= FLOOR && at + i >= common ? FLOOR : interpolate(t, a[i], b[i]);
        take(x, b, at, inverse);
#endif
#endif
    };
#if HELD
    // A group to a piece, so that the first is looked at while the others are on their way.
#pragma unroll
    for (int piece = 0; piece < HELD; piece++) {
        int at = 8 * (member + piece * MEMBERS);
        hold(piece, 0, s_row, at, common);
        if (TEACHER) hold(piece, 1, t_row, at, common);
        fetched();
    }
#endif
    each_piece(member, common, false, [&](int piece, int at) {
        float a[8], b[8];
#if HELD
        await_piece(piece);
#endif
        see(piece, 0, s_row, 2, at, common, a);
        if (TEACHER) see(piece, 1, t_row, TEACHER_TYPE, at, common, b);
        look(a, b, at);
    });
    for (int at = common + member; at < valid; at += MEMBERS) {
        float a[8] = {from_bf16(s_row[at]), FLOOR, FLOOR, FLOOR, FLOOR, FLOOR, FLOOR, FLOOR};
        take(rest, a, at, inverse);
    }
    join_block(sums, room, inverse);
    Reduced reduced;
#pragma unroll
    for (int n = 0; n < JOINED; n++) reduced.sums[n] = sums[n];
    meet();
    tell(reduced, all_sums, rank);
    meet();
    auto gather = [&](Sums& joined, const Reduced (&all)[CLUSTER], int n) {
        joined = all[0].sums[n];
#pragma unroll 1
        for (int i = 1; i < CLUSTER; i++) join(joined, all[i].sums[n], inverse);
    };
#pragma unroll
    for (int n = 0; n < JOINED; n++) gather(sums[n], all_sums, n);
    Sums whole = s;
    if (valid > common) {
        join_block(of_rest, rest_room, inverse);
        reduced.sums[0] = rest;
        tell(reduced, all_rests, rank);
        meet();
        gather(rest, all_rests, 0);
        join(whole, rest, inverse);
    }
    float whole_log = whole.most + LN2 * log2_fast(whole.sum[0]), cross_entropy = whole_log - at_label;

    Scene scene;
    scene.inverse = inverse;
    scene.t = t;
    scene.a = settings->a * (1.0f - settings->difficulty * (1.0f - exp_fast(-cross_entropy)));
    for (int i = 0; i < STATS; i++) {
        scene.scale[i] = inverse[i] * LOG2E;
        scene.s_log[i] = s.most * scene.scale[i] + log2_fast(s.sum[i]);
        scene.t_log[i] = z.most * scene.scale[i] + log2_fast(z.sum[i]);
        scene.x_log[i] = x.most * scene.scale[i] + log2_fast(x.sum[i]);
    }
    // The compiler does not know that settings stay as they are while rows are written.
    float factor[TERMS + 1], parameter[TERMS + 1];
#pragma unroll
    for (int term = 0; term < TERMS; term++) {
        factor[term] = settings->gradient_factor[term] * inverse[stat_of(term)];
        parameter[term] = settings->parameter[term];
        factor[term] *= slope_unit(kind_of(term), parameter[term]);
    }
    float value[TERMS + 1] = {}, flow[TERMS + 1] = {}, forward = 0.0f, reverse = 0.0f;
    bool needs_flows = !GRADIENT;
#pragma unroll
    for (int term = 0; term < TERMS; term++) needs_flows |= !is_balanced(kind_of(term));
#if TEACHER
    if (needs_flows) {
        each_piece(member, common, true, [&](int piece, int at) {
            float a[8], b[8], slopes[8];
            see(piece, 0, s_row, 2, at, common, a);
            see(piece, 1, t_row, TEACHER_TYPE, at, common, b);
#pragma unroll
            for (int i = 0; i < 8; i++) {
#pragma unroll
                for (int term = 0; term < TERMS; term++) {
                    int kind = kind_of(term);
                    if (GRADIENT && is_balanced(kind)) continue;
                    if (kind == LOGITS_MSE) {
                        float d = at + i < common ? difference(scene, stat_of(term), a[i], b[i]) : 0.0f;
                        value[term] += d * d;
                        continue;
                    }
                    Point x = point(scene, stat_of(term), TARGET, a[i], b[i]);
                    value[term] += part_of(kind, parameter[term], x);
                    if (!is_balanced(kind)) flow[term] += flow_of(kind, parameter[term], x);
                    if (KEEPS) slopes[i] = slope_of(kind, parameter[term], x);
                }
                if (!GRADIENT) {
                    Point x = point(scene, 0, 0, a[i], b[i]);
                    forward += part_of(FORWARD, 0.0f, x);
                    reverse += part_of(REVERSE, 0.0f, x);
                }
            }
            if (KEEPS && at + 8 <= common) keep(piece, slopes);
        });
        Flows own_flows;
#pragma unroll
        for (int term = 0; term < TERMS; term++) {
            if (is_balanced(kind_of(term))) continue;
            own_flows.flow[term] = sum_of_block(flow[term], sums_room);
        }
        tell(own_flows, all_flows, rank);
        meet();
#pragma unroll
        for (int term = 0; term < TERMS; term++) {
            if (is_balanced(kind_of(term))) continue;
            flow[term] = 0.0f;
            for (int i = 0; i < CLUSTER; i++) flow[term] += all_flows[i].flow[term];
        }
    }
#endif
#if GRADIENT
    float label_factor = LABELS ? settings->label_factor : 0.0f, cap = settings->soft_cap, label_log = whole_log * LOG2E;
    each_piece(member, (int)stored, !needs_flows, [&](int piece, int at) {
        float a[8], b[8], g[8];
        // What is held ends with the columns that both have. Columns beyond the valid ones have the lowest of logits and add nothing.
        int within = valid == common ? 8 : common - at;
        if (valid == common) see(piece, 0, s_row, 2, at, common, a);
        else read8(s_row, 2, at, valid, a);
#if TEACHER
        bool is_kept = KEEPS && at + 8 <= common;
        if (is_kept) kept(piece, b);
        else see(piece, 1, t_row, TEACHER_TYPE, at, common, b);
#endif
#pragma unroll
        for (int i = 0; i < 8; i++) {
            g[i] = 0.0f;
            if (LABELS) {
                g[i] = label_factor * exp2_fast(a[i] * LOG2E - label_log);
                if (at + i == label) g[i] -= label_factor;
            }
#if TEACHER
            if (i < within) {
#pragma unroll
                for (int term = 0; term < TERMS; term++) {
                    int kind = kind_of(term), stat = stat_of(term);
                    if (kind == LOGITS_MSE) {
                        float d = at + i < common ? difference(scene, stat, a[i], b[i]) : 0.0f;
                        value[term] += d * d;
                        g[i] += factor[term] * 2.0f * d / (float)common;
                        continue;
                    }
                    if (is_kept) {
                        g[i] += factor[term] * exp2_fast(a[i] * scene.scale[stat] - scene.s_log[stat]) * (b[i] - flow[term]);
                        continue;
                    }
                    Point x = point(scene, stat, TARGET, a[i], b[i]);
                    if (is_balanced(kind)) {
                        value[term] += part_of(kind, parameter[term], x);
                        g[i] += factor[term] * (x.q - x.p);
                    } else {
                        g[i] += factor[term] * x.q * (slope_of(kind, parameter[term], x) - flow[term]);
                    }
                }
            }
#endif
            if (cap > 0.0f && at + i < valid) g[i] *= 1.0f - (a[i] / cap) * (a[i] / cap);
        }
#if ALIGNED
        store8(s_row, at, 2, g);
#else
        for (int i = 0; i < 8; i++) if (at + i < stored) s_row[at + i] = to_bf16(g[i]);
#endif
    });
#endif
    Values own_values;
#pragma unroll
    for (int term = 0; term < TERMS; term++) own_values.value[term] = sum_of_block(value[term], sums_room);
    if (!GRADIENT && TEACHER) {
        forward = sum_of_block(forward, sums_room);
        reverse = sum_of_block(reverse, sums_room);
    }
    own_values.forward = forward;
    own_values.reverse = reverse;
    tell(own_values, all_values, rank);
    // Blocks stay until nobody writes into them any more.
    meet();
    if (member == 0) {
#pragma unroll
        for (int term = 0; term < TERMS; term++) {
            float sum = 0.0f;
            for (int i = 0; i < CLUSTER; i++) sum += all_values[i].value[term];
            if (kind_of(term) == LOGITS_MSE) sum /= (float)common;
            sum = whole_of(kind_of(term), parameter[term], sum, flow[term]);
            if (sum > 1e20f) sum = __int_as_float(0x7f800000);
            values[term] = sum * settings->value_factor[term] * value_unit(kind_of(term));
        }
        forward = reverse = 0.0f;
        for (int i = 0; i < CLUSTER; i++) {
            forward += all_values[i].forward;
            reverse += all_values[i].reverse;
        }
        values[TERMS] = cross_entropy;
        values[TERMS + 1] = whole.at == (int)label ? 1.0f : 0.0f;
        values[TERMS + 2] = TEACHER && z.at == s.at ? 1.0f : 0.0f;
        values[TERMS + 3] = forward > 1e20f ? __int_as_float(0x7f800000) : forward * value_unit(FORWARD);
        values[TERMS + 4] = reverse * value_unit(REVERSE);
    }
}
