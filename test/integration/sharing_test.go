package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// podsOfOneImage is an environment variable: how many pods TestPodsOfOneImage runs.
const podsOfOneImage = "PISTIS_TEST_PODS"

// perUser bounds what a user of an image costs on the disk.
const perUser = 16 << 10

// layersOf are the layer images that a VMM has open, by inode.
func layersOf(t *testing.T, vmm int, root string) map[uint64]string {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", vmm))
	if err != nil {
		t.Fatal(err)
	}
	// By inode: in a jail files have other names.
	known := map[[2]uint64]string{}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && d.Type().IsRegular() && unix.Lstat(path, &st) == nil {
			known[[2]uint64{st.Dev, st.Ino}] = path
		}
		return nil // what goes meanwhile is no layer that is in use
	})
	if err != nil {
		t.Fatal(err)
	}
	found := map[uint64]string{}
	for _, link := range links {
		var st unix.Stat_t
		if unix.Stat(link, &st) != nil {
			continue
		}
		target, ok := known[[2]uint64{st.Dev, st.Ino}]
		if !ok {
			continue
		}
		if flags, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", vmm, filepath.Base(link))); err == nil && readOnly(string(flags)) {
			found[st.Ino] = target
		}
	}
	return found
}

// readOnly takes what fdinfo says of an open file.
func readOnly(info string) bool {
	for line := range strings.Lines(info) {
		if octal, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(octal), 8, 64)
			return err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY
		}
	}
	return false
}

// TestPodsOfOneImage: pods of one image have its layers from the same files, once on disk and in the page cache; a pod
// that was stopped for a while knows what time it is.
func TestPodsOfOneImage(t *testing.T) {
	count := 2
	if n, err := strconv.Atoi(os.Getenv(podsOfOneImage)); err == nil {
		count = n
	}
	d := startDaemon(t, "")
	d.pull(testImage)
	var layers map[uint64]string
	var used uint64
	var last string
	var vmm int
	for i := range count {
		pod, config := d.runPod(fmt.Sprint("pod", i), nil)
		last = d.launch(pod, config, shell("main", forever))
		vmm = d.process(pod, "vmmPid")
		have := layersOf(t, vmm, d.scope.Root)
		if i == 0 {
			layers, used = have, d.imageBytes()
			if len(layers) == 0 {
				t.Fatal("the VMM has no layer open")
			}
			continue
		}
		for inode, path := range have {
			if layers[inode] == "" {
				t.Errorf("pod %d has a copy of its own: %s", i, path)
			}
		}
		expect(t, "layers of a pod", len(have), len(layers))
		// The database notes who uses an image.
		if now := d.imageBytes(); now > used+uint64(i)*perUser {
			t.Errorf("images take %d bytes with %d pods, %d with one", now, i+1, used)
		}
	}
	t.Logf("%d pods use the same %d files", count, len(layers))

	if err := syscall.Kill(vmm, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second) // what the guest is to miss
	if err := syscall.Kill(vmm, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest's clock", func() bool {
		before := time.Now().Unix()
		now, err := strconv.ParseInt(strings.TrimSpace(d.execSync(last, "date", "+%s")), 10, 64)
		return err == nil && now >= before-1 && now <= time.Now().Unix()+1
	})
}
