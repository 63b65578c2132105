// Norms of wide rows. A block goes over many rows, of which the next is on its way while one is worked on, and keeps a row in registers. CHUNKS
// is printed before: the 2048 columns that a block looks at in one go cover a row so many times, the last in part. `width` is a multiple of eight.
__device__ __forceinline__ float sum_of_eight_warps(float x, float* room) {
    x = sum_of_warp(x);
    if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = x;
    __syncthreads();
    x = 0.0f;
    for (int i = 0; i < 8; i++) x += room[i];
    return x;
}

__device__ __forceinline__ void gains(const void* weight, int type, int one_plus, int column, int width, float gain[CHUNKS][8]) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        for (int i = 0; i < 8; i++) gain[c][i] = 0.0f;
        if (column + 2048 * c < width) load8(weight, column + 2048 * c, type, gain[c]);
        if (one_plus) for (int i = 0; i < 8; i++) gain[c][i] += 1.0f;
    }
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_wide(
    const half_bits* x, const void* weight, int type, half_bits* y, float* rstd, i64 rows, int width, float epsilon, int one_plus
) {
    __shared__ float room[2][8];
    float gain[CHUNKS][8];
    uint4 next[CHUNKS];
    int column = 8 * threadIdx.x, turn = 0;
    auto ask = [&](i64 row) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
            if (row < rows && column + 2048 * c < width) next[c] = *(const uint4*)(x + row * width + column + 2048 * c);
    };
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) next[c] = make_uint4(0, 0, 0, 0);
    ask(blockIdx.x);
    gains(weight, type, one_plus, column, width, gain);
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
        float v[CHUNKS][8], sum = 0.0f;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            unpack8(next[c], v[c]);
            for (int i = 0; i < 8; i++) sum += v[c][i] * v[c][i];
        }
        ask(row + gridDim.x);
        sum = sum_of_eight_warps(sum, room[turn]);
        float r = 1.0f / sqrtf(sum / (float)width + epsilon);
        if (threadIdx.x == 0) rstd[row] = r;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            if (column + 2048 * c >= width) continue;
            for (int i = 0; i < 8; i++) v[c][i] *= r * gain[c][i];
            store8(y + row * width, column + 2048 * c, 2, v[c]);
        }
    }
}

// The gradient together with that of the weight, whose columns' sums stay in registers as well: sums[block, column].
extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_sums(
    const half_bits* x, const void* weight, int type, const float* rstd, const half_bits* dy, half_bits* dx,
    i64 rows, int width, int one_plus, int adds, float* sums
) {
    __shared__ float room[2][8];
    float gain[CHUNKS][8], total[CHUNKS][8] = {};
    uint4 next_x[CHUNKS], next_dy[CHUNKS];
    float next_r = 0.0f;
    int column = 8 * threadIdx.x, turn = 0;
    // What the next row needs is on its way while this one is worked on.
    auto ask = [&](i64 row) {
        if (row < rows) next_r = rstd[row];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            int at = column + 2048 * c;
            if (row >= rows || at >= width) continue;
            next_x[c] = *(const uint4*)(x + row * width + at);
            next_dy[c] = *(const uint4*)(dy + row * width + at);
        }
    };
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) next_x[c] = next_dy[c] = make_uint4(0, 0, 0, 0);
    gains(weight, type, one_plus, column, width, gain);
    ask(blockIdx.x);
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
        float v[CHUNKS][8], d[CHUNKS][8], sum = 0.0f, r = next_r;
        uint4 before[CHUNKS];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            unpack8(next_x[c], v[c]);
            unpack8(next_dy[c], d[c]);
            if (adds && column + 2048 * c < width) before[c] = *(const uint4*)(dx + row * width + column + 2048 * c);
            for (int i = 0; i < 8; i++) {
                sum += d[c][i] * gain[c][i] * v[c][i];
                total[c][i] += d[c][i] * v[c][i] * r;
            }
        }
        ask(row + gridDim.x);
        sum = sum_of_eight_warps(sum, room[turn]);
        float k = r * r * sum / (float)width;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            int at = column + 2048 * c;
            if (at >= width) continue;
            for (int i = 0; i < 8; i++) v[c][i] = r * (d[c][i] * gain[c][i] - v[c][i] * k);
            if (adds) {
                float b[8];
                unpack8(before[c], b);
                for (int i = 0; i < 8; i++) v[c][i] += b[i];
            }
            store8(dx + row * width, at, 2, v[c]);
        }
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int at = column + 2048 * c;
        if (at < width) store8(sums + (i64)blockIdx.x * width, at, 0, total[c]);
    }
}
