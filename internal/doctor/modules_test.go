package doctor

import (
	"strings"
	"testing"
)

func TestSecurityModules(t *testing.T) {
	for _, test := range []struct {
		modules
		level  Level
		detail string
	}{
		{modules{}, LevelOK, "neither"},
		{modules{appArmor: true, parser: true}, LevelOK, "pistis-default"},
		{modules{appArmor: true}, LevelWarn, "apparmor_parser"},
		{modules{selinux: true, contexts: true}, LevelOK, "labels of its own"},
		{modules{selinux: true}, LevelWarn, "no contexts"},
	} {
		f := test.judge()
		if f.level != test.level || !strings.Contains(f.detail, test.detail) || (f.advice == "") != (f.level == LevelOK) {
			t.Errorf("%+v: %+v", test.modules, f)
		}
	}
}
