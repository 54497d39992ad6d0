#!/usr/bin/env bash
# Runs critest against a daemon of its own: run.sh HANDLER [GINKGO FLAGS...]
# The images are built from Debian packages and served by a registry on this host under the names that the suite fixes.
set -euo pipefail
here=$(dirname "$(realpath "$0")") top=$(realpath "$(dirname "$0")/../..")
handler=${1:?usage: run.sh HANDLER [GINKGO FLAGS...]}
shift
BIN=${PISTIS_BIN:-$top/bin} GUEST=${PISTIS_GUEST:-$top/.cache/guest}
# shellcheck source=hack/daemon.sh
. "$top/hack/daemon.sh"
out=$top/.cache/conformance/$handler
rm -rf "$out"
mkdir -p "$out"

(cd "$here" && go build -o "$BIN/crictl" sigs.k8s.io/cri-tools/cmd/crictl && go test -c -o "$BIN/critest" sigs.k8s.io/cri-tools/cmd/critest && go build -o "$BIN/critest-report" ./report)

trap 'code=$?; stop_all || code=1; exit $code' EXIT
start_registry "$out" -cache "$top/.cache/images" -conformance
start_daemon pistis-critest "$out" "[image.mirrors]
\"registry.k8s.io\" = [\"http://$registry_address\"]
\"gcr.io\" = [\"http://$registry_address\"]"

# The suite's exit code says only that something failed; what failed, and whether that is known, the table tells.
"$BIN/critest" --runtime-endpoint "unix://$PISTIS_SOCKET" --image-endpoint "unix://$PISTIS_SOCKET" --runtime-handler "$handler" \
	--ginkgo.no-color --ginkgo.json-report "$out/report.json" "$@" >"$out/critest.log" 2>&1 || true
[ -s "$out/report.json" ] || { tail -n 40 "$out/critest.log" >&2; exit 1; }
"$BIN/critest-report" -handler "$handler" -commit "$(git -C "$top" rev-parse --short HEAD)" -reasons "$here/reasons-$handler.txt" \
	"$out/report.json" | tee "$out/table.md"
