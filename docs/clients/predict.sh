#!/bin/sh
# Asks a served DFER-CLIP model about the frames of one face, as JPEG, PNG or WebP files in the order of time.
#
#   sh predict.sh http://127.0.0.1:8000 frames/*.jpg
#
# MODEL=NAME in the environment names another model than dfer. Needs curl and a POSIX shell.
set -eu

[ "$#" -ge 2 ] || { echo "usage: $0 http://HOST:PORT IMAGE..." >&2; exit 2; }
url=${1%/}
shift
count=$#
for file; do [ -f "$file" ] && [ -r "$file" ] || { echo "$file cannot be read; check the path" >&2; exit 2; }; done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' HUP INT TERM

# The model sees 16 frames: the middles of 16 equal parts of a longer clip, the last frame repeated in a shorter one.
# Each is its length as four bytes, little endian, and then its bytes (Triton's "binary data extension", BYTES).
k=0
while [ "$k" -lt 16 ]; do
    if [ "$count" -gt 16 ]; then index=$((count * (2 * k + 1) / 32)); else index=$((k < count ? k : count - 1)); fi
    eval "file=\${$((index + 1))}"
    size=$(($(wc -c <"$file")))
    # shellcheck disable=SC2059
    printf "$(printf '\\%03o' $((size & 255)) $((size >> 8 & 255)) $((size >> 16 & 255)) $((size >> 24 & 255)))"
    cat <"$file"
    k=$((k + 1))
done >"$folder/images"

size=$(($(wc -c <"$folder/images")))
printf '%s' '{"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1, 16],
    "parameters": {"binary_data_size": '"$size"'}}],
    "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}]}' >"$folder/request"
length=$(($(wc -c <"$folder/request")))
cat "$folder/images" >>"$folder/request"

# Answers with JSON; its data are the three most probable classes as "probability:index:name".
# Where the server refuses the images, the JSON says why, and curl ends with 22.
curl --silent --show-error --fail-with-body --max-time 60 \
    --header "Inference-Header-Content-Length: $length" --header "Content-Type: application/octet-stream" \
    --data-binary "@$folder/request" "$url/v2/models/${MODEL:-dfer}_encoded/infer"
echo
