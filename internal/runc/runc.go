package runc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
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

	// undoTimeout bounds what a failed Create does to leave nothing.
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

// Runc is a runc program with its state directory.
type Runc struct {
	path, root string
	reaper     *reaper.Reaper
}

// New uses the program at path; its state is kept in root.
func New(path, root string, r *reaper.Reaper) *Runc {
	return &Runc{path: path, root: root, reaper: r}
}

// Create makes a container from the bundle without starting its program. On error nothing is left of it.
func (r *Runc) Create(ctx context.Context, id, bundle string, stdio Stdio) (*Process, error) {
	p, err := r.spawn(ctx, bundle, stdio, "create", "--bundle", bundle, id)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return nil, errors.Join(err, r.run(undo, nil, "delete", "--force", id))
	}
	return p, nil
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

// Delete removes a container whose process has ended; one that does not exist is deleted already.
func (r *Runc) Delete(ctx context.Context, id string) error {
	err := r.run(ctx, nil, "delete", id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// spawn runs a runc command that leaves a process behind. dir takes its pid file and console socket.
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
		if console, err = newConsoleSocket(filepath.Dir(r.root)); err != nil {
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
		return nil, fmt.Errorf("runc %s: pid file: %w", command, err)
	}
	p := &Process{Process: recording.Adopt(pid)}
	usualTimers(pid)
	if console != nil {
		if p.Console, err = console.receive(); err != nil {
			_ = p.Signal(unix.SIGKILL)
			<-p.Done()
			return nil, fmt.Errorf("runc %s: terminal: %w", command, err)
		}
	}
	return p, nil
}

// usualTimers gives a process the kernel's usual timer slack instead of ours, which it has inherited. One that has
// ended meanwhile needs none, and nobody refuses it to the first process of a guest.
func usualTimers(pid int) {
	const nanoseconds = "50000"
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", pid), []byte(nanoseconds), 0)
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
	if err := os.MkdirAll(r.root, 0o700); err != nil {
		return err
	}
	log, err := os.CreateTemp(filepath.Dir(r.root), "runc-log-")
	if err != nil {
		return err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	argv := append([]string{r.path, "--root", r.root, "--log", log.Name(), "--log-format", "json"}, args...)
	exit, err := r.reaper.RunProgram(ctx, argv, files...)
	if err != nil {
		return fmt.Errorf("runc %s: %w", args[0], err)
	}
	if exit.Code == 0 {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(log, maxLog))
	if err != nil {
		return fmt.Errorf("runc %s: its log: %w", args[0], err)
	}
	return failure(args[0], exit.Code, text)
}

// programFailure matches what runc says where the container's own program is the problem.
var programFailure = regexp.MustCompile(`exec: "(?:[^"\\]|\\.)*": (.*)$`)

// failure makes an error of runc's log, which has a JSON object per line.
func failure(command string, code uint32, log []byte) error {
	message := lastError(log)
	if message == "" {
		return fmt.Errorf("runc %s: exit code %d without a message: %w", command, code, errdefs.ErrInternal)
	}
	if m := programFailure.FindStringSubmatch(message); m != nil {
		e := &ProgramError{Code: codeNotExecutable, Message: m[0]}
		if strings.Contains(m[1], "not found") || strings.Contains(m[1], "no such file") {
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
	}
	return fmt.Errorf("runc %s: %s: %w", command, message, class)
}

func lastError(log []byte) string {
	var message string
	for line := range bytes.Lines(log) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			message = entry.Msg
		}
	}
	return message
}
