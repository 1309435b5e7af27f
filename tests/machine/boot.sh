#!/bin/sh
# The first process of a throw-away machine: lays a writable layer over this system's root, and becomes systemd in it.
# Runs in new mount, pid, network, IPC, UTS and cgroup namespaces (see machine_process.py), so that everything made here
# ends with them. $1: the checkout, which the machine sees read-only at the same path.
set -eu
checkout=$1

mount --make-rprivate /
mount -t tmpfs machine /mnt # private to this namespace, like every mount below: nothing has to be unmounted later
mkdir /mnt/upper /mnt/work /mnt/root /mnt/checkout
mount --bind "$checkout" /mnt/checkout # while its path is still that of the real system: /tmp becomes another one
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
cd /mnt/root

mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=1777 tmp tmp

# Its own /dev, without the devices of the real machine: systemd would write to the console and the kernel's log there.
mount -t tmpfs -o mode=755 dev dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
for device in null zero full random urandom tty; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done

# A machine on which nothing was enabled, whatever the real one runs, where packages may start services, and where dpkg does
# not index all manuals each time.
: >etc/machine-id
: >etc/fstab
rm -rf var/log/journal usr/sbin/policy-rc.d var/lib/man-db/auto-update
find etc/systemd/system -path '*.wants/*' -delete
mkdir -p etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=6G\nRuntimeMaxFileSize=512M\nForwardToWall=no\n' >etc/systemd/journald.conf.d/machine.conf

mkdir -p ".$checkout"
mount --bind /mnt/checkout ".$checkout"
mount -o remount,bind,ro ".$checkout"

pivot_root . .
umount -l .
cd /
exec env -i container=parsupd-tests PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=multi-user.target
