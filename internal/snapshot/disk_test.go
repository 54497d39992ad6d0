package snapshot

import (
	"os"
	"testing"
)

// TestCutDisk: a layer that the disk has cut is made again.
func TestCutDisk(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"empty":                  func(path string) error { return os.Truncate(path, 0) },
		"less than a superblock": func(path string) error { return os.Truncate(path, 1500) },
		"a block less": func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, info.Size()-blockSize)
		},
		"zeros": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(make([]byte, blockSize), 0)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			source := newSource()
			d := openForm(asDisks).must(t, t.TempDir(), source)
			img := source.image(t, "content")
			first, err := d.Ensure(t.Context(), img)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(first[0]); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				again, err := d.Ensure(t.Context(), img)
				if err != nil || again[0] != first[0] {
					t.Fatalf("%v, %v", again, err)
				}
			}
			fsck(t, first[0])
			if n := source.count(img.Layers[0].DiffID); n != 2 {
				t.Errorf("converted %d times", n)
			}
		})
	}
}
