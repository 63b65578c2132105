// The queries' gradient on warpgroups, 64 queries to each: as `../queries.cu`. It also leaves what the gradient of keys and values needs of each query
// and head: pairs[h, t] = the log-sum-exp times log2(e), and dy . y.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_queries(
    const int4* tiles, const half_bits* q, const half_bits* k, const half_bits* v, const half_bits* y, const half_bits* dy,
    const float* lse, float2* pairs, i64 all_rows, half_bits* dq, int heads, int key_heads, float scale, int window, float cap
) {
    const int QUERIES = 64 * GROUPS;
    __shared__ float2 own_pairs[QUERIES];
    int4 tile = tiles[blockIdx.y];
    int head = blockIdx.x, key_head = head / (heads / key_heads);
    int own = (threadIdx.x >> 7) * 64, lane = threadIdx.x & 31;
    i64 q_stride = (i64)heads * WIDTH, k_stride = (i64)key_heads * WIDTH;
    i64 place = (i64)tile.x * q_stride + head * WIDTH;
    q += place; y += place; dy += place; dq += place;
    k += (i64)tile.z * k_stride + key_head * WIDTH;
    v += (i64)tile.z * k_stride + key_head * WIDTH;
    int rows = tile.y, limit = tile.w, end = limit + rows;
    int begin = window > 0 ? max(0, limit - window + 1) / KEYS * KEYS : 0;
    int turns = (end - begin + KEYS - 1) / KEYS;
    int own_turns = own < rows ? (min(end, limit + own + 64) - begin + KEYS - 1) / KEYS : 0;

    u32 q_tile = shared_address(shared_bytes), dy_tile = q_tile + TILE(QUERIES);
    u32 k_tiles = dy_tile + TILE(QUERIES), v_tiles = k_tiles + 2 * TILE(KEYS);
    auto bring_turn = [&](int turn) {
        int first = begin + turn * KEYS;
        if (turn < turns) {
            bring<KEYS>(k_tiles + (turn & 1) * TILE(KEYS), k + first * k_stride, k_stride, end - first);
            bring<KEYS>(v_tiles + (turn & 1) * TILE(KEYS), v + first * k_stride, k_stride, end - first);
        }
        fetched();
    };
    bring<QUERIES>(q_tile, q, q_stride, rows);
    bring<QUERIES>(dy_tile, dy, q_stride, rows);
    bring_turn(0);

    // Two threads to a row.
    {
        int at = threadIdx.x / 2;
        const half_bits *a = y + at * q_stride + (threadIdx.x & 1) * 8, *b = dy + at * q_stride + (threadIdx.x & 1) * 8;
        float dot = 0.0f;
        if (at < rows) {
#pragma unroll
            for (int i = 0; i < WIDTH; i += 16) {
                float c[8], d[8];
                load8(a, i, 2, c);
                load8(b, i, 2, d);
                for (int j = 0; j < 8; j++) dot += c[j] * d[j];
            }
        }
        dot += __shfl_xor_sync(0xffffffffu, dot, 1);
        if ((threadIdx.x & 1) == 0) {
            float2 pair = make_float2(at < rows ? lse[(i64)(tile.x + at) * heads + head] * LOG2E : 0.0f, dot);
            own_pairs[at] = pair;
            if (at < rows) pairs[head * all_rows + tile.x + at] = pair;
        }
    }

    u32 own_q = q_tile + own * 128, own_dy = dy_tile + own * 128;
    int row = own + (threadIdx.x >> 5 & 3) * 16 + (lane >> 2);
    float out[WIDTH / 2] = {}, s[KEYS / 2], ds[KEYS / 2];
    u32 weights[KEYS / 16][4];
    float2 pair[2];
    int turn = 0;
    for (; turn < own_turns; turn++) {
        arrived<0>();
        bring_turn(turn + 1);
        if (turn == 0) pair[0] = own_pairs[row], pair[1] = own_pairs[row + 8];
        u32 k_tile = k_tiles + (turn & 1) * TILE(KEYS);
        products_begin();
        compare<QUERIES>(s, own_q, k_tile);
        compare<QUERIES>(ds, own_dy, v_tiles + (turn & 1) * TILE(KEYS));
        products_done<1>(s);
        int first = begin + turn * KEYS;
        bool is_whole = first + KEYS - 1 <= limit + own && (window <= 0 || first > limit + own + 63 - window);
#if SOFT_CAP
        float slopes[KEYS / 2];
#endif
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
#if SOFT_CAP
            s[i] = exp2_fast(score(s[i], scale, cap, &slopes[i]) - pair[i >> 1 & 1].x);
#else
            s[i] = exp2_fast(s[i] * (scale * LOG2E) - pair[i >> 1 & 1].x);
#endif
        }
        if (!is_whole) {
#pragma unroll
            for (int i = 0; i < KEYS / 2; i++) {
                int last = limit + row + 8 * (i >> 1 & 1), key = first + 8 * (i >> 2) + 2 * (lane & 3) + (i & 1);
                if (key > last || (window > 0 && key <= last - window)) s[i] = 0.0f;
            }
        }
        products_done<0>(ds);
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            ds[i] = s[i] * (ds[i] - pair[i >> 1 & 1].y);
#if SOFT_CAP
            ds[i] *= slopes[i];
#endif
        }
        weigh(weights, ds);
        products_begin();
        add_rows<KEYS>(out, weights, k_tile);
        products_done<0>(out);
    }
    for (; turn < turns; turn++) {
        arrived<0>();
        bring_turn(turn + 1);
    }
    put_sums(out, dq, q_stride, own, rows, scale, scale);
}
