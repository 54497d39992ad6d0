#!/usr/bin/env bash
# The suites that need KVM, in a lab for each hypervisor whose program is on PATH:
#   doctor    pistis tells the truth about this host
#   contract  what every driver has to hold, and rates and CPU templates of fc
#   pods      pods through CRI: image, network, exec, logs and their rotation, attach, port-forward, resizing, stop
#   volumes   every kind of volume, a row each
#   critest   the specs of test/conformance/ci-specs-HANDLER.txt; not among the default, and for fc alone
#   bench     volumes against the host and virtio-fs, as VOLUMES=1 make bench does; not among the default, and for qemu alone
# It prints what passed, as tables. HANDLERS and SUITES choose a part, TESTS single tests of the pods' suites. A run of all
# handlers that has the suite volumes writes its table into docs/volumes.md, critest writes its own into docs/conformance.md.
set -euo pipefail
here=$(realpath "$(dirname "$0")/..")
cd "$here"
export PISTIS_BIN=${PISTIS_BIN:-$here/bin} PISTIS_GUEST=${PISTIS_GUEST:-$here/.cache/guest}
export BIN=$PISTIS_BIN GUEST=$PISTIS_GUEST # for hack/volumes.sh
export CGO_ENABLED=0 # the guest's programs are static
out=$here/.cache/lab-test
declare -A package=([qemu]=qemu [fc]=firecracker [clh]=cloudhypervisor)
declare -A program=([qemu]=qemu-system-x86_64 [fc]=firecracker [clh]=cloud-hypervisor)
contract='TestContract TestRates TestCPUTemplate'
pods='TestPod TestStreams TestNetwork TestLogRotation TestResizeInPlace TestVMMCounters'
volumes='TestVolumes TestVolumeKinds TestBlockVolumes TestImageVolumesInVM TestReloaders TestRefusedVolumes'

# What follows runs on this machine.

# prepare SUITES: the lab has no network, so that all is built and fetched before.
prepare() {
	echo "== building what runs in the lab" >&2
	mkdir -p "$out" "$BIN/tests"
	go build -o "$BIN/" ./test/lab ./test/images/registry ./test/leak/leakcheck
	go build -o "$BIN/lab-report" ./test/lab/report
	go test -c -o "$BIN/tests/" ./test/integration ./internal/hypervisor/{qemu,firecracker,cloudhypervisor}
	go build -trimpath -ldflags='-s -w' -o "$BIN/tests/testinit" ./internal/hypervisor/hypervisortest/testinit
	"$BIN/pistis" guest build --keep-kernel --dir "$(dirname "$GUEST")/test-guest" --module virtio_pmem,nd_pmem \
		--agent "$BIN/tests/testinit" --runc "$BIN/tests/testinit" >"$out/guest.log" 2>&1 ||
		{ cat "$out/guest.log" >&2; exit 1; }
	local images=(-tests)
	if [[ " $1 " == *' critest '* ]]; then
		images+=(-conformance)
		test/conformance/run.sh fc --build
	fi
	if [[ " $1 " == *' bench '* ]]; then
		images+=(-storage)
		command -v fio >/dev/null || apt-get install -y --no-install-recommends fio >/dev/null
		go build -o "$BIN/bench-volumes/" ./test/bench/fsload ./test/bench/volumes
	fi
	# shellcheck source=hack/daemon.sh
	. hack/daemon.sh
	start_registry "$out" -cache "$here/.cache/images" "${images[@]}"
	kill "$registry"
}

# lab HANDLER SUITES: one processor, since QEMU's emulation of several takes code that one patches while another runs it for
# broken: kernels die of it.
lab() {
	local handler=$1 log=$out/$1.log
	echo "== $handler: $("${program[$handler]}" --version 2>/dev/null | head -n 1)" | tee "$log"
	"$BIN/lab" -vcpus 1 -memory 8192 -timeout 3h -cache "$(dirname "$GUEST")/kernels" "$here/hack/lab-test.sh" --inside "$handler" "$2" 2>&1 |
		tee -a "$log" | grep -aE --line-buffered '^(== |lab:| *--- |[0-9]+ specs|\|)' || true
	if grep -aq '^lab: ' "$log" || ! grep -aq '^== end' "$log"; then
		tail -n 60 "$log" >&2
		return 1
	fi
}

