package vmm

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// Kit gathers what a VMM in a jail starts with: what it is lent is closed after its start, what is kept is this side's
// end and closed only if there was none.
type Kit struct {
	Jail *Jail
	// Console is this side's end of the guest's console.
	Console *os.File
	// Memory is what the guest and the host have in common, or nil.
	Memory *os.File

	user       *hypervisor.User
	lent, kept []io.Closer
}

// DiskDir is where a jail's disks are.
const DiskDir = "/disks"

// NewKit is for a VM with a run directory; devices are names below /dev.
func NewKit(cfg hypervisor.Config, devices ...string) *Kit {
	return &Kit{
		user: cfg.User,
		Jail: &Jail{Dir: cfg.RunDir, Files: map[string]*os.File{}, Devices: devices, Dirs: []string{DiskDir}},
	}
}

// Lend takes over what the VMM gets.
func (k *Kit) Lend(c io.Closer) { k.lent = append(k.lent, c) }

// Keep takes over this side's end of something until the VMM runs.
func (k *Kit) Keep(c io.Closer) { k.kept = append(k.kept, c) }

// Started closes what was lent; it comes before anything waits for the end of what was lent.
func (k *Kit) Started() {
	for _, c := range k.lent {
		c.Close()
	}
}

// Failed closes everything.
func (k *Kit) Failed() {
	k.Started()
	for _, c := range k.kept {
		c.Close()
	}
}

// Image shows a file that the VMM reads by name.
func (k *Kit) Image(name, what, path string) (*os.File, error) {
	f, err := OpenImage(what, path, k.user)
	if err != nil {
		return nil, err
	}
	k.Lend(f)
	k.Jail.Files[name] = f
	return f, nil
}

// ConsolePipe makes Console and returns the VMM's end.
func (k *Kit) ConsolePipe() (*os.File, error) {
	ours, theirs, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("console: %w: %w", err, ErrorClass(err))
	}
	k.Console = ours
	k.Keep(ours)
	k.Lend(theirs)
	return theirs, nil
}

// Socket makes a pair and lends one end.
func (k *Kit) Socket() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w: %w", err, ErrorClass(err))
	}
	near := os.NewFile(uintptr(fds[0]), "socket")
	theirs = os.NewFile(uintptr(fds[1]), "socket")
	conn, err := net.FileConn(near)
	near.Close()
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	k.Keep(conn)
	k.Lend(theirs)
	return conn.(*net.UnixConn), theirs, nil
}
