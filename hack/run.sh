#!/usr/bin/env bash
# Runs an image as a microVM pod on a daemon of its own and shows what a newcomer wants to see.
#   IMAGE  the image (default: a small one that a local registry serves)
#   CMD    a shell command to run in it instead of the tour
#   KEEP=1 leaves the daemon and the pod running
set -euo pipefail
here=$(dirname "$(realpath "$0")")
BIN=${BIN:?} GUEST=${GUEST:?} IMAGE=${IMAGE:-} CMD=${CMD:-} KEEP=${KEEP:-}
export PATH=$BIN:$PATH
# shellcheck source=hack/daemon.sh
. "$here/daemon.sh"
cache=$(realpath "$here/..")/.cache
data=$cache/run
pod=tour
own_code='' # not empty: the command failed, and nothing else

say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
phases=()
phase() { # phase NAME COMMAND...: runs it and notes how long it took
	local name=$1 from code=0
	shift
	from=$(date +%s%3N)
	"$@" || code=$?
	phases+=("$(printf '%-32s %7d ms' "$name" $(($(date +%s%3N) - from)))")
	return $code
}

how_to_go_on() {
	cat <<-END

		The daemon is still running. To go on:
		  export PISTIS_SOCKET=$PISTIS_SOCKET PATH=$BIN:\$PATH
		  pistis pods; pistis exec -it $pod sh
		  crictl --runtime-endpoint unix://$PISTIS_SOCKET --timeout 1m pods
		To end it:
		  pistis rm -f --all; kill $daemon $registry; tail --pid=$daemon -f /dev/null; pistisd --config $state/config.toml wipe --yes
	END
}

finish() {
	local code=$?
	trap - EXIT INT TERM
	if [ -n "$KEEP" ] && [ $code -eq 0 ]; then
		how_to_go_on
		exit 0
	fi
	if [ $code -ne 0 ] && [ -n "$daemon" ] && [ -z "$own_code" ] && [ -s "$data/pistisd.log" ]; then
		echo "failed; the end of pistisd's log:" >&2
		tail -n 30 "$data/pistisd.log" >&2
	fi
	stop_all || code=1
	[ $code -ne 0 ] || echo "everything is taken down again"
	exit $code
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

tour() {
	say "running it as a microVM pod"
	phase 'pod and container start' pistis run --handler vm --log-dir "$data/logs" --timing -d --name $pod "$IMAGE"
	pistis pods
	say "the kernels"
	local host guest ip
	host=$(cat /proc/version)
	guest=$(pistis exec $pod cat /proc/version)
	echo "host:  $host"
	echo "guest: $guest"
	[ "$guest" != "$host" ] || { echo "the pod runs on the host's kernel" >&2; return 1; }
	say "a command in the container"
	phase 'exec' pistis exec $pod sh -c 'id; uname -n; df -h / | tail -1'
	say "HTTP from the pod's address"
	ip=$(pistis inspect $pod | sed -n 's/.*"ip": *"\([^"]*\)".*/\1/p' | head -1)
	phase "GET http://$ip:8080/" curl -sSf --noproxy '*' --retry 20 --retry-all-errors --retry-delay 1 -m 60 "http://$ip:8080/"
	say "its log"
	pistis logs $pod
	say "where the time of its start went"
	local name
	for name in network vmm kernel+agent configure; do
		pistis inspect $pod | sed -n "s/.*\"phase\.\($name\)\": *\"\(.*\)\".*/\1 \2/p"
	done | column -t
}

from=$(date +%s%3N)
if [ -z "$IMAGE" ]; then
	say "serving a small image, built from Debian packages, from a registry on this host"
	phase 'image built' start_registry "$data" -cache "$cache/images"
	IMAGE=$registry_address/pistis/tour:latest
	echo "$IMAGE"
fi
say "starting pistisd"
phase 'daemon up' start_daemon pistis-run "$data"
pistisd --version
say "pulling $IMAGE"
phase 'pull' pistis pull "$IMAGE"
if [ -n "$CMD" ]; then
	say "running it: $CMD"
	code=0
	phase 'pod, start to end' pistis run --handler vm --log-dir "$data/logs" --timing --name $pod ${KEEP:+--keep} "$IMAGE" sh -c "$CMD" || code=$?
	if [ $code -gt 1 ]; then # 1 may be an error of pistis
		echo "the command ended with exit code $code" >&2
		own_code=1
	fi
	[ $code -eq 0 ] || exit $code
else
	tour
fi
say "phases"
printf '%s\n' "${phases[@]}"
printf '%-32s %7d ms\n' 'in all' $(($(date +%s%3N) - from))
