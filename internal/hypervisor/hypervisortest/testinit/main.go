package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/transport"
)

// port is the one that the tests dial.
const port = 1024

func main() {
	if err := run(); err != nil {
		fmt.Println("testinit:", err)
		time.Sleep(time.Second) // the console is slow
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
}

func run() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	params := strings.Fields(string(line))
	fmt.Println("testinit: up")
	switch {
	case slices.Contains(params, "pistis.probe"):
		fmt.Println("pistis-probe-ok")
		return powerOff()
	case slices.Contains(params, "test.silent"):
		select {}
	}
	shared, direct, err := carriers(params)
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- accept(shared, port) }()
	go func() { ended <- accept(direct, transport.DirectPort) }()
	return <-ended
}

func accept(listen func(uint32) (net.Listener, error), port uint32) error {
	listener, err := listen(port)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go serve(conn)
	}
}

// carriers are what streams come through: most of them, and those that have connections of their own if there are any.
func carriers(params []string) (shared, direct func(uint32) (net.Listener, error), err error) {
	var pipe io.ReadWriteCloser
	switch {
	case slices.Contains(params, transport.Param+transport.KindVSOCK):
		return transport.ListenVSOCK, transport.ListenVSOCK, nil
	case slices.Contains(params, transport.Param+transport.KindPipe):
		direct = transport.ListenVSOCK
		pipe, err = transport.AcceptPipe(context.Background())
	default:
		pipe, err = transport.OpenSerialPort(context.Background())
	}
	if err != nil {
		return nil, nil, err
	}
	s, err := transport.NewServer(context.Background(), pipe)
	if err != nil {
		return nil, nil, err
	}
	if direct == nil {
		direct = s.Listen
	}
	return s.Listen, direct, nil
}

func loadModules() error {
	list, err := os.ReadFile("/lib/modules/load")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

func serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	answer, err := obey(word, rest, r)
	if err != nil {
		fmt.Fprintf(conn, "error: %v\n", err)
		return
	}
	fmt.Fprintf(conn, "ok %s\n", answer)
}

func obey(word, rest string, body io.Reader) (string, error) {
	switch word {
	case "version":
		b, err := os.ReadFile("/proc/version")
		return strings.TrimSpace(string(b)), err
	case "count": // the bytes up to the host's end of writing
		n, err := io.Copy(io.Discard, body)
		return fmt.Sprint(n), err
	case "take": // so many bytes
		size, err := strconv.ParseInt(rest, 10, 64)
		if err != nil {
			return "", err
		}
		n, err := io.CopyN(io.Discard, body, size)
		return fmt.Sprint(n), err
	case "cpuflags":
		b, err := os.ReadFile("/proc/cpuinfo")
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "flags") {
				return strings.TrimSpace(line), err
			}
		}
		return "", err
	case "disk":
		return readDisk(rest)
	case "nodisk":
		return "", waitFor(func() error {
			if name, err := diskName(rest); err == nil {
				return fmt.Errorf("disk %s is still %s", rest, name)
			}
			return nil
		})
	case "readall":
		return readAll(rest)
	case "write":
		lun, text, _ := strings.Cut(rest, " ")
		return "", writeDisk(lun, text)
	case "kmsg": // the kernel's last words, for a person who looks for an error
		buf := make([]byte, 256<<10)
		n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
		if err != nil {
			return "", err
		}
		return string(buf[max(0, n-4<<10):n]), nil
	case "touch":
		return "", touch(rest)
	case "size":
		return size(rest)
	case "memory":
		return memory(rest)
	case "nics":
		return nics()
	case "work":
		seconds, err := strconv.Atoi(rest)
		if err != nil {
			return "", err
		}
		return fileWork(time.Duration(seconds) * time.Second)
	case "poweroff":
		return "", powerOff()
	case "panic":
		return "", os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	}
	return "", fmt.Errorf("unknown word %q", word)
}

