package runc

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/reaper"
)

const (
	// Exit codes of a program that could not be run, as shells have them.
	codeNotExecutable = 126
	codeNotFound      = 127

	maxLog = 64 << 10

	// undoTimeout bounds what a failed call does to leave nothing.
	undoTimeout = 30 * time.Second
)

// ProgramError says that a container's program cannot be executed: it is the request that is wrong, not runc.
type ProgramError struct {
	// Code is what a shell would exit with: 127 for a missing program, 126 for one that cannot be executed.
	Code    uint32
	Message string
}

func (e *ProgramError) Error() string { return e.Message }

// Unwrap gives the error its class.
func (e *ProgramError) Unwrap() error { return errdefs.ErrInvalidArgument }

// ErrNoReason is the program's failure without a word in its log.
var ErrNoReason = errors.New("it gave no reason")

// Stdio is what a new process gets: three descriptors (nil: /dev/null) or a terminal.
type Stdio struct {
	Files    []*os.File
	Terminal bool
}

// Process is a new process of a container; Console is its terminal's master, or nil. The caller owns it.
type Process struct {
	*reaper.Process
	Console *os.File
}

// Runc is a program with runc's command line.
type Runc struct {
	path   string
	global []string
	dir    string
	reaper *reaper.Reaper
}

// New uses the program at path. global are arguments before every command, as --root; dir, which must exist, is for logs
// and sockets, and at most 80 bytes long.
func New(path string, global []string, dir string, r *reaper.Reaper) *Runc {
	return &Runc{path: path, global: global, dir: dir, reaper: r}
}

// Run makes a container from the bundle and starts its program; dir is for temporary files. On error nothing is left
// of it.
func (r *Runc) Run(ctx context.Context, id, bundle, dir string, stdio Stdio) (*Process, error) {
	p, err := r.spawn(ctx, dir, stdio, "run", "--detach", "--bundle", bundle, id)
	return p, r.undo(ctx, id, err)
}

// Create makes a container from the bundle without starting its program. On error nothing is left of it.
func (r *Runc) Create(ctx context.Context, id, bundle string, stdio Stdio) (*Process, error) {
	p, err := r.spawn(ctx, bundle, stdio, "create", "--bundle", bundle, id)
	return p, r.undo(ctx, id, err)
}

// undo removes what a failed call has left, also when that was cut short.
func (r *Runc) undo(ctx context.Context, id string, err error) error {
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return errors.Join(err, r.Destroy(ctx, id))
}

// Start starts the program of a created container.
func (r *Runc) Start(ctx context.Context, id string) error {
	return r.run(ctx, nil, "start", id)
}

// Exec starts a further process, which a file describes as a runtime-spec process; dir is for temporary files.
func (r *Runc) Exec(ctx context.Context, id, dir, processFile string, stdio Stdio) (*Process, error) {
	return r.spawn(ctx, dir, stdio, "exec", "--detach", "--process", processFile, id)
}

// Update applies a file with the spec's linux.resources.
func (r *Runc) Update(ctx context.Context, id, resourcesFile string) error {
	return r.run(ctx, nil, "update", "--resources", resourcesFile, id)
}

// Pause freezes a container's processes, Resume thaws them.
func (r *Runc) Pause(ctx context.Context, id string) error { return r.run(ctx, nil, "pause", id) }

// Resume thaws what Pause froze.
func (r *Runc) Resume(ctx context.Context, id string) error { return r.run(ctx, nil, "resume", id) }

// Checkpoint writes what a running container's processes are into the directory images, and the container goes on; dir takes
// criu's log. What would be refused for the sake of a restart elsewhere is not: connections, locks, sockets to others.
func (r *Runc) Checkpoint(ctx context.Context, id, images, dir string) error {
	return r.run(ctx, nil, "checkpoint", "--leave-running", "--tcp-established", "--file-locks", "--ext-unix-sk",
		"--image-path", images, "--work-path", dir, id)
}

