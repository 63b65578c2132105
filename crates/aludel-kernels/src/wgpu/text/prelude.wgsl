// What every kernel begins with: where it finds things, how elements are loaded, decoded, encoded and stored, arithmetic, and the
// numbers of random streams. A thread computes four elements at once.
//
// A compiler may fuse, reorder and rewrite arithmetic on floats. So every result passes through whole numbers: the veil is 0, which no
// compiler knows, and what is veiled is what one operation makes of its operands, rounded once. And a device may take numbers below
// 2^-126 for 0, and need not know infinities: a tensor in which such a number comes up is left to the CPU, which is told by `met`.

const CHUNK = 65536u;
const V = 4u;
const MAGNITUDE = 0x7fffffffu;
const SIGN = 0x80000000u;
const EXPONENT = 0x7f800000u;
const FRACTION = 0x007fffffu;
const LEADING = 0x00800000u;
const NOWHERE = 0xffffffffu;

// Blocks of one row of a dispatch.
const ROW = 32768u;

// Words that describe a tensor: its elements, its output, its cuts, the keys of its streams, then its inputs. The host writes 64 bits each.
const ELEMENTS = 0u;
const OUTPUT = 2u;
const CUTS = 4u;
const KEYS = 6u;
const INPUTS = 8u;

// What is left to the CPU, and why: an input, or the output, is not finite; a number on the way is out of range.
const NOT_FINITE = 1u;
const NOT_A_NUMBER = 2u;
const OUT_OF_RANGE = 8u;

struct Started {
    // How many blocks there are.
    count: u32,
    veil: u32,
    // Places of tables: descriptions of tensors, their chunks, values per tensor, and what the kernel names.
    descriptors: u32,
    blocks: u32,
    scalars: u32,
    fourth: u32,
    fifth: u32,
    sixth: u32,
}

@group(0) @binding(0) var<uniform> started: Started;
@group(0) @binding(1) var<storage, read_write> state: array<atomic<u32>>;
@group(0) @binding(2) var<storage, read_write> data: array<vec2<u32>>;

var<private> met: u32 = 0u;

// Which of the four elements are there, at the end of a tensor.
var<private> present: vec4<bool>;

fn block_of(group: vec3<u32>) -> u32 {
    return group.y * ROW + group.x;
}

fn word(place: u32) -> u32 {
    return atomicLoad(&state[place]);
}

fn veiled(x: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(x ^ vec4(started.veil));
}

fn bits_of(x: vec4<f32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(x);
}

fn is_zero(bits: vec4<u32>) -> vec4<bool> {
    return (bits << vec4(1u)) == vec4(0u);
}

// What has the exponent of numbers that are not normal: 0 and all below 2^-126, infinities and NaN.
fn is_extreme(bits: vec4<u32>) -> vec4<bool> {
    return (((bits & vec4(EXPONENT)) + vec4(LEADING)) & vec4(0x7f000000u)) == vec4(0u);
}

// A result; it may be 0 only where it is so by its operands.
fn result(bits: vec4<u32>, is_nothing: vec4<bool>) -> vec4<f32> {
    if (any(is_extreme(bits) & !is_nothing & present)) {
        met |= OUT_OF_RANGE;
    }
    return bitcast<vec4<f32>>(bits);
}

fn plus(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let x = bits_of(a);
    let y = bits_of(b);
    let sum = bits_of(a + b) ^ vec4(started.veil);
    return result(sum, (x == (y ^ vec4(SIGN))) | is_zero(x | y));
}

fn minus(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let x = bits_of(a);
    let y = bits_of(b);
    let difference = bits_of(a - b) ^ vec4(started.veil);
    return result(difference, (x == y) | is_zero(x | y));
}

fn times(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let product = bits_of(a * b) ^ vec4(started.veil);
    return result(product, is_zero(bits_of(a)) | is_zero(bits_of(b)));
}

