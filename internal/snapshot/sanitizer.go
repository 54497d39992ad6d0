package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh." // of aufs; the marker of an opaque directory alone means something
	opaqueMarker   = ".wh..wh..opq"

	// Permission bits with setuid, setgid and sticky.
	modeMask = 0o7777
	// Limits of the device numbers that ext4 stores.
	maxMajor, maxMinor = 0xfff, 0xfffff
)

// errReplaced means that an entry replaces an earlier one, which takes a second pass with a plan.
var errReplaced = errors.New("an entry replaces an earlier one")

// sanitizer reads a layer's tar and is itself a tar, of what may go into a disk. It decides what each entry means, so
// that the converter behind it gets clean relative names and no surprises. It implements io.Reader.
type sanitizer struct {
	in      *tar.Reader
	tree    *tree
	plan    plan
	inherit inheriter
	index   int    // of the entry that comes next
	current string // name of the entry that came last, for messages

	queue  []*entry     // wait to be written; only the last may have a body
	header bytes.Buffer // waits to be read
	body   int64        // bytes of the current file that wait to be read after it
	pad    int64        // and zeros after that
	// ended: nothing more comes in; finished: nothing more goes out.
	ended, finished bool
	err             error
}

func newSanitizer(in *tar.Reader, p plan, inherit inheriter) *sanitizer {
	return &sanitizer{in: in, tree: newTree(), plan: p, inherit: inherit}
}

func (s *sanitizer) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for s.err == nil {
		switch {
		case s.header.Len() > 0:
			return s.header.Read(p)
		case s.body > 0:
			n, err := s.in.Read(p[:min(int64(len(p)), s.body)])
			s.body -= int64(n)
			if errors.Is(err, io.EOF) && s.body > 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil && !errors.Is(err, io.EOF) {
				s.err = damaged(err)
			}
			if n > 0 {
				return n, nil
			}
		case s.pad > 0:
			n := min(int64(len(p)), s.pad)
			clear(p[:n])
			s.pad -= n
			return int(n), nil
		default:
			s.err = s.next()
		}
	}
	return 0, s.err
}

// next prepares the next entry to be read, or io.EOF.
func (s *sanitizer) next() error {
	if s.finished {
		return io.EOF
	}
	if len(s.queue) > 0 {
		e := s.queue[0]
		s.queue = s.queue[1:]
		return s.emit(e)
	}
	if s.ended {
		s.finished = true
		s.header.Reset()
		s.header.Write(make([]byte, 1024))
		return nil
	}
	hdr, err := s.in.Next()
	if errors.Is(err, io.EOF) {
		return s.end()
	} else if err != nil {
		return damaged(err)
	}
	i := s.index
	s.index++
	s.current = hdr.Name
	if s.plan.skip[i] {
		return nil
	}
	e, err := parseEntry(hdr)
	if err != nil || e == nil {
		return err
	}
	if err := s.tree.add(i, e); err != nil {
		return err
	}
	if s.tree.conflicts() {
		return errReplaced
	}
	for _, dir := range s.tree.implied {
		s.queue = append(s.queue, &entry{kind: tar.TypeDir, name: dir, mode: 0o755, mtime: e.mtime})
	}
	s.queue = append(s.queue, e)
	return nil
}

// emit writes an entry's header. The body follows as it is read.
func (s *sanitizer) emit(e *entry) error {
	name := e.name
	if e.kind == tar.TypeDir {
		name += "/"
	}
	if name == "/" {
		name = "./"
	}
	hdr := tar.Header{Typeflag: e.kind, Name: name, Linkname: e.link, Size: e.size, Mode: e.mode, Uid: e.uid, Gid: e.gid,
		Devmajor: e.major, Devminor: e.minor, ModTime: e.mtime, AccessTime: e.mtime, ChangeTime: e.mtime, Format: tar.FormatGNU}
	if len(e.xattrs) > 0 || e.mtime.Nanosecond() != 0 {
		// Only this format carries them. It costs two more blocks for each entry.
		hdr.Format, hdr.PAXRecords = tar.FormatPAX, map[string]string{}
		for k, v := range e.xattrs {
			v, err := diskXattr(k, v)
			if err != nil {
				return err
			}
			hdr.PAXRecords[xattrRecord+k] = v
		}
	}
	s.header.Reset()
	if err := tar.NewWriter(&s.header).WriteHeader(&hdr); err != nil {
		return fmt.Errorf("entry %s: %w: %w", quote(e.name), err, errdefs.ErrInvalidArgument)
	}
	s.body, s.pad = e.size, -e.size&511
	return nil
}

