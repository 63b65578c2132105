// The words of a selection: the rank that is sought, among those that are left; how far it is; what is known of the threshold; places of
// its histogram, of the counts of ties by chunk, and of its cut; how many chunks there are; and in which one the last tie lies. The host fills in
// all but the last.
//
// A threshold is found from the uppermost bits down: 11, then 10 and 10 of them, each by a sweep that counts how often each digit
// follows those that are known. Where ties are to be cut, a sweep counts them by chunk, and another looks into one chunk.

const RANK = 0u;
const LEVEL = 1u;
const PREFIX = 2u;
const HISTOGRAM = 3u;
const TIES = 4u;
const CHUNKS = 5u;
const CUT = 6u;
const LOCATED = 7u;
const SELECTION = 8u;

// Levels below it are those of digits.
const OF_TIES = 3u;
const OF_NOTHING = 4u;

const BINS = 2048u;

// Where the digit of a level begins, and how many bits it has.
fn digit_of(level: u32) -> vec2<u32> {
    return vec2(20u - 10u * level, select(10u, 11u, level == 0u));
}
