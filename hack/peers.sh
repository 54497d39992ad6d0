#!/usr/bin/env bash
# Measures pods on the host's kernel on pistisd and on its peers, by turns, in namespaces of its own; prints a table.
#   PODS, ROUNDS, TURNS  how many pods at once, how many single ones of each, how often the former are started
#   SUBJECTS             what is measured, as containerd/runc,pistis/crun; ROWS: which rows (see test/bench/peerbench)
set -euo pipefail
here=$(dirname "$(realpath "$0")")
top=$(realpath "$here/..")
BIN=${BIN:?}
"$top/test/peers/prepare.sh"
work=$top/.cache/bench-peers
mkdir -p "$work"
trap 'rm -rf "$work/run" "$work/var" "$work.disk"' EXIT
DISK=16G "$here/apart.sh" "$work" "$BIN/peerbench" -work "$work" -peers "$top/.cache/peers" -bin "$BIN" -images "$top/.cache/images" \
	-runc "$BIN/guest/runc" -crun "$top/.cache/peers/crun" -conmon "$(command -v conmon)" \
	-pods "${PODS:-50}" -rounds "${ROUNDS:-20}" -turns "${TURNS:-2}" ${SUBJECTS:+-subjects "$SUBJECTS"} ${ROWS:+-rows "$ROWS"}
