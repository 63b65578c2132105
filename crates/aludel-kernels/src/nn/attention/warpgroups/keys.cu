// The gradient of keys and values on warpgroups, 64 keys to each: as `../keys.cu`, from pairs of numbers that `queries.cu` has left.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_keys(
    const int* tiles, const half_bits* q, const half_bits* k, const half_bits* v, const half_bits* dy, const float2* pairs,
    i64 all_rows, half_bits* dk, half_bits* dv, int heads, int key_heads, float scale, int window, float cap
) {
    const int OWN = 64 * GROUPS;
    const int* tile = tiles + 8 * blockIdx.y;
    int first_key = tile[0], rows = tile[1], place = tile[2], first_query = tile[3], queries = tile[4], shift = tile[5];
    int key_head = blockIdx.x, group = heads / key_heads;
    int own = (threadIdx.x >> 7) * 64, lane = threadIdx.x & 31;
    i64 q_stride = (i64)heads * WIDTH, k_stride = (i64)key_heads * WIDTH;
    i64 own_place = (i64)first_key * k_stride + key_head * WIDTH;
    q += (i64)first_query * q_stride + (i64)key_head * group * WIDTH;
    dy += (i64)first_query * q_stride + (i64)key_head * group * WIDTH;
    pairs += first_query + key_head * group * all_rows;
    int begin = max(0, place - shift) / SEEN * SEEN;
    int end = window > 0 ? min(queries, place + rows - 1 + window - shift) : queries;
    int turns = max(0, (end - begin + SEEN - 1) / SEEN), all = turns * group;

    u32 k_tile = shared_address(shared_bytes), v_tile = k_tile + TILE(OWN);
    u32 q_tiles = v_tile + TILE(OWN), dy_tiles = q_tiles + 2 * TILE(SEEN), pair_tiles = dy_tiles + 2 * TILE(SEEN);
    const float2* pairs_there = (const float2*)(shared_bytes + 2 * TILE(OWN) + 4 * TILE(SEEN));
    int next_head = 0, next_at = begin;
    auto bring_turn = [&](int turn) {
        if (turn < all) {
            int at = next_at, there = end - at, stage = turn & 1;
            bring<SEEN>(q_tiles + stage * TILE(SEEN), q + at * q_stride + next_head * WIDTH, q_stride, there);
            bring<SEEN>(dy_tiles + stage * TILE(SEEN), dy + at * q_stride + next_head * WIDTH, q_stride, there);
            if (threadIdx.x < SEEN) {
                const float2* from = pairs + next_head * all_rows + at + (threadIdx.x < there ? threadIdx.x : 0);
                bring8_of(pair_tiles + 8 * (stage * SEEN + threadIdx.x), from, threadIdx.x < there ? 8 : 0);
            }
            next_at += SEEN;
            if (next_at >= end) next_at = begin, next_head++;
        }
        fetched();
    };
    bring<OWN>(k_tile, k + own_place, k_stride, rows);
    bring<OWN>(v_tile, v + own_place, k_stride, rows);
    bring_turn(0);

    u32 own_k = k_tile + own * 128, own_v = v_tile + own * 128;
    int row = place + own + (threadIdx.x >> 5 & 3) * 16 + (lane >> 2);
    float k_out[WIDTH / 2] = {}, v_out[WIDTH / 2] = {}, s[SEEN / 2], ds[SEEN / 2];
    u32 weights[SEEN / 16][4], d_weights[SEEN / 16][4];
    // Turns of a head whose queries are all ahead of these keys, which see none of them.
    int turn = 0, skipped = own < rows ? min(turns, max(0, place + own - shift - begin) / SEEN) : turns;
    for (int head = 0; head < group; head++) {
        for (int i = 0; i < skipped; i++, turn++) {
            arrived<0>();
            bring_turn(turn + 1);
        }
        for (int first = begin + skipped * SEEN; first < end; first += SEEN, turn++) {
            arrived<0>();
            bring_turn(turn + 1);
            int stage = turn & 1;
            u32 q_tile = q_tiles + stage * TILE(SEEN), dy_tile = dy_tiles + stage * TILE(SEEN);
            products_begin();
            compare<OWN>(s, own_k, q_tile);
            compare<OWN>(ds, own_v, dy_tile);
            products_done<1>(s);
            bool is_whole = first + SEEN <= end && first + shift >= place + own + 63
                && (window <= 0 || place + own > first + SEEN - 1 + shift - window);
            const float4* there = (const float4*)(pairs_there + stage * SEEN) + (lane & 3);
#if SOFT_CAP
            float slopes[SEEN / 2];
#endif
#pragma unroll
            for (int j = 0; j < SEEN / 8; j++) {
                float4 two = there[4 * j];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float& x = s[4 * j + i];
                    float log_sum = i & 1 ? two.z : two.x;
#if SOFT_CAP
                    x = exp2_fast(score(x, scale, cap, &slopes[4 * j + i]) - log_sum);
#else
                    x = exp2_fast(x * (scale * LOG2E) - log_sum);
#endif
                }
            }
            if (!is_whole) {
#pragma unroll
                for (int i = 0; i < SEEN / 2; i++) {
                    int key = row + 8 * (i >> 1 & 1), query = first + 8 * (i >> 2) + 2 * (lane & 3) + (i & 1), last = query + shift;
                    if (query >= end || key > last || (window > 0 && key <= last - window)) s[i] = 0.0f;
                }
            }
            weigh(weights, s);
            products_begin();
            add_rows<SEEN>(v_out, weights, dy_tile);
            products_done<1>(ds);
#pragma unroll
            for (int j = 0; j < SEEN / 8; j++) {
                float4 two = there[4 * j];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float& x = ds[4 * j + i];
                    u32 word = weights[j / 2][j % 2 * 2 + i / 2];
                    x = (i & 1 ? high(word) : low(word)) * (x - (i & 1 ? two.w : two.y));
#if SOFT_CAP
                    x *= slopes[4 * j + i];
#endif
                }
            }
            weigh(d_weights, ds);
            products_begin();
            add_rows<SEEN>(k_out, d_weights, q_tile);
            products_done<0>(k_out);
            products_done<0>(v_out);
        }
    }
    put_sums(k_out, dk + own_place, k_stride, own, rows, scale, scale);
    put_sums(v_out, dv + own_place, k_stride, own, rows, 1.0f, 1.0f);
}
