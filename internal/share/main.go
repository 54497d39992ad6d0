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

	"github.com/pistis-run/pistis/internal/share/confine"
	"github.com/pistis-run/pistis/internal/transport"
)

const (
	// controlFD is the server's socket to the shim.
	controlFD = 3
	// maxControl bounds a message on the control socket.
	maxControl = 4 << 10
	// gcPercent keeps a process small of which a node runs one per pod with volumes.
	gcPercent = 50
	maxProcs  = 4
	// eager is how many shares' messages are waited for in the kernel at a time.
	eager = 4
)

// order is what the shim asks of the server. Two or three descriptors come with it.
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
	// Attributes: the guest takes those of directories with the answers to what has changed them.
	Attributes bool `json:"attributes,omitempty"`
	// Memory: a third descriptor is memory that the guest has too.
	Memory bool `json:"memory,omitempty"`
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
	runtime.GOMAXPROCS(min(maxProcs, runtime.NumCPU()) + eager)
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
		err = confine.Confine()
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
	eagerness := transport.NewEagerness(eager)
	for {
		o, given, err := readOrder(control)
		if err != nil {
			return err
		}
		stream := given.stream
		fs, err := open(o, given.root, room)
		if err != nil {
			stream.Close()
			given.memory.close()
			if err := tell(control, o.Number, err); err != nil {
				return err
			}
			continue
		}
		go func() {
			defer stream.Close() // the last thing: it says that no file is open
			defer fs.close()
			defer given.memory.close() // nothing works on a request any more
			guest, err := o.messages(stream, eagerness)
			if err == nil {
				_ = serve(guest, fs, o.MaxWrite, given.memory) // an error is the guest's, and the stream's end tells the shim
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
	fs, err := newFiles(root, confine.FDDir, o.Valid, room)
	if err != nil {
		unix.Close(root)
		return nil, err
	}
	fs.nodes.passing, fs.tells, fs.ahead = o.Passing, !o.Quiet, o.Attributes && o.Valid > 0
	if !o.Watch {
		return fs, nil
	}
	return newWatched(fs)
}

// halfClosed leaves the end of the stream to its owner: closing it only wakes who reads.
type halfClosed struct{ *net.UnixConn }

func (h halfClosed) Close() error { return h.CloseRead() }

// given is what comes with an order.
type given struct {
	root   int
	stream *net.UnixConn
	memory memory
}

func readOrder(control *net.UnixConn) (o order, g given, err error) {
	const most = 3
	data, oob := make([]byte, maxControl), make([]byte, unix.CmsgSpace(most*4))
	n, oobn, _, _, err := control.ReadMsgUnix(data, oob)
	if err != nil {
		return o, g, err
	}
	if n == 0 {
		return o, g, io.EOF
	}
	if err := json.Unmarshal(data[:n], &o); err != nil {
		return o, g, err
	}
	want := most
	if !o.Memory {
		want--
	}
	fds, err := rights(oob[:oobn], want)
	if err != nil {
		return o, g, fmt.Errorf("an order: %w", err)
	}
	f := os.NewFile(uintptr(fds[1]), "stream")
	conn, err := net.FileConn(f)
	f.Close()
	if err == nil && o.Memory {
		g.memory, err = mapMemory(fds[2])
		unix.Close(fds[2])
	}
	if err != nil {
		return o, g, err
	}
	g.root, g.stream = fds[0], conn.(*net.UnixConn)
	return o, g, nil
}
