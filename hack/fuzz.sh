#!/usr/bin/env bash
# Runs every fuzz target for a while: FUZZTIME=1m hack/fuzz.sh. The short form, FUZZTIME=2s, is part of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${FUZZTIME:-1m}
grep -rl --include='*_test.go' '^func Fuzz' internal api | xargs -n1 dirname | sort -u | while read -r dir; do
	for target in $(grep -ho --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed 's/^func //'); do
		echo "== $dir $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$dir" | grep -vE '^fuzz: elapsed' | tail -n 5
	done
done
