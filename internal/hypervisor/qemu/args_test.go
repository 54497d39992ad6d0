package qemu

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

var update = flag.Bool("update", false, "write the golden files")

func TestCommandLine(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	tests := []struct {
		name string
		cfg  hypervisor.Config
		fds  descriptors
	}{
		{"tcg-serial", hypervisor.Config{
			ID: "pod,1", Accel: hypervisor.TCG, Size: hypervisor.Size{VCPUs: 1, Memory: 256 << 20},
			Disks: []hypervisor.Disk{{ID: "layer-1", ReadOnly: true}, {ID: "scratch"}},
			NICs:  []hypervisor.NIC{{ID: "eth0", MAC: mac, MTU: 1450}},
		}, descriptors{monitor: 3, console: 4, kernel: 5, initrd: 6, pipe: 7, memory: 11, disks: []int{8, 9}, taps: []int{10}}},
		{"kvm-vsock", hypervisor.Config{
			ID: "pod-2", Accel: hypervisor.KVM, Size: hypervisor.Size{VCPUs: 4, Memory: 1 << 30}, Params: []string{"loglevel=7", "audit=0"},
			NICs: []hypervisor.NIC{{ID: "eth0", MAC: mac}},
		}, descriptors{monitor: 3, console: 4, kernel: 5, vsock: 6, cid: 77, memory: 9, taps: []int{7}, vhostNet: []int{8}}},
		{"machine", hypervisor.Config{
			ID: "pod-3", Accel: hypervisor.KVM, Machine: "pc", Size: hypervisor.Size{VCPUs: 1, Memory: 128 << 20},
		}, descriptors{monitor: 3, console: 4, kernel: 5, initrd: 6, pipe: 7}},
		{"growth", hypervisor.Config{
			ID: "pod-4", Accel: hypervisor.TCG, Size: hypervisor.Size{VCPUs: 1, MaxVCPUs: 4, Memory: 256 << 20, MaxMemory: 1000 << 20}, Tuning: hypervisor.Tuning{Reclaim: true},
		}, descriptors{monitor: 3, console: 4, kernel: 5, initrd: 6, pipe: 7, memory: 8}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.ReplaceAll(strings.Join(commandLine(tt.cfg, tt.fds), "\n"), "\n-", "\n\n-") + "\n"
			file := filepath.Join("testdata", tt.name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("command line:\n%s\nwant (go test -update writes it):\n%s", got, want)
			}
		})
	}
}

func TestGrows(t *testing.T) {
	for machine, want := range map[string]bool{"": true, "q35": true, "q35,hpet=off": true, "pc": true, "pc-q35-7.2,smm=off": true, "microvm": false, "microvm,acpi=on": false} {
		if got := grows(machine); got != want {
			t.Errorf("machine %q: %v", machine, got)
		}
	}
}