func powerOff() error {
	unix.Sync()
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if slices.Contains(strings.Fields(string(line)), "pistis.poweroff=reset") {
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// waitFor polls for what the kernel does in its own time.
func waitFor(check func() error) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// diskName finds a disk by its address: the LUN on the only SCSI target, or "serial:" and a serial.
func diskName(address string) (string, error) {
	serial, ok := strings.CutPrefix(address, "serial:")
	if !ok {
		found, err := filepath.Glob("/sys/class/scsi_device/*:0:" + address + "/device/block/*")
		if err != nil || len(found) != 1 {
			return "", fmt.Errorf("disk %s: %d found", address, len(found))
		}
		return filepath.Base(found[0]), nil
	}
	found, err := filepath.Glob("/sys/block/vd*/serial")
	if err != nil {
		return "", err
	}
	for _, path := range found {
		if text, err := os.ReadFile(path); err == nil && strings.TrimRight(string(text), "\n\x00") == serial {
			return filepath.Base(filepath.Dir(path)), nil
		}
	}
	var there []string
	for _, path := range found {
		text, err := os.ReadFile(path)
		there = append(there, fmt.Sprintf("%s %q %v", path, text, err))
	}
	return "", fmt.Errorf("disk %s: not found among %v", address, there)
}

// scan looks for disks that nobody announces.
func scan() error {
	if err := os.WriteFile("/sys/bus/pci/rescan", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// hasImage waits for a device that was there with the image of no disk, one sector, until it has its new size.
func hasImage(name string) error {
	size, err := os.ReadFile("/sys/block/" + name + "/size")
	if err == nil && strings.TrimSpace(string(size)) == "1" {
		err = fmt.Errorf("%s has one sector still", name)
	}
	return err
}

// readDisk returns "ro" or "rw", the size, and the text at the beginning.
func readDisk(lun string) (string, error) {
	var name string
	var f *os.File
	if strings.HasPrefix(lun, "serial:") {
		if err := scan(); err != nil {
			return "", err
		}
	}
	err := waitFor(func() (err error) { // a new disk has a name before it can be opened
		if name, err = diskName(lun); err != nil {
			return err
		}
		if err = hasImage(name); err == nil {
			f, err = os.Open("/dev/" + name)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 512)
	if _, err := io.ReadFull(f, head); err != nil {
		return "", err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	ro, err := os.ReadFile("/sys/block/" + name + "/ro")
	if err != nil {
		return "", err
	}
	mode := map[bool]string{true: "ro", false: "rw"}[strings.TrimSpace(string(ro)) == "1"]
	text, _, _ := bytes.Cut(head, []byte{0})
	return fmt.Sprintf("%s %d %s", mode, size, text), nil
}

// readAll reads a disk from its beginning to its end, and returns its size and how many milliseconds that took.
func readAll(lun string) (string, error) {
	name, err := diskName(lun)
	if err != nil {
		return "", err
	}
	f, err := os.Open("/dev/" + name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	start := time.Now()
	n, err := io.Copy(io.Discard, f)
	return fmt.Sprintf("%d %d", n, time.Since(start).Milliseconds()), err
}

func writeDisk(lun, text string) error {
	name, err := diskName(lun)
	if err != nil {
		return err
	}
	f, err := os.OpenFile("/dev/"+name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(append([]byte(text), make([]byte, 512-len(text))...)); err != nil {
		return err
	}
	return f.Sync()
}

func nics() (string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	var out []string
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 {
			out = append(out, fmt.Sprintf("%s/%d", i.HardwareAddr, i.MTU))
		}
	}
	return strings.Join(out, " "), nil
}

// fileWork makes, reads and removes files for so long, with many processors' worth of goroutines: the load
// under which wrong atomic operations show.
func fileWork(d time.Duration) (string, error) {
	deadline := time.Now().Add(d)
	results := make(chan error)
	const workers = 8
	counts := make([]int, workers)
	for w := range workers {
		go func() {
			dir := fmt.Sprintf("/tmp/work%d", w)
			for i := 0; time.Now().Before(deadline); i++ {
				if err := oneFile(dir, i); err != nil {
					results <- err
					return
				}
				counts[w]++
			}
			results <- os.RemoveAll(dir)
		}()
	}
	var err error
	for range workers {
		err = errors.Join(err, <-results)
	}
	total := 0
	for _, n := range counts {
		total += n
	}
	return fmt.Sprintf("%d files", total), err
}

func oneFile(dir string, i int) error {
	sub := filepath.Join(dir, fmt.Sprint(i%50))
	if err := os.MkdirAll(sub, 0o755); err != nil {
		return err
	}
	data := bytes.Repeat([]byte{byte(i)}, 1+rand.IntN(20_000))
	path := filepath.Join(sub, fmt.Sprint(i))
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	if err := os.Rename(path, path+"x"); err != nil {
		return err
	}
	got, err := os.ReadFile(path + "x")
	if err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("%s: other content than written", path)
	}
	if i%3 > 0 {
		return os.Remove(path + "x")
	}
	return os.RemoveAll(sub)
}
