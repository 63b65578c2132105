# Stands in for a merge tool: copies a model to the output and notes that it ran.
# usage: sh fake-merge.sh ours|theirs RECIPE OUT (in the folder of the models)
# OURS and THEIRS name the model that is copied (default a); the VARYth run copies b, the HASHINGth says to have hashed.
set -eu
echo "$1 $(cat "$2")" >> order.txt
test ! -e "$3"
mkdir "$3"
cp a/config.json "$3/"
model=${OURS:-a}
if [ "$1" = theirs ]; then model=${THEIRS:-a}; fi
run=$(wc -l < order.txt)
if [ "$run" -eq "${VARY:-0}" ]; then model=b; fi
hashed=0
if [ "$run" -eq "${HASHING:-0}" ]; then hashed=7; fi
cp "$model/model.safetensors" "$3/model.safetensors"
echo '{"planned_peak_memory": 123000000, "bytes_hashed": '"$hashed"'}'
