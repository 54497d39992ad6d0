package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDoctor: what pistis says of the host's KVM and of the hypervisors is true, and agrees. Where PISTIS_ACCELERATION says
// that KVM works, as in the lab, the doctor has to find out by itself.
func TestDoctor(t *testing.T) {
	needs(t)
	guest, config := os.Getenv("PISTIS_GUEST"), filepath.Join(t.TempDir(), "config.toml")
	write(t, config, `root = "`+t.TempDir()+`"
[vm]
kernel = "`+filepath.Join(guest, "vmlinuz")+`"
initrd = "`+filepath.Join(guest, "initrd")+`"
`)
	text, err := exec.Command(binary("pistis"), "-o", "json", "doctor", "--config", config).Output()
	if len(text) == 0 {
		t.Fatalf("pistis doctor: %v", err)
	}
	var checks []struct{ Name, Level, Detail string }
	if err := json.Unmarshal(text, &checks); err != nil {
		t.Fatal(err)
	}
	level, detail := map[string]string{}, map[string]string{}
	for _, c := range checks {
		t.Logf("%-17s %-4s %s", c.Name, c.Level, c.Detail)
		level[c.Name], detail[c.Name] = c.Level, c.Detail
	}
	usable := level["kvm"] == "ok"
	switch device, err := os.Stat("/dev/kvm"); {
	case os.Getenv("PISTIS_ACCELERATION") == "kvm":
		if !usable || !strings.Contains(detail["kvm"], "booted under KVM") {
			t.Errorf("KVM works here, the doctor says: %s", detail["kvm"])
		}
	case err != nil && (usable || !strings.Contains(detail["kvm"], "there is no /dev/kvm")):
		t.Errorf("there is no %v, the doctor says: %s", device, detail["kvm"])
	}
	if want := map[bool]string{true: "under KVM", false: "handler vm: qemu, emulated"}[usable]; level["hypervisor"] != "ok" || !strings.Contains(detail["hypervisor"], want) {
		t.Errorf("what handler vm takes: %s", detail["hypervisor"])
	}
	for check, program := range map[string]string{"qemu": "qemu-system-x86_64", "firecracker": "firecracker", "cloud-hypervisor": "cloud-hypervisor"} {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Logf("%s is not on PATH", program)
			continue
		}
		if !strings.HasPrefix(detail[check], path+", version ") || !regexp.MustCompile(`version v?\d+\.\d+`).MatchString(detail[check]) {
			t.Errorf("%s: %s", check, detail[check])
		}
		// QEMU emulates.
		if works := level[check] == "ok"; works != (usable || check == "qemu") {
			t.Errorf("%s: %s, while KVM is usable: %v", check, level[check], usable)
		}
	}
}
