#!/bin/sh
# Follows a live stream of one face: sends JPEG, PNG or WebP files one after the other, and prints the most probable
# expression of the window that ends with each, as "probability:index:name" (a name with quotes is written as in JSON).
#
#   sh stream.sh http://127.0.0.1:8000 frames/*.jpg
#
# MODEL=NAME in the environment names another model than dfer. Needs curl and a POSIX shell.
set -eu

[ "$#" -ge 2 ] || { echo "usage: $0 http://HOST:PORT IMAGE..." >&2; exit 2; }
model="${1%/}/v2/models/${MODEL:-dfer}_encoded_stream"
shift
for file; do [ -f "$file" ] && [ -r "$file" ] || { echo "$file cannot be read; check the path" >&2; exit 2; }; done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' HUP INT TERM
features=$folder/features
: >"$features"

# A server that is away is asked again for about half a minute; what it refuses (curl's 22) is not.
asked() {
    for pause in 1 2 4 8 16 0; do
        rm -f "$folder/answer"
        curl --silent --show-error --fail-with-body --max-time 60 --retry 5 --output "$folder/answer" "$@" &&
            return
        status=$?
        if [ "$status" -eq 22 ] || [ "$pause" -eq 0 ]; then
            [ ! -s "$folder/answer" ] || cat "$folder/answer" >&2
            exit "$status"
        fi
        sleep "$pause"
    done
}

ask() { # Sends the image $1 with the features that are remembered, filled up with zeros.
    size=$(($(wc -c <"$1"))) count=$(($(wc -c <"$features") / bytes))
    printf '%s' '{"inputs": [
        {"name": "images", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": '$((size + 4))'}},
        {"name": "recent_features", "datatype": "FP32", "shape": [1, '"$frames, $((bytes / 4))"'],
         "parameters": {"binary_data_size": '$((frames * bytes))'}},
        {"name": "recent_count", "datatype": "INT32", "shape": [1, 1], "data": ['"$count"']}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 1}}, {"name": "encoder_id"},
                    {"name": "frame_features", "parameters": {"binary_data": true}}]}' >"$folder/request"
    length=$(($(wc -c <"$folder/request")))
    # shellcheck disable=SC2059
    printf "$(printf '\\%03o' $((size & 255)) $((size >> 8 & 255)) $((size >> 16 & 255)) $((size >> 24 & 255)))" |
        cat - "$1" "$features" >>"$folder/request"
    head -c $(((frames - count) * bytes)) /dev/zero >>"$folder/request"
    asked --dump-header "$folder/head" --header "Inference-Header-Content-Length: $length" \
        --header "Content-Type: application/octet-stream" --data-binary "@$folder/request" "$model/infer"
    length=$(tr -d '\r' <"$folder/head" | sed -n 's/^[Ii]nference-[Hh]eader-[Cc]ontent-[Ll]ength: //p')
    json=$(head -c "$length" "$folder/answer")
    encoder=$(printf '%s\n' "$json" | sed 's/.*"encoder_id"[^]]*\][^[]*\[\([0-9]*\)\].*/\1/')
}

# How many earlier frames a window has, and how many numbers of 4 bytes the features of each.
asked "$model"
shape=$(sed -n 's/.*"recent_features"[^]]*\[-1,\([0-9]*\),\([0-9]*\)\].*/\1 \2/p' "$folder/answer")
[ -n "$shape" ] || { echo "$model is no stream of this version" >&2; exit 1; }
frames=${shape% *} bytes=$((4 * ${shape#* })) before=
for image; do
    case $image in -*) image=./$image ;; esac
    ask "$image"
    # Features mean something to one encoder only: where another one answers, the stream begins anew.
    if [ "${before:-$encoder}" != "$encoder" ]; then : >"$features" && ask "$image"; fi
    before=$encoder
    tail -c "+$((length + 1))" "$folder/answer" >>"$features"
    tail -c $((frames * bytes)) "$features" >"$folder/last" && mv "$folder/last" "$features"
    printf '%s\n' "$json" | sed 's/.*"probabilities"[^]]*\][^[]*\["\(.*\)"\].*/\1/'
done
