# Adds the system user of this package, if there is none.
add_user() {
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers "$1.conf"
    elif ! getent passwd "$1" >/dev/null; then
        # The same account on a machine without systemd. A number that is taken is left to its owner.
        numbers=""
        if ! getent group "$2" >/dev/null && ! getent passwd "$2" >/dev/null; then numbers=$2; fi
        getent group "$1" >/dev/null || groupadd --system ${numbers:+--gid "$numbers"} "$1"
        useradd --system ${numbers:+--uid "$numbers"} --gid "$1" --home-dir "/var/lib/$1" --no-create-home \
            --shell /usr/sbin/nologin "$1"
    fi
}
