#!/usr/bin/env bash
# Measures a volume of a VM pod against the host and against virtio-fs, in one run: VOLUMES=1 make bench
#   ROUNDS  how often each is measured
#   SUBJECTS  what is measured, as "pistis": host,virtio-fs,pistis by default
#   LOAD    flags of test/bench/fsload, as "-mib 256 -files 2000"
#   HANDLER  the pods' runtime handler; vm by default. The peer's guest is QEMU's always
#   DIR     where the volumes lie; .cache/bench by default
#   BUILT   1 takes the programs and fio that there are
# With PISTIS_ACCELERATION=kvm, in the lab, guests run under KVM, else emulated.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
BIN=${BIN:?} GUEST=${GUEST:?}
# shellcheck source=hack/daemon.sh
. "$here/daemon.sh"
top=$(realpath "$here/..")
cache=$top/.cache
dir=${DIR:-$cache/bench}
[ -n "${BUILT:-}" ] || command -v fio >/dev/null || { echo "installing fio"; apt-get install -y --no-install-recommends fio >/dev/null; }
trap 'stop_all' EXIT
mkdir -p "$dir"
[ -n "${BUILT:-}" ] || (cd "$top" && go build -o "$BIN/bench-volumes/" ./test/bench/fsload ./test/bench/volumes)
version=$(sed -n 's/.*"kernel_version": "\(.*\)".*/\1/p' "$GUEST/guest.json")
virtiofs=$(find "$cache/kernels" -path "*/$version/*" -name 'virtiofs.ko' | head -n 1)
machine=() extra=''
if [ "${PISTIS_ACCELERATION:-}" = kvm ]; then
	machine=(-machine q35,accel=kvm -cpu host -params '')
	extra=$'acceleration = "kvm"\nboot_timeout = "4m"'
fi
start_registry "$dir" -cache "$cache/images" -storage
start_daemon pistis-volumes "$dir" "$extra"
read -ra load <<<"${LOAD:-}"
"$BIN/bench-volumes/volumes" -image "$registry_address/pistis/fio:latest" -load "$BIN/bench-volumes/fsload" -dir "$dir" "${machine[@]}" \
	-kernel "$GUEST/vmlinuz" -initrd "$GUEST/initrd" -virtiofs "$virtiofs" -rounds "${ROUNDS:-3}" -subjects "${SUBJECTS:-host,virtio-fs,pistis}" -handler "${HANDLER:-vm}" -- "${load[@]}"
