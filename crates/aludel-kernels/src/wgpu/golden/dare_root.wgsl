struct Known {
    elements: u32,
    in0: u32,
    in1: u32,
    s0: vec4<f32>,
    s1: vec4<f32>,
    nothing1: vec4<f32>,
    key3: vec2<u32>,
}

fn known_of(tensor: u32, scalars: u32) -> Known {
    var known: Known;
    known.elements = word(tensor + ELEMENTS);
    known.in0 = word(tensor + INPUTS + 0u);
    known.in1 = word(tensor + INPUTS + 2u);
    known.s0 = scalar(scalars + 0u);
    known.s1 = scalar(scalars + 1u);
    known.nothing1 = nothing_of(known.s1);
    let keys3 = word(tensor + KEYS);
    known.key3 = vec2(word(keys3 + 6u), word(keys3 + 7u));
    return known;
}

fn values(known: Known, base: u32) -> array<vec4<f32>, OUT> {
    begin(base, known.elements);
    let in0 = load_f16(known.in0, base, true);
    let in1 = load_f16(known.in1, base, true);
    let words3 = draw(known.key3, base);
    var out: array<vec4<f32>, OUT>;
    let v0 = minus(in1, in0);
    let v1 = times(v0, select(known.nothing1, known.s1, unit(words3) < known.s0));
    let v2 = plus(in0, v1);
    let v3 = root(v2);
    out[0] = v3;
    return out;
}
