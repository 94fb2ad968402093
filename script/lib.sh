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
