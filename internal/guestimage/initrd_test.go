package guestimage

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
)

// readCPIO lists an archive as "name mode content".
func readCPIO(t *testing.T, data []byte) []string {
	t.Helper()
	var lines []string
	field := func(at, i int) int {
		n, err := strconv.ParseUint(string(data[at+6+8*i:at+14+8*i]), 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		return int(n)
	}
	for at := 0; ; {
		if string(data[at:at+6]) != "070701" {
			t.Fatalf("bad magic at %d", at)
		}
		mode, size, nameSize := field(at, 1), field(at, 6), field(at, 11)
		major, minor := field(at, 9), field(at, 10)
		name := string(data[at+110 : at+110+nameSize-1])
		if data[at+110+nameSize-1] != 0 {
			t.Fatalf("%s: no zero after the name", name)
		}
		content := (at + 110 + nameSize + 3) / 4 * 4
		if name == "TRAILER!!!" {
			if len(data) != content {
				t.Errorf("%d bytes after the trailer", len(data)-content)
			}
			return lines
		}
		line := fmt.Sprintf("%s %o %q", name, mode, data[content:content+size])
		if major+minor > 0 {
			line += fmt.Sprintf(" %d:%d", major, minor)
		}
		lines = append(lines, line)
		at = (content + size + 3) / 4 * 4
	}
}

func TestCPIO(t *testing.T) {
	tr := tree{}
	tr.file("lib/modules/x", 0o644, []byte("module"))
	tr.file("init", 0o755, []byte("abcde"))
	tr.link("bin/sh", "busybox")
	tr.dir("tmp", 0o1777)
	tr.char("dev/console", 0o600, 5, 1)
	var first, second bytes.Buffer
	if err := tr.writeCPIO(&first); err != nil {
		t.Fatal(err)
	}
	if err := tr.writeCPIO(&second); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same tree gave different archives")
	}
	want := `bin 40755 ""
bin/sh 120777 "busybox"
dev 40755 ""
dev/console 20600 "" 5:1
init 100755 "abcde"
lib 40755 ""
lib/modules 40755 ""
lib/modules/x 100644 "module"
tmp 41777 ""`
	if got := strings.Join(readCPIO(t, first.Bytes()), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, bad := range []string{"/init", "a/../b", "", "a//b"} {
		if err := (tree{bad: {mode: modeFile}}).writeCPIO(io.Discard); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestInitrdTree(t *testing.T) {
	dir := t.TempDir()
	agent := write(t, filepath.Join(dir, "agent"), program("agent"))
	runc := write(t, filepath.Join(dir, "runc"), program("runc"))
	tr, err := initrd{agent: agent, runc: runc, version: "6.1", modules: []module{
		{path: "kernel/b.ko", data: []byte("b")}, {path: "kernel/a.ko", data: []byte("a")},
	}}.tree()
	if err != nil {
		t.Fatal(err)
	}
	if got := string(tr["lib/modules/load"].data); got != "/lib/modules/6.1/kernel/b.ko\n/lib/modules/6.1/kernel/a.ko\n" {
		t.Errorf("load: %q", got)
	}
	if string(tr["init"].data) != string(program("agent")) || tr["init"].mode != modeFile|0o755 || tr["bin/runc"].mode != modeFile|0o755 {
		t.Error("init or runc is wrong")
	}
	for name, data := range map[string][]byte{"dynamic": elfFile(".text", nil, true), "script": []byte("#!/bin/sh\n")} {
		_, err := initrd{agent: write(t, filepath.Join(dir, name), data), runc: runc}.tree()
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s as agent: %v", name, err)
		}
	}
}

func TestCompression(t *testing.T) {
	tr := tree{}
	tr.file("init", 0o755, bytes.Repeat([]byte("some code "), 2_000_000)) // more than one block of LZ4
	var plain bytes.Buffer
	if err := tr.writeCPIO(&plain); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Compression{Zstd, Gzip, LZ4, None} {
		file := filepath.Join(t.TempDir(), "initrd")
		if err := writeInitrd(file, tr, c); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got := data
		switch c {
		case Zstd:
			r, err := zstd.NewReader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			got, err = io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
		case Gzip:
			r, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if got, err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		case LZ4:
			if got, err = readLegacyLZ4(data[4:], int64(plain.Len())); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, plain.Bytes()) {
			t.Errorf("%s: not what went in", c)
		}
	}
	if err := writeInitrd(filepath.Join(t.TempDir(), "initrd"), tr, "rar"); err == nil {
		t.Error("an unknown compression was taken")
	}
}
