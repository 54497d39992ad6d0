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
# One way to build everything but runc: what one step compiled, the next need not.
export CGO_ENABLED := 0
LDFLAGS := -s -w -X github.com/pistis-run/pistis/internal/version.Version=$(VERSION)

COMMANDS := pistisd pistis pistis-monitor containerd-shim-pistis-v2

.PHONY: all build guest tools run test fuzz bench soak conformance lab lab-test lab-host-test generate install setup clean
all: build

setup:
	@hack/setup.sh

build: setup
	@echo "building the commands"
	@mkdir -p $(BIN)
	@go build -ldflags '$(LDFLAGS)' -o $(BIN)/ $(addprefix ./cmd/,$(COMMANDS))

# The guest: agent, static runc, kernel from the distribution's package, initrd.
guest: build
	@echo "building the guest"
	@mkdir -p $(BIN)/guest
	@go build -ldflags '$(LDFLAGS)' -o $(BIN)/guest/ ./cmd/pistis-agent
	@CGO_ENABLED=1 go build -tags 'seccomp netgo osusergo' -ldflags '-s -w -linkmode external -extldflags -static' \
		-o $(BIN)/guest/runc github.com/opencontainers/runc
	@$(BIN)/pistis guest build --keep-kernel --dir $(GUEST) --agent $(BIN)/guest/pistis-agent --runc $(BIN)/guest/runc

# What tests and measurements need beside the commands.
tools: guest
	@go build -o $(BIN)/ ./test/images/registry ./test/bench ./test/bench/emptyinit ./test/bench/peerbench ./test/soak ./test/leak/leakcheck

run: tools
	@IMAGE='$(IMAGE)' CMD='$(CMD)' KEEP='$(KEEP)' BIN=$(BIN) GUEST=$(GUEST) hack/run.sh

test: tools
	@PISTIS_BIN=$(BIN) PISTIS_GUEST=$(GUEST) hack/test.sh

fuzz: setup
	@hack/fuzz.sh

# PEERS=1 make bench compares pods on the host's kernel with those of other runtimes, VOLUMES=1 make bench volumes of VM
# pods with the host and with virtio-fs, ROOTFS=1 make bench root file systems with all of these, MEMORY=1 make bench the host's
# memory for each hypervisor, under KVM in the lab.
bench: tools
	@$(if $(MEMORY),go build -o $(BIN)/ ./test/lab)
	@BIN=$(BIN) GUEST=$(GUEST) hack/$(or $(if $(PEERS),peers),$(if $(VOLUMES),volumes),$(if $(ROOTFS),rootfs),$(if $(MEMORY),memory),bench).sh

# 1,000 pods come and go while the daemon is killed: make soak CYCLES=1000, or CROWD=200 for as many at once.
soak: tools
	@BIN=$(BIN) GUEST=$(GUEST) CYCLES='$(CYCLES)' PARALLEL='$(PARALLEL)' KILL='$(KILL)' VMS='$(VMS)' CROWD='$(CROWD)' hack/soak.sh

# The Kubernetes project's CRI validation suite: make conformance HANDLER=vm
HANDLER ?= vm
conformance: tools
	@PISTIS_BIN=$(BIN) PISTIS_GUEST=$(GUEST) test/conformance/run.sh $(HANDLER)

# A command on an emulated KVM host that is made for it and thrown away: make lab CMD='pistis doctor'
lab: setup
	@go build -o $(BIN)/ ./test/lab
	@PATH=$(BIN):$$PATH $(BIN)/lab -cache $(CURDIR)/.cache/kernels sh -c '$(or $(CMD),uname -a; ls -l /dev/kvm)'

# The suites that need KVM, in the lab, with tables of what passed: make lab-test, or a part of it, HANDLERS='fc clh' SUITES=volumes.
# SUITE=critest runs named specs of critest for fc, SUITE=bench measures volumes.
lab-test: tools
	@PISTIS_BIN=$(BIN) PISTIS_GUEST=$(GUEST) hack/lab-test.sh

# The suites about cgroups, and critest for runc and crun, on an emulated host with cgroup v2 and AppArmor, without systemd and
# with it: make lab-host-test [DRIVER=systemd [SUITE=groups]]
lab-host-test: tools
	@PISTIS_BIN=$(BIN) PISTIS_GUEST=$(GUEST) hack/lab-host.sh $(DRIVER) $(SUITE)

# Needs protoc and its Go plugins; their output is committed.
generate: setup
	go generate ./api/...

PREFIX ?= /usr/local
install: guest
	install -D -t $(DESTDIR)$(PREFIX)/bin $(addprefix $(BIN)/,$(COMMANDS))
	install -D -t $(DESTDIR)$(PREFIX)/lib/pistis/guest $(BIN)/guest/pistis-agent $(BIN)/guest/runc
	install -D -m 644 -t $(DESTDIR)/etc/systemd/system deploy/pistisd.service
	sed -i 's|/usr/local/|$(PREFIX)/|' $(DESTDIR)/etc/systemd/system/pistisd.service
	$(BIN)/pistis guest build --dir $(DESTDIR)/var/lib/pistis/guest --agent $(BIN)/guest/pistis-agent --runc $(BIN)/guest/runc

clean:
	rm -rf $(BIN) .cache
