package guestimage

import (
	"bufio"
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
)

// maxBinary bounds the agent and runc that go into an initrd.
const maxBinary = 128 << 20

// initrd describes the content of an initrd.
type initrd struct {
	agent, runc string // files on the host; runc may be empty
	version     string // of the kernel, for the modules' directory
	modules     []module
}

// tree lays out the guest's first root file system. /lib/modules/load lists the modules to load, in order.
func (i initrd) tree() (tree, error) {
	t := tree{}
	for _, dir := range []string{"bin", "dev", "etc", "lib/modules", "mnt", "proc", "run", "sys", "var"} {
		t.dir(dir, 0o755)
	}
	t.dir("root", 0o700)
	t.dir("tmp", 0o1777)
	t.char("dev/console", 0o600, 5, 1)
	t.char("dev/null", 0o666, 1, 3)
	for _, b := range []struct{ name, file string }{{"init", i.agent}, {"bin/runc", i.runc}} {
		if b.file == "" {
			continue
		}
		data, err := readBinary(b.file)
		if err != nil {
			return nil, fmt.Errorf("initrd: /%s: %w", b.name, err)
		}
		t.file(b.name, 0o755, data)
	}
	var load strings.Builder
	for _, m := range i.modules {
		name := "lib/modules/" + i.version + "/" + m.path
		t.file(name, 0o644, m.data)
		fmt.Fprintf(&load, "/%s\n", name)
	}
	t.file("lib/modules/load", 0o644, []byte(load.String()))
	return t, nil
}

func readBinary(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readBounded(f, maxBinary)
	if err != nil {
		return nil, err
	}
	if err := checkStatic(data); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return data, nil
}

// writeInitrd writes the compressed archive to file.
func writeInitrd(file string, t tree, compression Compression) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("initrd: %w", cerr)
		}
	}()
	buffered := bufio.NewWriterSize(f, 1<<20)
	c, err := compression.writer(buffered)
	if err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	if err := t.writeCPIO(c); err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	if err := c.Close(); err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	return f.Sync()
}

// checkStatic refuses what could not run in the guest, where there is no dynamic linker.
func checkStatic(data []byte) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("not an ELF program: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("dynamically linked, the guest needs a static program: %w", errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
