package main

import "fmt"

// catalog is every image that the registry can make. Names are those that tests
// and suites ask for; registries.conf maps every registry's host to this one.
func catalog() map[string]recipe {
	all := map[string]recipe{}
	add := func(r recipe, names ...string) {
		for _, name := range names {
			all[name] = r
		}
	}
	add(busybox(docker, gzipped), "busybox:latest", "busybox:1.37", "library/busybox:latest", "library/busybox:1.37",
		"e2e-test-images/ipc-utils:1.4")
	add(suiteBusybox, "e2e-test-images/glibc-dns-testing:2.1.1", "e2e-test-images/busybox:1.37.0-2", "e2e-test-images/busybox:1.36.1-1")
	nonroot := configured(config{User: "1234", Cmd: []string{"sh"}})
	add(nonroot, "e2e-test-images/nonroot:1.5")
	// The suite only wants to have them, and to see them go.
	add(nonroot, "cadvisor/cadvisor:v0.47.2", "nfvpe/sriov-device-plugin:v3.1")
	add(capable, "capable:latest")
	add(busybox(docker, gzipped), "busybox:docker")
	add(busybox(oci, gzipped), "busybox:oci")
	add(busybox(oci, zstandard), "busybox:zstd")
	add(busybox(oci, plain), "busybox:plain")
	add(pause, "pause:latest", "pause:3.10.2")
	add(nginx(80), "nginx:latest", "library/nginx:latest", "e2e-test-images/nginx:1.27.0-2", "e2e-test-images/nginx:1.28.0-2", "e2e-test-images/httpd:2.4.39-4")
	add(nginx(12003), "k8s-staging-cri-tools/hostnet-nginx-amd64:latest")
	add(agnhost, "agnhost:latest", "e2e-test-images/agnhost:2.66.1", "e2e-test-images/agnhost:2.55")
	add(devicePlugin, "e2e-test-images/sample-device-plugin:1.8.0")
	for _, n := range []int{1, 2, 10, 127} {
		add(layers(n), fmt.Sprintf("layers:%d", n))
	}
	add(multi(oci), "multi:latest", "multi:oci")
	add(multi(docker), "multi:docker")
	add(foreign, "multi:foreign")
	add(schema1, "schema1:latest")
	add(artifact, "artifact:latest")
	addConfigured(add)
	addNodeTests(add)
	addOdd(add)
	addHostile(add)
	add(big, "bench/big:latest")
	add(manyFiles, "bench/files:latest")
	return all
}

// addConfigured adds images whose point is their configuration.
func addConfigured(add func(recipe, ...string)) {
	for tag, user := range map[string]string{
		"name": "gantry", "uid": "1234", "uid-group": "1234:1235", "name-group": "gantry:audit", "unnamed-uid": "4242",
		"uid-unnamed-group": "1234:4242", "unknown": "nosuchuser", "unknown-group": "gantry:nosuchgroup", "root": "root", "zero": "0",
	} {
		add(configured(config{User: user, Cmd: []string{"sleep", "1000000"}}), "user:"+tag)
	}
	add(configured(config{
		User:         "gantry",
		Entrypoint:   []string{"/bin/entry"},
		Cmd:          []string{"first", "second word"},
		Env:          []string{"PATH=/bin:/opt/bin", "GREETING=good day", "EMPTY=", "EQUALS=a=b"},
		WorkingDir:   "/srv/work",
		Volumes:      map[string]struct{}{"/data": {}, "/srv/cache": {}},
		ExposedPorts: map[string]struct{}{"8080/tcp": {}, "53/udp": {}},
		Labels:       map[string]string{"org.example.title": "trial", "empty": ""},
		StopSignal:   "SIGUSR1",
	}, entryScript()...), "config:latest")
	add(configured(config{}), "config:empty")
	add(configured(config{Cmd: []string{"echo", "only cmd"}}), "config:cmd")
	add(configured(config{Entrypoint: []string{"echo", "only entrypoint"}}), "config:entrypoint")
	add(configured(config{WorkingDir: "/not/there/yet", Cmd: []string{"pwd"}}), "config:workdir")
	add(configured(config{WorkingDir: "relative", Cmd: []string{"pwd"}}), "config:relative-workdir")
	add(configured(config{StopSignal: "SIGQUIT", Cmd: []string{"/bin/entry"}}, entryScript()...), "config:stop-quit")
	add(configured(config{StopSignal: "37", Cmd: []string{"sleep", "1000000"}}), "config:stop-number")
	add(configured(config{StopSignal: "SIGNONSENSE", Cmd: []string{"sleep", "1000000"}}), "config:stop-bad")
	add(configured(config{
		Volumes: map[string]struct{}{"/data": {}}, Cmd: []string{"sleep", "1000000"},
	}, dir("data", 0o750).owned(1234, 1235), file("data/seed", 0o640, "seed\n").owned(1234, 1235)), "config:volume")
}

// addNodeTests adds the images that suites for container runtimes ask for.
func addNodeTests(add func(recipe, ...string)) {
	const repo = "k8s-staging-cri-tools/test-image-"
	sleep := []string{"sh", "-c", "sleep 1000000"}
	www := []entry{file("etc/passwd", 0o644, passwd()+"testuser:x:1002:1002::/home/testuser:/bin/sh\n")}
	for name, c := range map[string]config{
		"latest:latest": {}, "tag:test": {}, "tag:all": {}, "digest:latest": {}, "1:latest": {}, "2:latest": {}, "3:latest": {},
		"tags:1": {}, "tags:2": {}, "tags:3": {},
		"user-uid:latest": {User: "1002"}, "user-username:latest": {User: "www-data"},
		"user-uid-group:latest": {User: "1003:1004"}, "user-username-group:latest": {User: "www-data:100"},
		"predefined-group:latest": {User: "1000"},
	} {
		c.Cmd = sleep
		c.Labels = map[string]string{"name": name}
		if len(name) > 5 && name[:5] == "tags:" {
			c.Labels = map[string]string{"name": "tags"} // one image under three tags
		}
		entries := www
		if name == "predefined-group:latest" {
			entries = append(entries[:1:1], file("etc/group", 0o644, group()+"default-group:x:50000:testuser,predefined\n"))
			entries[0] = file("etc/passwd", 0o644, passwd()+"predefined:x:1000:1000::/:/bin/sh\n")
		}
		add(configured(c, entries...), repo+name)
	}
	add(setuid, "e2e-test-images/nonewprivs:1.4")
}

// entryScript is a program that says how it was started and how it was ended.
func entryScript() []entry {
	const script = `#!/bin/sh
echo "args: $*"
echo "user: $(id -u):$(id -g)"
echo "workdir: $(pwd)"
env | sort
for s in TERM INT QUIT USR1 USR2 HUP; do trap "echo got SIG$s; exit 0" $s; done
while :; do sleep 0.2; done
`
	return []entry{
		file("bin/entry", 0o755, script), dir("srv", 0o755), dir("srv/work", 0o755).owned(1234, 1235),
		dir("srv/cache", 0o755).owned(1234, 1235), dir("data", 0o755).owned(1234, 1235), dir("opt", 0o755), dir("opt/bin", 0o755),
	}
}
