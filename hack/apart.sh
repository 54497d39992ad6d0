#!/usr/bin/env bash
# Runs a command in mount, network and process namespaces of its own: apart.sh DIR COMMAND...
# CRI daemons keep state in places that no configuration moves. Here those are directories below DIR, the network is
# empty but for loopback, and whatever the command leaves running ends with it.
set -euo pipefail
if [ "${1:?usage: apart.sh DIR COMMAND...}" != --inside ]; then
	exec unshare --mount --net --pid --fork --kill-child --mount-proc "$(realpath "$0")" --inside "$@"
fi
dir=$2
shift 2
ip link set lo up
for place in /run/containerd /var/lib/cni /run/netns /run/crun; do
	rm -rf "$dir$place"
	mkdir -p "$dir$place" "$place"
	mount --bind "$dir$place" "$place"
done
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
exit $code
