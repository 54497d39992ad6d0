package share

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// controlFD is the server's socket to the shim.
	controlFD = 3
	// fdDir is where the server finds its own descriptors.
	fdDir = "/fd"
	// maxControl bounds a message on the control socket.
	maxControl = 4 << 10
	// gcPercent keeps a process small of which a node runs one per pod with volumes.
	gcPercent = 50
	maxProcs  = 4
)

// order is what the shim asks of the server. Two descriptors come with it: the root and the stream.
type order struct {
	// Number is in the answer too.
	Number int `json:"number"`
	// Valid is how long the guest may believe what it was told.
	Valid time.Duration `json:"valid"`
	// MaxWrite bounds the data of a message.
	MaxWrite int `json:"max_write"`
	// Quiet: no file system of the share reports errors when a file is closed.
	Quiet bool `json:"quiet,omitempty"`
	// Passing: mounts below the root come and go.
	Passing bool `json:"passing,omitempty"`
	// Watch: the guest is told of changes.
	Watch bool `json:"watch,omitempty"`
	// Handed: the stream's first byte says what messages pass through.
	Handed bool `json:"handed,omitempty"`
}

// report is the server's answer, and its first word when it is ready, which answers no order and has number 0.
type report struct {
	Number int    `json:"number"`
	Error  string `json:"error,omitempty"`
}

// Main is the server process: it confines itself and serves shares until its socket is closed. It returns the exit code.
func Main(stderr io.Writer) int {
	log.SetOutput(io.Discard) // the protocol library tells there what the guest did wrong
	debug.SetGCPercent(gcPercent)
	runtime.GOMAXPROCS(min(maxProcs, runtime.NumCPU()))
	unix.CloseOnExec(controlFD)
	f := os.NewFile(controlFD, "control")
	conn, err := net.FileConn(f)
	f.Close()
	control, ok := conn.(*net.UnixConn)
	if err != nil || !ok {
		fmt.Fprintf(stderr, "share server: no control socket; the shim starts this process: %v\n", err)
		return 1
	}
	room, err := newBudget()
	if err == nil {
		err = confine()
	}
	if tellErr := tell(control, 0, err); err != nil || tellErr != nil {
		return 1
	}
	if err := obey(control, room); err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintf(stderr, "share server: %v\n", err)
		return 1
	}
	return 0
}

func tell(control *net.UnixConn, number int, err error) error {
	r := report{Number: number}
	if err != nil {
		r.Error = err.Error()
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = control.Write(data)
	return err
}

// obey takes orders until the shim has gone. Sessions end with the process.
func obey(control *net.UnixConn, room *budget) error {
	for {
		o, root, stream, err := readOrder(control)
		if err != nil {
			return err
		}
		fs, err := open(o, root, room)
		if err != nil {
			stream.Close()
			if err := tell(control, o.Number, err); err != nil {
				return err
			}
			continue
		}
		go func() {
			defer stream.Close() // the last thing: it says that no file is open
			defer fs.close()
			guest, err := o.messages(stream)
			if err == nil {
				_ = serve(guest, fs, o.MaxWrite) // an error is the guest's, and the stream's end tells the shim
			}
		}()
		if err := tell(control, o.Number, nil); err != nil {
			return err
		}
	}
}

// opened is what a share is served from.
type opened interface {
	fuse.RawFileSystem
	close()
}

// open takes over root, also on error.
func open(o order, root int, room *budget) (opened, error) {
	fs, err := newFiles(root, fdDir, o.Valid, room)
	if err != nil {
		unix.Close(root)
		return nil, err
	}
	fs.nodes.passing, fs.tells = o.Passing, !o.Quiet
	if !o.Watch {
		return fs, nil
	}
	return newWatched(fs)
}

// halfClosed leaves the end of the stream to its owner: closing it only wakes who reads.
type halfClosed struct{ *net.UnixConn }

func (h halfClosed) Close() error { return h.CloseRead() }

func readOrder(control *net.UnixConn) (o order, root int, stream *net.UnixConn, err error) {
	data, oob := make([]byte, maxControl), make([]byte, unix.CmsgSpace(2*4))
	n, oobn, _, _, err := control.ReadMsgUnix(data, oob)
	if err != nil {
		return o, 0, nil, err
	}
	if n == 0 {
		return o, 0, nil, io.EOF
	}
	fds, err := rights(oob[:oobn], 2)
	if err != nil {
		return o, 0, nil, fmt.Errorf("an order: %w", err)
	}
	f := os.NewFile(uintptr(fds[1]), "stream")
	conn, err := net.FileConn(f)
	f.Close()
	if err == nil {
		err = json.Unmarshal(data[:n], &o)
	}
	if err != nil {
		return o, 0, nil, err
	}
	return o, fds[0], conn.(*net.UnixConn), nil
}
