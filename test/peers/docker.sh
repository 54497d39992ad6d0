#!/usr/bin/env bash
# Unpacks Debian's Docker Engine into .cache/docker, with the containerd and the runc that it needs, unless it is there.
# Nothing is installed: the packages would start services.
set -euo pipefail
out=$(dirname "$(realpath "$0")")/../../.cache/docker
[ ! -x "$out/dockerd" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt downloads as a user of its own
echo "unpacking Debian's Docker Engine" >&2
(cd "$work" && apt-get -q -o APT::Sandbox::User=root download docker.io containerd runc >&2)
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
rm -rf "$out.part"
mkdir -p "$out.part"
mv "$work"/root/usr/sbin/{dockerd,docker-proxy} "$work"/root/usr/bin/{containerd,containerd-shim-runc-v2} "$out.part/"
cp "$(find "$work/root" -name runc -type f -perm -u+x | head -n 1)" "$out.part/runc"
# Its libraries are a host's that has such packages: without them it is as if there was none.
"$out.part/dockerd" --version >&2
rm -rf "$out"
mv "$out.part" "$out"
