// Command fsload loads a directory's file system and prints what it gave: fio's throughput, a metadata loop, and whether
// fio reads what it wrote; or what is done to the files of an image in a root file system (test/bench/rootfs). As the first process of a guest it mounts a virtio-fs share first and works in there.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Marker begins the line with the results.
const marker = "fsload-results "

func main() {
	dir := flag.String("dir", "", "an empty directory")
	fio := flag.String("fio", "fio", "the program fio")
	mib := flag.Int("mib", 64, "size of the file that fio works on")
	files := flag.Int("files", 500, "how many files the metadata loop has")
	root := flag.String("root", "", "load the root file system here instead, which is of the image of test/bench/rootfs")
	read := flag.String("read", "", "read all files of this directory and do nothing then")
	stay := flag.Bool("stay", false, "do nothing, for ever")
	flag.Parse()
	if os.Getpid() == 1 && flag.NArg() > 0 { // of a guest, and not of a container
		err := first()
		fmt.Println("fsload: ended:", err)
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		select {}
	}
	if *read != "" {
		if err := readTree(*read); err != nil {
			fmt.Fprintln(os.Stderr, "fsload:", err)
			os.Exit(1)
		}
		fmt.Println("has read")
	}
	for *stay || *read != "" {
		time.Sleep(time.Hour)
	}
	load := func() error { return run(*dir, *fio, *mib, *files) }
	if *root != "" {
		load = func() error { return loadRoot(*root) }
	}
	if err := load(); err != nil {
		fmt.Fprintln(os.Stderr, "fsload:", err)
		os.Exit(1)
	}
}

func run(dir, fio string, mib, files int) error {
	results := map[string]float64{}
	for _, job := range []struct {
		name string
		args []string
	}{
		{"sequential write, MiB/s", []string{"--rw=write", "--bs=1M", "--end_fsync=1"}},
		{"sequential read, MiB/s", []string{"--rw=read", "--bs=1M"}},
		{"random write of 4 KiB, MiB/s", []string{"--rw=randwrite", "--bs=4k", "--end_fsync=1", "--io_size=8M"}},
		{"random read of 4 KiB, MiB/s", []string{"--rw=randread", "--bs=4k", "--io_size=8M"}},
	} {
		got, err := runFio(fio, dir, mib, job.args...)
		if err != nil {
			return fmt.Errorf("%s: %w", job.name, err)
		}
		results[job.name] = got
	}
	if _, err := runFio(fio, dir, mib/4, "--rw=randwrite", "--bsrange=4k-64k", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0", "--filename=verified"); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	results["fio --verify"] = 1
	if err := metadata(dir, files, results); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	return report(results)
}

func report(results map[string]float64) error {
	line, err := json.Marshal(results)
	if err != nil {
		return err
	}
	fmt.Println(marker + string(line))
	return nil
}

// runFio returns MiB a second of what the job reads and writes.
func runFio(fio, dir string, mib int, args ...string) (float64, error) {
	cmd := exec.Command(fio, append([]string{
		"--name=load", "--directory=" + dir, fmt.Sprintf("--size=%dM", mib), "--ioengine=psync", "--output-format=json", "--thread", "--filename=load",
	}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return 0, fmt.Errorf("fio: %w: %s%s", err, exit.Stderr, out)
		}
		return 0, err
	}
	var report struct {
		Jobs []struct {
			Read, Write struct {
				Bytes float64 `json:"bw_bytes"`
			}
		}
	}
	_, text, _ := strings.Cut(string(out), "{")
	if err := json.Unmarshal([]byte("{"+text), &report); err != nil || len(report.Jobs) != 1 {
		return 0, fmt.Errorf("fio's report: %w: %.200s", err, out)
	}
	return (report.Jobs[0].Read.Bytes + report.Jobs[0].Write.Bytes) / (1 << 20), nil
}

// metadata makes, finds, lists, renames and removes files.
func metadata(dir string, files int, results map[string]float64) error {
	name := func(i int) string { return filepath.Join(dir, fmt.Sprint("dir", i%10), fmt.Sprint("file", i)) }
	for i := range 10 {
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprint("dir", i)), 0o755); err != nil {
			return err
		}
	}
	all := 0.0
	for _, step := range []struct {
		name string
		do   func(i int) error
	}{
		{"create", func(i int) error { return os.WriteFile(name(i), nil, 0o644) }},
		{"stat", func(i int) error { _, err := os.Lstat(name(i)); return err }},
		{"open and close", func(i int) error {
			f, err := os.Open(name(i))
			if err != nil {
				return err
			}
			return f.Close()
		}},
		{"rename", func(i int) error { return os.Rename(name(i), name(i)+"x") }},
		{"unlink", func(i int) error { return os.Remove(name(i) + "x") }},
	} {
		begin := time.Now()
		for i := range files {
			if err := step.do(i); err != nil {
				return err
			}
		}
		took := time.Since(begin).Seconds()
		all += took
		results[step.name+", a second"] = float64(files) / took
	}
	results["metadata in all, a second"] = float64(5*files) / all
	return nil
}

// first is the life of a guest's first process: it loads /lib/modules/load and /virtiofs.ko, mounts the share with the tag
// "root", and runs this program in it with the arguments of the kernel command line after "--".
func first() error {
	for _, m := range [][3]string{{"proc", "/proc", "proc"}, {"dev", "/dev", "devtmpfs"}} {
		if err := unix.Mount(m[0], m[1], m[2], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	list, err := os.ReadFile("/lib/modules/load")
	if err != nil {
		return err
	}
	for _, module := range append(strings.Fields(string(list)), "/virtiofs.ko") {
		f, err := os.Open(module)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
			fmt.Println("fsload:", module, err)
		}
		f.Close()
	}
	if err := unix.Mount("root", "/mnt", "virtiofs", 0, ""); err != nil {
		return fmt.Errorf("mount the share: %w", err)
	}
	// What fio needs of them is the guest's. Nothing else of the share is covered: any of it may be what is worked on.
	for _, dir := range []string{"/proc", "/dev"} {
		if err := unix.Mount(dir, "/mnt"+dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	if err := errors.Join(unix.Chroot("/mnt"), unix.Chdir("/")); err != nil {
		return err
	}
	cmd := exec.Command(flag.Arg(0), flag.Args()[1:]...)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	return cmd.Run()
}
