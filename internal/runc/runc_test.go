package runc

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestFailure(t *testing.T) {
	entry := func(msg string) []byte {
		return []byte(`{"level":"info","msg":"x"}` + "\n" + `{"level":"error","msg":"` + msg + `","time":"t"}` + "\n")
	}
	for _, tt := range []struct {
		msg  string
		code uint32
		text string
	}{
		{`runc create failed: unable to start container process: error during container init: exec: \"nosuch\": executable file not found in $PATH`, 127, `exec: "nosuch": executable file not found in $PATH`},
		{"executable file `nosuch` not found in $PATH: No such file or directory", 127, `exec: "nosuch": executable file not found in $PATH`},
		{`exec failed: unable to start container process: exec: \"/a b\": stat /a b: no such file or directory`, 127, `exec: "/a b": stat /a b: no such file or directory`},
		{`unable to start container process: exec: \"/etc/passwd\": permission denied`, 126, `exec: "/etc/passwd": permission denied`},
		{"open executable: Permission denied", 126, "exec: permission denied"},
		{`unable to start container process: exec: \"/etc\": is a directory`, 126, `exec: "/etc": is a directory`},
	} {
		err := failure("create", 1, entry(tt.msg))
		var refused *ProgramError
		if !errors.As(err, &refused) || refused.Code != tt.code || refused.Message != tt.text || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v", tt.msg, err)
		}
	}
	for msg, is := range map[string]func(error) bool{
		"container does not exist":                                               errdefs.IsNotFound,
		"unknown command checkpoint":                                             errdefs.IsNotImplemented,
		"cannot exec in a stopped container":                                     errdefs.IsFailedPrecondition,
		"unable to apply cgroup configuration: no":                               errdefs.IsInternal,
		"error during container init: mkdir /etc/passwd: not a directory":        errdefs.IsInvalidArgument,
		"write /sys/fs/cgroup/cpuset/c/cpuset.cpus: invalid argument":            errdefs.IsInvalidArgument,
		"writing file `cpuset.cpus`: Numerical result out of range":              errdefs.IsInvalidArgument,
		"container init was OOM-killed (memory limit too low?)":                  errdefs.IsInvalidArgument,
		"mount `/f` to `etc`: Not a directory":                                   errdefs.IsInvalidArgument,
		"unable to set memory limit to 1 (current usage: 2, peak usage: 3)":      errdefs.IsInvalidArgument,
		"create mountpoint for /proc mount: check proc-safety of /proc mount: x": errdefs.IsInvalidArgument,
	} {
		if err := failure("exec", 1, entry(msg)); !is(err) || !strings.Contains(err.Error(), msg) {
			t.Errorf("%s: got %v", msg, err)
		}
	}
	if err := failure("start", 2, nil); !errdefs.IsInternal(err) {
		t.Errorf("no message: %v", err)
	}
	if err := failure("start", 2, []byte("cannot open shared object file\n")); !errdefs.IsInternal(err) || !strings.Contains(err.Error(), "cannot open shared") {
		t.Errorf("a message outside of the log: %v", err)
	}
}

func FuzzFailure(f *testing.F) {
	f.Add([]byte(`{"level":"error","msg":"exec: \"x\": not found"}`))
	f.Add([]byte("{\"level\":\"fatal\",\"msg\":\"exec: \\\"\"}\n\x00"))
	f.Fuzz(func(t *testing.T, log []byte) {
		if failure("create", 1, log) == nil {
			t.Error("a failure without an error")
		}
	})
}
