package images

import (
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const nginxConf = `user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
	default_type text/plain;
	access_log /dev/stdout;
	server {
		listen %d;
		listen [::]:%d;
		root /usr/share/nginx/html;
	}
}
`

// conformance is the group of look-alikes of the images that critest names, under the same paths: a runtime
// that has this registry as mirror of registry.k8s.io, gcr.io and k8s.gcr.io finds them. The table in
// test/conformance/README.md says what each spec wants of them.
func (b *builder) conformance(add func(ref string, r recipe) error) error {
	root, err := b.unpack(true, "busybox", "procps", "util-linux", "nginx-light")
	if err != nil {
		return err
	}
	// Not the static one: its shell runs the applets itself, whatever lies over their files.
	busybox, err := b.busyboxOf(root)
	if err != nil {
		return err
	}
	program, err := b.goProgram("test/images/testprog")
	if err != nil {
		return err
	}
	tools := newLayer()
	for _, name := range []string{"usr/bin/pgrep", "usr/bin/ipcs"} {
		if err := tools.addProgram(root, name); err != nil {
			return err
		}
	}
	base := []*layer{busybox, tools}
	shell := v1.Config{Cmd: []string{"sh"}, Env: []string{defaultPath}}
	web, err := nginx(root, 80)
	if err != nil {
		return err
	}
	hostWeb, err := nginx(root, 12003)
	if err != nil {
		return err
	}
	webConfig := v1.Config{
		Cmd: []string{"nginx", "-g", "daemon off;"}, Env: []string{defaultPath}, StopSignal: "SIGQUIT",
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
	}
	httpd := newLayer()
	httpd.text("/srv/index.html", "<html><body><h1>It works!</h1></body></html>\n")
	nnp := newLayer()
	nnp.file("/nnp", 0o4755, program)
	nnp.dir("/tmp", 0o1777)
	pause := newLayer()
	pause.file("/pause", 0o755, program)

	images := map[string]recipe{
		"e2e-test-images/busybox:1.29-2": {layers: base, config: shell},
		"e2e-test-images/nginx:1.14-2":   {layers: []*layer{busybox, web}, config: webConfig},
		"e2e-test-images/httpd:2.4.39-4": {layers: []*layer{busybox, httpd}, config: v1.Config{
			Cmd: []string{"sh", "-c", "echo httpd serves port 80; exec httpd -f -v -p 80 -h /srv"}, Env: []string{defaultPath},
		}},
		"e2e-test-images/nonewprivs:1.3":                   {layers: []*layer{nnp}, config: v1.Config{Entrypoint: []string{"/nnp", "uid"}}},
		"k8s-staging-cri-tools/hostnet-nginx-amd64:latest": {layers: []*layer{busybox, hostWeb}, config: webConfig},
		"pause:3.9": {layers: []*layer{pause}, config: v1.Config{Entrypoint: []string{"/pause", "pause"}, User: "65535:65535"}},
		"k8s-staging-cri-tools/test-image-predefined-group:latest": {layers: append(base, predefinedGroup()), config: v1.Config{
			Cmd: []string{"sh"}, Env: []string{defaultPath}, User: "1000",
		}},
	}
	for name, user := range map[string]string{
		"uid": "1002", "username": "www-data", "uid-group": "1003:users", "username-group": "www-data:100",
	} {
		images["k8s-staging-cri-tools/test-image-user-"+name+":latest"] = recipe{
			layers: base, config: v1.Config{Cmd: []string{"sh"}, Env: []string{defaultPath}, User: user},
		}
	}
	addMarked(images, busybox, shell)
	for ref, r := range images {
		if err := add(ref, r); err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
	}
	return nil
}

// addMarked adds images that only have to be different from each other, or the same under several tags.
func addMarked(images map[string]recipe, busybox *layer, config v1.Config) {
	for _, same := range []struct {
		content string
		refs    []string
	}{
		{"latest", []string{"test-image-latest:latest"}},
		{"digest", []string{"test-image-digest:latest"}},
		{"tag", []string{"test-image-tag:test"}},
		{"all", []string{"test-image-tag:all"}},
		{"1", []string{"test-image-1:latest"}},
		{"2", []string{"test-image-2:latest"}},
		{"3", []string{"test-image-3:latest"}},
		{"tags", []string{"test-image-tags:1", "test-image-tags:2", "test-image-tags:3"}},
	} {
		mark := newLayer()
		mark.text("/test-image", same.content+"\n")
		for _, ref := range same.refs {
			images["k8s-staging-cri-tools/"+ref] = recipe{layers: append([]*layer{busybox}, mark), config: config}
		}
	}
}

// nginx is Debian's web server with a site on one port.
func nginx(root string, port int) (*layer, error) {
	l := newLayer()
	if err := l.addProgram(root, "usr/sbin/nginx"); err != nil {
		return nil, err
	}
	mime, err := os.ReadFile(filepath.Join(root, "etc/nginx/mime.types"))
	if err != nil {
		return nil, err
	}
	l.file("/etc/nginx/mime.types", 0o644, mime)
	l.text("/etc/nginx/nginx.conf", fmt.Sprintf(nginxConf, port, port))
	l.text("/usr/share/nginx/html/index.html", "<html><body><h1>Welcome to nginx!</h1></body></html>\n")
	for _, dir := range []string{"/var/log/nginx", "/var/lib/nginx/body", "/var/lib/nginx/proxy", "/var/lib/nginx/fastcgi"} {
		l.dir(dir, 0o755)
	}
	return l, nil
}

// predefinedGroup has the user that a supplemental group of the image belongs to.
func predefinedGroup() *layer {
	l := newLayer()
	l.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n")
	l.text("/etc/group", "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
	return l
}