// end adds what became known by now: what implied directories inherit, and what the plan has. An entry for a directory that is
// there already replaces its attributes, and takes away none of its extended ones.
func (s *sanitizer) end() error {
	if dirs := s.tree.impliedDirs(); len(dirs) > 0 {
		inherited, err := s.inherit(dirs)
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			e := inherited[dir]
			if e == nil {
				continue
			}
			// The converter's own way of marking a directory loses an access control list.
			if _, opaque := s.plan.opaque[dir]; opaque {
				e.xattrs[opaqueXattr] = "y"
				delete(s.plan.opaque, dir)
			}
			s.queue = append(s.queue, e)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(s.plan.opaque)) {
		if s.tree.nodes[dir].kind == directory {
			s.queue = append(s.queue, &entry{kind: tar.TypeReg, name: path.Join(dir, opaqueMarker)})
		}
	}
	s.ended = true
	return nil
}

// parseEntry checks one entry by itself. It returns nil for one that means nothing.
func parseEntry(hdr *tar.Header) (*entry, error) {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil, nil
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return nil, fmt.Errorf("entry %s: %w: %w", quote(hdr.Name), err, errdefs.ErrInvalidArgument)
	}
	e := &entry{name: name, kind: hdr.Typeflag, mode: hdr.Mode & modeMask, uid: hdr.Uid, gid: hdr.Gid, mtime: hdr.ModTime}
	if e.mtime.Unix() < 0 { // as other runtimes do; the converter gets them wrong
		e.mtime = time.Unix(0, 0)
	}
	if ignored, err := e.whiteoutOf(); err != nil {
		return nil, fmt.Errorf("entry %s: %w: %w", quote(hdr.Name), err, errdefs.ErrInvalidArgument)
	} else if ignored {
		return nil, nil
	}
	if !e.whiteout && !e.opaque {
		if err := e.fill(hdr); err != nil {
			return nil, fmt.Errorf("entry %s: %w: %w", quote(hdr.Name), err, errdefs.ErrInvalidArgument)
		}
	}
	return e, nil
}

// fill takes over what depends on the type.
func (e *entry) fill(hdr *tar.Header) error {
	if e.uid < 0 || e.uid > math.MaxUint32 || e.gid < 0 || e.gid > math.MaxUint32 {
		return fmt.Errorf("owner %d:%d is out of range", e.uid, e.gid)
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives
		e.kind, e.size = tar.TypeReg, hdr.Size
		if strings.HasSuffix(hdr.Name, "/") && hdr.Size == 0 {
			e.kind = tar.TypeDir // as archives older than the type say it
		}
		if hdr.Size < 0 || hdr.Size > maxFileBytes {
			return fmt.Errorf("%d bytes, up to %d GiB can be stored", hdr.Size, maxFileBytes>>30)
		}
	case tar.TypeDir, tar.TypeFifo:
	case tar.TypeChar, tar.TypeBlock:
		e.major, e.minor = hdr.Devmajor, hdr.Devminor
		if e.major < 0 || e.major > maxMajor || e.minor < 0 || e.minor > maxMinor {
			return fmt.Errorf("device number %d:%d is out of range", e.major, e.minor)
		}
	case tar.TypeSymlink:
		e.link = hdr.Linkname
		if e.link == "" || len(e.link) > maxNameBytes || strings.ContainsRune(e.link, 0) {
			return fmt.Errorf("symbolic link to a name of %d bytes, 1 to %d are possible", len(e.link), maxNameBytes)
		}
	case tar.TypeLink:
		target, err := cleanName(hdr.Linkname)
		if err != nil {
			return fmt.Errorf("hard link to %s: %w", quote(hdr.Linkname), err)
		}
		e.link = target
		return nil // owner, mode and attributes are the target's
	default:
		return fmt.Errorf("type %q is not supported", hdr.Typeflag)
	}
	return e.fillXattrs(hdr.PAXRecords)
}

// cleanName makes a name relative to the layer's root, which is ".". A leading / is harmless, .. is not.
func cleanName(name string) (string, error) {
	if name == "" || strings.ContainsRune(name, 0) {
		return "", errors.New("the name is empty or holds a zero byte")
	}
	if len(name) > maxNameBytes {
		return "", fmt.Errorf("the name has %d bytes, up to %d are possible", len(name), maxNameBytes)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New("the name leads out of the layer by ..")
		}
		if len(part) > maxComponent {
			return "", fmt.Errorf("a part of the name has %d bytes, up to %d are possible", len(part), maxComponent)
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

// damaged is the class of a tar that cannot be read. Errors with a class come from the source, which knows better.
func damaged(err error) error {
	if !errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown) {
		return err
	}
	return fmt.Errorf("damaged archive: %w: %w", err, errdefs.ErrInvalidArgument)
}

// quote makes a hostile name safe to print.
func quote(name string) string {
	const most = 200
	if len(name) > most {
		return fmt.Sprintf("%q…", name[:most])
	}
	return fmt.Sprintf("%q", name)
}

// scan reads a layer once to find out which entries others replace.
func scan(ctx context.Context, open opener) (plan, error) {
	t := newTree()
	err := eachEntry(ctx, open, func(i int, e *entry, _ io.Reader) error { return t.add(i, e) })
	return t.plan, err
}
