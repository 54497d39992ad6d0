package systemd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	godbus "github.com/godbus/dbus/v5"
)

func TestClassify(t *testing.T) {
	for name, is := range map[string]func(error) bool{
		"org.freedesktop.systemd1.NoSuchUnit":    errdefs.IsNotFound,
		"org.freedesktop.systemd1.UnitExists":    errdefs.IsAlreadyExists,
		"org.freedesktop.DBus.Error.InvalidArgs": errdefs.IsFailedPrecondition,
	} {
		if err := classify(godbus.Error{Name: name}); !is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := classify(errors.New("connection closed")); !errdefs.IsUnavailable(err) {
		t.Errorf("a broken connection: %v", err)
	}
}

func TestScopeProperties(t *testing.T) {
	names := map[string]bool{}
	for _, p := range scope("a.scope", "b.slice", 7) {
		names[p.Name] = true
	}
	for _, name := range []string{"Slice", "PIDs", "Delegate", "DefaultDependencies", "CollectMode"} {
		if !names[name] {
			t.Errorf("no property %s", name)
		}
	}
}

// TestScope makes a scope in a slice of its own and takes both away.
func TestScope(t *testing.T) {
	if os.Getuid() != 0 || !Booted() {
		t.Skip("SKIPPED: units need root and systemd as init system; `make lab-host-test` has it")
	}
	sleeper := exec.Command("sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- sleeper.Wait() }()
	slice := fmt.Sprintf("pististest%d-pod.slice", os.Getpid())
	m := Manager{}
	if err := m.StartScope(t.Context(), "pistis-test.scope", slice, sleeper.Process.Pid); err != nil {
		t.Fatal(err)
	}
	group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", sleeper.Process.Pid))
	if want := slice + "/pistis-test.scope"; err != nil || !strings.Contains(string(group), want) {
		t.Errorf("the process is in %s, %v, want %s", group, err, want)
	}
	if err := m.StartScope(t.Context(), "pistis-test.scope", slice, sleeper.Process.Pid); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second scope of that name: %v", err)
	}
	if err := m.Stop(t.Context(), slice); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("the process was not ended with its slice")
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + slice); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, name := range []string{slice, fmt.Sprintf("pististest%d.slice", os.Getpid())} {
		if err := m.Stop(t.Context(), name); err != nil {
			t.Errorf("stop %s again: %v", name, err)
		}
	}
}
