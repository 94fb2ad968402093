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

# start_program NAME FOLDER COMMAND...: starts a program that prints where it listens, as the third word of a line, when it is
# ready; waits for that. Sets `program_pid` and `place`. Its log is NAME.log in FOLDER.
start_program() {
    local name=$1 folder=$2 ready
    shift 2
    mkfifo "$folder/$name.ready"
    "$@" >"$folder/$name.ready" 2>>"$folder/$name.log" &
    program_pid=$!
    exec {ready}<"$folder/$name.ready"
    rm "$folder/$name.ready"
    if ! read -r -t 30 _ _ place <&"$ready"; then
        echo "$name did not start:" >&2
        cat "$folder/$name.log" >&2
        return 1
    fi
}

# start_reflector FOLDER COMMAND...: the same for `reflector serve`. Sets `reflector_pid` and `address`.
start_reflector() {
    start_program reflector "$@"
    # shellcheck disable=SC2034 # for the caller
    reflector_pid=$program_pid address=$place
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
