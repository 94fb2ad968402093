# Stops a running reflector. Running tests may finish, for at most 60 s.
stop_reflector() {
    has_unit=""
    if [ -d /run/systemd/system ] && systemctl --quiet is-active reflector.service; then has_unit=yes; fi
    is_running() {
        if [ -z "$has_unit" ]; then
            reflector health --live >/dev/null 2>&1
        else
            case "$(systemctl show --property=ActiveState --value reflector.service)" in
                inactive | failed) return 1 ;;
            esac
        fi
    }
    is_running || return 0
    if [ -n "$has_unit" ]; then
        systemctl --no-block stop reflector.service
    else
        reflector drain >/dev/null || return 0
    fi
    seconds=0
    while is_running && [ "$seconds" -lt 60 ]; do
        sleep 1
        seconds=$((seconds + 1))
    done
    if [ -n "$has_unit" ] && is_running; then
        # A second signal ends the running tests.
        systemctl kill --kill-who=main --signal=TERM reflector.service || true
        systemctl stop reflector.service
    fi
}
