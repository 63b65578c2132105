// Stands in for libcublasLt: products of matrices that lie column after column, by three loops. It has several ways, which add in other orders and say that
// they take other times; where SOFT_CUDA_WRONG_PRODUCT is set, the one that says that it takes least gives something else.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "elements.h"

extern "C" void soft_cuda_spend(double milliseconds);
extern "C" void soft_cuda_submit(void* stream, void (*work)(void*), void (*drop)(void*), void* what);

namespace {

using namespace soft_cuda;

enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, BF16 = 14 };

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
};

struct Description {
    int turns_a = 0, turns_b = 0;
};

struct Algorithm {
    uint64_t data[8];
};

struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

// A way is known by the first word of an algorithm: its place here and one.
struct Way {
    int sums;  // that are added to by turns
    size_t workspace;
    double milliseconds;
    bool is_wrong;
};
const Way WAYS[] = {{8, 0, 4.0, false}, {8, 4096, 1.0, true}, {4, 4096, 2.0, false}, {2, 0, 3.0, false}};
const int COUNT = sizeof WAYS / sizeof *WAYS;

bool is_offered(const Way& way, size_t workspace) {
    return way.workspace <= workspace && (!way.is_wrong || getenv("SOFT_CUDA_WRONG_PRODUCT"));
}

Heuristic answer(int place) { return {{{(uint64_t)place + 1}}, WAYS[place].workspace, SUCCESS, 1.0f, {}}; }

// All of a matrix, rows of what is summed over side by side.
std::vector<float> gathered(const void* at, const Layout& layout, bool is_turned) {
    size_t outer = is_turned ? layout.columns : layout.rows, inner = is_turned ? layout.rows : layout.columns;
    std::vector<float> all(outer * inner);
    for (size_t o = 0; o < outer; o++)
        for (size_t i = 0; i < inner; i++) {
            size_t row = is_turned ? i : o, column = is_turned ? o : i;
            all[o * inner + i] = load(at, layout.type == BF16, column * layout.leading + row);
        }
    return all;
}

struct Product {
    Description description;
    float alpha, beta;
    const void *a, *b, *c;
    void* d;
    Layout of_a, of_b, of_c, of_d;
    Way way;

    void run() const {
        soft_cuda_spend(way.milliseconds);
        std::vector<float> left = gathered(a, of_a, description.turns_a), right = gathered(b, of_b, !description.turns_b);
        size_t m = of_d.rows, n = of_d.columns, k = m == 0 ? 0 : left.size() / m;
        for (size_t column = 0; column < n; column++)
            for (size_t row = 0; row < m; row++) {
                float sums[8] = {};
                const float *x = &left[row * k], *y = &right[column * k];
                for (size_t i = 0; i < k; i++) sums[i % way.sums] += x[i] * y[i];
                float sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
                float added = beta == 0.0f ? 0.0f : beta * load(c, of_c.type == BF16, column * of_c.leading + row);
                store(d, of_d.type == BF16, column * of_d.leading + row, (way.is_wrong ? 1.125f : 1.0f) * alpha * sum + added);
            }
    }
};

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API Status cublasLtCreate(void** handle) { return *handle = malloc(1), SUCCESS; }
API Status cublasLtDestroy(void* handle) { return free(handle), SUCCESS; }
API Status cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if ((type != F32 && type != BF16) || leading < (int64_t)rows) return INVALID_VALUE;
    return *layout = new Layout{type, rows, columns, leading}, SUCCESS;
}
API Status cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, SUCCESS; }
API Status cublasLtMatmulDescCreate(Description** description, int, int) { return *description = new Description, SUCCESS; }
API Status cublasLtMatmulDescDestroy(Description* description) { return delete description, SUCCESS; }
API Status cublasLtMatmulDescSetAttribute(Description* description, int attribute, const void* value, size_t bytes) {
    if (bytes != 4 || (attribute != 3 && attribute != 4)) return NOT_SUPPORTED;
    memcpy(attribute == 3 ? &description->turns_a : &description->turns_b, value, 4);
    return SUCCESS;
}
API size_t cublasLtGetVersion() { return 130000; }
API Status cublasLtMatmulPreferenceCreate(size_t** preference) { return *preference = new size_t(0), SUCCESS; }
API Status cublasLtMatmulPreferenceDestroy(size_t* preference) { return delete preference, SUCCESS; }
API Status cublasLtMatmulPreferenceSetAttribute(size_t* preference, int attribute, const void* value, size_t bytes) {
    if (attribute != 1 || bytes != sizeof *preference) return NOT_SUPPORTED;  // the most of a workspace
    memcpy(preference, value, bytes);
    return SUCCESS;
}
API Status cublasLtMatmulAlgoGetHeuristic(
    void*, const Description*, const Layout*, const Layout*, const Layout*, const Layout*, const size_t* workspace, int asked, Heuristic* found, int* count
) {
    *count = 0;
    for (int place = 0; place < COUNT && *count < asked; place++)
        if (is_offered(WAYS[place], *workspace)) found[(*count)++] = answer(place);
    return SUCCESS;
}
API Status cublasLtMatmulAlgoCheck(
    void*, const Description*, const Layout*, const Layout*, const Layout*, const Layout*, const Algorithm* algorithm, Heuristic* found
) {
    uint64_t word = algorithm->data[0];
    if (word < 1 || word > (uint64_t)COUNT) return INVALID_VALUE;
    return *found = answer(word - 1), SUCCESS;
}
API Status cublasLtMatmul(
    void*, const Description* description, const float* alpha, const void* a, const Layout* of_a, const void* b, const Layout* of_b, const float* beta,
    const void* c, const Layout* of_c, void* d, const Layout* of_d, const Algorithm* algorithm, void*, size_t workspace, void* stream
) {
    uint64_t word = algorithm->data[0];
    if (word < 1 || word > (uint64_t)COUNT || WAYS[word - 1].workspace > workspace) return INVALID_VALUE;
    uint64_t m = description->turns_a ? of_a->columns : of_a->rows, k = description->turns_a ? of_a->rows : of_a->columns;
    uint64_t n = description->turns_b ? of_b->rows : of_b->columns, other = description->turns_b ? of_b->columns : of_b->rows;
    if (k != other || m != of_d->rows || n != of_d->columns || of_a->type != of_b->type) return INVALID_VALUE;
    auto product = new Product{*description, *alpha, *beta, a, b, c, d, *of_a, *of_b, *of_c, *of_d, WAYS[word - 1]};
    soft_cuda_submit(stream, [](void* what) { ((Product*)what)->run(); }, [](void* what) { delete (Product*)what; }, product);
    return SUCCESS;
}
