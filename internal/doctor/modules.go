package doctor

import (
	"context"
	"os"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
)

// modules are the security modules of this host that confine containers on its kernel.
type modules struct {
	appArmor, parser  bool // it is on, and the program that loads profiles is there
	selinux, contexts bool // it is on, and its policy knows of containers
}

func (h host) securityModules(context.Context) finding {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	m := modules{appArmor: err == nil && strings.HasPrefix(string(enabled), "Y"), selinux: selinux.GetEnabled()}
	if m.appArmor {
		_, err := os.Stat("/sbin/apparmor_parser")
		m.parser = err == nil
	}
	if m.selinux {
		process, _, err := label.InitLabels(nil)
		m.contexts = err == nil && process != ""
		selinux.ReleaseLabel(process)
	}
	return m.judge()
}

func (m modules) judge() finding {
	switch {
	case m.appArmor && !m.parser:
		return warn("install the package apparmor", "AppArmor is on, but /sbin/apparmor_parser is missing: containers have no profile")
	case m.appArmor:
		return ok("AppArmor: containers have the profile pistis-default, or the one that they name")
	case m.selinux && !m.contexts:
		return warn("install the package container-selinux", "SELinux is on, but its policy has no contexts for containers: they have no labels")
	case m.selinux:
		return ok("SELinux: each pod has labels of its own")
	}
	return ok("neither AppArmor nor SELinux is on: namespaces, capabilities and seccomp confine containers on this kernel")
}