// A device's own quotient may be a few units off in the last place. It is taken of the mantissas, and put right by what is left of them,
// which 32 bits hold whole, although the products do not fit.
fn quotient(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let x = bits_of(a);
    let y = bits_of(b);
    let sign = (x ^ y) & vec4(SIGN);
    let dividend = (x & vec4(FRACTION)) | vec4(LEADING);
    let divisor = (y & vec4(FRACTION)) | vec4(LEADING);
    // The quotient of 25 bits, the last of which decides how the others are rounded.
    let shift = select(vec4(25u), vec4(24u), dividend >= divisor);
    let width = vec4<f32>(divisor);
    let near = (vec4<f32>(dividend) / width) * select(vec4(33554432.0), vec4(16777216.0), dividend >= divisor);
    var whole = vec4<u32>(near);
    var rest = bitcast<vec4<i32>>((dividend << shift) - whole * divisor);
    let step = vec4<i32>(floor(vec4<f32>(rest) / width));
    whole += bitcast<vec4<u32>>(step);
    rest -= step * bitcast<vec4<i32>>(divisor);
    let below = rest < vec4(0);
    whole -= select(vec4(0u), vec4(1u), below);
    rest += select(vec4(0), bitcast<vec4<i32>>(divisor), below);
    let above = rest >= bitcast<vec4<i32>>(divisor);
    whole += select(vec4(0u), vec4(1u), above);
    rest -= select(vec4(0), bitcast<vec4<i32>>(divisor), above);
    let mantissa = rounded_half(whole, rest != vec4(0));
    let exponent = bitcast<vec4<i32>>((x & vec4(EXPONENT)) >> vec4(23u)) - bitcast<vec4<i32>>((y & vec4(EXPONENT)) >> vec4(23u))
        + vec4(151) - bitcast<vec4<i32>>(shift);
    let magnitude = (bitcast<vec4<u32>>(exponent) << vec4(23u)) + (mantissa - vec4(LEADING));
    let is_nothing = is_zero(x) & !is_zero(y);
    let fits = (exponent > vec4(0)) & (exponent < vec4(254)) & !is_zero(y);
    // What does not fit is made an infinity, and met as one.
    return result(sign | select(select(vec4(EXPONENT), magnitude, fits), vec4(0u), is_nothing), is_nothing);
}

// Half of a number of 25 bits, to nearest, ties to even; `is_more` says that something follows its last bit.
fn rounded_half(whole: vec4<u32>, is_more: vec4<bool>) -> vec4<u32> {
    let half = whole >> vec4(1u);
    let is_up = ((whole & vec4(1u)) != vec4(0u)) & (is_more | ((half & vec4(1u)) != vec4(0u)));
    return half + select(vec4(0u), vec4(1u), is_up);
}

// As quotients: the device's root, put right by what is left.
fn root(a: vec4<f32>) -> vec4<f32> {
    let x = bits_of(a);
    let exponent = x >> vec4(23u);
    let is_odd = (exponent & vec4(1u)) != vec4(0u);
    let mantissa = (x & vec4(FRACTION)) | vec4(LEADING);
    let shift = select(vec4(26u), vec4(25u), is_odd);
    let near = sqrt(vec4<f32>(mantissa) * select(vec4(67108864.0), vec4(33554432.0), is_odd));
    var whole = vec4<u32>(near);
    let left = bitcast<vec4<i32>>((mantissa << shift) - whole * whole);
    whole += bitcast<vec4<u32>>(vec4<i32>(floor(vec4<f32>(left) / (2.0 * vec4<f32>(whole)))));
    var rest = bitcast<vec4<i32>>((mantissa << shift) - whole * whole);
    let below = rest < vec4(0);
    whole -= select(vec4(0u), vec4(1u), below);
    rest += select(vec4(0), bitcast<vec4<i32>>(2u * whole + vec4(1u)), below);
    let above = rest > bitcast<vec4<i32>>(2u * whole);
    rest -= select(vec4(0), bitcast<vec4<i32>>(2u * whole + vec4(1u)), above);
    whole += select(vec4(0u), vec4(1u), above);
    let half = rounded_half(whole, rest != vec4(0));
    let magnitude = (((exponent + vec4(126u) + (exponent & vec4(1u))) >> vec4(1u)) << vec4(23u)) + (half - vec4(LEADING));
    let is_nothing = is_zero(x);
    let is_negative = (x & vec4(SIGN)) != vec4(0u);
    return result(select(select(magnitude, vec4(EXPONENT), is_negative), x, is_nothing), is_nothing);
}

fn negated(x: vec4<f32>) -> vec4<f32> {
    return veiled(bits_of(x) ^ vec4(SIGN));
}

fn magnitude(x: vec4<f32>) -> vec4<f32> {
    return veiled(bits_of(x) & vec4(MAGNITUDE));
}

fn number(condition: vec4<bool>) -> vec4<f32> {
    return veiled(select(vec4(0u), vec4(0x3f800000u), condition));
}

// A value per tensor.
fn scalar(place: u32) -> vec4<f32> {
    let bits = word(place);
    if ((bits & EXPONENT) == 0u && (bits << 1u) != 0u) {
        met |= OUT_OF_RANGE;
    }
    return vec4(bitcast<f32>(bits));
}

// Its product with 0.
fn nothing_of(x: vec4<f32>) -> vec4<f32> {
    let bits = bits_of(x);
    if ((bits.x & EXPONENT) == EXPONENT) {
        met |= OUT_OF_RANGE;
    }
    return veiled(bits & vec4(SIGN));
}

fn begin(base: u32, elements: u32) {
    present = (vec4(base) + vec4(0u, 1u, 2u, 3u)) < vec4(elements);
}

// Decoded elements, 0 past the end. Where they are watched, what is not finite or not normal is met.
fn decoded(bits: vec4<u32>, is_watched: bool) -> vec4<f32> {
    let there = select(vec4(0u), bits, present);
    if (is_watched) {
        let is_open = (there & vec4(EXPONENT)) == vec4(EXPONENT);
        met |= select(0u, NOT_FINITE, any(is_open));
        met |= select(0u, OUT_OF_RANGE, any(is_extreme(there) & !is_zero(there) & !is_open));
    }
    return bitcast<vec4<f32>>(there);
}

