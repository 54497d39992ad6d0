#!/usr/bin/env bash
# Runs the suites about cgroups, and critest for runc and crun, on an emulated host with cgroup v2 and AppArmor: once with the
# cgroupfs driver, and once with systemd as its first process, which then makes the cgroups. The tables of critest go into
# docs/conformance.md.
#   lab-host.sh [DRIVER [SUITE]]  DRIVER is cgroupfs or systemd, SUITE is groups, runc or crun; without them, all
set -euo pipefail
here=$(realpath "$(dirname "$0")/..")
cd "$here"
export PISTIS_BIN=${PISTIS_BIN:-$here/bin} PISTIS_GUEST=${PISTIS_GUEST:-$here/.cache/guest}
BIN=$PISTIS_BIN packages=$here/.cache/lab-host/packages

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
	# What its kernel can do and this machine's perhaps not is installed there and not here.
	mkdir -p "$packages/partial"
	apt-get -q install -y --download-only --no-install-recommends -o Dir::Cache::archives="$packages" -o APT::Sandbox::User=root criu apparmor >&2
}

# lab DRIVER SUITE: one processor, since QEMU's emulation of several takes code that one patches while another runs it for
# broken: kernels die of it.
lab() {
	local flags=()
	[ "$1" = cgroupfs ] || flags+=(-systemd)
	echo "== cgroup v2, driver $1: $2" >&2
	"$PISTIS_BIN/lab" -vcpus 1 -timeout 3h -cache "$here/.cache/kernels" "${flags[@]}" "$here/hack/lab-host.sh" --inside "$1" "$2"
}

# conformance DRIVER HANDLER: what the lab prints is critest's report.
conformance() {
	local report=$here/.cache/lab-host/critest-$2-$1.json version failed=0
	lab "$1" "$2" >"$report" || failed=1
	[ -s "$report" ] || return 1
	version=$("$PISTIS_BIN/pistisd" --version)
	"$PISTIS_BIN/critest-report" -section "Handler \`$2\` on a host with cgroup v2 and AppArmor, driver $1" -commit "${version##* }" \
		-reasons "$here/test/conformance/reasons-lab.txt" -doc "$here/docs/conformance.md" "$report" || failed=1
	return $failed
}

# What follows runs in the lab. /mnt is no overlay there: containers' roots can be.

inside() {
	local failed=0
	export TMPDIR=/mnt PISTIS_ACCELERATION=kvm
	grep -q . /sys/fs/cgroup/cgroup.controllers
	# Not dpkg-deb -x, which makes a directory of the link /lib.
	for package in "$packages"/*.deb; do [ ! -e "$package" ] || dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C /; done
	case $2 in
	groups)
		fallocate -l 1G /mnt/swap
		chmod 600 /mnt/swap
		mkswap -q /mnt/swap
		swapon /mnt/swap
		"$PISTIS_BIN/tests/cgroup.test" -test.v
		"$PISTIS_BIN/tests/systemd.test" -test.v
		(cd test/integration && "$PISTIS_BIN/tests/integration.test" -test.v -test.timeout 3h -test.run '^TestCgroup|^TestHost(Pod|Limits|Crash|UserNamespace|SecurityContext|MountsAndDevices|CannotStart)$|^TestCheckpoint$')
		;;
	runc | crun)
		# The suite loads AppArmor profiles with sudo.
		command -v sudo >/dev/null || { printf '#!/bin/sh\nexec "$@"\n' >/usr/local/bin/sudo && chmod +x /usr/local/bin/sudo; }
		# A spec wants to map the owners of files below it, which an overlay does not offer.
		mkdir /mnt/lib
		mount --bind /mnt/lib /var/lib
		OUT=/mnt/conformance NAME=lab-critest BUILT=1 REASONS=$here/test/conformance/reasons-lab.txt test/conformance/run.sh "$2" >&2 || failed=1
		cat "/mnt/conformance/$2-lab-critest/report.json"
		return $failed
		;;
	*)
		echo "no suite $2: there are groups, runc and crun" >&2
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
	for suite in ${2:-groups runc crun}; do
		case $suite in
		groups) lab "$driver" groups ;;
		*) conformance "$driver" "$suite" ;;
		esac || failed+=("$driver/$suite")
	done
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
