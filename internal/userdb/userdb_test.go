package userdb

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/task"
)

const (
	passwdFile = "root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken\nweb:x:1000:1001::/srv/web:/bin/sh\n" +
		"nohome:x:1002:1002\n77:x:78:79::/seven:\nbig:x:99999999999:0::/:\n"
	groupFile = "root:x:0:\nwww:x:33:web,other\nadm:x:4:web\nops:x:50:root\nbroken:x:zzz:web\n"
)

func image(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": passwdFile, "group": groupFile} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func identity(uid, gid uint32, groups []uint32, home string) Identity {
	return Identity{User: task.User{UID: uid, GID: gid, AdditionalGIDs: groups}, Home: home}
}

func TestResolve(t *testing.T) {
	root := image(t)
	gid := func(n uint32) *uint32 { return &n }
	for _, tt := range []struct {
		name string
		req  task.UserRequest
		want Identity
	}{
		{"none", task.UserRequest{}, identity(0, 0, []uint32{0, 50}, "/root")},
		{"strict root", task.UserRequest{Strict: true}, identity(0, 0, []uint32{0}, "/root")},
		{"name", task.UserRequest{User: "web"}, identity(1000, 1001, []uint32{1001, 33, 4}, "/srv/web")},
		{"known uid", task.UserRequest{User: "1000"}, identity(1000, 1001, []uint32{1001, 33, 4}, "/srv/web")},
		{"unknown uid", task.UserRequest{User: "4242"}, identity(4242, 0, []uint32{0}, "/")},
		{"uid and gid", task.UserRequest{User: "4242:17"}, identity(4242, 17, []uint32{17}, "/")},
		{"name and group", task.UserRequest{User: "web:adm"}, identity(1000, 4, []uint32{4, 33}, "/srv/web")},
		{"gid wins", task.UserRequest{User: "web:adm", GID: gid(5)}, identity(1000, 5, []uint32{5, 33, 4}, "/srv/web")},
		{"supplemental", task.UserRequest{User: "web", SupplementalGroups: []uint32{9, 33}, Strict: true}, identity(1000, 1001, []uint32{1001, 9, 33}, "/srv/web")},
		{"no home", task.UserRequest{User: "nohome"}, identity(1002, 1002, []uint32{1002}, "/")},
		{"a name of digits", task.UserRequest{User: "77"}, identity(78, 79, []uint32{79}, "/seven")},
	} {
		got, err := Resolve(root, tt.req)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
	}
	for _, user := range []string{"nobody-here", "web:nogroup", "big", "web:"} {
		if got, err := Resolve(root, task.UserRequest{User: user}); !errdefs.IsNotFound(err) {
			t.Errorf("%q: got %+v, %v; want NotFound", user, got, err)
		}
	}
	for _, user := range []string{"2147483648", "0:4294967295"} {
		if got, err := Resolve(root, task.UserRequest{User: user}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %+v, %v; want InvalidArgument", user, got, err)
		}
	}
}

func TestResolveWithoutFiles(t *testing.T) {
	got, err := Resolve(t.TempDir(), task.UserRequest{User: "7:8"})
	if err != nil || got.UID != 7 || got.GID != 8 || got.Home != "/" {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestHostileFiles: links stay inside the root, and nothing but a bounded regular file is read.
func TestHostileFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:1:1::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	root := image(t)
	passwd := filepath.Join(root, "etc/passwd")
	replace := func(make func() error) {
		t.Helper()
		if err := os.Remove(passwd); err != nil {
			t.Fatal(err)
		}
		if err := make(); err != nil {
			t.Fatal(err)
		}
	}
	replace(func() error { return os.Symlink(outside, passwd) })
	if _, err := Resolve(root, task.UserRequest{User: "evil"}); !errdefs.IsNotFound(err) {
		t.Errorf("a link out of the root: %v", err)
	}
	replace(func() error { return os.Symlink("/etc/../../../etc/group", passwd) })
	if _, err := Resolve(root, task.UserRequest{User: "evil"}); !errdefs.IsNotFound(err) {
		t.Errorf("a link inside the root: %v", err)
	}
	replace(func() error { return unix.Mkfifo(passwd, 0o644) })
	if _, err := Resolve(root, task.UserRequest{User: "0"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a fifo: %v", err)
	}
	replace(func() error { return os.WriteFile(passwd, []byte(strings.Repeat("a", maxLine+1)), 0o644) })
	if _, err := Resolve(root, task.UserRequest{User: "0"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an endless line: %v", err)
	}
	replace(func() error {
		f, err := os.Create(passwd)
		if err == nil {
			err = f.Truncate(maxFile + 1)
			f.Close()
		}
		return err
	})
	if _, err := Resolve(root, task.UserRequest{User: "0"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a huge file: %v", err)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add(passwdFile, groupFile, "web:www")
	f.Add("", "", "0")
	f.Add("a:b:c:d:e:f:g:h", ":::", ":")
	f.Add("root:x:-1:0::\x00:", "x:x:4294967296:a,,b", "4294967296:1")
	f.Fuzz(func(t *testing.T, passwd, group, user string) {
		users, err := parsePasswd(strings.NewReader(passwd))
		if err != nil {
			return
		}
		groups, err := parseGroup(strings.NewReader(group))
		if err != nil {
			return
		}
		id, err := resolve(users, groups, task.UserRequest{User: user})
		if err != nil {
			if !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
				t.Errorf("an error without a class: %v", err)
			}
			return
		}
		if id.UID > maxID || id.GID > maxID || id.Home == "" || len(id.AdditionalGIDs) == 0 || id.AdditionalGIDs[0] != id.GID {
			t.Errorf("impossible identity %+v", id)
		}
	})
}
