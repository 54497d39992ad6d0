package convert

import (
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/sandbox"
)

func TestUserNamespace(t *testing.T) {
	ids := func(inside, length uint32) []*runtime.IDMapping {
		return []*runtime.IDMapping{{ContainerId: inside, HostId: 65536, Length: length}}
	}
	good := ids(0, 65536)
	tests := map[string]*runtime.UserNamespace{
		"mode of a container":      {Mode: runtime.NamespaceMode_CONTAINER, Uids: good, Gids: good},
		"mode of a target":         {Mode: runtime.NamespaceMode_TARGET, Uids: good, Gids: good},
		"no mapping":               {},
		"mapping of the host's":    {Mode: runtime.NamespaceMode_NODE, Uids: good},
		"two mappings":             {Uids: append(ids(0, 1), good...), Gids: good},
		"root is not mapped":       {Uids: ids(1, 65536), Gids: good},
		"group root is not mapped": {Uids: good, Gids: ids(1, 65536)},
		"empty mapping":            {Uids: ids(0, 0), Gids: good},
	}
	for name, o := range tests {
		if got, err := userNamespace("x", o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	got, err := userNamespace("x", ownUsers())
	if err != nil || got.UIDs[0].HostID != 65536 || got.GIDs[0].Size != 65536 {
		t.Errorf("%+v, %v", got, err)
	}
	// A container says the same as its pod, or nothing.
	pod := sandbox.Status{Config: sandbox.Config{Namespaces: sandbox.Namespaces{User: got}}}
	for name, test := range map[string]struct {
		o  *runtime.UserNamespace
		ok bool
	}{"the pod's": {ownUsers(), true}, "nothing": {nil, true}, "another": {&runtime.UserNamespace{Uids: ids(0, 5), Gids: good}, false}, "the host's": {&runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE}, false}} {
		c := &runtime.LinuxContainerSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER, UsernsOptions: test.o}}
		if _, err := securityContext(c, pod); (err == nil) != test.ok {
			t.Errorf("container with %s: %v", name, err)
		}
	}
}
