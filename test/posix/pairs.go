package posix

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// pairs are calls with two files: each kind onto each kind, in one directory and in two, by root and by a user who owns
// one, both or none of the two.
func (s *suite) pairs() error {
	calls := map[string]func(from, to string) error{
		"rename": unix.Rename,
		"rename-noreplace": func(from, to string) error {
			return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		},
		"rename-exchange": func(from, to string) error {
			return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
		},
		"link": unix.Link,
	}
	for name, call := range calls {
		for _, from := range kinds() {
			for _, to := range kinds() {
				for who, p := range map[string]struct {
					uid, from, to int
					mode          uint32
				}{"root": {0, 0, 0, 0o755}, "owner": {nobody, nobody, nobody, 0o1777}, "source's": {nobody, nobody, 1, 0o1777}, "target's": {nobody, 1, nobody, 0o1777}} {
					err := s.do(fmt.Sprintf("%s of %s to %s, %s", name, from, to, who), p.uid, func(sc scene) error {
						var errs []error
						for _, side := range []struct {
							dir, kind string
							uid       int
						}{{"/a", from, p.from}, {"/b", to, p.to}} {
							dir := sc.root + side.dir
							errs = append(errs, os.Mkdir(dir, 0o755), place(dir+"/x", side.kind, side.uid), unix.Chmod(dir, p.mode), agedTo(dir))
						}
						return errors.Join(errs...)
					}, func(sc scene) error { return call(sc.root+"/a/x", sc.root+"/b/x") })
					if err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}
