package taskshim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/shimclient"
	"github.com/pistis-run/pistis/internal/task"
)

// maxWords bounds what is shown of what a binary has said, in bytes.
const maxWords = 2 << 10

// outputDelay is how long the output of a binary that has ended is waited for: what it has left behind may hold it open.
const outputDelay = time.Second

// logFile is where a shim writes its log: its bundle has it, as containerd's has a FIFO.
func logFile(dir string) string { return filepath.Join(dir, "log") }

// purge removes a container from its shim, and the shim when that was its last one.
func (c *container) purge(ctx context.Context) error {
	c.mu.Lock()
	rec, shim := c.rec, c.shim
	c.mu.Unlock()
	if rec.Stage == stageNone {
		return nil
	}
	err := errors.New("no shim")
	if shim != nil {
		err = deleteTask(ctx, shim, c.task())
		if err != nil && !shimclient.Gone(err) {
			return err
		}
		c.mu.Lock()
		c.shim = nil
		c.mu.Unlock()
		if released := c.pod.release(ctx, shim, rec.Answer, c.id); released != nil {
			return released
		}
	}
	if err != nil {
		_, err := c.deleteBinary(ctx)
		if err != nil && rec.Stage == stageMade {
			return err
		}
	}
	return c.note(func(r *record) { r.Stage, r.Answer = stageNone, shimclient.Answer{} })
}

// deleteTask deletes a container, or an exec, from a shim that lives, whether it runs or not.
func deleteTask(ctx context.Context, shim *connection, id task.ID) error {
	err := shim.Delete(ctx, id)
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	if shimclient.Gone(err) {
		return err
	}
	// It may run, or have been made and not started, which not every shim deletes.
	if err := shim.Signal(ctx, id, uint32(unix.SIGKILL), id.Exec == ""); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if _, err := shim.Wait(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := shim.Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// deleteBinary has the shim's binary remove what a shim that has gone has left of the container; it says how that has ended.
func (c *container) deleteBinary(ctx context.Context) (task.Exit, error) {
	out, err := c.program(ctx, c.bootstrap().Delete())
	if err != nil {
		return task.Exit{}, err
	}
	removeSocket(c.record().Answer)
	return parseDeleted(out)
}

func parseDeleted(out []byte) (task.Exit, error) {
	var answer taskapi.DeleteResponse
	if err := proto.Unmarshal(out, &answer); err != nil {
		return task.Exit{}, fmt.Errorf("the delete command answered %.100q: %w", out, errdefs.ErrInternal)
	}
	return task.Exit{Code: answer.ExitStatus, At: answer.ExitedAt.AsTime()}, nil
}

// removeSocket removes what a shim that was killed has left.
func removeSocket(at shimclient.Answer) {
	if path, ok := strings.CutPrefix(at.Address, "unix://"); ok {
		_ = os.Remove(path) // a shim that ended in order has done it
	}
}

// Cleanup ends what is left of a pod, dead or living: monitor, shims, containers, and removes its directories. Idempotent.
// ctx bounds the waiting.
func Cleanup(ctx context.Context, monitorDir string, opts Options) error {
	// The monitor and the shims first, which are in one cgroup: nothing starts any more.
	if err := bundle.Dir(filepath.Clean(monitorDir)).Cleanup(ctx); err != nil {
		return err
	}
	dir := records(monitorDir)
	found, err := readRecords(dir)
	if err != nil {
		return err
	}
	var errs []error
	for id, rec := range found {
		if err := rec.cleanup(ctx, id, opts); err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", id, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("records of shims: %w", err)
	}
	return monitor.Cleanup(ctx, monitorDir)
}

// cleanup removes what is left of a container whose shim and monitor have gone.
func (r record) cleanup(ctx context.Context, id string, opts Options) error {
	if r.Stage == stageNone {
		return nil
	}
	removeSocket(r.Answer)
	if _, err := os.Stat(r.Bundle); errors.Is(err, fs.ErrNotExist) {
		return nil // deleted already: bundles go last
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	call := r.bootstrap(id, opts).Delete()
	cmd := exec.CommandContext(ctx, r.Binary, call.Args...)
	cmd.Dir, cmd.Env = r.Bundle, append(call.Env, path)
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &text, outputDelay
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) && r.Stage == stageMade {
		return fmt.Errorf("delete: %w: %s", err, words(text.Bytes(), out.Bytes()))
	}
	return nil
}

// words is the beginning of what a binary has said: where it should, or else elsewhere.
func words(texts ...[]byte) string {
	for _, text := range texts {
		if text = bytes.TrimSpace(text); len(text) > 0 {
			return strings.ToValidUTF8(string(text[:min(len(text), maxWords)]), "?") // gRPC takes nothing else
		}
	}
	return "it gave no reason"
}
