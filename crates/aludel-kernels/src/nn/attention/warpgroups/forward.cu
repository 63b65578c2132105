// Attention forward on warpgroups: as `../forward.cu`, 64 queries to each of them. While one takes exponentials of the next scores, its last
// weights are multiplied by values.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention(
    const int4* tiles, const half_bits* q, const half_bits* k, const half_bits* v, half_bits* y, float* lse,
    int heads, int key_heads, float scale, int window, float cap
) {
    const int QUERIES = 64 * GROUPS;
    int4 tile = tiles[blockIdx.y];
    int head = blockIdx.x, key_head = head / (heads / key_heads);
    int own = (threadIdx.x >> 7) * 64, lane = threadIdx.x & 31;
    i64 q_stride = (i64)heads * WIDTH, k_stride = (i64)key_heads * WIDTH;
    q += (i64)tile.x * q_stride + head * WIDTH;
    y += (i64)tile.x * q_stride + head * WIDTH;
    k += (i64)tile.z * k_stride + key_head * WIDTH;
    v += (i64)tile.z * k_stride + key_head * WIDTH;
    int rows = tile.y, limit = tile.w, end = limit + rows;
    int begin = window > 0 ? max(0, limit - window + 1) / KEYS * KEYS : 0;
    // Turns over keys: of the block, and of this warpgroup, whose last query sees no more.
    int turns = (end - begin + KEYS - 1) / KEYS;
    int own_turns = own < rows ? (min(end, limit + own + 64) - begin + KEYS - 1) / KEYS : 0;

    u32 q_tile = shared_address(shared_bytes), k_tiles = q_tile + TILE(QUERIES), v_tiles = k_tiles + 2 * TILE(KEYS);
    auto bring_keys = [&](int turn) {
        int first = begin + turn * KEYS;
        if (turn < turns) bring<KEYS>(k_tiles + (turn & 1) * TILE(KEYS), k + first * k_stride, k_stride, end - first);
    };
    auto bring_values = [&](int turn) {
        int first = begin + turn * KEYS;
        if (turn < turns) bring<KEYS>(v_tiles + (turn & 1) * TILE(KEYS), v + first * k_stride, k_stride, end - first);
    };
    bring<QUERIES>(q_tile, q, q_stride, rows);
    bring_keys(0);
    fetched();
    bring_keys(1);
    bring_values(0);
    fetched();

    u32 own_tile = q_tile + own * 128;
    int row = own + (threadIdx.x >> 5 & 3) * 16 + (lane >> 2);
    float out[WIDTH / 2] = {}, s[KEYS / 2], most[2] = {NONE, NONE}, sum[2] = {0.0f, 0.0f}, shrink[2];
    u32 weights[KEYS / 16][4];
    // Scores become weights, and `shrink` what earlier weights are worth beside them.
    auto soften = [&](int turn) {
        int first = begin + turn * KEYS;
        bool is_whole = first + KEYS - 1 <= limit + own && (window <= 0 || first > limit + own + 63 - window);
        float factor = scale * LOG2E, top[2] = {most[0], most[1]};
#if SOFT_CAP
        factor = 1.0f;
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            float slope;
            s[i] = score(s[i], scale, cap, &slope);
        }
#endif
        if (!is_whole) {
#pragma unroll
            for (int i = 0; i < KEYS / 2; i++) {
                int last = limit + row + 8 * (i >> 1 & 1), key = first + 8 * (i >> 2) + 2 * (lane & 3) + (i & 1);
                if (key > last || (window > 0 && key <= last - window)) s[i] = NONE;
            }
        }
        float less[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int i = 2 * half; i < KEYS / 2; i += 4) top[half] = fmaxf(top[half], fmaxf(s[i], s[i + 1]));
            top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffffu, top[half], 1));
            top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffffu, top[half], 2));
            less[half] = top[half] == NONE ? 0.0f : top[half] * factor;
            shrink[half] = exp2_fast(most[half] * factor - less[half]);
            most[half] = top[half];
            sum[half] *= shrink[half];
        }
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            s[i] = exp2_fast(s[i] * factor - less[i >> 1 & 1]);
            sum[i >> 1 & 1] += s[i];
        }
    };

    arrived<1>();
    if (own_turns > 0) {
        products_begin();
        compare<QUERIES>(s, own_tile, k_tiles);
        products_done<0>(s);
        soften(0);
        weigh(weights, s);
    }
    int turn = 0;
    for (; turn + 1 < own_turns; turn++) {
        arrived<0>();
        bring_keys(turn + 2);
        bring_values(turn + 1);
        fetched();
        products_begin();
        compare<QUERIES>(s, own_tile, k_tiles + ((turn + 1) & 1) * TILE(KEYS));
        add_rows<KEYS>(out, weights, v_tiles + (turn & 1) * TILE(KEYS));
        products_done<1>(s);
        soften(turn + 1);
        products_done<0>(out);
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) out[i] *= shrink[i >> 1 & 1];
        weigh(weights, s);
    }
    for (; turn < turns; turn++) {
        arrived<0>();
        bring_keys(turn + 2);
        bring_values(turn + 1);
        fetched();
        if (turn + 1 == own_turns) {
            products_begin();
            add_rows<KEYS>(out, weights, v_tiles + (turn & 1) * TILE(KEYS));
            products_done<0>(out);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
        int at = row + 8 * half;
        float top = SOFT_CAP ? most[half] : most[half] * (scale * LOG2E);
        if ((lane & 3) == 0 && at < rows) lse[(i64)(tile.x + at) * heads + head] = (top + log2f(sum[half])) * LN2;
    }
    put_sums(out, y, q_stride, own, rows, 1.0f / sum[0], 1.0f / sum[1]);
}