# What follows runs in the lab. Its host is slow: what waits for guests is told so.

inside() {
	export TMPDIR=/mnt PISTIS_ACCELERATION=kvm PISTIS_TEST_GUEST=$(dirname "$GUEST")/test-guest PISTIS_HANDLER=$1
	local suite failed=0
	for suite in $2; do
		echo "== suite $suite"
		case $suite in
		doctor) tests integration TestDoctor ;;
		contract) tests "${package[$1]}" "${TESTS:-$contract}" ;;
		pods) tests integration "${TESTS:-$pods}" ;;
		volumes) tests integration "${TESTS:-$volumes}" ;;
		critest) critest "$1" ;;
		bench) HANDLER=$1 BUILT=1 DIR=/mnt/bench hack/volumes.sh ;;
		*) echo "no suite $suite" && false ;;
		esac || failed=1
	done
	echo "== end"
	return $failed
}

# tests PACKAGE NAMES
tests() {
	(cd test/integration && "$BIN/tests/$1.test" -test.v -test.timeout 2h -test.run "^(${2// /|})\$")
}

# critest prints the suite's log and report too, and the daemon's log where a spec failed: files do not leave the lab.
critest() {
	local result=0 dir=/mnt/conformance/$1-lab-critest
	tail -n +1 -s 5 -F "$dir/critest.log" 2>/dev/null &
	local log=$!
	OUT=/mnt/conformance NAME=lab-critest BUILT=1 test/conformance/run.sh "$1" --ci || result=1
	kill "$log"
	[ $result = 0 ] || cat "$dir/pistisd.log"
	echo "== report"
	gzip -c "$dir/report.json" | base64
	return $result
}

if [ "${1:-}" = --inside ]; then
	inside "$2" "$3"
	exit
fi
suites=${SUITES:-${SUITE:-doctor contract pods volumes}}
handlers=${HANDLERS:-qemu fc clh}
[ "$suites" != critest ] || handlers=${HANDLERS:-fc}
[ "$suites" != bench ] || handlers=${HANDLERS:-qemu}
prepare "$suites"
failed=0 logs=()
for handler in $handlers; do
	if ! command -v "${program[$handler]}" >/dev/null; then
		echo "== $handler: SKIPPED: ${program[$handler]} is not on PATH"
		continue
	fi
	lab "$handler" "$suites" || failed=1
	logs+=("$handler=$out/$handler.log")
	if grep -aq '^== report' "$out/$handler.log"; then
		sed '1,/^== report/d; /^== /,$d' "$out/$handler.log" | base64 -d | gunzip >"$out/$handler-critest.json"
		"$BIN/critest-report" -section "Handler \`$handler\`" -commit "$(git describe --always --dirty)" \
			-reasons "test/conformance/reasons-$handler.txt" -doc docs/conformance.md "$out/$handler-critest.json" || failed=1
	fi
done
[ ${#logs[@]} -gt 0 ] || exit 0
if [ "$suites" = bench ]; then # it has measured, not tested
	for log in "${logs[@]}"; do
		echo "== ${log%%=*}"
		sed '1,/^== suite bench/d; /^== /,$d' "${log#*=}"
	done
	exit $failed
fi
doc=()
if [ -z "${HANDLERS:-}${TESTS:-}" ] && [[ " $suites " == *' volumes '* ]]; then doc=(-doc docs/volumes.md); fi
"$BIN/lab-report" -commit "$(git describe --always --dirty)" "${doc[@]}" "${logs[@]}" || failed=1
exit $failed
