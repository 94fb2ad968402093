# Functions for the scripts of this folder; sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Installs missing Debian packages as root; otherwise names them and fails.
need_packages() {
    local missing=()
    while [ $# -gt 0 ]; do
        # "command=package"
        command -v "${1%%=*}" >/dev/null 2>&1 || missing+=("${1##*=}")
        shift
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "missing: install these packages first: ${missing[*]}" >&2
        return 1
    fi
    echo "installing ${missing[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# start_reflector FOLDER COMMAND...: starts a reflector by a command that ends in `serve`, and waits until it is ready. Sets
# `reflector_pid` and `address`. Its log is in FOLDER.
start_reflector() {
    local folder=$1 listening
    shift
    mkfifo "$folder/listening"
    "$@" >"$folder/listening" 2>>"$folder/reflector.log" &
    # shellcheck disable=SC2034 # for the caller
    reflector_pid=$!
    # It prints its address when it is ready.
    exec {listening}<"$folder/listening"
    rm "$folder/listening"
    if ! read -r -t 30 _ _ address <&"$listening"; then
        echo "the reflector did not start:" >&2
        cat "$folder/reflector.log" >&2
        return 1
    fi
}

# pair FOLDER REFLECTOR APPLIANCE NAME: pairs by code; REFLECTOR and APPLIANCE name arrays with the commands of both
# programs, NAME is what the appliance calls the reflector at `address`.
pair() {
    local -n of_reflector=$2 of_appliance=$3
    local line code pairing
    mkfifo "$1/pairing"
    "${of_reflector[@]}" pair --json --name "$4 appliance" >"$1/pairing" &
    local pair_pid=$!
    exec {pairing}<"$1/pairing"
    rm "$1/pairing"
    read -r -t 30 line <&"$pairing"
    code=${line#*\"code\":\"}
    # The code goes through a pipe, not over the command line.
    printf '%s\n' "${code%%\"*}" |
        "${of_appliance[@]}" pair-reflector --peer "$address" --code - --name "$4" >&2
    wait "$pair_pid"
}
