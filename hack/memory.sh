#!/usr/bin/env bash
# Host memory of VM pods for every hypervisor whose program is on PATH, under KVM: in the lab, which is made for it.
# HANDLERS and PODS choose.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
BIN=${BIN:?} GUEST=${GUEST:?}
# shellcheck source=hack/daemon.sh
. "$here/daemon.sh"
cache=$(realpath "$here/..")/.cache
if [ "${1:-}" != --inside ]; then
	# Inside there is nothing but what is there already.
	start_registry "$cache/bench" -cache "$cache/images"
	kill "$registry"
	exec "$BIN/lab" -vcpus "${VCPUS:-2}" -cache "$(dirname "$GUEST")/kernels" -timeout 45m \
		env BIN="$BIN" GUEST="$GUEST" PODS="${PODS:-4}" HANDLERS="${HANDLERS:-qemu fc clh}" "$here/memory.sh" --inside
fi
trap 'stop_all' EXIT
out=$(mktemp -d /mnt/memory.XXXX)
start_registry "$out" -cache "$cache/images"
start_daemon pistis-memory "$out" $'acceleration = "kvm"\nboot_timeout = "5m"'
declare -A program=([qemu]=qemu-system-x86_64 [fc]=firecracker [clh]=cloud-hypervisor)
for h in $HANDLERS; do
	if ! command -v "${program[$h]}" >/dev/null; then
		echo "$h: SKIPPED: ${program[$h]} is not on PATH"
		continue
	fi
	echo "== $h: $("${program[$h]}" --version 2>/dev/null | head -1)"
	"$BIN/bench" -image "$registry_address/pistis/tour:latest" -handler "$h" -pods "$PODS" -daemon-pid "$daemon" -only memory
done
