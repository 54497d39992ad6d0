#!/usr/bin/env bash
# Runs every fuzz target for a while: FUZZTIME=1m hack/fuzz.sh [FOLDER...]; without folders all of them.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${FUZZTIME:-1m}
[ $# -gt 0 ] || set -- api internal
grep -rho --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' "$@" -H | sed 's/:func /:/' | sort -u | while IFS=: read -r file target; do
	dir=$(dirname "$file")
	echo "== $dir $target"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 5s "./$dir" </dev/null | grep -vE '^fuzz: elapsed' | tail -n 5
done
