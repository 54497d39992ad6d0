package cloudhypervisor

import (
	"net"
	"os"
	"testing"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm/vmmtest"
)

func fake() vmmtest.Fake {
	return vmmtest.Fake{
		Version: "cloud-hypervisor v53.0", Flag: "--api-socket",
		Listen:  func() (net.Listener, error) { return net.FileListener(os.NewFile(apiFD, "api")) },
		Refuses: apiPrefix + "vm.create", Refusal: `["not","with me"]`, Dies: apiPrefix + "vm.boot", Hangs: apiPrefix + "vm.create",
	}
}

func TestMain(m *testing.M) { fake().Main(m) }

func TestFaults(t *testing.T) {
	kernel, err := os.Executable() // any file that can be read
	if err != nil {
		t.Fatal(err)
	}
	cfg := hypervisor.Config{ID: "x", Accel: hypervisor.KVM, Kernel: kernel, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory}}
	fake().Faults(t, Driver{}, cfg, []string{"not: with me"}, nil)
}
