#!/bin/sh
# Follows a live stream of one face: sends JPEG, PNG or WebP files one after the other, and prints the most probable
# expression of the window that ends with each, as "probability:index:name".
#
#   sh stream.sh http://127.0.0.1:8000 frames/*.jpg
#
# MODEL=NAME in the environment names another model than dfer. Needs curl and a POSIX shell.
set -eu

[ "$#" -ge 2 ] || { echo "usage: $0 http://HOST:PORT IMAGE..." >&2; exit 2; }
model="${1%/}/v2/models/${MODEL:-dfer}_encoded_stream"
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
features=$folder/features request=$folder/request answer=$folder/answer head=$folder/head
: >"$features"
encoder=

# How many earlier frames a window has, and how many numbers of 4 bytes the features of each.
shape=$(curl --silent --show-error --fail-with-body --max-time 60 "$model" |
    sed -n 's/.*"recent_features"[^]]*\[-1,\([0-9]*\),\([0-9]*\)\].*/\1 \2/p')
frames=${shape% *} bytes=$((4 * ${shape#* }))

ask() { # the image $1, and the features that are remembered, filled up with zeros
    size=$(($(wc -c <"$1"))) count=$(($(wc -c <"$features") / bytes))
    printf '%s' '{"inputs": [
        {"name": "images", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": '$((size + 4))'}},
        {"name": "recent_features", "datatype": "FP32", "shape": [1, '"$frames, $((bytes / 4))"'],
         "parameters": {"binary_data_size": '$((frames * bytes))'}},
        {"name": "recent_count", "datatype": "INT32", "shape": [1, 1], "data": ['"$count"']}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 1}}, {"name": "encoder_id"},
                    {"name": "frame_features", "parameters": {"binary_data": true}}]}' >"$request"
    length=$(($(wc -c <"$request")))
    {
        # shellcheck disable=SC2059
        printf "$(printf '\\%03o' $((size & 255)) $((size >> 8 & 255)) $((size >> 16 & 255)) $((size >> 24 & 255)))"
        cat "$1" "$features"
        head -c $(((frames - count) * bytes)) /dev/zero
    } >>"$request"
    curl --silent --show-error --fail-with-body --max-time 60 --retry 5 --dump-header "$head" --output "$answer" \
        --header "Inference-Header-Content-Length: $length" --header "Content-Type: application/octet-stream" \
        --data-binary "@$request" "$model/infer" || { cat "$answer" >&2; exit 22; }
    length=$(sed -n 's/\r//; s/^[Ii]nference-[Hh]eader-[Cc]ontent-[Ll]ength: //p' "$head")
    told=$(head -c "$length" "$answer")
}

for image; do
    [ -f "$image" ] && [ -r "$image" ] || { echo "$image cannot be read; check the path" >&2; exit 2; }
    ask "$image"
    now=$(echo "$told" | sed 's/.*"encoder_id"[^]]*\][^[]*\[\([0-9]*\)\].*/\1/')
    # Features mean something to one encoder only: where another one answers, the stream begins anew.
    if [ -n "$encoder" ] && [ "$now" != "$encoder" ]; then : >"$features" && ask "$image"; fi
    encoder=$now
    tail -c "+$((length + 1))" "$answer" >>"$features"
    tail -c $((frames * bytes)) "$features" >"$features.last" && mv "$features.last" "$features"
    echo "$told" | sed 's/.*"probabilities"[^]]*\][^[]*\["\([^"]*\)"\].*/\1/'
done
