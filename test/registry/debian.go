package main

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
)

//go:embed pause/pause.elf
var pauseProgram []byte

func passwd() string {
	return `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
gantry:x:1234:1235:Gantry:/home/gantry:/bin/sh
nobody:x:65534:65534:nobody:/home:/bin/false
`
}

func group() string {
	return `root:x:0:
daemon:x:1:
www-data:x:33:
users:x:100:
gantry:x:1235:
audit:x:4321:gantry
extra:x:4322:gantry,www-data
nogroup:x:65534:
`
}

// busyboxEntries is a small Linux: busybox under all its names, as hard links
// like the well-known image, and the files that programs expect.
func (w *workshop) busyboxEntries() ([]entry, error) {
	program, err := hostFile(w.root, "/usr/bin/busybox", "bin/busybox", 0o755)
	if err != nil {
		return nil, fmt.Errorf("%w; is busybox-static installed?", err)
	}
	out, err := exec.Command(w.root+"/usr/bin/busybox", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the names of busybox: %w", err)
	}
	applets := strings.Fields(string(out))
	slices.Sort(applets)
	entries := []entry{dir("bin", 0o755), program}
	for _, applet := range slices.Compact(applets) {
		if applet != "busybox" {
			entries = append(entries, hardlink("bin/"+applet, "bin/busybox"))
		}
	}
	return append(entries,
		dir("dev", 0o755), dir("etc", 0o755),
		file("etc/group", 0o644, group()), file("etc/passwd", 0o644, passwd()),
		file("etc/hostname", 0o644, "image\n"),
		file("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n"),
		dir("home", 0o755), dir("home/gantry", 0o750).owned(1234, 1235),
		dir("proc", 0o555), dir("root", 0o700), dir("sys", 0o555), dir("tmp", 0o777|0o1000),
		dir("usr", 0o755), dir("usr/bin", 0o755), symlink("usr/bin/env", "../../bin/env"),
		dir("var", 0o755), dir("var/run", 0o755),
	), nil
}

func (w *workshop) busyboxLayer(kind compression) (layer, error) {
	entries, err := w.busyboxEntries()
	if err != nil {
		return layer{}, err
	}
	return w.addLayer(kind, entries...)
}

func busybox(f format, kind compression) recipe {
	return func(w *workshop) (descriptor, error) {
		base, err := w.busyboxLayer(kind)
		if err != nil {
			return descriptor{}, err
		}
		return w.addImage(image{format: f, config: config{Cmd: []string{"sh"}, Env: defaultEnv()}, layers: []layer{base}})
	}
}

// capable is busybox with one more of it, whose file says that it may bind low ports.
func capable(w *workshop) (descriptor, error) {
	base, err := w.busyboxLayer(gzipped)
	if err != nil {
		return descriptor{}, err
	}
	program, err := hostFile(w.root, "/usr/bin/busybox", "busybox-capable", 0o755)
	if err != nil {
		return descriptor{}, err
	}
	top, err := w.addLayer(gzipped, program.xattr("security.capability", "\x01\x00\x00\x02\x00\x04"+strings.Repeat("\x00", 14)))
	if err != nil {
		return descriptor{}, err
	}
	return w.addImage(image{config: config{Cmd: []string{"sh"}, Env: defaultEnv()}, layers: []layer{base, top}})
}

func defaultEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// configured is busybox with a configuration and perhaps files above it.
func configured(c config, above ...entry) recipe {
	return func(w *workshop) (descriptor, error) {
		base, err := w.busyboxLayer(gzipped)
		if err != nil {
			return descriptor{}, err
		}
		if c.Env == nil {
			c.Env = defaultEnv()
		}
		img := image{config: c, layers: []layer{base}}
		if len(above) > 0 {
			top, err := w.addLayer(gzipped, above...)
			if err != nil {
				return descriptor{}, err
			}
			img.layers = append(img.layers, top)
		}
		return w.addImage(img)
	}
}

// layers is an image of n layers, each with a file of its own; the later ones
// also remove and replace what earlier ones made.
func layers(n int) recipe {
	return func(w *workshop) (descriptor, error) {
		base, err := w.busyboxLayer(gzipped)
		if err != nil {
			return descriptor{}, err
		}
		img := image{config: config{Cmd: []string{"ls", "/layers"}, Env: defaultEnv()}, layers: []layer{base}}
		for i := 1; i < n; i++ {
			l, err := w.addLayer(gzipped, layerEntries(i)...)
			if err != nil {
				return descriptor{}, err
			}
			img.layers = append(img.layers, l)
		}
		return w.addImage(img)
	}
}