fn load_f32(place: u32, base: u32, is_watched: bool) -> vec4<f32> {
    let at = place + base / 2u;
    return decoded(vec4(data[at], data[at + 1u]), is_watched);
}

fn load_bf16(place: u32, base: u32, is_watched: bool) -> vec4<f32> {
    let words = data[place + base / 4u];
    let bits = vec4(words.x << 16u, words.x & 0xffff0000u, words.y << 16u, words.y & 0xffff0000u);
    return decoded(bits, is_watched);
}

fn load_f16(place: u32, base: u32, is_watched: bool) -> vec4<f32> {
    let words = data[place + base / 4u];
    let halves = vec4(words.x & 0xffffu, words.x >> 16u, words.y & 0xffffu, words.y >> 16u);
    let exponent = halves & vec4(0x7c00u);
    let normal = ((halves & vec4(0x7fffu)) << vec4(13u)) + vec4(0x38000000u);
    // Below 2^-14 halves are multiples of 2^-24.
    let small = bits_of(vec4<f32>(halves & vec4(0x3ffu)) * vec4(1.0 / 16777216.0));
    let finite = select(normal, small, exponent == vec4(0u));
    let open = select(finite, vec4(EXPONENT) | ((halves & vec4(0x3ffu)) << vec4(13u)), exponent == vec4(0x7c00u));
    return decoded(open | ((halves & vec4(0x8000u)) << vec4(16u)), is_watched);
}

// Stored as rounded to nearest, ties to even.
fn store_f32(x: vec4<f32>, place: u32, base: u32) {
    let bits = bits_of(x);
    let at = place + base / 2u;
    data[at] = bits.xy;
    data[at + 1u] = bits.zw;
}

fn store_16(halves: vec4<u32>, place: u32, base: u32) {
    data[place + base / 4u] = halves.xz | (halves.yw << vec2(16u));
}

fn store_bf16(x: vec4<f32>, place: u32, base: u32) {
    let bits = bits_of(x);
    store_16((bits + vec4(0x7fffu) + ((bits >> vec4(16u)) & vec4(1u))) >> vec4(16u), place, base);
}

fn store_f16(x: vec4<f32>, place: u32, base: u32) {
    let bits = bits_of(x);
    let size = bits & vec4(MAGNITUDE);
    let moved = size - vec4(0x38000000u);
    let normal = (moved + vec4(0xfffu) + ((moved >> vec4(13u)) & vec4(1u))) >> vec4(13u);
    let shift = min(vec4(126u) - min(size >> vec4(23u), vec4(112u)), vec4(25u));
    let mantissa = (size & vec4(FRACTION)) | vec4(LEADING);
    let even = (mantissa >> shift) & vec4(1u);
    let small = (mantissa + (vec4(1u) << (shift - vec4(1u))) - vec4(1u) + even) >> shift;
    let finite = select(normal, small, size < vec4(0x38800000u));
    let halves = select(finite, vec4(0x7c00u), size >= vec4(0x477ff000u));
    store_16(halves | ((bits >> vec4(16u)) & vec4(0x8000u)), place, base);
}

// The upper half of a product.
fn upper(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let left = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let right = (a & 0xffffu) * (b >> 16u) + (left & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (left >> 16u) + (right >> 16u);
}

// The words of four elements of a random stream: one block of Philox4x32 of seven rounds.
fn draw(key: vec2<u32>, base: u32) -> vec4<u32> {
    var c = vec4(base / 4u, 0u, 0u, 0u);
    var k = key;
    for (var round = 0u; round < 7u; round++) {
        let first = vec2(upper(c.x, 0xD2511F53u), c.x * 0xD2511F53u);
        let second = vec2(upper(c.z, 0xCD9E8D57u), c.z * 0xCD9E8D57u);
        c = vec4(second.x ^ c.y ^ k.x, second.y, first.x ^ c.w ^ k.y, first.y);
        k += vec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

fn unit(words: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(words >> vec4(8u)) * vec4(1.0 / 16777216.0);
}

// Which of four elements come before the end of the ties that a cut keeps.
fn early(ties_end: u32, base: u32) -> vec4<bool> {
    return (vec4(base) + vec4(0u, 1u, 2u, 3u)) < vec4(ties_end);
}

// Whether a magnitude is above the cut's threshold, or equal to it where ties are kept. As signed numbers: no magnitude has
// the uppermost bit, and one below 0 is -1.
fn kept(x: vec4<f32>, threshold: i32, is_early: vec4<bool>) -> vec4<bool> {
    let size = bitcast<vec4<i32>>(bits_of(x) & vec4(MAGNITUDE));
    return size > select(vec4(threshold), vec4(threshold - 1), is_early);
}

fn report(flag: u32) {
    if (met != 0u) {
        atomicOr(&state[flag], met);
    }
}
