package config

import (
	"bytes"
	"cmp"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	runc "github.com/containerd/containerd/api/types/runc/options"
	generic "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// shimName is how containerd names shims: the last two parts are those of the program.
var shimName = regexp.MustCompile(`^[A-Za-z0-9][-\w]*(\.[A-Za-z0-9][-\w]*)+$`)

// runcShim is the program whose options are those of runc.
const runcShim = "containerd-shim-runc-v2"

// shimProgram is the name of the shim's program: io.containerd.runsc.v1 is containerd-shim-runsc-v1.
func (h Handler) shimProgram() string {
	if filepath.IsAbs(h.Shim) {
		return filepath.Base(h.Shim)
	}
	parts := strings.Split(h.Shim, ".")
	if len(parts) < 2 {
		return ""
	}
	return "containerd-shim-" + parts[len(parts)-2] + "-" + parts[len(parts)-1]
}

// RuncShim tells whether the shim is containerd's for runc.
func (h Handler) RuncShim() bool { return h.shimProgram() == runcShim }

// FindContainerdShim returns the path of the shim of the handler that is called name: its path, or its program on PATH.
// FailedPrecondition when there is none.
func (h Handler) FindContainerdShim(name string) (string, error) {
	program := h.shimProgram()
	if filepath.IsAbs(h.Shim) {
		program = h.Shim
	}
	path, err := exec.LookPath(program)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("shim: %s is not there (%s is %q): install the runtime that has it, or set handlers.%s.shim to its path: %w",
			program, "handlers."+name+".shim", h.Shim, name, errdefs.ErrFailedPrecondition)
	}
	return path, nil
}

// ShimOptions are the options for the handler's shim, in the type that it takes: that of runc's, or the one of all others, which
// names a file or holds the table. Nil: none. root is where runc's keeps its state where the table does not say; systemd: pods'
// cgroups are units.
func (h Handler) ShimOptions(root string, systemd bool) (*anypb.Any, error) {
	table, err := toml.Marshal(h.Options)
	if err != nil {
		return nil, err
	}
	if h.RuncShim() {
		return runcOptions(table, root, systemd)
	}
	if len(h.Options) == 0 {
		return nil, nil
	}
	var options generic.Options
	if err := strict(table, &options); err != nil {
		// What is not known here is for the shim, as a whole, as containerd has it.
		options = generic.Options{}
		if loose := toml.Unmarshal(table, &options); loose != nil {
			return nil, loose
		}
		if options.ConfigPath != "" {
			return nil, fmt.Errorf("%w; beside ConfigPath there is TypeUrl alone", err)
		}
		options.ConfigBody = table
	}
	if p := options.ConfigPath; p != "" && !filepath.IsAbs(p) {
		return nil, fmt.Errorf("ConfigPath: %q is not an absolute path", p)
	}
	return packed(&options)
}

func runcOptions(table []byte, root string, systemd bool) (*anypb.Any, error) {
	var options runc.Options
	if err := strict(table, &options); err != nil {
		return nil, err
	}
	switch {
	case options.ShimCgroup != "":
		return nil, fmt.Errorf("ShimCgroup: a shim is in the cgroup of its pod; leave it out")
	case options.SystemdCgroup && !systemd:
		return nil, fmt.Errorf("SystemdCgroup: pods' cgroups are made without systemd; leave it out, or make cgroup_driver %q", CgroupSystemd)
	}
	// systemd's is the pod's scope, in which containers have groups of their own.
	options.SystemdCgroup = false
	options.Root = cmp.Or(options.Root, root)
	return packed(&options)
}

func strict(table []byte, into any) error {
	err := toml.NewDecoder(bytes.NewReader(table)).DisallowUnknownFields().Decode(into)
	if missing, ok := err.(*toml.StrictMissingError); ok {
		var keys []string
		for _, e := range missing.Errors {
			keys = append(keys, strings.Join(e.Key(), "."))
		}
		return fmt.Errorf("unknown key %s", strings.Join(keys, ", "))
	}
	return err
}

// packed has a type's name as containerd writes it.
func packed(m proto.Message) (*anypb.Any, error) {
	value, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}, nil
}

// HasShims tells whether a handler's containers are run by a containerd shim.
func (c Config) HasShims() bool {
	for _, h := range c.Handlers {
		if h.Type == HandlerShim {
			return true
		}
	}
	return false
}

func (c Config) validateShim(name string, h Handler, bad func(string, ...any)) {
	switch {
	case h.Shim == "":
		bad("handlers.%s.shim: empty; it names a containerd shim, as \"io.containerd.runsc.v1\", or is its path", name)
		return
	case !filepath.IsAbs(h.Shim) && !shimName.MatchString(h.Shim):
		bad("handlers.%s.shim: %q is neither the name of a containerd shim, as \"io.containerd.runsc.v1\" for containerd-shim-runsc-v1, nor an absolute path", name, h.Shim)
		return
	}
	if h.shimProgram() == ShimName {
		bad("handlers.%s.shim: %s is Pistis's own and boots virtual machines: make the type %q", name, ShimName, HandlerVM)
	}
	if h.Hypervisor != "" || h.Path != "" {
		bad("handlers.%s: pods of type %q have neither hypervisor nor path; shim says what runs them", name, h.Type)
	}
	if _, err := h.ShimOptions("", c.CgroupDriver != CgroupFS); err != nil {
		bad("handlers.%s.options: %v", name, err)
	}
}
