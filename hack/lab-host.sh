#!/usr/bin/env bash
# Runs the suites about cgroups, and the named specs of critest for runc, on an emulated host with cgroup v2: once with the
# cgroupfs driver, and once with systemd as its first process, which then makes the cgroups.
#   lab-host.sh [DRIVER [SUITE]]  DRIVER is cgroupfs or systemd, SUITE is groups or critest; without them, all
set -euo pipefail
here=$(realpath "$(dirname "$0")/..")
cd "$here"
export PISTIS_BIN=${PISTIS_BIN:-$here/bin} PISTIS_GUEST=${PISTIS_GUEST:-$here/.cache/guest}
BIN=$PISTIS_BIN

# What follows runs on this machine.

prepare() {
	echo "== building what runs in the lab" >&2
	go build -o "$PISTIS_BIN/" ./test/lab ./test/images/registry ./test/leak/leakcheck
	mkdir -p "$PISTIS_BIN/tests"
	go test -c -o "$PISTIS_BIN/tests/" ./test/integration ./internal/cgroup ./internal/systemd
	test/conformance/run.sh runc --build
	# The lab has no network: the images are built before.
	# shellcheck source=hack/daemon.sh
	. hack/daemon.sh
	start_registry .cache/lab-host -cache "$here/.cache/images" -tests -conformance
	stop_all
}

# lab DRIVER SUITE: one processor, since QEMU's emulation of several takes code that one patches while another runs it for
# broken: kernels die of it.
lab() {
	local flags=()
	[ "$1" = cgroupfs ] || flags+=(-systemd)
	echo "== cgroup v2, driver $1: $2" >&2
	"$PISTIS_BIN/lab" -vcpus 1 -timeout 3h -cache "$here/.cache/kernels" "${flags[@]}" "$here/hack/lab-host.sh" --inside "$1" "$2"
}

# What follows runs in the lab. /mnt is no overlay there: containers' roots can be.

inside() {
	export TMPDIR=/mnt PISTIS_ACCELERATION=kvm
	grep -q . /sys/fs/cgroup/cgroup.controllers
	case $2 in
	groups)
		fallocate -l 1G /mnt/swap
		chmod 600 /mnt/swap
		mkswap -q /mnt/swap
		swapon /mnt/swap
		"$PISTIS_BIN/tests/cgroup.test" -test.v
		"$PISTIS_BIN/tests/systemd.test" -test.v
		(cd test/integration && "$PISTIS_BIN/tests/integration.test" -test.v -test.timeout 3h -test.run '^TestCgroup|^TestHostLimits$|^TestHostCrash$')
		;;
	critest)
		# A spec wants to map the owners of files below it, which an overlay does not offer.
		mkdir /mnt/lib
		mount --bind /mnt/lib /var/lib
		OUT=/mnt/conformance NAME=lab-critest BUILT=1 test/conformance/run.sh runc --ci
		;;
	*)
		echo "no suite $2: there are groups and critest" >&2
		exit 2
		;;
	esac
}

if [ "${1:-}" = --inside ]; then
	inside "$2" "$3"
	exit
fi
prepare
failed=()
for driver in ${1:-cgroupfs systemd}; do
	for suite in ${2:-groups critest}; do
		lab "$driver" "$suite" || failed+=("$driver/$suite")
	done
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
