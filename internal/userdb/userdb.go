package userdb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/task"
)

const (
	// maxFile bounds what is read of /etc/passwd and of /etc/group, maxLine one line of them.
	maxFile = 16 << 20
	maxLine = 1 << 20
	// maxID is the greatest uid and gid, as for other runtimes.
	maxID = math.MaxInt32
	// maxGroups is what setgroups takes.
	maxGroups = 65536
)

// Identity is what a request resolved to.
type Identity struct {
	// User has all groups in AdditionalGIDs, the primary one first.
	task.User
	// Home is the home directory, / where the passwd file knows none.
	Home string
}

// passwd is a line of /etc/passwd, group one of /etc/group.
type passwd struct {
	name     string
	uid, gid uint32
	home     string
}

type group struct {
	name    string
	gid     uint32
	members []string
}

// Resolve looks a request up in the root file system at root. An unknown name is NotFound; numbers need not be
// known.
func Resolve(root string, req task.UserRequest) (Identity, error) {
	users, err := read(root, "etc/passwd", parsePasswd)
	if err != nil {
		return Identity{}, err
	}
	groups, err := read(root, "etc/group", parseGroup)
	if err != nil {
		return Identity{}, err
	}
	return resolve(users, groups, req)
}

func resolve(users []passwd, groups []group, req task.UserRequest) (Identity, error) {
	userName, groupName, hasGroup := strings.Cut(req.User, ":")
	user, err := findUser(users, userName)
	if err != nil {
		return Identity{}, err
	}
	id := Identity{User: task.User{UID: user.uid, GID: user.gid}, Home: user.home}
	if id.Home == "" {
		id.Home = "/"
	}
	switch {
	case req.GID != nil:
		if *req.GID > maxID {
			return Identity{}, fmt.Errorf("group id %d: must not exceed %d: %w", *req.GID, maxID, errdefs.ErrInvalidArgument)
		}
		id.GID = *req.GID
	case hasGroup:
		if id.GID, err = findGroup(groups, groupName); err != nil {
			return Identity{}, err
		}
	}
	id.AdditionalGIDs = append(id.AdditionalGIDs, id.GID)
	add := func(gid uint32) {
		if !slices.Contains(id.AdditionalGIDs, gid) {
			id.AdditionalGIDs = append(id.AdditionalGIDs, gid)
		}
	}
	for _, gid := range req.SupplementalGroups {
		if gid > maxID {
			return Identity{}, fmt.Errorf("supplemental group %d: must not exceed %d: %w", gid, maxID, errdefs.ErrInvalidArgument)
		}
		add(gid)
	}
	if !req.Strict && user.name != "" {
		for _, g := range groups {
			if slices.Contains(g.members, user.name) {
				add(g.gid)
			}
		}
	}
	if len(id.AdditionalGIDs) > maxGroups {
		return Identity{}, fmt.Errorf("user %q: %d groups, at most %d are possible: %w", req.User, len(id.AdditionalGIDs), maxGroups, errdefs.ErrInvalidArgument)
	}
	return id, nil
}

// findUser takes a name before a number, as login does. Without a user it is root.
func findUser(users []passwd, name string) (passwd, error) {
	if name == "" {
		name = "0"
	}
	if i := slices.IndexFunc(users, func(u passwd) bool { return u.name == name }); i >= 0 {
		return users[i], nil
	}
	uid, err := strconv.ParseUint(name, 10, 64)
	if err != nil {
		return passwd{}, fmt.Errorf("user %q: not in the image's /etc/passwd: %w", name, errdefs.ErrNotFound)
	}
	if uid > maxID {
		return passwd{}, fmt.Errorf("user id %s: must not exceed %d: %w", name, maxID, errdefs.ErrInvalidArgument)
	}
	if i := slices.IndexFunc(users, func(u passwd) bool { return u.uid == uint32(uid) }); i >= 0 {
		return users[i], nil
	}
	return passwd{uid: uint32(uid)}, nil
}

func findGroup(groups []group, name string) (uint32, error) {
	if i := slices.IndexFunc(groups, func(g group) bool { return g.name == name }); i >= 0 {
		return groups[i].gid, nil
	}
	gid, err := strconv.ParseUint(name, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("group %q: not in the image's /etc/group: %w", name, errdefs.ErrNotFound)
	}
	if gid > maxID {
		return 0, fmt.Errorf("group id %s: must not exceed %d: %w", name, maxID, errdefs.ErrInvalidArgument)
	}
	return uint32(gid), nil
}

// read parses a file of the root; one that is missing is empty.
func read[T any](root, name string, parse func(io.Reader) ([]T, error)) ([]T, error) {
	f, err := openIn(root, name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the image's /%s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	defer f.Close()
	entries, err := parse(f)
	if err != nil {
		return nil, fmt.Errorf("the image's /%s: %w", name, err)
	}
	return entries, nil
}

// openIn opens a regular file, links in its path resolved as if root were /.
func openIn(root, name string) (*os.File, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err == nil && info.Size() > maxFile {
		err = fmt.Errorf("larger than %d bytes", maxFile)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lines calls each with the fields of every line; a line that is no entry is skipped, as libc does.
func lines(r io.Reader, fields int, each func([]string)) error {
	scan := bufio.NewScanner(io.LimitReader(r, maxFile))
	scan.Buffer(nil, maxLine)
	for scan.Scan() {
		line := strings.TrimSpace(scan.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if f := strings.Split(line, ":"); len(f) >= fields && f[0] != "" {
			each(f)
		}
	}
	if err := scan.Err(); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func number(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n <= maxID
}

func parsePasswd(r io.Reader) (users []passwd, err error) {
	err = lines(r, 4, func(f []string) {
		uid, ok1 := number(f[2])
		gid, ok2 := number(f[3])
		if !ok1 || !ok2 {
			return
		}
		u := passwd{name: f[0], uid: uid, gid: gid}
		if len(f) > 5 {
			u.home = f[5]
		}
		users = append(users, u)
	})
	return users, err
}

func parseGroup(r io.Reader) (groups []group, err error) {
	err = lines(r, 3, func(f []string) {
		gid, ok := number(f[2])
		if !ok {
			return
		}
		g := group{name: f[0], gid: gid}
		if len(f) > 3 && f[3] != "" {
			g.members = strings.Split(f[3], ",")
		}
		groups = append(groups, g)
	})
	return groups, err
}
