#!/bin/sh
# Trains a student of four of SmolLM2-135M-Instruct's layers from the live teacher and from caches of it, the same steps each time:
#     cached_training.sh ALUDEL WORK STEPS [MODE...]
#
# WORK holds smollm2/base and smollm2/text.txt, as benches/README.md says; the text is cut into documents of 20 lines. Each mode (hidden and int8 if none is named) is
# captured with its defaults and trained from; the live run is repeated with another seed, which is another order of the documents. Prints Markdown: the loss of every
# fifth step, how far the losses of all steps are from the live run's, and how long each training took.
set -eu

aludel=$(realpath "$1")
cd "$2"
steps=$3
shift 3
[ $# -gt 0 ] || set -- hidden int8

out=cached-training
rm -rf "$out" && mkdir "$out"
{
    echo "merge_method: passthrough"
    echo "slices:"
    for layer in 0 8 16 24; do
        echo "  - sources: [{model: smollm2/base, layer_range: [$layer, $((layer + 1))]}]"
    done
    echo "dtype: float32"
} >"$out/student.yml"
"$aludel" merge -q "$out/student.yml" "$out/student"

split -l 20 --additional-suffix .txt smollm2/text.txt "$out/text-"
texts=$(printf '%s, ' "$out"/text-*.txt)

# run NAME TEACHER SEED
run() {
    cat >"$out/$1.yml" <<RUN
teacher: $2
student: $out/student
data: {train: [${texts%, }], sequence_length: 64}
objective: forward_kl
train: {steps: $steps, batch_size: 2, micro_batch: 2, learning_rate: 5e-4, schedule: cosine, warmup: 10%, seed: $3}
output: $out/$1
RUN
}

# losses NAME: one line a step
losses() {
    begin=$(date +%s)
    "$aludel" distill -q "$out/$1.yml"
    echo $(($(date +%s) - begin)) >>"$out/seconds"
    grep '"phase":"train"' "$out/$1.run/metrics.jsonl" | sed 's/.*"loss":\([^,}]*\).*/\1/' >"$out/$1.losses"
}

run live smollm2/base 0
run other-seed smollm2/base 1
losses live
losses other-seed
for mode in "$@"; do
    "$aludel" cache capture -q "$out/live.yml" "$out/cache-$mode" --mode "$mode" --no-sync
    run "$mode" "{cache: $out/cache-$mode}" 0
    losses "$mode"
    rm -r "$out/cache-$mode"
done

paste "$out/live.losses" "$out/other-seed.losses" $(for mode in "$@"; do echo "$out/$mode.losses"; done) |
    awk -v names="live other-seed $*" -v seconds="$(tr '\n' ' ' <"$out/seconds")" '
        BEGIN {
            count = split(names, name, " ")
            printf "| step |"
            for (i = 1; i <= count; i++) printf " %s |", name[i]
            printf "\n|---|"
            for (i = 1; i <= count; i++) printf "---|"
            print ""
        }
        {
            for (i = 2; i <= count; i++) {
                off = $i - $1; if (off < 0) off = -off
                sum[i] += off; if (off > most[i]) most[i] = off
            }
        }
        NR == 1 || NR % 5 == 0 {
            printf "| %d |", NR
            for (i = 1; i <= count; i++) printf " %.5f |", $i
            print ""
        }
        END {
            printf "| farthest from live | |"; for (i = 2; i <= count; i++) printf " %.5f |", most[i]
            printf "\n| mean distance | |"; for (i = 2; i <= count; i++) printf " %.5f |", sum[i] / NR
            split(seconds, taken, " ")
            printf "\n| seconds |"; for (i = 1; i <= count; i++) printf " %d |", taken[i]
            print ""
        }'
