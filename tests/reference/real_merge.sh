#!/bin/sh
# Merges two fine-tunes of SmolLM2-135M in four ways and prints the held-out perplexity of parents and merges:
#   real_merge.sh ALUDEL WORK [PYTHON]
#
# ALUDEL is the binary; WORK holds base/, technical/ and scripture/ (make_parents.sh) and texts/ (fetch_texts.sh); PYTHON has
# torch and transformers. Writes WORK/merged/<method>/ anew; the table goes to stdout.
set -eu

aludel=$(realpath "$1")
work=$2
python=${3:-python3}
here=$(cd "$(dirname "$0")" && pwd)
recipes=$(cd "$here/../../docs/real-merge" && pwd)

cd "$work"
rm -rf merged
mkdir merged
for method in linear slerp ties dare_ties; do
    "$aludel" merge "$recipes/$method.yml" "merged/$method" >&2
done

"$python" "$here/perplexity.py" \
    --text texts/technical-heldout.txt --text texts/scripture-heldout.txt \
    base technical scripture merged/linear merged/slerp merged/ties merged/dare_ties
