package container

import (
	"slices"
	"testing"

	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// TestPrivilegedIsUnconfined: the default profiles of security modules are for containers without privileges; what is
// named is kept.
func TestPrivilegedIsUnconfined(t *testing.T) {
	for _, test := range []struct {
		name                    string
		security                Security
		vm                      bool
		wantProfile, wantLabels string
	}{
		{name: "ordinary", security: Security{AppArmor: Profile{Kind: ProfileDefault}}, wantProfile: "runtime/default"},
		{name: "privileged", security: Security{Privileged: true, AppArmor: Profile{Kind: ProfileDefault}}, wantLabels: "unconfined"},
		{name: "in a VM", security: Security{Privileged: true, AppArmor: Profile{Kind: ProfileDefault}}, vm: true},
		{
			name:        "named",
			security:    Security{Privileged: true, AppArmor: Profile{Kind: ProfileLocalhost, Path: "mine"}, SELinuxLabel: "::t:"},
			wantProfile: "mine", wantLabels: "::t:",
		},
	} {
		rec := record{ID: "c", Config: Config{Name: "c", Process: Process{Command: []string{"/x"}}, Security: test.security}}
		rec.Config.Mounts = []Mount{{ContainerPath: "/v", HostPath: t.TempDir(), Readonly: true, Options: []string{"noexec", "nosuid"}}}
		spec, err := makeSpec(rec, sandbox.Status{VM: test.vm}, image.Image{})
		if err != nil {
			t.Fatal(err)
		}
		if spec.Process.ApparmorProfile != test.wantProfile || spec.Process.SelinuxLabel != test.wantLabels {
			t.Errorf("%s: profile %q, label %q", test.name, spec.Process.ApparmorProfile, spec.Process.SelinuxLabel)
		}
		if last := spec.Mounts[len(spec.Mounts)-1]; !slices.Equal(last.Options, []string{"rbind", "rprivate", "ro", "noexec", "nosuid"}) {
			t.Errorf("%s: mount options %q", test.name, last.Options)
		}
	}
}
