#!/usr/bin/env bash
# Runs a command in mount, network and process namespaces of its own: apart.sh DIR COMMAND...
# CRI daemons keep state in places that no configuration moves. Here those are directories below DIR or, what is in /run, in
# memory as on every node; the network is empty but for loopback, and whatever the command leaves running ends with it.
#   DISK=8G  gives DIR a file system of its own too: ext4 as mkfs makes it, with a journal, in a sparse file that ends with
#            the command. Otherwise what is measured there also depends on the file system that DIR happens to lie on.
set -euo pipefail
if [ "${1:?usage: apart.sh DIR COMMAND...}" != --inside ]; then
	exec unshare --mount --net --pid --fork --kill-child --mount-proc "$(realpath "$0")" --inside "$@"
fi
dir=$2
shift 2
ip link set lo up
if [ -n "${DISK:-}" ]; then
	disk=$dir.disk
	truncate -s "$DISK" "$disk"
	mkfs.ext4 -q -F "$disk"
	mount -o loop "$disk" "$dir"
	rm "$disk" # the mount keeps it
fi
mount -t tmpfs -o mode=755 run /run
for place in /run/containerd /run/netns /run/crun; do mkdir -p "$place"; done
rm -rf "$dir/var/lib/cni"
mkdir -p "$dir/var/lib/cni" /var/lib/cni
mount --bind "$dir/var/lib/cni" /var/lib/cni
# crun refuses hosts where a controller is on the unified hierarchy beside those of cgroup v1. It never uses that one.
controllers=/sys/fs/cgroup/unified/cgroup.controllers
[ ! -e $controllers ] || mount --bind /dev/null $controllers
# As the first process of its namespace this shell reaps what daemons leave behind.
"$@" &
command=$!
trap 'kill -INT $command' INT TERM
code=0
wait $command || code=$?
while kill -0 $command 2>/dev/null; do wait $command || code=$?; done
# With the disk go the daemons' logs.
[ -z "${DISK:-}" ] || [ $code -eq 0 ] || tail -n 20 "$dir"/*/log >&2
exit $code