func layerEntries(i int) []entry {
	entries := []entry{
		dir("layers", 0o755),
		file(fmt.Sprintf("layers/%03d", i), 0o644, fmt.Sprintf("layer %d\n", i)),
		file("layers/last", 0o644, fmt.Sprintf("%d\n", i)),
	}
	if i%5 == 0 { // what the layer before made is gone
		entries = append(entries, file(fmt.Sprintf("layers/.wh.%03d", i-1), 0, ""))
	}
	return entries
}

// pause stands in for the sandbox image of engines that need one.
func pause(w *workshop) (descriptor, error) {
	l, err := w.addLayer(gzipped, bytesFile("pause", 0o755, pauseProgram))
	if err != nil {
		return descriptor{}, err
	}
	return w.addImage(image{config: config{Entrypoint: []string{"/pause"}, User: "65535:65535", Env: defaultEnv()}, layers: []layer{l}})
}

const nginxConfig = `user www-data;
worker_processes 1;
error_log /dev/stderr;
pid /run/nginx.pid;
events { worker_connections 64; }
http {
	access_log /dev/stdout;
	default_type text/html;
	server { listen %[1]d; listen [::]:%[1]d; root /var/www/html; }
}
`

// nginx is Debian's, with the libraries it is linked to.
func nginx(port int) recipe {
	return func(w *workshop) (descriptor, error) {
		base, err := w.busyboxLayer(gzipped)
		if err != nil {
			return descriptor{}, err
		}
		entries, err := w.withLibraries("/usr/sbin/nginx")
		if err != nil {
			return descriptor{}, err
		}
		entries = append(entries,
			dir("etc/nginx", 0o755), file("etc/nginx/nginx.conf", 0o644, fmt.Sprintf(nginxConfig, port)),
			dir("run", 0o755), dir("var/lib", 0o755), dir("var/lib/nginx", 0o755).owned(33, 33),
			dir("var/log", 0o755), dir("var/log/nginx", 0o755).owned(33, 33),
			dir("var/www", 0o755), dir("var/www/html", 0o755),
			file("var/www/html/index.html", 0o644, "<title>Welcome to nginx!</title>\n<h1>Welcome to nginx!</h1>\n"),
		)
		top, err := w.addLayer(gzipped, entries...)
		if err != nil {
			return descriptor{}, err
		}
		return w.addImage(image{format: docker, layers: []layer{base, top}, config: config{
			Cmd: []string{"nginx", "-g", "daemon off;"}, Env: defaultEnv(), StopSignal: "SIGQUIT",
			ExposedPorts: map[string]struct{}{fmt.Sprintf("%d/tcp", port): {}},
		}})
	}
}

