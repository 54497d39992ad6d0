#!/usr/bin/env bash
# Runs critest against a daemon of its own:
#   run.sh HANDLER [GINKGO FLAGS...]  all specs, or those of --ginkgo.focus; prints a table of the results
#   run.sh HANDLER --ci               the specs of ci-specs-HANDLER.txt, each of which has to pass
#   run.sh HANDLER --build            nothing but the programs; with BUILT=1 the other two take those that there are
# The images are built from Debian packages and served by a registry on this host under the names that the suite fixes.
# NAME is what the daemon's bridge, cgroup and directories are called after; with different ones, runs go side by side.
# OUT is where logs and the daemon's files are, .cache/conformance by default. REASONS is a file like reasons-HANDLER.txt
# for another host, whose table goes into no document.
set -euo pipefail
here=$(dirname "$(realpath "$0")") top=$(realpath "$(dirname "$0")/../..")
handler=${1:?usage: run.sh HANDLER [--ci | GINKGO FLAGS...]}
shift
BIN=${PISTIS_BIN:-$top/bin} GUEST=${PISTIS_GUEST:-$top/.cache/guest} NAME=${NAME:-pistis-critest}
# shellcheck source=hack/daemon.sh
. "$top/hack/daemon.sh"
out=${OUT:-$top/.cache/conformance}/$handler-${NAME#pistis-}

[ -n "${BUILT:-}" ] || (cd "$here" && go build -o "$BIN/crictl" sigs.k8s.io/cri-tools/cmd/crictl && go test -c -o "$BIN/critest" sigs.k8s.io/cri-tools/cmd/critest && go build -o "$BIN/critest-report" ./report)
[ "${1:-}" != --build ] || exit 0

rm -rf "$out"
mkdir -p "$out"

# A run of all specs updates the document.
ci='' doc=''
[ $# -gt 0 ] || [ -n "${REASONS:-}" ] || doc=$top/docs/conformance.md
if [ "${1:-}" = --ci ]; then
	ci=1
	shift
	while IFS= read -r spec; do
		case $spec in '' | '#'*) ;; *) set -- "$@" --ginkgo.focus "$spec" ;; esac
	done <"$here/ci-specs-$handler.txt"
fi

trap 'code=$?; stop_all || code=1; exit $code' EXIT
start_registry "$out" -cache "$top/.cache/images" -conformance
[ "$handler" != crun ] || one_hierarchy "$out/hierarchies"
mirror="[\"http://$registry_address\"]"
# For pods on the host's kernel no guest need be tried. In the lab guests run under KVM, slowly.
guests=''
case $handler in
runc | crun | runc-v2 | runsc) guests='acceleration = "tcg"' ;;
*) [ "${PISTIS_ACCELERATION:-}" != kvm ] || guests=$'acceleration = "kvm"\nboot_timeout = "4m"' ;;
esac
# Containerd's shim for runc and gVisor's are not in the default configuration as they are here.
shims=''
case $handler in
runc-v2) shims='shim = "io.containerd.runc.v2"
[handlers.runc-v2.options]
BinaryName = "'$(command -v runc || echo "$BIN/guest/runc")'"' ;;
runsc) shims='shim = "io.containerd.runsc.v1"' ;;
esac
[ -z "$shims" ] || shims='[handlers.runc]
type = "oci"
[handlers.vm]
type = "vm"
[handlers.'$handler']
type = "shim"
'$shims
start_daemon "$NAME" "$out" "$guests
[image.mirrors]
\"registry.k8s.io\" = $mirror
\"k8s.gcr.io\" = $mirror
\"gcr.io\" = $mirror
$shims"

# The suite's exit code says only that something failed; what failed, and whether that is known, the report tells.
"$BIN/critest" --runtime-endpoint "unix://$PISTIS_SOCKET" --image-endpoint "unix://$PISTIS_SOCKET" --runtime-handler "$handler" \
	--ginkgo.no-color --ginkgo.v --ginkgo.timeout 3h --ginkgo.json-report "$out/report.json" "$@" >"$out/critest.log" 2>&1 || true
grep -aE '^(Ran [0-9]|(SUCCESS|FAIL)!)' "$out/critest.log" >&2 || true
[ -s "$out/report.json" ] || { tail -n 40 "$out/critest.log" >&2; exit 1; }
if [ -n "$ci" ]; then
	"$BIN/critest-report" -expect "$here/ci-specs-$handler.txt" "$out/report.json"
else
	commit=$("$BIN/pistisd" --version)
	"$BIN/critest-report" -section "Handler \`$handler\`" -commit "${commit##* }" -reasons "${REASONS:-$here/reasons-$handler.txt}" \
		${doc:+-doc "$doc"} "$out/report.json" | tee "$out/table.md"
fi
