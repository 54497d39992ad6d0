#!/usr/bin/env bash
# Unit and integration tests, as `make test` and continuous integration run them.
set -euo pipefail
cd "$(dirname "$0")/.."
export PISTIS_BIN=${PISTIS_BIN:-$PWD/bin} PISTIS_GUEST=${PISTIS_GUEST:-$PWD/.cache/guest}

echo "== formatting"
unformatted=$(git ls-files '*.go' | xargs -r gofmt -l)
[ -z "$unformatted" ] || { echo "not formatted by gofmt:" "$unformatted" >&2; exit 1; }

echo "== go vet"
go vet ./...

echo "== unit, contract and fuzz-seed tests"
go test -timeout 15m ./api/... ./cmd/... ./internal/... ./test/leak/... ./test/lab/...

echo "== short fuzzing of what decodes the guest's, the network's and the disk's bytes"
FUZZTIME=500x hack/fuzz.sh internal/{agent,agentclient,bundle,guestimage,hypervisor,image,oci,share,shim,signature,snapshot,stdio,steps,store,transport,userdb}

echo "== integration tests"
# One test is about a Docker Engine on the same host; without one it says that it was skipped.
test/peers/docker.sh || echo "no Docker Engine to be had: life beside one is not tested" >&2
export PISTIS_DOCKER=${PISTIS_DOCKER:-$PWD/.cache/docker}
go test -timeout 25m -v -count=1 ./test/integration/...

echo "== pods that come and go while the daemon is killed"
# The integration tests have built containerd's shim where it is not installed.
shim=$(command -v containerd-shim-runc-v2 || echo "$PISTIS_BIN/containerd-shim-runc-v2")
BIN=$PISTIS_BIN GUEST=$PISTIS_GUEST CYCLES=60 KILL=15 VMS=0 SHIM=$shim hack/soak.sh

echo "== named specs of the Kubernetes project's critest"
for handler in runc crun vm; do
	test/conformance/run.sh $handler --ci
done
