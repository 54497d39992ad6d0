#!/usr/bin/env bash
# Prepares what Pistis is measured against, in .cache/peers, and nothing that is there already:
#   containerd      containerd 2 and its runc shim, built from their module
#   containerd-1.6  Debian's containerd, unpacked and not installed: its package would start a service
#   cni             the CNI plugins, built from their module
#   crun            Debian's crun, which takes a newer runtime-spec
# conmon and strace are installed from their packages, which start nothing.
set -euo pipefail
here=$(dirname "$(realpath "$0")") top=$(realpath "$(dirname "$0")/../..")
out=$top/.cache/peers
export PATH=$top/.cache/go/bin:$PATH CGO_ENABLED=0

mkdir -p "$out"
missing=()
for command in crun conmon strace; do command -v "$command" >/dev/null || missing+=("$command"); done
[ ${#missing[@]} -eq 0 ] || DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}" >&2

stamp=$(cat "$here/go.mod" "$here/tools.go" | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$out/stamp" 2>/dev/null)" != "$stamp" ]; then
	echo "building containerd and the CNI plugins" >&2
	mkdir -p "$out/containerd" "$out/cni"
	cd "$here"
	build() { nice -n 15 go build -trimpath -ldflags '-s -w' -o "$@"; }
	build "$out/containerd/" github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2}
	build "$out/cni/" github.com/containernetworking/plugins/plugins/{ipam/host-local,main/bridge,main/loopback,meta/portmap}
	echo "$stamp" >"$out/stamp"
fi

if ! [ -x "$out/containerd-1.6/containerd" ]; then
	echo "unpacking Debian's containerd" >&2
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	chmod 755 "$work" # apt downloads as a user of its own
	(cd "$work" && apt-get -q -o APT::Sandbox::User=root download containerd >&2)
	dpkg-deb -x "$work"/*.deb "$work/root"
	mkdir -p "$out/containerd-1.6"
	mv "$work/root/usr/bin/containerd" "$work/root/usr/bin/containerd-shim-runc-v2" "$out/containerd-1.6/"
fi

# crun 1.8 wants "1.0" in a spec's version and refuses the 1.3.0 that containerd 2 writes, though nothing in such a spec
# troubles it. The copy wants "1.".
LC_ALL=C sed 's/\x001\.0\x00/\x001.\x00\x00/' "$(command -v crun)" >"$out/crun.part"
chmod +x "$out/crun.part"
mv "$out/crun.part" "$out/crun"
