package modules

import (
	"slices"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	list, err := parseIndex(strings.NewReader(`module stp kernel/net/802/stp.ko llc
module llc kernel/net/llc/llc.ko
module bridge kernel/net/bridge/bridge.ko stp llc
module a kernel/a.ko b
module b kernel/b.ko a
alias rtnl_link_bridge bridge
alias net_pf_16_proto_* a
alias ip[tx]_x bridge
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"bridge": {"llc", "stp", "bridge"}, "rtnl-link-bridge": {"llc", "stp", "bridge"}, "net-pf-16-proto-12": {"b", "a"}, "ipt-x": {"llc", "stp", "bridge"},
		"none": nil, "": nil, "*": nil, "../bridge": nil, strings.Repeat("x", 1<<16): nil,
	} {
		var got []string
		for _, m := range list.find(name) {
			got = append(got, m.name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%.20q: got %q, want %q", name, got, want)
		}
	}
	if _, err := parseIndex(strings.NewReader("module x\n")); err == nil {
		t.Error("a line that says nothing was taken")
	}
}

func FuzzFind(f *testing.F) {
	f.Add("module a b c\nalias x* a\n", "xy")
	f.Fuzz(func(t *testing.T, text, name string) {
		if list, err := parseIndex(strings.NewReader(text)); err == nil {
			list.find(name)
		}
	})
}
