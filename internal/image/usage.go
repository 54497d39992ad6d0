package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"
)

// FSInfo says what images occupy: content, metadata and the forms of layers.
func (s *Service) FSInfo(ctx context.Context) (FSInfo, error) {
	info := FSInfo{Mountpoint: s.opts.Root, At: time.Now()}
	var err error
	if info.UsedBytes, info.UsedInodes, err = diskUsage(ctx, s.opts.Root); err != nil {
		return FSInfo{}, fmt.Errorf("image file system: %w", classify(err))
	}
	for _, f := range s.getForms() {
		bytes, inodes, err := f.Usage(ctx)
		if err != nil {
			return FSInfo{}, fmt.Errorf("image file system: %w", classify(err))
		}
		info.UsedBytes += bytes
		info.UsedInodes += inodes
	}
	return info, nil
}

// diskUsage counts what is allocated below root. Files may come and go meanwhile.
func diskUsage(ctx context.Context, root string) (bytes, inodes uint64, err error) {
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var info fs.FileInfo
		if err == nil {
			info, err = entry.Info()
		}
		if errors.Is(err, fs.ErrNotExist) && path != root {
			return nil
		} else if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += uint64(st.Blocks) * 512
			inodes++
		}
		return nil
	})
	return bytes, inodes, err
}
