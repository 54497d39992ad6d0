#!/usr/bin/env bash
# Measures root file systems of pods against a peer's and against virtio-fs, in one run: ROOTFS=1 make bench
#   MIB   size of the image that is pulled, started from and worked in
#   PODS  how many microVM pods share it
#   TURNS how often each daemon pulls it into an empty store
#   ROWS  "pulls": nothing else is measured
set -euo pipefail
here=$(dirname "$(realpath "$0")")
top=$(realpath "$here/..")
BIN=${BIN:?} GUEST=${GUEST:?}
"$top/test/peers/prepare.sh"
work=$top/.cache/bench-rootfs
mkdir -p "$work"
trap 'rm -rf "$work" "$work.disk"' EXIT
(cd "$top" && go build -o "$BIN/bench-rootfs/" ./test/bench/fsload ./test/bench/rootfs)
version=$(sed -n 's/.*"kernel_version": "\(.*\)".*/\1/p' "$GUEST/guest.json")
virtiofs=$(find "$top/.cache/kernels/" -path "*/$version/*" -name 'virtiofs.ko' | head -n 1)
DISK=32G "$here/apart.sh" "$work" "$BIN/bench-rootfs/rootfs" -work "$work" -peers "$top/.cache/peers" -bin "$BIN" -images "$top/.cache/images" \
	-runc "$BIN/guest/runc" -load "$BIN/bench-rootfs/fsload" -kernel "$GUEST/vmlinuz" -initrd "$GUEST/initrd" -modules "$GUEST/modules.img" \
	-virtiofs "$virtiofs" -mib "${MIB:-2048}" -pods "${PODS:-20}" -turns "${TURNS:-3}" -pulls-only="$([ "${ROWS:-}" = pulls ] && echo true || echo false)"
