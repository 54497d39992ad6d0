# make run   builds all, starts pistisd and runs an image as a VM pod
# make test  unit and integration tests, as continuous integration runs them
# Both install what they need first: Debian packages and Go modules.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

BIN     := $(CURDIR)/bin
GUEST   := $(CURDIR)/.cache/guest
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
# hack/setup.sh prints where a Go of go.mod's version is, and installs one when there is none.
export PATH := $(CURDIR)/.cache/go/bin:$(PATH)
LDFLAGS := -s -w -X github.com/pistis-run/pistis/internal/version.Version=$(VERSION)

COMMANDS := pistisd pistis containerd-shim-pistis-v2

.PHONY: all build guest run test unit integration fuzz bench conformance generate setup clean
all: build

setup:
	@hack/setup.sh

build: setup
	@echo "building commands"
	@mkdir -p $(BIN)
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ $(addprefix ./cmd/,$(COMMANDS))

# The guest: agent, static runc, kernel from the distribution's package, initrd.
guest: build
	@echo "building the guest"
	@mkdir -p $(BIN)/guest
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/guest/ ./cmd/pistis-agent
	@CGO_ENABLED=1 go build -trimpath -tags 'seccomp netgo osusergo' -ldflags '-s -w -linkmode external -extldflags -static' \
		-o $(BIN)/guest/runc github.com/opencontainers/runc
	@$(BIN)/pistis guest build --dir $(GUEST) --agent $(BIN)/guest/pistis-agent --runc $(BIN)/guest/runc

run: guest
	@IMAGE='$(IMAGE)' CMD='$(CMD)' KEEP='$(KEEP)' BIN=$(BIN) GUEST=$(GUEST) hack/run.sh

test: guest
	@hack/test.sh

generate: setup
	go generate ./api/...

clean:
	rm -rf $(BIN) .cache
