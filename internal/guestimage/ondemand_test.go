package guestimage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestModulesDisk(t *testing.T) {
	o := options(t)
	for name, module := range map[string][]byte{
		"kernel/net/bridge/bridge.ko":       ko("depends=stp", "alias=rtnl-link-bridge", "alias=pci:v*"),
		"kernel/net/802/stp.ko":             ko("depends="),
		"kernel/crypto/af_alg.ko":           ko("depends=", "alias=net-pf-38"),
		"kernel/drivers/gpu/big.ko":         ko("depends="),
		"kernel/net/netfilter/xt_a-b.ko":    ko("depends=", "alias=ipt_[a-c]-d"),
		"kernel/drivers/net/wireguard/w.ko": ko("depends=", "softdep=pre: stp"),
	} {
		write(t, filepath.Join(o.ModulesDir, name), module)
	}
	guest, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(guest.ModulesDisk); err != nil || info.Size()%4096 != 0 || info.Size() == 0 {
		t.Fatalf("%v, %v", info, err)
	}
	set, err := openModules(o.ModulesDir)
	if err != nil {
		t.Fatal(err)
	}
	modules, err := set.onDemand()
	if err != nil {
		t.Fatal(err)
	}
	index, err := moduleIndex(modules)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"module bridge kernel/net/bridge/bridge.ko stp\n", "alias rtnl_link_bridge bridge\n", "module stp kernel/net/802/stp.ko\n", "module w kernel/drivers/net/wireguard/w.ko stp\n",
		"module xt_a_b kernel/net/netfilter/xt_a-b.ko\n", "alias ipt_[a-c]_d xt_a_b\n",
	} {
		if !strings.Contains(string(index), line) {
			t.Errorf("no line %q in\n%s", line, index)
		}
	}
	for _, not := range []string{"af_alg", "big", "pci:"} {
		if strings.Contains(string(index), not) {
			t.Errorf("%s is in\n%s", not, index)
		}
	}
}
