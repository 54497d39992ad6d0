#!/usr/bin/env bash
# Measures VM pods on a daemon of its own: PODS=10 hack/bench.sh
set -euo pipefail
here=$(dirname "$(realpath "$0")")
BIN=${BIN:?} GUEST=${GUEST:?}
# shellcheck source=hack/daemon.sh
. "$here/daemon.sh"
cache=$(realpath "$here/..")/.cache
trap 'stop_all' EXIT
start_registry "$cache/bench" -cache "$cache/images"
start_daemon pistis-bench "$cache/bench"
echo "sizes"
for f in "$BIN/guest/pistis-agent" "$GUEST/initrd" "$GUEST/vmlinuz"; do
	printf '%-34s %10.1f MiB\n' "$(basename "$f")" "$(stat -c %s "$f" | awk '{print $1/1048576}')"
done
echo
"$BIN/bench" -image "$registry_address/pistis/tour:latest" -pods "${PODS:-10}" -daemon-pid "$daemon" \
	-kernel "$GUEST/vmlinuz" -initrd "$GUEST/initrd" -empty-init "$BIN/emptyinit"
echo
echo "the host's part of the log path"
(cd "$here/.." && go test -run '^$' -bench '^BenchmarkLog$' -benchtime 2s ./internal/stdio) | grep -E '^Benchmark'
