# Sourced by scripts that need a pistisd, and a registry, of their own. The caller sets BIN and GUEST, calls
# start_registry and start_daemon, and stop_all from its exit trap.
# shellcheck shell=bash

daemon='' registry='' state='' root='' hierarchies=()

# one_hierarchy DIR: crun runs on no host that has cgroup controllers on v1 and on v2. Mounting those of v2 as v1, below DIR,
# takes them from v2 if nobody uses them there.
one_hierarchy() {
	local controller
	for controller in $(cat /sys/fs/cgroup/unified/cgroup.controllers 2>/dev/null || true); do
		mkdir -p "$1/$controller"
		mount -t cgroup -o "$controller" cgroup "$1/$controller"
		hierarchies+=("$1/$controller")
	done
}

# start_registry DIR [FLAGS...]: serves the test images on a loopback port; sets registry_address.
start_registry() {
	local dir=$1
	shift
	mkdir -p "$dir"
	rm -f "$dir/registry.address"
	"$BIN/registry" -listen 127.0.0.1:0 -address-file "$dir/registry.address" "$@" >"$dir/registry.log" 2>&1 &
	registry=$!
	until [ -s "$dir/registry.address" ]; do
		kill -0 "$registry" 2>/dev/null || { cat "$dir/registry.log" >&2; return 1; }
		sleep 0.1
	done
	# shellcheck disable=SC2034 # for the caller
	registry_address=$(cat "$dir/registry.address")
}

# start_daemon NAME DIR [TOML]: a daemon whose state, bridge and cgroup are called after NAME, its data in DIR.
start_daemon() {
	local name=$1 dir=$2 extra=${3:-}
	state=/run/$name
	export PISTIS_SOCKET=$state/pistisd.sock
	if "$BIN/pistis" pods >/dev/null 2>&1; then
		state=''
		local pid
		pid=$(cat "/run/$name/lock")
		cat >&2 <<-END
			a daemon already runs at $PISTIS_SOCKET. To end it first:
			  $BIN/pistis --socket $PISTIS_SOCKET rm -f --all; kill $pid; tail --pid=$pid -f /dev/null; $BIN/pistisd --config /run/$name/config.toml wipe --yes
		END
		return 1
	fi
	root=$dir/root
	mkdir -p "$dir" "$state"
	# Daemons of different names may run beside each other, so their networks differ too.
	local number
	number=$(printf %s "$name" | cksum | cut -d ' ' -f 1)
	cat >"$state/config.toml" <<-END
		root = "$root"
		state = "$state"
		socket = "$PISTIS_SOCKET"
		cgroup_parent = "$name"
		[network]
		cni_conf_dir = ""
		[network.bridge]
		name = "$name"
		ipv4 = "10.$((100 + number % 100)).$((number / 100 % 256)).0/24"
		ipv6 = "fd2a:7015:$((number % 10000))::/64"
		[vm]
		kernel = "$GUEST/vmlinuz"
		initrd = "$GUEST/initrd"
		modules = "$GUEST/modules.img"
		$extra
	END
	"$BIN/pistisd" --config "$state/config.toml" >"$dir/pistisd.log" 2>&1 &
	daemon=$!
	until "$BIN/pistis" info >/dev/null 2>&1; do
		kill -0 "$daemon" 2>/dev/null || { tail -n 30 "$dir/pistisd.log" >&2; return 1; }
		sleep 0.1
	done
}

# stop_all ends what the two started and removes it from the host; it fails if a part of that failed, or if the daemon
# left something behind that belonged to pods.
stop_all() {
	local failed=0 name=${state#/run/}
	if [ -n "$daemon" ]; then
		"$BIN/pistis" rm -f --all >/dev/null || failed=1
		kill "$daemon" || failed=1
		wait "$daemon" || failed=1
		"$BIN/leakcheck" -root "$root" -state "$state" -bridge "$name" -cgroup "/$name/" || failed=1
		"$BIN/pistisd" --config "$state/config.toml" --log-level warn wipe --yes || failed=1
	fi
	if [ -n "$registry" ]; then
		kill "$registry" 2>/dev/null || failed=1
		wait "$registry" 2>/dev/null || true
	fi
	[ ${#hierarchies[@]} -eq 0 ] || umount "${hierarchies[@]}" || failed=1
	[ -z "$state" ] || rm -rf "$state"
	return $failed
}
