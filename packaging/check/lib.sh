# shellcheck shell=bash
# Functions for the checks in this folder; sourced, not run. A check is a script that exits with 0 if the artefact does
# what it promises, and with 77 if this machine cannot check it.
source "$(dirname "${BASH_SOURCE[0]}")/../../script/lib.sh"
source packaging/build.sh

folder=$(mktemp -d)
clean_up() {
    # The newest mount first.
    awk -v folder="$folder/" 'index($2, folder) == 1 { print $2 }' /proc/self/mounts | tac | xargs -r umount --lazy
    rm -rf --one-file-system "$folder"
}
trap clean_up EXIT

cannot() {
    echo "SKIPPED: $1" >&2
    exit 77
}

# Runs the calling script again as the first process of its own namespaces: its processes and mounts end with it, and its
# ports collide with none. Everything that needs the Internet comes before.
in_own_namespaces() {
    if [ -z "${in_namespaces:-}" ]; then
        [ "$(id -u)" -eq 0 ] || cannot "needs root"
        rm -rf "$folder"
        in_namespaces=yes exec unshare --mount --net --pid --fork --kill-child --mount-proc -- "$0" "$@"
    fi
    ip link set lo up
}

# Mounts what a container's runtime mounts into a root file system.
mount_system() {
    local root=$1
    mkdir -p "$root/proc" "$root/dev" "$root/tmp" "$root/run"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero full random urandom tty; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    ln -sf pts/ptmx "$root/dev/ptmx"
}

# The command of the appliance, set by the check.
appliance=()

# measure ENGINE [OPTION...]: a speed test by the appliance; it must be complete, with data in both directions.
# `measure_options` adds options to each, such as -b 20M on a machine that is needed otherwise.
measure() {
    # shellcheck disable=SC2086 # several words
    "${appliance[@]}" speed-test -t 1 --idle 0.5 --json --engine "$@" ${measure_options:-} >"$folder/result.json" ||
        { cat "$folder/result.json" >&2 && return 1; }
    jq -er 'if .complete and .download.goodput_bps > 1e6 and .upload.goodput_bps > 1e6 and .latency.idle.rtt_us.p50 > 0
        then "measured \(.download.goodput_bps / 1e6 | round) Mbit/s down, \(.upload.goodput_bps / 1e6 | round) Mbit/s up"
        else error("not measured: \(.)") end' "$folder/result.json"
}

# Ends the reflector that start_reflector started; it must end well.
stop_reflector() {
    kill "$reflector_pid"
    wait "$reflector_pid"
}

expect() {
    if ! "${@:2}"; then
        echo "not so: $1" >&2
        return 1
    fi
    echo "  $1"
}
