package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runc "github.com/containerd/containerd/api/types/runc/options"
	generic "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

func TestFindContainerdShim(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "containerd-shim-runsc-v1")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	for _, name := range []string{"io.containerd.runsc.v1", "runsc.v1", program} {
		if path, err := (Handler{Shim: name}).FindContainerdShim("g"); err != nil || path != program {
			t.Errorf("%s: %q, %v", name, path, err)
		}
	}
	for _, name := range []string{"io.containerd.wasmtime.v1", filepath.Join(dir, "none")} {
		_, err := (Handler{Shim: name}).FindContainerdShim("g")
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "handlers.g.shim") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestShimOptions(t *testing.T) {
	h := Handler{Shim: "io.containerd.runc.v2", Options: map[string]any{"BinaryName": "crun", "SystemdCgroup": true}}
	got, err := h.ShimOptions("/run/root", true)
	if err != nil {
		t.Fatal(err)
	}
	var options runc.Options
	if err := proto.Unmarshal(got.Value, &options); err != nil {
		t.Fatal(err)
	}
	if got.TypeUrl != "containerd.runc.v1.Options" || options.BinaryName != "crun" || options.Root != "/run/root" || options.SystemdCgroup {
		t.Errorf("%s %v", got.TypeUrl, &options)
	}
	h.Options["Root"] = "/own"
	if got, err = h.ShimOptions("/run/root", true); err != nil || !strings.Contains(string(got.Value), "/own") {
		t.Errorf("%v, %v", got, err)
	}

	h = Handler{Shim: "io.containerd.runsc.v1"}
	if got, err := h.ShimOptions("/run/root", false); got != nil || err != nil {
		t.Errorf("without options: %v, %v", got, err)
	}
	h.Options = map[string]any{"TypeUrl": "io.containerd.runsc.v1.options", "ConfigPath": "/etc/runsc.toml"}
	checkGeneric(t, h, &generic.Options{TypeUrl: "io.containerd.runsc.v1.options", ConfigPath: "/etc/runsc.toml"})
	h.Options["platform"] = "kvm"
	if _, err := h.ShimOptions("", false); err == nil || !strings.Contains(err.Error(), "platform") {
		t.Errorf("a key beside the file: %v", err)
	}
	h.Options = map[string]any{"platform": "kvm"}
	checkGeneric(t, h, &generic.Options{ConfigBody: []byte("platform = 'kvm'\n")})
}

func checkGeneric(t *testing.T, h Handler, want *generic.Options) {
	t.Helper()
	got, err := h.ShimOptions("", false)
	if err != nil {
		t.Fatal(err)
	}
	var options generic.Options
	if err := proto.Unmarshal(got.Value, &options); err != nil {
		t.Fatal(err)
	}
	if got.TypeUrl != "runtimeoptions.v1.Options" || !proto.Equal(&options, want) {
		t.Errorf("%s %v, want %v", got.TypeUrl, &options, want)
	}
}
