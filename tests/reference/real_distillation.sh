#!/bin/sh
# Distils SmolLM2-135M into half of its layers, twelve times:  real_distillation.sh ALUDEL WORK STEPS THREADS AT_ONCE
#
# WORK holds SmolLM2-135M-Instruct (a model folder, made by `aludel convert` of the GGUF file) and texts/ (filled by
# fetch_texts.sh). Each of the four objectives runs with three seeds, AT_ONCE of them side by side with THREADS threads each.
# Writes WORK/students, and prints what each run measured on the held-out text before and after.
set -eu

aludel=$(realpath "$1")
work=$2
steps=$3
threads=$4
at_once=$5
recipes=$(cd "$(dirname "$0")/../../docs/real-distillation" && pwd)

cd "$work"
mkdir -p students
head -c 40000 texts/technical-heldout.txt >texts/technical-sample.txt
for seed in 0 1 2; do
    for objective in ce kl jsd taid; do
        sed -e "s/STEPS/$steps/" -e "s/SEED/$seed/" "$recipes/$objective.yml" >"students/$objective-$seed.yml"
        echo "$objective-$seed"
    done
done |
    xargs -P "$at_once" -I {} sh -c \
        "'$aludel' distill students/{}.yml --threads $threads >students/{}.log 2>&1 || echo '{} failed'"

for record in students/*.run/metrics.jsonl; do
    grep '"validation"' "$record" | sed "s|^|$record |"
done
