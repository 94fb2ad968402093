#!/usr/bin/env bash
# start-systemd.sh ROOT: becomes the systemd of the Debian in ROOT; for `boot`, in namespaces of its own.
source "$(dirname "$0")/lib.sh"
trap - EXIT
rmdir "$folder"
root=$1
mount --bind "$root" "$root"
mount_system "$root"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/dev/shm"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
if [ -e /sys/fs/cgroup/systemd/cgroup.procs ]; then
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
    mkdir "$root/sys/fs/cgroup/unified"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
else
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
fi
ip link set lo up
# A real change of the root: systemd makes namespaces of services below it, which a chroot would refuse.
cd "$root"
pivot_root . .
umount --lazy .
cd /
# systemd leaves that to the manager of its container; credentials are passed by such mounts.
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=null \
    --unit=multi-user.target </dev/null
