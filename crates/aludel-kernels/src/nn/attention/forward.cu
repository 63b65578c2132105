// Attention forward. A block has 64 * PARTS queries of one head, and goes over the keys that they see, KEYS at a time. A tile of the table is:
// first query, queries, first key of the span, and the last key, counted within the span, that the first query sees.
extern "C" __global__ void __launch_bounds__(THREADS) attention(
    const int4* tiles, const half_bits* q, const half_bits* k, const half_bits* v, half_bits* y, float* lse,
    int heads, int key_heads, float scale, int window, float cap
) {
    const int QUERIES = 64 * PARTS, PIECES = PADDED / 8, STEPS = PADDED / 16, COLUMNS = KEYS / 8;
    int4 tile = tiles[blockIdx.y];
    int head = blockIdx.x, key_head = head / (heads / key_heads);
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    i64 q_stride = (i64)heads * WIDTH, k_stride = (i64)key_heads * WIDTH;
    q += (i64)tile.x * q_stride + head * WIDTH;
    y += (i64)tile.x * q_stride + head * WIDTH;
    k += (i64)tile.z * k_stride + key_head * WIDTH;
    v += (i64)tile.z * k_stride + key_head * WIDTH;
    int rows = tile.y, limit = tile.w, end = limit + rows;
    int begin = window > 0 ? max(0, limit - window + 1) / KEYS * KEYS : 0;

    u32 q_tile = shared_address(shared_bytes);
    u32 k_tiles = q_tile + 2 * QUERIES * PITCH, v_tiles = k_tiles + 2 * 2 * KEYS * PITCH;
    fetch(q_tile, q, q_stride, rows, QUERIES);
    fetch(k_tiles, k + begin * k_stride, k_stride, end - begin, KEYS);
    fetch(v_tiles, v + begin * k_stride, k_stride, end - begin, KEYS);
    fetched();

    float out[PARTS][PIECES][4] = {}, most[PARTS][2], sum[PARTS][2];
#pragma unroll
    for (int p = 0; p < PARTS; p++) most[p][0] = most[p][1] = NONE, sum[p][0] = sum[p][1] = 0.0f;
    int stage = 0;
    for (int first = begin; first < end; first += KEYS, stage ^= 1) {
        int next = first + KEYS;
        if (next < end) {
            u32 other = 2 * (stage ^ 1) * KEYS * PITCH;
            fetch(k_tiles + other, k + next * k_stride, k_stride, end - next, KEYS);
            fetch(v_tiles + other, v + next * k_stride, k_stride, end - next, KEYS);
            fetched();
            wait<1>();
        } else {
            wait<0>();
        }
        __syncthreads();
        u32 k_tile = k_tiles + 2 * stage * KEYS * PITCH, v_tile = v_tiles + 2 * stage * KEYS * PITCH;
        float s[PARTS][COLUMNS][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            u32 a[PARTS][4];
#pragma unroll
            for (int p = 0; p < PARTS; p++) left(a[p], q_tile, (warp * PARTS + p) * 16, 16 * step);
#pragma unroll
            for (int j = 0; j < COLUMNS; j += 2) {
                u32 b[4];
                right(b, k_tile, 8 * j, 16 * step);
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    multiply(s[p][j], a[p], b[0], b[1]);
                    multiply(s[p][j + 1], a[p], b[2], b[3]);
                }
            }
        }
        bool is_whole = next - 1 <= limit && (window <= 0 || first > end - 1 - window);
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            int row = (warp * PARTS + p) * 16 + (lane >> 2);
            float top[2] = {most[p][0], most[p][1]};
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float slope;
                    float x = score(s[p][j][i], scale, cap, &slope);
                    int last = limit + row + 8 * (i >> 1), key = first + 8 * j + 2 * (lane & 3) + (i & 1);
                    if (!is_whole && (key > last || (window > 0 && key <= last - window))) x = NONE;
                    s[p][j][i] = x;
                    top[i >> 1] = fmaxf(top[i >> 1], x);
                }
            }
            float less[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffu, top[i], 1));
                top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffu, top[i], 2));
                less[i] = top[i] == NONE ? 0.0f : top[i];
                float shrink = exp2_fast(most[p][i] - less[i]);
                most[p][i] = top[i];
                sum[p][i] *= shrink;
#pragma unroll
                for (int j = 0; j < PIECES; j++) out[p][j][2 * i] *= shrink, out[p][j][2 * i + 1] *= shrink;
            }
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    s[p][j][i] = exp2_fast(s[p][j][i] - less[i >> 1]);
                    sum[p][i >> 1] += s[p][j][i];
                }
            }
        }
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            u32 a[PARTS][4];
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
#pragma unroll
                for (int i = 0; i < 4; i++)
                    a[p][i] = pack(s[p][2 * step + (i >> 1)][2 * (i & 1)], s[p][2 * step + (i >> 1)][2 * (i & 1) + 1]);
            }
#pragma unroll
            for (int j = 0; j < PIECES; j += 2) {
                u32 b[4];
                right_turned(b, v_tile, 16 * step, 8 * j);
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    multiply(out[p][j], a[p], b[0], b[1]);
                    multiply(out[p][j + 1], a[p], b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        int row = (warp * PARTS + p) * 16;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sum[p][i] += __shfl_xor_sync(0xffffffffu, sum[p][i], 1);
            sum[p][i] += __shfl_xor_sync(0xffffffffu, sum[p][i], 2);
            int at = row + (lane >> 2) + 8 * i;
            if ((lane & 3) == 0 && at < rows)
                lse[(i64)(tile.x + at) * heads + head] = (most[p][i] + log2f(sum[p][i])) * LN2;
        }
        put_rows<PIECES>(out[p], y, q_stride, row, rows, 1.0f / sum[p][0], 1.0f / sum[p][1]);
    }
}
