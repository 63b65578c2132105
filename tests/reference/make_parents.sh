#!/bin/sh
# Makes the parents of the real merge:  make_parents.sh GGUF WORK [PYTHON]
#
# GGUF is SmolLM2-135M-Instruct.Q4_1.gguf; WORK/texts is filled by fetch_texts.sh; PYTHON has torch, transformers and gguf.
# Writes WORK/base, WORK/technical and WORK/scripture in bfloat16. About 20 minutes of processor time for each fine-tune.
set -eu

gguf=$(realpath "$1")
work=$2
python=${3:-python3}
here=$(cd "$(dirname "$0")" && pwd)

cd "$work"
"$python" "$here/convert_gguf.py" "$gguf" base
for text in technical scripture; do
    "$python" "$here/finetune.py" base "texts/$text-train.txt" "$text" --steps 120
done
