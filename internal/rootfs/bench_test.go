package rootfs

import (
	"fmt"
	"path/filepath"
	"testing"
)

func BenchmarkMount(b *testing.B) {
	needRoot(b)
	top := open(b)
	r, err := Open(filepath.Join(top, "roots"))
	if err != nil {
		b.Fatal(err)
	}
	dir := filepath.Join(top, "layers")
	var lowers []string
	for i := range 120 {
		lowers = append(lowers, layer(b, dir, fmt.Sprint(i), "a"))
	}
	ns := userNamespace(b)
	for _, n := range []int{1, 8, 120} {
		for name, opts := range map[string]Options{"": {}, "-userns": {UserNS: ns}} {
			b.Run(fmt.Sprint("layers=", n, name), func(b *testing.B) {
				for b.Loop() {
					if _, err := r.Mount(b.Context(), "x", lowers[:n], opts); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					remove(b, r, "x")
					b.StartTimer()
				}
			})
		}
	}
	b.Run("remove", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			if _, err := r.Mount(b.Context(), "x", lowers[:8], Options{}); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			remove(b, r, "x")
		}
	})
}
