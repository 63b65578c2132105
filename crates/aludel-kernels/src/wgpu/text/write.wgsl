// Computes the output of all tensors of a batch. A block takes a chunk. The fourth place is that of flags.

@compute @workgroup_size(THREADS)
fn write_tensors(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let block = block_of(group);
    if (block >= started.count) {
        return;
    }
    let at = word(started.blocks + 2u * block);
    let chunk = word(started.blocks + 2u * block + 1u);
    let tensor = started.descriptors + at * WORDS;
    let known = known_of(tensor, started.scalars + at * SCALARS);
    let output = word(tensor + OUTPUT);
    let start = chunk * CHUNK;
    let end = min(start + CHUNK, known.elements);
    for (var base = start + thread * V; base < end; base += THREADS * V) {
        let out = values(known, base);
        let is_open = (bits_of(out[0]) & vec4(EXPONENT)) == vec4(EXPONENT);
        met |= select(0u, NOT_A_NUMBER, any(is_open & present));
        STORE(out[0], output, base);
    }
    report(started.fourth + at);
}
