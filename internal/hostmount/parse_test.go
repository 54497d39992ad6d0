package hostmount

import (
	"strings"
	"testing"
)

// TestParseMounts: a mount is not overlooked because a line before it is long, and one that is too long is no end.
func TestParseMounts(t *testing.T) {
	layers := func(size int) string {
		return "30 29 0:26 / /a/root rw - overlay overlay rw,lowerdir=" + strings.Repeat("/layer:", size/7) + "\n"
	}
	const volume = `31 29 0:27 /sub\040path /a/with\040blank rw,nosuid shared:7 - tmpfs tmpfs rw,size=1k` + "\n"
	got, err := parseMounts(strings.NewReader(layers(200<<10) + volume))
	if want := (mountLine{"0:27", "/sub path", "/a/with blank", "rw,nosuid", "tmpfs"}); err != nil || len(got) != 2 || got[1] != want {
		t.Errorf("got %d lines, %v", len(got), err)
	}
	for name, text := range map[string]string{"too long": layers(2*maxMountLine) + volume, "cut": "31 29 0:27 / /a\n"} {
		if got, err := parseMounts(strings.NewReader(text)); err == nil {
			t.Errorf("%s: got %d lines and no error", name, len(got))
		}
	}
}
