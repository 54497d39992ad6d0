#!/usr/bin/env bash
# The suites that need KVM, in the lab: the contract of every hypervisor whose program is on PATH, and pods of its handler
# with network, streams, logs and volumes. It prints a table of what passed. HANDLERS and TESTS choose a part.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${PISTIS_BIN:-$PWD/bin} guest=${PISTIS_GUEST:-$PWD/.cache/guest}
handlers=${HANDLERS:-qemu fc clh}
tests=${TESTS:-Contract TestStreams TestNetwork TestVolumes TestLogRotation}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

declare -A program=([qemu]=qemu-system-x86_64 [fc]=firecracker [clh]=cloud-hypervisor)
declare -A package=([qemu]=qemu [fc]=firecracker [clh]=cloudhypervisor)

echo "building the tests"
go build -trimpath -ldflags='-s -w' -o "$out/testinit" ./internal/hypervisor/hypervisortest/testinit
"$bin/pistis" guest build --keep-kernel --dir "$(dirname "$guest")/test-guest" --agent "$out/testinit" --runc "$out/testinit" >"$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
go test -c -o "$out/pods" ./test/integration
for h in $handlers; do go test -c -o "$out/$h" "./internal/hypervisor/${package[$h]}"; done

# In the lab there is nothing but what is there already: images and kernel come from the caches. The registry builds images.
# shellcheck source=hack/daemon.sh
BIN=$bin GUEST=$guest . hack/daemon.sh
BIN=$bin start_registry "$out" -cache "$PWD/.cache/images" -tests
kill "$registry"
export PISTIS_BIN=$bin PISTIS_GUEST=$guest PISTIS_TEST_GUEST=$(dirname "$guest")/test-guest PISTIS_ACCELERATION=kvm
failed=0 rows=()
for h in $handlers; do
	if ! command -v "${program[$h]}" >/dev/null; then
		for t in $tests; do rows+=("$h	$t	SKIPPED: ${program[$h]} is not on PATH"); done
		continue
	fi
	echo "== $h: $("${program[$h]}" --version 2>/dev/null | head -1)"
	for t in $tests; do
		if [ "$t" = Contract ]; then
			command=("$out/$h" -test.v -test.timeout 40m -test.run '^TestContract$')
		else
			command=("$out/pods" -test.v -test.timeout 40m -test.run "^$t\$")
		fi
		began=$SECONDS result=passed
		(cd test/integration && PISTIS_HANDLER=$h "$bin/lab" -cache "$(dirname "$guest")/kernels" -timeout 45m "${command[@]}") >"$out/log" 2>&1 || result=FAILED
		[ "$result" = passed ] || { failed=1; cat "$out/log"; }
		grep -E '^ *--- ' "$out/log" || true
		if grep -q '^--- SKIP' "$out/log"; then result="SKIPPED: $(grep -o 'SKIPPED.*' "$out/log" | head -1)"; fi
		rows+=("$h	$t	$result, $((SECONDS - began)) s")
	done
done
printf '%s\n' "${rows[@]}" | column -t -s $'\t' -N handler,test,result
exit $failed
