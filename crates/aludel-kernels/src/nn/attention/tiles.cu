// Tiles of attention: 4 warps multiply bf16 in pieces of 16 x 8 x 16. Defined before: WIDTH, E; PADDED, E rounded up to a multiple of 16.
// A tile lies in shared memory row by row, PITCH elements from row to row, so that no two rows of a piece share banks.
#define PITCH (PADDED + 8)
#define THREADS 128

extern __shared__ __align__(16) unsigned char shared_bytes[];

// 16 rows and 16 columns from (row, column) on, as the left operand.
__device__ __forceinline__ void left(u32 a[4], u32 tile, int row, int column) {
    int lane = threadIdx.x & 31;
    row += (lane & 7) + (lane & 8);
    column += (lane >> 4) * 8;
    load_pieces(a, tile + 2 * (row * PITCH + column));
}

// Right operands of two pieces: rows of the tile are the product's columns. b[0], b[1] of the first eight, b[2], b[3] of the next.
__device__ __forceinline__ void right(u32 b[4], u32 tile, int row, int column) {
    int lane = threadIdx.x & 31;
    row += (lane & 7) + (lane >> 4) * 8;
    column += lane & 8;
    load_pieces(b, tile + 2 * (row * PITCH + column));
}

// As above where rows of the tile are what is summed over.
__device__ __forceinline__ void right_turned(u32 b[4], u32 tile, int row, int column) {
    int lane = threadIdx.x & 31;
    row += (lane & 7) + (lane & 8);
    column += (lane >> 4) * 8;
    load_turned(b, tile + 2 * (row * PITCH + column));
}

// Starts copying `rows` rows, `stride` elements apart, into a tile of `most`; the others, and columns from WIDTH on, become zeros.
__device__ __forceinline__ void fetch(u32 tile, const half_bits* from, i64 stride, int rows, int most) {
    const int pieces = PADDED / 8;
    for (int at = threadIdx.x; at < most * pieces; at += THREADS) {
        int row = at / pieces, column = (at % pieces) * 8;
        bool is_there = row < rows && column < WIDTH;
        const half_bits* source = is_there ? from + row * stride + column : from;
        int bytes = is_there ? 16 : 0;
        bring16_of(tile + 2 * (row * PITCH + column), source, bytes);
    }
}

// Writes 16 x 8 pieces of a warp's rows, from column 0 on; `factor` for rows of the upper and of the lower half.
template <int PIECES>
__device__ __forceinline__ void put_rows(float (*x)[4], half_bits* to, i64 stride, int row, int rows, float upper, float lower) {
    int lane = threadIdx.x & 31;
    row += lane >> 2;
#pragma unroll
    for (int j = 0; j < PIECES; j++) {
        int column = 8 * j + 2 * (lane & 3);
        if (column < WIDTH) {
            if (row < rows) *(u32*)(to + row * stride + column) = pack(x[j][0] * upper, x[j][1] * upper);
            if (row + 8 < rows) *(u32*)(to + (row + 8) * stride + column) = pack(x[j][2] * lower, x[j][3] * lower);
        }
    }
}
