#!/bin/bash
# Fills a disk under a merge for real, makes room, and goes on: full_disk.sh ALUDEL WORK [FLAGS]
#
# Needs root, for a file system in memory of 100 MB. Three models of 40 MB are made with Python's numpy and safetensors. Each form of output is first
# written whole; then onto the small disk, on which another file takes the room while the merge runs; then with --resume after that file is gone.
# Ends with an error where the second run fails, takes nothing over, or writes other bytes. FLAGS are for the first run: with `--device wgpu -j 8`,
# which reserves room ahead, it may succeed, and must then have written the same bytes.
set -euo pipefail
aludel=$(realpath "$1"); work=$2; flags=("${@:3}")
mkdir -p "$work/disk"; cd "$work"
python3 - <<'PY'
import json, pathlib
import numpy as np
from safetensors.numpy import save_file
for seed, name in enumerate(("base", "a", "b")):
    folder = pathlib.Path(name); folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": (random.random((1000, 500), np.float32) - 0.5).astype(np.float16) for layer in range(40)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float16"}))
PY
cat > r.yml <<'YML'
merge_method: dare_ties
base_model: base
models:
  - {model: a, parameters: {weight: 0.6, density: 0.5}}
  - {model: b, parameters: {weight: 0.4, density: 0.5}}
YML
mount -t tmpfs -o size=100m tmpfs disk
trap 'umount disk' EXIT
for form in dense fp8 sparse-delta; do
    rm -rf whole disk/*; find disk -mindepth 1 -delete
    "$aludel" merge r.yml whole --output $form -q --shard-size 8MB
    # The plan sees room for all of it; the room goes while it is written.
    bytes=$(du -sb whole | cut -f1)
    "$aludel" merge r.yml disk/out --output $form --shard-size 8MB -j 1 "${flags[@]}" 2> said &
    run=$!
    until [ -e disk/out ] || ls -d disk/.out.partial-* > /dev/null 2>&1; do :; done
    free=$(df --output=avail -B1 disk | tail -1)
    fallocate -l $((free - bytes / 3)) disk/other || head -c 100M /dev/zero > disk/other || true
    if wait $run; then
        if [ ${#flags[@]} = 0 ]; then echo "$form: the disk was not full in time"; exit 1; fi
        diff -r whole disk/out
        echo "$form: the room was reserved in time, and the output is the same"
        continue
    fi
    cat said | tail -1
    rm disk/other
    "$aludel" merge r.yml disk/out --output $form --shard-size 8MB --resume --json > report.json
    diff -r whole disk/out
    python3 -c "
import json
report = json.load(open('report.json'))
print('$form:', report['tensors_resumed'], 'of', report['tensors'], 'tensors were there already, and the output is that of a run in one go')
assert report['tensors_resumed'] > 0"
done
