#!/usr/bin/env bash
# Lets pods come and go, or live in a crowd, on a pistisd of its own that is killed meanwhile, in namespaces of its own.
#   CYCLES, PARALLEL, KILL, VMS  how many pods, how many at a time, after how many the daemon is killed, one of how many is a VM
#   SHIM                         path of containerd-shim-runc-v2, for a handler that calls it
#   CROWD                        how many pods live at once, instead of all that
set -euo pipefail
here=$(dirname "$(realpath "$0")")
top=$(realpath "$here/..")
BIN=${BIN:?} GUEST=${GUEST:?}
work=$top/.cache/soak
mkdir -p "$work"
trap 'rm -rf "$work/var"' EXIT
# crun 1.8 in Debian's package knows the version of the specs that pistisd writes.
"$here/apart.sh" "$work" "$BIN/soak" -work "$work" -bin "$BIN" -images "$top/.cache/images" -guest "$GUEST" \
	-runc "$BIN/guest/runc" -shim "${SHIM:-}" -crun "$(command -v crun || true)" \
	-cycles "${CYCLES:-1000}" -parallel "${PARALLEL:-8}" -kill "${KILL:-100}" -vms "${VMS:-50}" -crowd "${CROWD:-0}"