// Delete removes a container whose process has ended; one that does not exist is deleted already.
func (r *Runc) Delete(ctx context.Context, id string) error {
	err := r.run(ctx, nil, "delete", id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Destroy removes a container in whatever state it is, and kills its processes. It is idempotent.
func (r *Runc) Destroy(ctx context.Context, id string) error {
	return r.run(ctx, nil, "delete", "--force", id)
}

// spawn runs a command that leaves a process behind. dir takes its pid file.
func (r *Runc) spawn(ctx context.Context, dir string, stdio Stdio, command string, args ...string) (*Process, error) {
	pidFile, err := os.CreateTemp(dir, "pid-")
	if err != nil {
		return nil, err
	}
	pidFile.Close()
	defer os.Remove(pidFile.Name())
	args = append([]string{command, "--pid-file", pidFile.Name()}, args...)

	var console *consoleSocket
	files := stdio.Files
	if stdio.Terminal {
		if console, err = newConsoleSocket(r.dir); err != nil {
			return nil, err
		}
		defer console.Close()
		args = append([]string{args[0], "--console-socket", console.path}, args[1:]...)
		files = nil
	}
	recording := r.reaper.Record()
	defer recording.Close()
	if err := r.run(ctx, files, args...); err != nil {
		return nil, err
	}
	pid, err := readPID(pidFile.Name())
	if err != nil {
		return nil, fmt.Errorf("%s: pid file: %w", r.call(command), err)
	}
	p := &Process{Process: recording.Adopt(pid)}
	if console != nil {
		if p.Console, err = console.receive(); err != nil {
			_ = p.Signal(unix.SIGKILL)
			<-p.Done()
			return nil, fmt.Errorf("%s: terminal: %w", r.call(command), err)
		}
	}
	return p, nil
}

func readPID(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%q is no pid", text)
	}
	return pid, nil
}

// run runs a runc command to its end.
func (r *Runc) run(ctx context.Context, files []*os.File, args ...string) error {
	log, err := os.CreateTemp(r.dir, "log-")
	if err != nil {
		return err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	// What it says before it has opened its log comes there too, without overwriting it.
	if _, err := unix.FcntlInt(log.Fd(), unix.F_SETFL, unix.O_APPEND); err != nil {
		return err
	}
	argv := append(append([]string{r.path}, r.global...), "--log", log.Name(), "--log-format", "json")
	if files == nil {
		files = []*os.File{nil, nil, log}
	}
	exit, err := r.reaper.RunProgram(ctx, append(argv, args...), files...)
	if err != nil {
		return fmt.Errorf("%s: %w", r.call(args[0]), err)
	}
	if exit.Code == 0 {
		return nil
	}
	text, err := io.ReadAll(io.NewSectionReader(log, 0, maxLog))
	if err != nil {
		return fmt.Errorf("%s: its log: %w", r.call(args[0]), err)
	}
	return failure(r.call(args[0]), exit.Code, text)
}

// programFailure finds what runc says where the container's own program is the problem, as exec: "x": not found, and
// says what crun says in the same words.
func programFailure(message string) (text, cause string, ok bool) {
	if _, name, ok := strings.Cut(message, "executable file `"); ok {
		if name, _, ok := strings.Cut(name, "` not found"); ok {
			cause = "executable file not found in $PATH"
			return fmt.Sprintf("exec: %q: %s", name, cause), cause, true
		}
	}
	if _, cause, ok := strings.Cut(message, "open executable: "); ok {
		cause = strings.ToLower(cause)
		return "exec: " + cause, cause, true
	}
	i := strings.Index(message, `exec: "`)
	if i < 0 {
		return "", "", false
	}
	text = message[i:]
	name, err := strconv.QuotedPrefix(text[len("exec: "):])
	if err != nil {
		return "", "", false
	}
	cause, ok = strings.CutPrefix(text[len("exec: ")+len(name):], ": ")
	return text, cause, ok
}

// call names a command for errors, as "crun run".
func (r *Runc) call(command string) string { return filepath.Base(r.path) + " " + command }

// failure makes an error of runc's log, which has a JSON object per line.
func failure(call string, code uint32, log []byte) error {
	message := lastError(log)
	if message == "" {
		return fmt.Errorf("%s: exit code %d: %w: %w", call, code, ErrNoReason, errdefs.ErrInternal)
	}
	if text, cause, ok := programFailure(message); ok {
		e := &ProgramError{Code: codeNotExecutable, Message: text}
		if strings.Contains(cause, "not found") || strings.Contains(cause, "no such file") {
			e.Code = codeNotFound
		}
		return e
	}
	var class error = errdefs.ErrInternal
	switch {
	case strings.Contains(message, "container does not exist"):
		class = errdefs.ErrNotFound
	case strings.Contains(message, "cannot exec in a stopped container"),
		strings.Contains(message, "container not running"),
		strings.Contains(message, "cannot pause"), strings.Contains(message, "container not paused"):
		class = errdefs.ErrFailedPrecondition
	case strings.Contains(message, "unknown command"):
		class = errdefs.ErrNotImplemented
	// What a container's configuration asks for, and no root file system or kernel can give.
	case slices.ContainsFunc([]string{
		"not a directory", "proc-safety", "memory limit", "cpuset.cpus", "cpuset.mems", "hugetlb.", "unified resource",
	}, func(word string) bool { return strings.Contains(strings.ToLower(message), word) }):
		class = errdefs.ErrInvalidArgument
	}
	return fmt.Errorf("%s: %s: %w", call, message, class)
}

// lastError is the last entry that is an error, or else the last line that is no entry at all.
func lastError(log []byte) string {
	var message, text string
	for line := range bytes.Lines(log) {
		var entry struct{ Level, Msg string }
		switch line = bytes.TrimSpace(line); {
		case json.Unmarshal(line, &entry) != nil:
			text = string(line)
		case entry.Level == "error" || entry.Level == "fatal":
			message = entry.Msg
		}
	}
	return cmp.Or(message, text)
}
