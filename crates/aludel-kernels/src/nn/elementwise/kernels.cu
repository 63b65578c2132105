// Copies, sums and scalings of dense arrays. `n` elements, eight to a thread; aligned says whether both arrays are for eight at once.

extern "C" __global__ void convert(const void* from, int from_type, void* to, int to_type, i64 n, int aligned) {
    i64 at = 8 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
    if (at >= n) return;
    if (aligned && at + 8 <= n) {
        float v[8];
        load8(from, at, from_type, v);
        store8(to, at, to_type, v);
    } else {
        for (i64 i = at; i < min(at + 8, n); i++) store(to, i, to_type, load(from, i, from_type));
    }
}

extern "C" __global__ void fill(void* y, int type, float value, i64 n) {
    i64 at = 8 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
    if (at >= n) return;
    float v[8] = {value, value, value, value, value, value, value, value};
    if (at + 8 <= n) store8(y, at, type, v);
    else for (i64 i = at; i < n; i++) store(y, i, type, value);
}

extern "C" __global__ void add(const void* x, int x_type, float scale, void* y, int y_type, i64 n) {
    i64 at = 8 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
    if (at >= n) return;
    if (at + 8 <= n) {
        float a[8], b[8];
        load8(x, at, x_type, a);
        load8(y, at, y_type, b);
        for (int i = 0; i < 8; i++) b[i] += scale * a[i];
        store8(y, at, y_type, b);
    } else {
        for (i64 i = at; i < n; i++) store(y, i, y_type, load(y, i, y_type) + scale * load(x, i, x_type));
    }
}

extern "C" __global__ void scale(void* y, int type, float factor, i64 n) {
    i64 at = 8 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
    for (i64 i = at; i < min(at + 8, n); i++) store(y, i, type, load(y, i, type) * factor);
}

// to[i, :] = from[rows[i], :], or to[rows[i], :] = from[i, :]; one block a row.
extern "C" __global__ void move_rows(const u32* rows, int names_targets, const void* from, int from_type, void* to, int to_type, i64 width) {
    i64 named = rows[blockIdx.x], other = blockIdx.x, source = (names_targets ? other : named) * width, target = (names_targets ? named : other) * width;
    if (width % 8 == 0) {
        for (i64 i = 8 * threadIdx.x; i < width; i += 8 * blockDim.x) {
            float v[8];
            load8(from, source + i, from_type, v);
            store8(to, target + i, to_type, v);
        }
    } else {
        for (i64 i = threadIdx.x; i < width; i += blockDim.x) store(to, target + i, to_type, load(from, source + i, from_type));
    }
}

// y[t, o] += bias[o]
extern "C" __global__ void add_bias(const void* bias, int bias_type, half_bits* y, i64 rows, i64 width) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < rows * width) y[at] = to_bf16(from_bf16(y[at]) + load(bias, at % width, bias_type));
}

// y[t, :] += factors[t] * x[t, :]
extern "C" __global__ void add_rows(const float* factors, const half_bits* x, half_bits* y, i64 rows, i64 width) {
    i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < rows * width) y[at] = to_bf16(from_bf16(y[at]) + factors[at / width] * from_bf16(x[at]));
}

// sums[part, c] = sum over the part's rows of dy[t, c], or of dy[t, c] x[t, c] rstd[t] where there is an x.
// Blocks of 32 pairs of columns by 8 rows.
extern "C" __global__ void sum_columns(const half_bits* dy, const half_bits* x, const float* rstd, i64 rows, i64 width, float* sums) {
    __shared__ float room[8][64];
    int lane = threadIdx.x & 31, row = threadIdx.x >> 5;
    i64 column = 64 * (i64)blockIdx.x + 2 * lane;
    i64 each = (rows + gridDim.y - 1) / gridDim.y, first = each * blockIdx.y, end = min(first + each, rows);
    float a = 0.0f, b = 0.0f;
    bool pair = column + 1 < width, even = (width & 1) == 0;
    for (i64 t = first + row; t < end; t += 8) {
        i64 at = t * width + column;
        float p = 0.0f, q = 0.0f;
        if (pair && even) {
            u32 d = *(const u32*)(dy + at);
            p = low(d); q = high(d);
            if (x) { u32 v = *(const u32*)(x + at); p *= low(v); q *= high(v); }
        } else if (column < width) {
            p = from_bf16(dy[at]);
            if (x) p *= from_bf16(x[at]);
            if (pair) { q = from_bf16(dy[at + 1]); if (x) q *= from_bf16(x[at + 1]); }
        }
        float r = x ? rstd[t] : 1.0f;
        a += p * r;
        b += q * r;
    }
    room[row][2 * lane] = a;
    room[row][2 * lane + 1] = b;
    __syncthreads();
    if (threadIdx.x < 64) {
        i64 c = 64 * (i64)blockIdx.x + threadIdx.x;
        float sum = 0.0f;
        for (int i = 0; i < 8; i++) sum += room[i][threadIdx.x];
        if (c < width) sums[(i64)blockIdx.y * width + c] = sum;
    }
}

// y[c] = or += sum over parts of sums[part, c]. Blocks of 32 columns by 8 parts.
extern "C" __global__ void add_parts(const float* sums, int parts, i64 width, float* y, int adds) {
    __shared__ float room[8][32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    i64 c = 32 * (i64)blockIdx.x + lane;
    float sum = 0.0f;
    if (c < width) {
#pragma unroll 8
        for (int part = warp; part < parts; part += 8) sum += sums[part * width + c];
    }
    room[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= width) return;
    for (int i = 1; i < 8; i++) sum += room[i][lane];
    y[c] = adds ? y[c] + sum : sum;
}

__device__ __forceinline__ double squares(float4 v) { return (double)v.x * v.x + (double)v.y * v.y + (double)v.z * v.z + (double)v.w * v.w; }

__device__ __forceinline__ float4 four_at(const void* x, int type, int at) { return type == 0 ? ((const float4*)x)[at] : four_halves(((const uint2*)x)[at]); }

// sums[piece]: the sums of squares of arrays in f32 or bf16, or of pieces of such, whose addresses, lengths and types stand in a table; one block each.
extern "C" __global__ void sum_squares(const u64* table, double* sums) {
    __shared__ double room[32];
    const void* x = (const void*)table[2 * blockIdx.x];
    u64 word = table[2 * blockIdx.x + 1];
    int n = (int)word, type = (int)(word >> 32), vectors = n / 4;
    double sum = 0.0;
    int i = threadIdx.x;
    // Four at a time, so that more is on its way.
    for (; i + 3 * blockDim.x < vectors; i += 4 * blockDim.x) {
        float4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = four_at(x, type, i + j * blockDim.x);
#pragma unroll
        for (int j = 0; j < 4; j++) sum += squares(v[j]);
    }
    for (; i < vectors; i += blockDim.x) sum += squares(four_at(x, type, i));
    if (threadIdx.x < n % 4) {
        double v = load(x, 4 * vectors + threadIdx.x, type);
        sum += v * v;
    }
    for (int shift = 16; shift > 0; shift >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, shift);
    if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int j = 1; j < blockDim.x / 32; j++) sum += room[j];
        sums[blockIdx.x] = sum;
    }
}

// sums[t] = sum of squares of x[t, :]; one block a row.
extern "C" __global__ void row_energies(const void* x, int type, i64 width, float* sums) {
    __shared__ float room[32];
    float sum = 0.0f;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        float v = load(x, blockIdx.x * width + i, type);
        sum += v * v;
    }
    sum = sum_of_block(sum, room);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
