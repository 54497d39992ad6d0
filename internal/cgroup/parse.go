package cgroup

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pistis-run/pistis/internal/task"
)

// eachField calls fn for every line "name value" of a file.
func eachField(data []byte, fn func(name string, value uint64)) {
	for line := range bytes.Lines(data) {
		name, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if n, number := parseUint(value); ok && number {
			fn(string(name), n)
		}
	}
}

func parseUint(text []byte) (uint64, bool) {
	n, err := strconv.ParseUint(string(text), 10, 64)
	return n, err == nil
}

// devices collects counters by device in the order in which they come.
type devices struct {
	list []task.DeviceIO
	// keys are the list's major:minor.
	keys []string
}

// of returns the counters of a device, which the kernel calls major:minor.
func (d *devices) of(key string) *task.DeviceIO {
	for i, k := range d.keys {
		if k == key {
			return &d.list[i]
		}
	}
	d.keys, d.list = append(d.keys, key), append(d.list, task.DeviceIO{Device: deviceName(key)})
	return &d.list[len(d.list)-1]
}

// deviceName is as /dev/sda, or the key where there is no such name.
func deviceName(key string) string {
	link, err := os.Readlink("/sys/dev/block/" + key)
	if err != nil {
		return key
	}
	return "/dev/" + filepath.Base(link)
}

// parseIO adds lines such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6" of v2's io.stat.
func (d *devices) parseIO(data []byte) {
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			continue // of a device that has counted nothing
		}
		io := d.of(fields[0])
		for _, field := range fields[1:] {
			name, value, _ := strings.Cut(field, "=")
			n, _ := strconv.ParseUint(value, 10, 64)
			switch name {
			case "rbytes":
				io.ReadBytes = n
			case "wbytes":
				io.WriteBytes = n
			case "rios":
				io.Reads = n
			case "wios":
				io.Writes = n
			}
		}
	}
}

// parseBlkio gives the lines "8:0 Read 4096" and "8:0 Write 4096" of v1 to set.
func (d *devices) parseBlkio(data []byte, set func(io *task.DeviceIO, operation string, n uint64)) {
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) != 3 {
			continue // the total
		}
		if n, err := strconv.ParseUint(fields[2], 10, 64); err == nil {
			set(d.of(fields[0]), fields[1], n)
		}
	}
}

// ParsePressure reads lines such as "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" (Documentation/accounting/psi.rst).
func ParsePressure(text string) *task.PSI {
	var psi task.PSI
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		var d task.PSIData
		for _, field := range fields[1:] {
			name, value, _ := strings.Cut(field, "=")
			if name == "total" {
				d.Total, _ = strconv.ParseUint(value, 10, 64)
				continue
			}
			average, _ := strconv.ParseFloat(value, 64)
			switch name {
			case "avg10":
				d.Avg10 = average
			case "avg60":
				d.Avg60 = average
			case "avg300":
				d.Avg300 = average
			}
		}
		switch fields[0] {
		case "some":
			psi.Some = d
		case "full":
			psi.Full = d
		}
	}
	return &psi
}
