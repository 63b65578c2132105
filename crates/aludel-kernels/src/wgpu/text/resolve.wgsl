// Finds thresholds by what was counted: the same for all formulas. A block takes one selection, whose words begin at the place that is called that
// of descriptors.

const RUN = BINS / THREADS;

var<workgroup> sums: array<u32, THREADS>;
var<workgroup> found: vec4<u32>;

@compute @workgroup_size(THREADS)
fn clear_histogram(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let block = block_of(group);
    if (block >= started.count) {
        return;
    }
    let histogram = word(started.descriptors + block * SELECTION + HISTOGRAM);
    for (var i = thread; i < BINS; i += THREADS) {
        atomicStore(&state[histogram + i], 0u);
    }
}

// The next digit of the threshold: the bin that holds the rank, counted from the largest.
@compute @workgroup_size(THREADS)
fn find_digit(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let block = block_of(group);
    if (block >= started.count) {
        return;
    }
    let sought = started.descriptors + block * SELECTION;
    let histogram = word(sought + HISTOGRAM);
    if (thread == 0u) {
        found = vec4(word(sought + LEVEL), 0u, 0u, 0u);
    }
    let level = workgroupUniformLoad(&found).x;
    if (level >= OF_TIES) {
        return;
    }
    var sum = 0u;
    for (var i = 0u; i < RUN; i++) {
        sum += word(histogram + BINS - 1u - (thread * RUN + i));
    }
    sums[thread] = sum;
    workgroupBarrier();
    if (thread == 0u) {
        var rank = word(sought + RANK);
        var holder = 0u;
        while (holder < THREADS - 1u && sums[holder] < rank) {
            rank -= sums[holder];
            holder++;
        }
        var bin = BINS - 1u - holder * RUN;
        var equal = word(histogram + bin);
        while (bin > 0u && equal < rank) {
            rank -= equal;
            bin--;
            equal = word(histogram + bin);
        }
        let value = (word(sought + PREFIX) << digit_of(level).y) | bin;
        atomicStore(&state[sought + PREFIX], value);
        atomicStore(&state[sought + RANK], rank);
        atomicStore(&state[sought + LEVEL], level + 1u);
        if (level + 1u == OF_TIES) {
            let cut = word(sought + CUT);
            atomicStore(&state[cut], value);
            // All ties are kept, or some, which are still to be found.
            atomicStore(&state[cut + 2u], NOWHERE);
            if (rank == equal) {
                atomicStore(&state[sought + LEVEL], OF_NOTHING);
            }
        }
    }
    workgroupBarrier();
    for (var i = thread; i < BINS; i += THREADS) {
        atomicStore(&state[histogram + i], 0u);
    }
}

// The chunk that holds the last tie kept.
@compute @workgroup_size(THREADS)
fn find_chunk(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let block = block_of(group);
    if (block >= started.count) {
        return;
    }
    let sought = started.descriptors + block * SELECTION;
    if (thread == 0u) {
        found = vec4(word(sought + LEVEL), 0u, 0u, 0u);
    }
    if (workgroupUniformLoad(&found).x != OF_TIES) {
        return;
    }
    let ties = word(sought + TIES);
    let chunks = word(sought + CHUNKS);
    let run = (chunks + THREADS - 1u) / THREADS;
    var sum = 0u;
    for (var i = thread * run; i < min((thread + 1u) * run, chunks); i++) {
        sum += word(ties + i);
    }
    sums[thread] = sum;
    workgroupBarrier();
    if (thread == 0u) {
        var rank = word(sought + RANK);
        var holder = 0u;
        while (holder < THREADS - 1u && sums[holder] < rank) {
            rank -= sums[holder];
            holder++;
        }
        var chunk = holder * run;
        while (chunk < chunks - 1u && word(ties + chunk) < rank) {
            rank -= word(ties + chunk);
            chunk++;
        }
        atomicStore(&state[sought + RANK], rank);
        atomicStore(&state[sought + LOCATED], chunk);
    }
}
