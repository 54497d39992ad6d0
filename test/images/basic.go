package images

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// defaultPath is PATH in images whose programs are in Debian's places.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
tester:x:1000:1000:Tester:/home/tester:/bin/sh
other:x:1001:1001::/home/other:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
`

const group = `root:x:0:
daemon:x:1:
bin:x:2:
adm:x:4:tester,other
www-data:x:33:
wheel:x:50:tester
tester:x:1000:
other:x:1001:
extra:x:5000:tester
nogroup:x:65534:
`

// busybox is a small root file system of one static program.
func (b *builder) busybox() (*layer, error) {
	root, err := b.unpack(false, "busybox-static")
	if err != nil {
		return nil, err
	}
	return b.busyboxOf(root)
}

// busyboxOf makes every applet of the unpacked root's busybox a hard link to it, as in the image of that name, so that
// one applet can be masked without the others.
func (b *builder) busyboxOf(root string) (*layer, error) {
	name := "/bin/busybox"
	if _, err := os.Stat(filepath.Join(root, name)); err != nil {
		name = "/usr/bin/busybox"
	}
	program := filepath.Join(root, name)
	applets, err := exec.CommandContext(b.ctx, program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	l := newLayer()
	if err := l.addProgram(root, name); err != nil {
		return nil, err
	}
	for _, applet := range append(strings.Fields(string(applets)), "busybox") {
		if link := "/bin/" + applet; !l.has(link) {
			l.hardlink(link, name)
		}
	}
	l.text("/etc/passwd", passwd)
	l.text("/etc/group", group)
	l.text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
	l.text("/etc/profile", "export "+defaultPath+"\n")
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run", "/var/log", "/var/www", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/sbin", "/mnt", "/home"} {
		l.dir(dir, 0o755)
	}
	l.dir("/root", 0o700)
	l.dir("/tmp", 0o1777)
	l.dir("/var/tmp", 0o1777)
	l.symlink("/var/run", "../run")
	l.owned("/home/tester", 1000)
	l.owned("/home/other", 1001)
	return l, nil
}

// owned adds a user's directory.
func (l *layer) owned(name string, id int) {
	l.dir(name, 0o755)
	h := l.headers[len(l.headers)-1]
	h.Uid, h.Gid = id, id
}

const tourScript = `#!/bin/sh
echo "hello from $(hostname), process $$"
echo "kernel: $(cat /proc/version)"
echo "addresses: $(ip -o addr show scope global | awk '{print $4}' | tr '\n' ' ')"
echo "serving http on port 8080"
exec httpd -f -v -p 8080 -h /srv
`

// tour is the group with what `make run` shows.
func (b *builder) tour(add func(ref string, r recipe) error) error {
	base, err := b.busybox()
	if err != nil {
		return err
	}
	site := newLayer()
	site.file("/usr/local/bin/tour", 0o755, []byte(tourScript))
	site.text("/srv/index.html", "hello from a pod\n")
	site.text("/srv/cgi-bin/.keep", "")
	site.file("/srv/cgi-bin/kernel", 0o755, []byte("#!/bin/sh\necho 'Content-Type: text/plain'\necho\ncat /proc/version\n"))
	// What keeps a pod's namespaces for runtimes that want a process for that.
	if err := add("pistis/pause:latest", recipe{layers: []*layer{base}, config: v1.Config{Cmd: []string{"sleep", "1000000000"}, Env: []string{defaultPath}}}); err != nil {
		return err
	}
	return add("pistis/tour:latest", recipe{
		layers: []*layer{base, site},
		config: v1.Config{
			Cmd: []string{"/usr/local/bin/tour"}, Env: []string{defaultPath}, WorkingDir: "/",
			ExposedPorts: map[string]struct{}{"8080/tcp": {}},
			Labels:       map[string]string{"org.opencontainers.image.title": "tour"},
		},
	})
}

// numbers is n bytes that do not compress to nothing and are the same each time.
func numbers(seed uint32, n int) []byte {
	var b bytes.Buffer
	for x := seed; b.Len() < n; {
		x = x*1664525 + 1013904223
		b.WriteByte(byte(x >> 24))
	}
	return b.Bytes()
}
