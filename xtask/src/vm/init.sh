#!/bin/sh
# First process of a guest: makes a small system, loads the modules, runs /t/.run and says how it ended.
# The console (ttyS0) is for the kernel and for us, the second serial line carries what the command says.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security
ulimit -l unlimited

if grep -qw snat-trace.modules=no /proc/cmdline; then
    :
else
    while read -r module; do
        insmod "/mods/$module" || echo "VM-NOTE insmod $module failed"
    done </mods/order
fi
ip link set lo up
echo "VM-BOOT $(uname -r)"

stty -F /dev/ttyS1 raw -echo
cd /t
/t/.run </dev/null >/dev/ttyS1 2>&1
code=$?
# stty waits until everything written before has left: a power-off would cut it off.
stty -F /dev/ttyS1 raw -echo
echo "VM-EXIT $code"
stty -F /dev/ttyS0 -echo
poweroff -f
