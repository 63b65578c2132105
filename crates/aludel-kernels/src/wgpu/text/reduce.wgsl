// Reduces chunks to partial results as the CPU does: sixteen lanes of f64, each adding every sixteenth element in order,
// joined neighbour by neighbour. A block takes one chunk. The fourth place is that of partial results, the fifth that of flags.
//
// There is no f64 here: its additions are those of its bits, low word and high word, by whole numbers.

const SUM = 0u;
const DOT = 1u;
const MAGNITUDES = 2u;
const LARGEST = 3u;
const GREATEST = 4u;
const LANES = 16u;
const STEP = THREADS * V;

var<workgroup> staged: array<array<f32, STEP>, OUT>;
var<workgroup> lanes: array<array<vec2<u32>, LANES>, REDUCTIONS>;
var<workgroup> range_of: vec4<u32>;

fn widened(x: f32) -> vec2<u32> {
    let bits = bitcast<u32>(x);
    let size = bits & MAGNITUDE;
    let wide = vec2(size << 29u, (size >> 3u) + 0x38000000u);
    return select(wide, vec2(0u), size == 0u) | vec2(0u, bits & SIGN);
}

// A product, which f64 holds exactly.
fn multiplied(x: f32, y: f32) -> vec2<u32> {
    let a = bitcast<u32>(x);
    let b = bitcast<u32>(y);
    let sign = (a ^ b) & SIGN;
    if ((a << 1u) == 0u || (b << 1u) == 0u) {
        return vec2(0u, sign);
    }
    let first = (a & FRACTION) | LEADING;
    let second = (b & FRACTION) | LEADING;
    let low = first * second;
    let high = upper(first, second);
    let is_long = high >> 15u;
    let shift = 6u - is_long;
    let exponent = ((a & EXPONENT) >> 23u) + ((b & EXPONENT) >> 23u) + is_long + 769u;
    let mantissa = (high << shift) | (low >> (32u - shift));
    return vec2(low << shift, sign | ((exponent << 20u) + (mantissa - 0x100000u)));
}

// The sum of two numbers of f64, rounded to nearest, ties to even. Neither is below 2^-1022, nor is a sum beyond all numbers.
fn added(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    let x_size = x.y & MAGNITUDE;
    let y_size = y.y & MAGNITUDE;
    let is_less = x_size < y_size || (x_size == y_size && x.x < y.x);
    let a = select(x, y, is_less);
    let b = select(y, x, is_less);
    if (((b.y & MAGNITUDE) | b.x) == 0u) {
        return select(a, vec2(0u, a.y & b.y), ((a.y & MAGNITUDE) | a.x) == 0u);
    }
    let exponent = (a.y >> 20u) & 0x7ffu;
    let distance = exponent - ((b.y >> 20u) & 0x7ffu);
    // Mantissas with ten bits below their last one: the leading one is the second of 64 bits.
    var high = (((a.y & 0xfffffu) | 0x100000u) << 10u) | (a.x >> 22u);
    var low = a.x << 10u;
    var small_high = (((b.y & 0xfffffu) | 0x100000u) << 10u) | (b.x >> 22u);
    var small_low = b.x << 10u;
    // What is shifted out is kept as the last bit.
    if (distance >= 64u) {
        small_high = 0u;
        small_low = 1u;
    } else {
        if (distance >= 32u) {
            small_low = small_high | select(0u, 1u, small_low != 0u);
            small_high = 0u;
        }
        let shift = distance & 31u;
        if (shift > 0u) {
            let lost = small_low << (32u - shift);
            small_low = (small_low >> shift) | (small_high << (32u - shift)) | select(0u, 1u, lost != 0u);
            small_high = small_high >> shift;
        }
    }
    if (((a.y ^ b.y) & SIGN) == 0u) {
        low += small_low;
        high += small_high + select(0u, 1u, low < small_low);
    } else {
        high -= small_high + select(0u, 1u, low < small_low);
        low -= small_low;
        if ((high | low) == 0u) {
            return vec2(0u);
        }
    }
    // The leading one becomes the first of 64 bits.
    var leading = 0u;
    if (high == 0u) {
        high = low;
        low = 0u;
        leading = 32u;
    }
    let shift = countLeadingZeros(high);
    if (shift > 0u) {
        high = (high << shift) | (low >> (32u - shift));
        low = low << shift;
    }
    leading += shift;
    let rest = low & 0x7ffu;
    let last = (low >> 11u) | (high << 21u);
    let up = select(0u, 1u, rest > 0x400u || (rest == 0x400u && (last & 1u) == 1u));
    let rounded = last + up;
    let first = ((exponent + 1u - leading) << 20u) + ((high >> 11u) - 0x100000u) + select(0u, 1u, rounded < up);
    return vec2(rounded, (a.y & SIGN) | first);
}

