// Looks at the magnitudes that a formula selects by: counts their digits, counts ties, and locates the last tie kept. A block takes a
// chunk, or in the last of these kernels the chunk of its tensor that is looked into. The fourth place is that of selections, the fifth that of flags.

var<workgroup> counts: array<atomic<u32>, BINS>;
var<workgroup> sums: array<u32, THREADS>;
var<workgroup> task: vec4<u32>;

@compute @workgroup_size(THREADS)
fn count_digits(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let block = block_of(group);
    if (block >= started.count) {
        return;
    }
    let at = word(started.blocks + 2u * block);
    let chunk = word(started.blocks + 2u * block + 1u);
    let known = known_of(started.descriptors + at * WORDS, started.scalars + at * SCALARS);
    let sought = started.fourth + at * SELECTION;
    if (thread == 0u) {
        task = vec4(word(sought + LEVEL), word(sought + PREFIX), chunk * CHUNK, min((chunk + 1u) * CHUNK, known.elements));
    }
    for (var i = thread; i < BINS; i += THREADS) {
        atomicStore(&counts[i], 0u);
    }
    let wanted = workgroupUniformLoad(&task);
    if (wanted.x >= OF_TIES) {
        return;
    }
    let digit = digit_of(wanted.x);
    for (var base = wanted.z + thread * V; base < wanted.w; base += THREADS * V) {
        let size = bits_of(values(known, base)[0]) & vec4(MAGNITUDE);
        for (var j = 0u; j < V; j++) {
            if (present[j] && (size[j] >> digit.x) >> digit.y == wanted.y) {
                atomicAdd(&counts[(size[j] >> digit.x) & ((1u << digit.y) - 1u)], 1u);
            }
        }
    }
    workgroupBarrier();
    let histogram = word(sought + HISTOGRAM);
    for (var i = thread; i < BINS; i += THREADS) {
        let count = atomicLoad(&counts[i]);
        if (count > 0u) {
            atomicAdd(&state[histogram + i], count);
        }
    }
    report(started.fifth + at);
}

@compute @workgroup_size(THREADS)
fn count_ties(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let block = block_of(group);
    if (block >= started.count) {
        return;
    }
    let at = word(started.blocks + 2u * block);
    let chunk = word(started.blocks + 2u * block + 1u);
    let known = known_of(started.descriptors + at * WORDS, started.scalars + at * SCALARS);
    let sought = started.fourth + at * SELECTION;
    if (thread == 0u) {
        task = vec4(word(sought + LEVEL), word(sought + PREFIX), chunk * CHUNK, min((chunk + 1u) * CHUNK, known.elements));
        atomicStore(&counts[0], 0u);
    }
    let wanted = workgroupUniformLoad(&task);
    if (wanted.x != OF_TIES) {
        return;
    }
    var ties = 0u;
    for (var base = wanted.z + thread * V; base < wanted.w; base += THREADS * V) {
        ties += countOneBits(ties_of(known, base, wanted.y));
    }
    atomicAdd(&counts[0], ties);
    workgroupBarrier();
    if (thread == 0u) {
        atomicStore(&state[word(sought + TIES) + chunk], atomicLoad(&counts[0]));
    }
}

// Which of four elements have this magnitude, a bit for each.
fn ties_of(known: Known, base: u32, threshold: u32) -> u32 {
    let size = bits_of(values(known, base)[0]) & vec4(MAGNITUDE);
    let bits = select(vec4(0u), vec4(1u, 2u, 4u, 8u), (size == vec4(threshold)) & present);
    return bits.x | bits.y | bits.z | bits.w;
}

@compute @workgroup_size(THREADS)
fn locate_ties(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let at = block_of(group);
    if (at >= started.count) {
        return;
    }
    let known = known_of(started.descriptors + at * WORDS, started.scalars + at * SCALARS);
    let sought = started.fourth + at * SELECTION;
    let tie = word(sought + RANK);
    if (thread == 0u) {
        let chunk = word(sought + LOCATED);
        task = vec4(word(sought + LEVEL), word(sought + PREFIX), chunk * CHUNK, min((chunk + 1u) * CHUNK, known.elements));
    }
    let wanted = workgroupUniformLoad(&task);
    if (wanted.x != OF_TIES) {
        return;
    }
    var passed = 0u;
    for (var step = wanted.z; step < wanted.w; step += THREADS * V) {
        let base = step + thread * V;
        let ties = ties_of(known, base, wanted.y);
        let own = countOneBits(ties);
        // Inclusive sums over the threads.
        var through = own;
        sums[thread] = own;
        workgroupBarrier();
        for (var distance = 1u; distance < THREADS; distance *= 2u) {
            if (thread >= distance) {
                through += sums[thread - distance];
            }
            workgroupBarrier();
            sums[thread] = through;
            workgroupBarrier();
        }
        let before = passed + through - own;
        if (before < tie && tie <= before + own) {
            var left = tie - before;
            for (var j = 0u; j < V; j++) {
                left -= (ties >> j) & 1u;
                if (left == 0u) {
                    atomicStore(&state[word(sought + CUT) + 2u], base + j + 1u);
                    break;
                }
            }
        }
        passed += sums[THREADS - 1u];
        workgroupBarrier();
    }
}
