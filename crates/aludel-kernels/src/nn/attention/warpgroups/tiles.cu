// Tiles of attention for warpgroups, of Hopper's architecture: 128 threads multiply 64 rows at once, the right operand in shared memory and the
// left there or in registers; sums lie in registers as those of `../tiles.cu` do, x[4 * j + i] for its x[j][i]. Defined before: WIDTH, 64 or 128;
// GROUPS, warpgroups of a block; KEYS or SEEN, 64 or 128; SOFT_CAP.
//
// A tile lies in shared memory in slabs of 64 columns, 128 bytes to a row, whose eight pieces of 16 bytes are exchanged by the row's last three bits:
// what the instructions call a swizzle of 128 bytes. Slabs begin at multiples of 1024 bytes.
#define THREADS (128 * GROUPS)
#define SLABS (WIDTH / 64)
#define TILE(rows) ((rows) * WIDTH * 2)

extern __shared__ __align__(1024) unsigned char shared_bytes[];

// A tile of which `rows` rows are in a slab, for 64 columns from the first row of `at` on, or for 16 rows of all columns.
__device__ __forceinline__ u64 described(u32 at, int rows) {
    return (u64)(at >> 4) | (u64)(rows * 128 >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// The scores of 64 rows of a tile of A rows against a tile of COUNT * 2 rows: one group of products.
template <int A, int COUNT>
__device__ __forceinline__ void compare(float (&d)[COUNT], u32 a, u32 b) {
    u64 left = described(a, A), right = described(b, 2 * COUNT);
#pragma unroll
    for (int step = 0; step < WIDTH / 16; step++) {
        int slab = step / 4, within = step % 4 * 2;
        multiply_rows(d, left + slab * (A * 128 >> 4) + within, right + slab * (2 * COUNT * 128 >> 4) + within, step > 0);
    }
    products_end();
}

// Adds weights times the rows of a tile of ROWS: one group of products.
template <int ROWS>
__device__ __forceinline__ void add_rows(float (&d)[WIDTH / 2], const u32 (&weights)[ROWS / 16][4], u32 tile) {
    u64 right = described(tile, ROWS);
#pragma unroll
    for (int step = 0; step < ROWS / 16; step++) add_product(d, weights[step], right + step * (16 * 128 >> 4));
    products_end();
}

// Sums as left operands, rounded.
template <int COUNT>
__device__ __forceinline__ void weigh(u32 (&weights)[COUNT / 8][4], const float (&x)[COUNT]) {
#pragma unroll
    for (int step = 0; step < COUNT / 8; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) weights[step][i] = pack(x[8 * step + 2 * i], x[8 * step + 2 * i + 1]);
    }
}

// Starts copying `rows` rows, `stride` elements apart, into a tile of ROWS; the others become zeros.
template <int ROWS>
__device__ __forceinline__ void bring(u32 tile, const half_bits* from, i64 stride, int rows) {
    const int PIECES = WIDTH / 8, STEP = THREADS / PIECES;
    static_assert(STEP % 8 == 0, "a thread's pieces are exchanged alike in all of its rows");
    int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    const half_bits* source = from + row * stride + 8 * piece;
    u32 to = tile + piece / 8 * (ROWS * 128) + row * 128 + ((piece ^ row) & 7) * 16;
#pragma unroll
    for (int turn = 0; turn < (ROWS + STEP - 1) / STEP; turn++) {
        if (ROWS % STEP != 0 && row >= ROWS) break;
        bool is_there = row < rows;
        bring16_of(to, is_there ? source : from, is_there ? 16 : 0);
        row += STEP, source += STEP * stride, to += STEP * 128;
    }
}

// Every thread's copies but the last N groups are there for all, and for the units for matrices.
template <int N>
__device__ __forceinline__ void arrived() {
    wait<N>();
    handed_over();
    __syncthreads();
}

// Writes a warpgroup's rows; `factor` for rows of the upper and of the lower half. Four threads of a row exchange what they have, so that each
// writes 16 bytes.
__device__ __forceinline__ void put_sums(
    const float (&x)[WIDTH / 2], half_bits* to, i64 stride, int row, int rows, float upper, float lower
) {
    int lane = threadIdx.x & 31, of_four = lane & 3;
    row += (threadIdx.x >> 5 & 3) * 16 + (lane >> 2);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float factor = half == 0 ? upper : lower;
#pragma unroll
        for (int four = 0; four < WIDTH / 32; four++) {
            // words[j]: columns 8 j + 2 of_four and the next, of 32 columns. After both exchanges: columns 8 of_four + 2 j.
            u32 words[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int at = 4 * (4 * four + j) + 2 * half;
                words[j] = pack(x[at] * factor, x[at + 1] * factor);
            }
#pragma unroll
            for (int bit = 1; bit < 4; bit *= 2) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    if (j & bit) continue;
                    bool is_upper = of_four & bit;
                    u32 given = is_upper ? words[j] : words[j | bit];
                    u32 taken = __shfl_xor_sync(0xffffffffu, given, bit);
                    if (is_upper) words[j] = taken; else words[j | bit] = taken;
                }
            }
            if (row + 8 * half < rows)
                *(uint4*)(to + (row + 8 * half) * stride + 32 * four + 8 * of_four) = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
}