// Whether `b` is above `a`.
fn is_above(b: vec2<u32>, a: vec2<u32>) -> bool {
    if ((((a.y | b.y) & MAGNITUDE) | a.x | b.x) == 0u) {
        return false;
    }
    let x = select(b ^ vec2(0u, SIGN), ~b, (b.y & SIGN) != 0u);
    let y = select(a ^ vec2(0u, SIGN), ~a, (a.y & SIGN) != 0u);
    return x.y > y.y || (x.y == y.y && x.x > y.x);
}

fn joined(fold: u32, a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    if (fold >= LARGEST) {
        return select(a, b, is_above(b, a));
    }
    return added(a, b);
}

fn taken(fold: u32, folded: vec2<u32>, x: f32, y: f32) -> vec2<u32> {
    var value = widened(x);
    if (fold == DOT) {
        value = multiplied(x, y);
    } else if (fold == MAGNITUDES || fold == LARGEST) {
        value.y &= MAGNITUDE;
    }
    return joined(fold, folded, value);
}

@compute @workgroup_size(THREADS)
fn reduce_chunks(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let block = block_of(group);
    if (block >= started.count) {
        return;
    }
    let at = word(started.blocks + 2u * block);
    let chunk = word(started.blocks + 2u * block + 1u);
    let known = known_of(started.descriptors + at * WORDS, started.scalars + at * SCALARS);
    if (thread == 0u) {
        range_of = vec4(chunk * CHUNK, min((chunk + 1u) * CHUNK, known.elements), 0u, 0u);
    }
    let range = workgroupUniformLoad(&range_of);
    let reduction = thread / LANES;
    let lane = thread % LANES;
    let what = reduction_of(reduction);
    var folded = select(vec2(0u), vec2(0u, 0xfff00000u), what.x == GREATEST);
    for (var step = range.x; step < range.y; step += STEP) {
        let out = values(known, step + thread * V);
        for (var k = 0u; k < OUT; k++) {
            for (var j = 0u; j < V; j++) {
                staged[k][thread * V + j] = out[k][j];
            }
        }
        workgroupBarrier();
        if (reduction < REDUCTIONS) {
            let length = min(STEP, range.y - step);
            for (var i = lane; i < length; i += LANES) {
                folded = taken(what.x, folded, staged[what.y][i], staged[what.z][i]);
            }
        }
        workgroupBarrier();
    }
    if (reduction < REDUCTIONS) {
        lanes[reduction][lane] = folded;
    }
    workgroupBarrier();
    if (thread < REDUCTIONS) {
        let fold = reduction_of(thread).x;
        for (var length = LANES / 2u; length >= 1u; length /= 2u) {
            for (var i = 0u; i < length; i++) {
                lanes[thread][i] = joined(fold, lanes[thread][2u * i], lanes[thread][2u * i + 1u]);
            }
        }
        let place = started.fourth + 2u * (block * REDUCTIONS + thread);
        atomicStore(&state[place], lanes[thread][0].x);
        atomicStore(&state[place + 1u], lanes[thread][0].y);
    }
    report(started.fifth + at);
}