// withLibraries is programs of this machine and the libraries that ldd names.
func (w *workshop) withLibraries(programs ...string) ([]entry, error) {
	files := slices.Clone(programs)
	for _, program := range programs {
		out, err := exec.Command("ldd", w.root+program).Output()
		if err != nil {
			return nil, fmt.Errorf("list the libraries of %s: %w", program, err)
		}
		files = append(files, libraries(string(out))...)
	}
	slices.Sort(files)
	var entries []entry
	made := map[string]bool{}
	for _, f := range slices.Compact(files) {
		for _, d := range parents(f) {
			if !made[d] {
				made[d] = true
				entries = append(entries, dir(d[1:], 0o755))
			}
		}
		e, err := hostFile(w.root, f, f[1:], 0o755)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// libraries reads the paths out of ldd's output.
func libraries(out string) []string {
	var paths []string
	for line := range strings.Lines(out) {
		for field := range strings.FieldsSeq(line) {
			if strings.HasPrefix(field, "/") {
				paths = append(paths, field)
			}
		}
	}
	return paths
}

// parents lists the directories above an absolute path, outermost first.
func parents(p string) []string {
	var dirs []string
	for d := path.Dir(p); d != "/"; d = path.Dir(d) {
		dirs = append(dirs, d)
	}
	slices.Reverse(dirs)
	return dirs
}

// nmeter tells the time of day with milliseconds, which is all that is asked of it.
const nmeter = `#!/usr/bin/bash
now=$EPOCHREALTIME
printf '%(%H:%M:%S)T.%.3s\n' "${now%.*}" "${now#*.}"
`

// suiteShell is busybox's, but where its loss of variables would show.
const suiteShell = `#!/usr/bin/bash
if [ "$*" = "-c env" ]; then exec /bin/env; fi
exec -a /bin/sh /bin/ash "$@"
`

// suiteBusybox has what Debian's busybox lacks of the one that Kubernetes' suites use:
// a shell that hands on variables whose names it cannot have, and nmeter. It stands in
// for the image of glibc's resolver, too: hostname is linked to it.
func suiteBusybox(w *workshop) (descriptor, error) {
	base, err := w.busyboxLayer(gzipped)
	if err != nil {
		return descriptor{}, err
	}
	bash, err := w.withLibraries("/usr/bin/bash", "/usr/bin/hostname")
	if err != nil {
		return descriptor{}, err
	}
	top, err := w.addLayer(gzipped, append(bash, file("bin/sh", 0o755, suiteShell), file("bin/nmeter", 0o755, nmeter))...)
	if err != nil {
		return descriptor{}, err
	}
	return w.addImage(image{config: config{Cmd: []string{"sh"}, Env: defaultEnv()}, layers: []layer{base, top}})
}

const agnhostProgram = "/usr/local/bin/agnhost"

// agnhost is the swiss-army knife of Kubernetes' own tests, if "trial agnhost"
// has put it into the VM.
func agnhost(w *workshop) (descriptor, error) {
	program, err := hostFile(w.root, agnhostProgram, "agnhost", 0o755)
	if err != nil {
		return descriptor{}, fmt.Errorf("%w; put it there with: trial agnhost", err)
	}
	entries := []entry{program, dir("uploads", 0o755)}
	for _, name := range []string{"localhost.crt", "localhost.key"} {
		e, err := hostFile(w.root, path.Join(path.Dir(agnhostProgram), name), name, 0o644)
		if err != nil {
			return descriptor{}, err
		}
		entries = append(entries, e)
	}
	base, err := w.busyboxLayer(gzipped)
	if err != nil {
		return descriptor{}, err
	}
	tools, err := w.withLibraries("/usr/bin/curl", "/usr/bin/bash", "/usr/bin/nc.openbsd")
	if err != nil {
		return descriptor{}, err
	}
	// Busybox's shell would run its own nc.
	entries = append(entries, symlink("agnhost-2", "agnhost"), file("bin/nmeter", 0o755, nmeter),
		file("etc/passwd", 0o644, passwd()+"user-defined-in-image:x:1000:1000::/home:/bin/sh\n"),
		file("etc/group", 0o644, group()+"user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"),
		symlink("bin/sh", "../usr/bin/bash"), symlink("bin/bash", "../usr/bin/bash"), symlink("usr/bin/nc", "nc.openbsd"))
	served, err := w.make("pause:latest")
	if err != nil {
		return descriptor{}, err
	}
	files, err := w.inside("pause", "testing", served)
	if err != nil {
		return descriptor{}, err
	}
	top, err := w.addLayer(gzipped, slices.Concat(tools, entries, files)...)
	if err != nil {
		return descriptor{}, err
	}
	return w.addImage(image{format: docker, layers: []layer{base, top}, config: config{
		Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: defaultEnv(),
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "8080/tcp": {}, "8081/tcp": {}, "9376/tcp": {}},
	}})
}

// devicePlugin is Kubernetes' plugin of a device that is none, put there as agnhost is.
func devicePlugin(w *workshop) (descriptor, error) {
	program, err := hostFile(w.root, path.Join(path.Dir(agnhostProgram), "sample-device-plugin"), "sampledeviceplugin", 0o755)
	if err != nil {
		return descriptor{}, fmt.Errorf("%w; put it there with: trial agnhost", err)
	}
	base, err := w.busyboxLayer(gzipped)
	if err != nil {
		return descriptor{}, err
	}
	top, err := w.addLayer(gzipped, program)
	if err != nil {
		return descriptor{}, err
	}
	return w.addImage(image{format: docker, layers: []layer{base, top}, config: config{
		Entrypoint: []string{"/sampledeviceplugin", "-alsologtostderr"}, Env: defaultEnv(),
	}})
}

// setuid is an image whose program /usr/local/bin/nnp belongs to root with the
// set-user-ID bit and prints the user that it runs as: this very program.
func setuid(w *workshop) (descriptor, error) {
	self, err := os.Executable()
	if err != nil {
		return descriptor{}, fmt.Errorf("find own program: %w", err)
	}
	program, err := hostFile("", self, "usr/local/bin/nnp", 0o4755)
	if err != nil {
		return descriptor{}, err
	}
	base, err := w.busyboxLayer(gzipped)
	if err != nil {
		return descriptor{}, err
	}
	top, err := w.addLayer(gzipped, dir("usr/local", 0o755), dir("usr/local/bin", 0o755), program)
	if err != nil {
		return descriptor{}, err
	}
	return w.addImage(image{layers: []layer{base, top}, config: config{Cmd: []string{"/usr/local/bin/nnp"}, Env: defaultEnv()}})
}
