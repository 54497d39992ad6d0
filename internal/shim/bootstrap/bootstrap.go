package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/share"
	"github.com/pistis-run/pistis/internal/shim"
	"github.com/pistis-run/pistis/internal/version"
)

const (
	// maxBootstrap bounds what containerd may send on stdin.
	maxBootstrap = 10 << 20
	// cleanupTimeout bounds the delete command.
	cleanupTimeout = 20 * time.Second
	// exitKilled is the code of what the delete command ended.
	exitKilled = 137

	runtimeName = "io.containerd.pistis.v2"
	ttrpcEnv    = "TTRPC_ADDRESS"
	// actionServe is the shim process itself; the start command runs it with these descriptors.
	actionServe = "serve"
	// actionShare is the pod's file server; its arguments are only there to be seen by people.
	actionShare  = "share-server"
	lockFD       = 3
	shimSocketFD = 4
	streamsFD    = 5
)

// invocation is a parsed command line.
type invocation struct {
	namespace, id, address, bundle string
	debug, version, info           bool
	action                         string
}

// Main runs the command: start, delete, -info and -v as containerd calls them, or the shim itself. o carries the
// parts; the rest of it comes from the arguments. It returns the exit code.
func Main(o shim.Options, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	inv, err := parseArgs(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err == nil {
		err = run(o, inv, stdin, stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "containerd-shim-pistis-v2: %v\n", err)
		return 1
	}
	return 0
}

func parseArgs(args []string, stderr io.Writer) (invocation, error) {
	var inv invocation
	flags := flag.NewFlagSet("containerd-shim-pistis-v2", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&inv.namespace, "namespace", "", "containerd namespace of the shim")
	flags.StringVar(&inv.id, "id", "", "id of the sandbox")
	flags.StringVar(&inv.address, "address", "", "containerd's address")
	flags.StringVar(&inv.bundle, "bundle", "", "bundle directory; the working directory if empty")
	flags.BoolVar(&inv.debug, "debug", false, "log more")
	flags.BoolVar(&inv.version, "v", false, "print the version")
	flags.BoolVar(&inv.version, "version", false, "print the version")
	flags.BoolVar(&inv.info, "info", false, "print containerd's RuntimeInfo message")
	flags.String("publish-binary", "", "not used: events go to TTRPC_ADDRESS")
	flags.String("socket", "", "not used")
	if err := flags.Parse(args); err != nil {
		return inv, err
	}
	inv.action = flags.Arg(0)
	return inv, nil
}

func run(o shim.Options, inv invocation, stdin io.Reader, stdout io.Writer) error {
	switch {
	case inv.version:
		_, err := fmt.Fprintf(stdout, "containerd-shim-pistis-v2 %s\n", version.Version)
		return err
	case inv.info:
		return writeMessage(stdout, &types.RuntimeInfo{Name: runtimeName, Version: &types.RuntimeVersion{Version: version.Version}})
	case inv.namespace == "" || inv.id == "":
		return errors.New("-namespace and -id are needed: this command is for containerd and pistisd to call")
	}
	if inv.action == actionShare {
		if share.Main(os.Stderr) != 0 {
			return errors.New("the share server failed")
		}
		return nil
	}
	dir, err := bundleDir(inv.bundle)
	if err != nil {
		return err
	}
	switch inv.action {
	case "start":
		return start(inv, dir, stdin, stdout)
	case "delete":
		return remove(dir, stdout)
	case actionServe:
		o.ID, o.Namespace, o.Bundle, o.TTRPCAddress = inv.id, inv.namespace, dir, os.Getenv(ttrpcEnv)
		// Not by its path, where another version may lie by then.
		o.ShareServer = []string{"/proc/self/exe", "-namespace", inv.namespace, "-id", inv.id, "-bundle", string(dir), actionShare}
		return serve(o, inv.debug)
	}
	return fmt.Errorf("unknown action %q: start and delete are known", inv.action)
}

func bundleDir(path string) (bundle.Dir, error) {
	if path == "" {
		wd, err := os.Getwd()
		return bundle.Dir(wd), err
	}
	abs, err := filepath.Abs(path)
	return bundle.Dir(abs), err
}

func writeMessage(w io.Writer, m proto.Message) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// remove ends what a dead shim left.
func remove(dir bundle.Dir, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	if err := dir.Cleanup(ctx); err != nil {
		return err
	}
	return writeMessage(stdout, &taskapi.DeleteResponse{ExitStatus: exitKilled, ExitedAt: timestamppb.Now()})
}

// start makes the sockets, starts the shim process with them and prints where it listens. The sockets listen before
// that, so that a client may connect at once.
func start(inv invocation, dir bundle.Dir, stdin io.Reader, stdout io.Writer) (err error) {
	params, err := readBootstrap(inv, stdin)
	if err != nil {
		return err
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	lock, err := dir.TakeLock()
	if err != nil {
		return err
	}
	files = append(files, lock)
	if err := os.MkdirAll(dir.Sockets(), 0o711); err != nil {
		return err
	}
	for _, path := range []string{dir.ShimSocket(), dir.StreamSocket()} {
		f, err := listen(path)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	if err := spawn(inv, params, dir, files); err != nil {
		return errors.Join(err, os.Remove(dir.ShimSocket()), os.Remove(dir.StreamSocket()))
	}
	return writeResult(stdout, params, "unix://"+dir.ShimSocket())
}

// readBootstrap reads containerd's parameters, from stdin (2.3 and later) or from the environment.
func readBootstrap(inv invocation, stdin io.Reader) (*bootapi.BootstrapParams, error) {
	data, err := io.ReadAll(io.LimitReader(stdin, maxBootstrap))
	if err != nil {
		return nil, fmt.Errorf("read bootstrap parameters: %w", err)
	}
	var params bootapi.BootstrapParams
	// Older versions send something else or nothing; then the arguments say all there is.
	if proto.Unmarshal(data, &params) == nil && params.InstanceID == inv.id && params.Namespace == inv.namespace {
		return &params, nil
	}
	return &bootapi.BootstrapParams{ContainerdTtrpcAddress: os.Getenv(ttrpcEnv)}, nil
}

// listen makes a socket that only root may use.
func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// spawn starts the shim process in a session of its own. It lives on when this one has ended.
func spawn(inv invocation, params *bootapi.BootstrapParams, dir bundle.Dir, files []*os.File) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(dir.Log(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"-namespace", inv.namespace, "-id", inv.id, "-address", inv.address, "-bundle", string(dir)}
	if inv.debug || params.LogLevel < bootapi.LogLevel_LOG_LEVEL_INFO {
		args = append(args, "-debug")
	}
	cmd := exec.Command(self, append(args, actionServe)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = string(dir), log, log, files
	cmd.Env = append(os.Environ(), ttrpcEnv+"="+params.ContainerdTtrpcAddress)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	// Recorded here and not by the shim itself, so that whoever connects finds it.
	process, err := bundle.Identify(cmd.Process.Pid)
	if err == nil {
		err = dir.WriteShim(bundle.Shim{Process: process})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("record shim: %w", err), cmd.Process.Kill())
	}
	return cmd.Process.Release()
}

// writeResult prints the answer to start: JSON, or for versions before 1.7 the address alone.
func writeResult(stdout io.Writer, params *bootapi.BootstrapParams, address string) error {
	if params.InstanceID == "" && os.Getenv("MAX_SHIM_VERSION") == "" {
		_, err := io.WriteString(stdout, address)
		return err
	}
	return json.NewEncoder(stdout).Encode(struct {
		Version  int    `json:"version"`
		Address  string `json:"address"`
		Protocol string `json:"protocol"`
	}{3, address, "ttrpc"})
}
