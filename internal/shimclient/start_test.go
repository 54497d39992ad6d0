package shimclient

import (
	"slices"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	runc "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestBootstrap(t *testing.T) {
	options, err := anypb.New(&runc.Options{BinaryName: "/bin/runc"})
	if err != nil {
		t.Fatal(err)
	}
	b := Bootstrap{ID: "c1", Bundle: "/b/c1", Events: "/run/e.sock", SocketDir: "/run/s", Options: options}
	start, err := b.Start()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"-namespace", "pistis", "-id", "c1", "-bundle", "/b/c1", "-address", "/run/e.sock", "start"}
	if !slices.Equal(start.Args, want) {
		t.Errorf("arguments = %q", start.Args)
	}
	if !slices.Contains(start.Env, "TTRPC_ADDRESS=/run/e.sock") {
		t.Errorf("environment = %q", start.Env)
	}
	var params bootapi.BootstrapParams
	if err := proto.Unmarshal(start.Input, &params); err != nil {
		t.Fatal(err)
	}
	var found runc.Options
	if ok, err := params.FindExtension(&found); !ok || err != nil || found.BinaryName != "/bin/runc" {
		t.Errorf("options = %v, %v, %v", &found, ok, err)
	}
	if params.InstanceID != "c1" || params.Namespace != "pistis" || params.GetSocketDir() != "/run/s" || params.ContainerdTtrpcAddress != "/run/e.sock" {
		t.Errorf("parameters = %v", &params)
	}
	if del := b.Delete(); del.Args[len(del.Args)-1] != "delete" || del.Input != nil {
		t.Errorf("delete = %+v", del)
	}
}

func answers(t testing.TB) map[string][]byte {
	t.Helper()
	message, err := proto.Marshal(&bootapi.BootstrapResult{Version: 3, Address: "unix:///run/s/1", Protocol: "ttrpc"})
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"protobuf": message, "json": []byte(`{"version":2,"address":"unix:///run/s/1","protocol":"ttrpc"}`), "address": []byte("unix:///run/s/1\n"),
	}
}

func TestParseAnswer(t *testing.T) {
	for name, out := range answers(t) {
		got, err := ParseAnswer(out)
		want := Answer{Version: 2, Address: "unix:///run/s/1", Protocol: "ttrpc"}
		if name == "protobuf" {
			want.Version = 3
		}
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, out := range map[string][]byte{"nothing": nil, "words": []byte("command not found"), "no address": []byte(`{"version":2}`), "too long": make([]byte, maxAnswer+1)} {
		if _, err := ParseAnswer(out); !errdefs.IsInternal(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseAnswer([]byte(`{"version":4,"address":"unix:///run/s/1","protocol":"ttrpc"}`)); !errdefs.IsNotImplemented(err) {
		t.Errorf("a newer version: %v", err)
	}
}

func FuzzParseAnswer(f *testing.F) {
	for _, out := range answers(f) {
		f.Add(out)
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		answer, err := ParseAnswer(out)
		if err == nil && (answer.Address == "" || answer.Version < 2 || answer.Version > maxVersion) {
			t.Errorf("%+v", answer)
		}
	})
}

func TestDialRefuses(t *testing.T) {
	for address, refused := range map[string]func(error) bool{"vsock://3:1024": errdefs.IsNotImplemented, "unix://" + t.TempDir() + "/none": errdefs.IsUnavailable} {
		if _, err := Dial(t.Context(), Answer{Version: 2, Address: address, Protocol: "ttrpc"}, "container c1"); !refused(err) {
			t.Errorf("%s: %v", address, err)
		}
	}
}
