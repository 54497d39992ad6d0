package share

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// MountsBelow says whether something is mounted below a path of the host.
func MountsBelow(path string) (bool, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false, err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer f.Close()
	prefix := strings.TrimSuffix(real, "/") + "/"
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			return false, fmt.Errorf("mountinfo: %q is no line of it", lines.Text())
		}
		if point := unescape(fields[4]); strings.HasPrefix(point, prefix) && point != real {
			return true, nil
		}
	}
	return false, lines.Err()
}

// unescape takes back what the kernel does to blanks in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
