#!/bin/sh
# Stands in for the commands about caches: a capture leaves one file, and says that it took 3 seconds, or 2 of a dry run.
# usage: fake-capture.sh cache capture RUN OUT [--dry-run] | cache info OUT | cache verify OUT (in the folder of the model)
# The VARYth run stores something else.
set -eu
[ "$1" = cache ] || exit 2
case $2 in
capture)
    echo "$*" | sed 's/ [^ ]*\// /g' >> order.txt
    run=$(wc -l < order.txt)
    case "$*" in
    *--dry-run*) echo '{"pass_seconds": 2.0}' ;;
    *)
        mkdir "$4"
        if [ "$run" -eq "${VARY:-0}" ]; then echo other > "$4/cache.json"; else echo rows > "$4/cache.json"; fi
        echo "$run" > "$4/.part-0001-of-0001.lock"
        echo '{"pass_seconds": 3.0}'
        ;;
    esac
    ;;
info) echo '{"header": {"vocabulary": 512}, "records": 2, "tokens": 100, "bytes": 4500}' ;;
verify)
    side='{"kl": 0.5, "reverse_kl": 0.25, "top1": 0.9, "kept_mass": 0.8, "calibration_error": 0.1}'
    echo '{"records": 2, "tokens": 100, "stored": '"$side"', "control": '"$side"'}'
    ;;
esac
