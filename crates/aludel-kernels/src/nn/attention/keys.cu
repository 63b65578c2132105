// The gradient of keys and values. A block has 64 * PARTS keys of one head, and goes over the queries of all heads that see them, QUERIES at a
// time. A tile is eight numbers: first key, keys, place of the first within its span, first query of the span, queries of the
// span, and how far a query's last key is ahead of its own place.
extern "C" __global__ void __launch_bounds__(THREADS) attention_keys(
    const int* tiles, const half_bits* q, const half_bits* k, const half_bits* v, const half_bits* dy, const float* lse,
    const float* dots, half_bits* dk, half_bits* dv, int heads, int key_heads, float scale, int window, float cap
) {
    const int OWN = 64 * PARTS, PIECES = PADDED / 8, STEPS = PADDED / 16, COLUMNS = SEEN / 8;
    const int* tile = tiles + 8 * blockIdx.y;
    int first_key = tile[0], rows = tile[1], place = tile[2], first_query = tile[3], queries = tile[4], shift = tile[5];
    int key_head = blockIdx.x, group = heads / key_heads;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    i64 q_stride = (i64)heads * WIDTH, k_stride = (i64)key_heads * WIDTH;
    i64 own = (i64)first_key * k_stride + key_head * WIDTH;
    q += (i64)first_query * q_stride + (i64)key_head * group * WIDTH;
    dy += (i64)first_query * q_stride + (i64)key_head * group * WIDTH;
    lse += (i64)first_query * heads + key_head * group;
    dots += (i64)first_query * heads + key_head * group;
    int begin = max(0, place - shift) / SEEN * SEEN;
    int end = window > 0 ? min(queries, place + rows - 1 + window - shift) : queries;
    int turns = max(0, (end - begin + SEEN - 1) / SEEN), all = turns * group;

    u32 k_tile = shared_address(shared_bytes), v_tile = k_tile + 2 * OWN * PITCH;
    u32 q_tiles = v_tile + 2 * OWN * PITCH, dy_tiles = q_tiles + 2 * 2 * SEEN * PITCH;
    float* sums = (float*)(shared_bytes + 2 * (2 * OWN + 4 * SEEN) * PITCH);
    fetch(k_tile, k + own, k_stride, rows, OWN);
    fetch(v_tile, v + own, k_stride, rows, OWN);

    auto bring = [&](int turn, int stage) {
        int head = turn / turns, at = begin + turn % turns * SEEN;
        u32 offset = 2 * stage * SEEN * PITCH;
        fetch(q_tiles + offset, q + at * q_stride + head * WIDTH, q_stride, end - at, SEEN);
        fetch(dy_tiles + offset, dy + at * q_stride + head * WIDTH, q_stride, end - at, SEEN);
        fetched();
        for (int i = threadIdx.x; i < SEEN; i += THREADS) {
            bool is_there = at + i < end;
            i64 place = (i64)(at + i) * heads + head;
            sums[2 * (stage * SEEN + i)] = is_there ? lse[place] * LOG2E : 0.0f;
            sums[2 * (stage * SEEN + i) + 1] = is_there ? dots[place] : 0.0f;
        }
    };
    if (all > 0) bring(0, 0);
    else fetched();

    float k_out[PARTS][PIECES][4] = {}, v_out[PARTS][PIECES][4] = {};
    for (int turn = 0; turn < all; turn++) {
        int stage = turn & 1;
        if (turn + 1 < all) {
            bring(turn + 1, stage ^ 1);
            wait<1>();
        } else {
            wait<0>();
        }
        __syncthreads();
        int first = begin + turn % turns * SEEN;
        u32 q_tile = q_tiles + 2 * stage * SEEN * PITCH, dy_tile = dy_tiles + 2 * stage * SEEN * PITCH;
        float s[PARTS][COLUMNS][4] = {}, ds[PARTS][COLUMNS][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            u32 a[PARTS][4], c[PARTS][4];
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                left(a[p], k_tile, (warp * PARTS + p) * 16, 16 * step);
                left(c[p], v_tile, (warp * PARTS + p) * 16, 16 * step);
            }
#pragma unroll
            for (int j = 0; j < COLUMNS; j += 2) {
                u32 b[4], d[4];
                right(b, q_tile, 8 * j, 16 * step);
                right(d, dy_tile, 8 * j, 16 * step);
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    multiply(s[p][j], a[p], b[0], b[1]);
                    multiply(s[p][j + 1], a[p], b[2], b[3]);
                    multiply(ds[p][j], c[p], d[0], d[1]);
                    multiply(ds[p][j + 1], c[p], d[2], d[3]);
                }
            }
        }
        // Every query of the tile is there, sees all keys of the block, and none is beyond its window.
        bool is_whole = first + SEEN <= end && first + shift >= place + OWN - 1
            && (window <= 0 || place > first + SEEN - 1 + shift - window);
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            int row = place + (warp * PARTS + p) * 16 + (lane >> 2);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int column = 8 * j + 2 * (lane & 3) + (i & 1);
                    int key = row + 8 * (i >> 1), query = first + column, last = query + shift;
                    float slope;
                    float x = score(s[p][j][i], scale, cap, &slope);
                    if (!is_whole && (query >= end || key > last || (window > 0 && key <= last - window))) x = NONE;
                    float2 row_sums = *(const float2*)(sums + 2 * (stage * SEEN + column));
                    s[p][j][i] = exp2_fast(x - row_sums.x);
                    ds[p][j][i] = s[p][j][i] * (ds[p][j][i] - row_sums.y) * slope;
                }
            }
        }
#pragma unroll
        for (int step = 0; step < SEEN / 16; step++) {
            u32 a[PARTS][4], c[PARTS][4];
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int j = 2 * step + (i >> 1), e = 2 * (i & 1);
                    a[p][i] = pack(s[p][j][e], s[p][j][e + 1]);
                    c[p][i] = pack(ds[p][j][e], ds[p][j][e + 1]);
                }
            }
#pragma unroll
            for (int j = 0; j < PIECES; j += 2) {
                u32 b[4], d[4];
                right_turned(b, dy_tile, 16 * step, 8 * j);
                right_turned(d, q_tile, 16 * step, 8 * j);
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    multiply(v_out[p][j], a[p], b[0], b[1]);
                    multiply(v_out[p][j + 1], a[p], b[2], b[3]);
                    multiply(k_out[p][j], c[p], d[0], d[1]);
                    multiply(k_out[p][j + 1], c[p], d[2], d[3]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        int row = (warp * PARTS + p) * 16;
        put_rows<PIECES>(k_out[p], dk + own, k_stride, row, rows, scale, scale);
        put_rows<PIECES>(v_out[p], dv + own, k_stride, row, rows, 1.0f, 1.0f);
    }
}
