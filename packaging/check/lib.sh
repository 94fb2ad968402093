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

# unpack_image NAME TAG ROOT: unpacks an image of target/dist, as `docker load` does, and writes its configuration to
# ROOT.json.
unpack_image() {
    local unpacked=$folder/unpacked layer
    rm -rf "$unpacked"
    mkdir -p "$unpacked" "$3"
    tar -C "$unpacked" -xzf "$dist/$1-$2-amd64.image.tar.gz"
    jq -r '.[0].Layers[]' "$unpacked/manifest.json" | while read -r layer; do tar -C "$3" -xf "$unpacked/$layer"; done
    jq .config "$unpacked/$(jq -r '.[0].Config' "$unpacked/manifest.json")" >"$3.json"
    rm -rf "$unpacked"
}

# as_container ROOT [PREFIX...]: mounts what a container's runtime mounts for the image in ROOT with the configuration
# ROOT.json: a read-only root and a volume for the state. Sets the array `run` to the command that runs its program, without
# privileges, and `default` to what the image starts if no command is given.
as_container() {
    local root=$1 user environment
    user=$(jq -r .User "$root.json")
    mount --bind "$root" "$root"
    mount_system "$root"
    mount_volume "$root" "mode=700,uid=${user%:*},gid=${user#*:}"
    mount -o remount,bind,ro "$root"
    mapfile -t environment < <(jq -r '.Env[]' "$root.json")
    # shellcheck disable=SC2034 # for the caller
    run=("${@:2}" env -i "${environment[@]}"
        /usr/bin/setpriv --no-new-privs --bounding-set="-all,+sys_chroot,+setuid,+setgid"
        /usr/sbin/chroot --userspec="$user" "$root" "$(jq -r '.Entrypoint[0]' "$root.json")")
    # shellcheck disable=SC2034 # for the caller
    default=$(jq -r '.Cmd[0]' "$root.json")
}
mount_volume() { mount -t tmpfs -o "$2" tmpfs "$1$(jq -r '.Volumes | keys[0]' "$1.json")"; }

# The command of the appliance, set by the check.
appliance=()

# measure ENGINE [OPTION...]: a speed test by the appliance; it must be complete, with data in both directions.
# `measure_options` adds options to each, such as -b 20M on a machine that is needed otherwise.
measure() {
    # shellcheck disable=SC2086 # several words
    "${appliance[@]}" speed-test -t 1 --idle 0.5 --json --engine "$@" ${measure_options:-} >"$folder/result.json" ||
        { cat "$folder/result.json" >&2 && return 1; }
    jq -er 'if .complete and .download.goodput_bps > 1e6 and .upload.goodput_bps > 1e6 and .latency.idle.received > 0
        then "measured \(.download.goodput_bps / 1e6 | round) Mbit/s down, \(.upload.goodput_bps / 1e6 | round) Mbit/s up"
        else error("not measured: \(.)") end' "$folder/result.json"
}

# Has the service of the appliance run a schedule at once; it must measure.
run_schedule() {
    local last
    "${appliance[@]}" schedule add --name daily --cron "30 4 * * *" --zone Europe/Berlin --yes -t 1 --idle 0.5 >/dev/null
    "${appliance[@]}" schedule run daily >/dev/null
    for _ in $(seq 120); do
        last=$("${appliance[@]}" schedule runs daily --json | jq -c '.[0] // { outcome: "running" }')
        [ "$(jq -r .outcome <<<"$last")" = running ] || break
        sleep 0.5
    done
    jq -er 'if .outcome == "done" and .data_used_bytes > 0 then "measured by a schedule, \(.data_used_bytes) bytes"
        else error("not measured by a schedule: \(.)") end' <<<"$last"
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
