struct Known {
    elements: u32,
    in0: u32,
    in1: u32,
    s0: vec4<f32>,
    s1: vec4<f32>,
    s2: vec4<f32>,
}

fn known_of(tensor: u32, scalars: u32) -> Known {
    var known: Known;
    known.elements = word(tensor + ELEMENTS);
    known.in0 = word(tensor + INPUTS + 0u);
    known.in1 = word(tensor + INPUTS + 2u);
    known.s0 = scalar(scalars + 0u);
    known.s1 = scalar(scalars + 1u);
    known.s2 = scalar(scalars + 2u);
    return known;
}

fn values(known: Known, base: u32) -> array<vec4<f32>, OUT> {
    begin(base, known.elements);
    let in0 = load_bf16(known.in0, base, true);
    let in1 = load_f32(known.in1, base, true);
    var out: array<vec4<f32>, OUT>;
    let v0 = times(in0, known.s0);
    let v1 = times(in1, known.s1);
    let v2 = plus(v0, v1);
    let v3 = quotient(v2, known.s2);
    out[0] = v3;
    return out;
}
