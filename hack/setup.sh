#!/usr/bin/env bash
# Installs what building, running and testing Pistis needs, and only what is missing:
#   - Debian packages (as root, or with sudo);
#   - a Go of go.mod's version, in .cache/go and nowhere else, when PATH has none. It comes from the Go module
#     proxy, as the go command itself gets newer toolchains; an older go does the download: the one on PATH or
#     Debian's, which is unpacked for that purpose and not installed.
# Running it again does nothing, in no time.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C

packages=(
	gcc libc6-dev pkg-config libseccomp-dev # runc for the guest is linked statically
	qemu-system-x86                         # the hypervisor
	e2fsprogs                               # mkfs.ext4: the pods' scratch disks
	qemu-system-common kmod                 # virtiofsd and depmod: the lab of test/lab
	systemd dbus                            # the lab's first process, when it is asked for; nothing is started here
	ca-certificates git                     # the Go modules' transport, version numbers
	curl bsdextrautils                      # what hack/run.sh shows a pod with
	crun                                    # an OCI runtime of pods on the host's kernel; runc is built
	iproute2                                # ip, for namespaces that tests run in
	iptables                                # the CNI plugins of the tests masquerade and map ports with it
)
commands=(gcc pkg-config qemu-system-x86_64 mkfs.ext4 depmod git curl column ip iptables crun)

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

# as_root COMMAND...: runs it as root.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "root is needed for: $*"
	fi
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

install_packages() {
	local missing=() p
	if ! command -v apt-get >/dev/null; then
		for p in "${commands[@]}"; do command -v "$p" >/dev/null || missing+=("$p"); done
		[ ${#missing[@]} -eq 0 ] || die "this is not Debian; install what provides these commands: ${missing[*]}"
		pkg-config --exists libseccomp || die "this is not Debian; install libseccomp's headers and static library"
		return
	fi
	for p in "${packages[@]}"; do installed "$p" || missing+=("$p"); done
	[ ${#missing[@]} -gt 0 ] || return 0
	say "installing Debian packages: ${missing[*]}"
	as_root apt-get -q update >&2 || say "some package sources did not answer, going on with the others"
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}" >&2
}

# go_is_new GO VERSION: whether that go command is of this version or newer, without help from a toolchain that
# it would have to fetch.
go_is_new() {
	local have
	have=$(cd / && GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
	have=${have#go}
	have=${have%% *}
	[ "$(printf '%s\n' "$2" "$have" | sort -V | head -n 1)" = "$2" ]
}

# bootstrap_go DIR: prints a go command that can download modules; DIR is for its use.
bootstrap_go() {
	local dir=$1 package
	if command -v go >/dev/null; then
		command -v go
		return
	fi
	command -v apt-get >/dev/null || die "there is no go command; install Go 1.19 or newer"
	package=$(apt-cache depends golang-go 2>/dev/null | sed -n 's/.*Depends: \(golang-1\.[0-9]*-go\)$/\1/p' | head -n 1)
	if [ -z "$package" ]; then
		say "fetching package lists"
		as_root apt-get -q update >&2
		package=$(apt-cache depends golang-go | sed -n 's/.*Depends: \(golang-1\.[0-9]*-go\)$/\1/p' | head -n 1)
		[ -n "$package" ] || die "the package sources have no golang-go; install Go 1.19 or newer"
	fi
	say "downloading Debian's $package, to fetch the right Go with"
	(cd "$dir" && apt-get -q -o APT::Sandbox::User=root download "$package" "${package%-go}-src" >&2)
	for deb in "$dir"/*.deb; do dpkg-deb -x "$deb" "$dir/debian"; done
	local root
	root=$(echo "$dir"/debian/usr/lib/go-*)
	# Debian keeps the architecture-independent part elsewhere and links to it by absolute names.
	mkdir "$dir/goroot"
	cp -r "$root"/. "$dir/goroot/"
	for link in "$root"/*; do
		if [ -L "$link" ]; then
			rm "$dir/goroot/${link##*/}"
			cp -r "$dir/debian/usr/share/${root##*/}/${link##*/}" "$dir/goroot/"
		fi
	done
	printf '#!/bin/sh\nGOROOT=%s exec %s/bin/go "$@"\n' "$dir/goroot" "$dir/goroot" >"$dir/go"
	chmod +x "$dir/go"
	echo "$dir/go"
}

install_go() {
	local want=$1 arch work go from
	case $(uname -m) in
	x86_64) arch=amd64 ;;
	aarch64) arch=arm64 ;;
	*) die "no Go toolchain module for $(uname -m) is known to this script" ;;
	esac
	say "fetching Go $want as a module"
	mkdir -p .cache
	work=$(mktemp -d "$PWD/.cache/go.XXXXXX")
	# Modules are read-only files.
	# shellcheck disable=SC2064 # the value of now
	trap "chmod -R u+w '$work'; rm -rf '$work'" EXIT
	chmod 755 "$work" # apt downloads as a user of its own
	echo "module bootstrap" >"$work/go.mod"
	go=$(bootstrap_go "$work")
	from=$(cd "$work" && env -u GOFLAGS GO111MODULE=on GOTOOLCHAIN=local GOMODCACHE="$work/modules" GOCACHE="$work/cache" \
		"$go" mod download -json "golang.org/toolchain@v0.0.1-go$want.linux-$arch" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
	[ -n "$from" ] && [ -f "$from/bin/go" ] || die "the Go module proxy has no Go $want for linux/$arch"
	chmod -R u+w "$from"
	# A module cannot hold the go.mod files of other modules nor executable bits: put both right.
	find "$from" -name _go.mod -execdir mv _go.mod go.mod \;
	find "$from/bin" "$from/pkg/tool" -type f -exec chmod +x {} +
	rm -rf .cache/go
	mv "$from" .cache/go
	GOTOOLCHAIN=local .cache/go/bin/go version >&2
}

install_packages
want=$(sed -n 's/^go \([0-9.]*\)$/\1/p' go.mod)
if ! go_is_new "$PWD/.cache/go/bin/go" "$want" && ! go_is_new go "$want"; then
	install_go "$want"
fi
