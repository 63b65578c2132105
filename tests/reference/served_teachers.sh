#!/bin/sh
# Captures SmolLM2-135M-Instruct from a real server, and holds what is stored against the same weights here:
#     served_teachers.sh ALUDEL WORK PYTHON llama_cpp|vllm
#
# WORK holds smollm2/base and smollm2/text.txt, as benches/README.md says, and in smollm2 the file SmolLM2-135M-Instruct.Q4_1.gguf that base is made of. PYTHON has the
# server: `xllamacpp`, which is llama.cpp's own one (with `gguf`, by which the weights are written as plain numbers, since llama.cpp rounds what it multiplies
# quantised ones with), or vLLM for CPUs. Not run by CI.
set -eu

aludel=$(realpath "$1")
cd "$2"
python=$3
api=$4
port=8081

out=served-teachers
rm -rf "$out" && mkdir "$out"
head -c 1200 smollm2/text.txt >"$out/text.txt"

case $api in
llama_cpp)
    model=$out/plain.gguf
    "$python" - smollm2/SmolLM2-135M-Instruct.Q4_1.gguf "$model" <<'PYTHON'
import sys

import gguf
import numpy

reader = gguf.GGUFReader(sys.argv[1])
writer = gguf.GGUFWriter(sys.argv[2], reader.fields["general.architecture"].contents())
for name, field in reader.fields.items():
    if name.startswith("GGUF.") or name == "general.architecture":
        continue
    kind, inner = field.types[0], field.types[-1]
    value = 0 if name == "general.file_type" else field.contents()
    writer.add_key_value(name, value, kind, inner if kind == gguf.GGUFValueType.ARRAY else None)
for tensor in reader.tensors:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    writer.add_tensor(tensor.name, numpy.ascontiguousarray(values, dtype=numpy.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
PYTHON
    "$python" - "$model" "$port" >"$out/server.log" 2>&1 <<'PYTHON' &
import sys
import time

import xllamacpp

settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[1]
settings.port = int(sys.argv[2])
settings.model_alias = {"smollm2"}
settings.n_ctx = 1024
server = xllamacpp.Server(settings)
time.sleep(1e6)
PYTHON
    ;;
vllm)
    model=smollm2/base
    "$(dirname "$python")/vllm" serve "$model" --served-model-name smollm2 --max-logprobs 128 --max-model-len 512 --dtype float32 --enforce-eager \
        --host 127.0.0.1 --port "$port" >"$out/server.log" 2>&1 &
    ;;
esac
server=$!
trap 'kill "$server"' EXIT
until curl -sf "http://127.0.0.1:$port/v1/models" >/dev/null; do
    kill -0 "$server"
    sleep 2
done

# run NAME TEACHER
run() {
    cat >"$out/$1.yml" <<RUN
teacher: $2
student: smollm2/base
data: {train: [$out/text.txt], sequence_length: 128}
output: $out/student
RUN
}

run served "{url: \"http://127.0.0.1:$port/v1\", model: smollm2, api: $api}"
run here "$model"
for teacher in served here; do
    "$aludel" cache capture "$out/$teacher.yml" "$out/cache-$teacher" --k 64 --no-sync
    "$aludel" cache verify "$out/cache-$teacher" --run "$out/here.yml" --records 1000
done
