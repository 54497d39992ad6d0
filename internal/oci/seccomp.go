package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// MaxSeccompProfile bounds a profile's file in bytes.
const MaxSeccompProfile = 1 << 20

// ReadSeccomp reads a profile in the form of the runtime spec. NotFound and InvalidArgument name the file.
func ReadSeccomp(path string) (*specs.LinuxSeccomp, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("seccomp profile %q is not an absolute path: %w", path, errdefs.ErrInvalidArgument)
	}
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("seccomp profile %s does not exist on this node: %w", path, errdefs.ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("seccomp profile: %w", err)
	case !info.Mode().IsRegular(): // a pipe would not even open
		return nil, fmt.Errorf("seccomp profile %s is not a file: %w", path, errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSeccompProfile+1))
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	profile, err := parseSeccomp(data)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	return profile, nil
}

func parseSeccomp(data []byte) (*specs.LinuxSeccomp, error) {
	if len(data) > MaxSeccompProfile {
		return nil, fmt.Errorf("larger than %d bytes", MaxSeccompProfile)
	}
	var profile specs.LinuxSeccomp
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&profile); err != nil {
		return nil, fmt.Errorf("not a seccomp profile: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not a seccomp profile: data after its end")
	}
	if !knownAction(profile.DefaultAction) {
		return nil, fmt.Errorf("defaultAction %q is not known", profile.DefaultAction)
	}
	for i, call := range profile.Syscalls {
		if len(call.Names) == 0 {
			return nil, fmt.Errorf("syscalls[%d] names no system call", i)
		}
		if !knownAction(call.Action) {
			return nil, fmt.Errorf("syscalls[%d]: action %q is not known", i, call.Action)
		}
	}
	return &profile, nil
}

func knownAction(a specs.LinuxSeccompAction) bool {
	return slices.Contains([]specs.LinuxSeccompAction{
		specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno,
		specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify,
	}, a)
}
