#!/usr/bin/env bash
# Runs every fuzz target for a while: FUZZTIME=1m hack/fuzz.sh. The short form, FUZZTIME=2s, is part of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${FUZZTIME:-1m}
grep -rho --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' internal api -H | sed 's/:func /:/' | sort -u | while IFS=: read -r file target; do
	dir=$(dirname "$file")
	echo "== $dir $target"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 5s "./$dir" </dev/null | grep -vE '^fuzz: elapsed' | tail -n 5
done
