//go:build e2e

package node

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const registry = "registry.k8s.io/"

func TestImageKinds(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "kinds")))
	for _, image := range []string{"busybox:docker", "busybox:oci", "busybox:zstd", "busybox:plain", "multi:oci", "multi:docker", "layers:10", "layers:127"} {
		config := containerConfig(strings.ReplaceAll(image, ":", "-"), "echo runs; cat /layers/last 2>/dev/null; ls /layers 2>/dev/null | grep -c 00[34]")
		config.Image = &cri.ImageSpec{Image: registry + image}
		c := p.create(t, config).start(t)
		c.wait(t, 20*time.Second)
		want := map[string]string{"layers:10": "runs\n9\n1\n", "layers:127": "runs\n126\n1\n"}[image]
		if want == "" {
			want = "runs\n0\n"
		}
		if got := texts(c.logFile(t), "stdout"); got != want {
			t.Errorf("%s printed %q, want %q", image, got, want)
		}
	}
}

func TestImageLife(t *testing.T) {
	guard(t)
	e := dial(t)
	ref := e.pull(t, registry+"layers:2")
	get := func(name string) *cri.Image {
		resp, err := e.images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Image
	}
	image := get(registry + "layers:2")
	if image == nil || image.Size == 0 || len(image.RepoTags) == 0 || len(image.RepoDigests) == 0 {
		t.Fatalf("status after the pull: %v", image)
	}
	for _, name := range []string{ref, image.Id, image.RepoDigests[0]} {
		if again := get(name); again == nil || again.Id != image.Id {
			t.Errorf("%s leads to %v", name, again)
		}
	}
	e.pull(t, image.RepoDigests[0]) // by digest
	for range 2 {                   // the second time there is nothing to remove, and that is no error
		if _, err := e.images.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image.Id}}); err != nil {
			t.Error(err)
		}
	}
	if image := get(registry + "layers:2"); image != nil {
		t.Errorf("still there after its removal: %v", image)
	}
}

// TestImageTags: an image may have more names than one, and goes with the last of them.
// Kubelet removes by ID, crictl by name.
func TestImageTags(t *testing.T) {
	guard(t)
	e := dial(t)
	one, two := registry+"layers:2", "quay.io/layers:2"
	id := e.pull(t, one)
	if again := e.pull(t, two); again != id {
		t.Fatalf("one image with two names is %s and %s", id, again)
	}
	tags := func() []string {
		resp, err := e.images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: id}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Image.GetRepoTags()
	}
	remove := func(name string) error {
		_, err := e.images.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: name}})
		return err
	}
	if got := tags(); !slices.Contains(got, one) || !slices.Contains(got, two) {
		t.Errorf("the image's names are %q", got)
	}
	// As the CRI says of RemoveImage: by any of its names the image goes, and all of them.
	if err := remove(two); err != nil {
		t.Error(err)
	}
	if got := tags(); len(got) != 0 {
		t.Errorf("after the removal the image's names are %q", got)
	}
	e.pull(t, one)
	errs := make(chan error)
	for range 4 {
		go func() { errs <- remove(id) }()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Errorf("removed by several at once: %v", err)
		}
	}
	if got := tags(); len(got) != 0 {
		t.Errorf("removed by several at once, and there as %q", got)
	}
}

// TestPullErrorsHaveNames: kubelet makes events of these that tell people where to look.
func TestPullErrorsHaveNames(t *testing.T) {
	guard(t)
	needsGantry(t) // the peers name none of them
	e := dial(t)
	wants := func(what, image, want string) {
		t.Helper()
		_, err := e.images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
		if err == nil || !strings.HasPrefix(status.Convert(err).Message(), want+":") {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	wants("a registry that is not there", "127.0.0.1:9/none:1", "RegistryUnavailable")
	const policy = "/etc/containers/policy.json"
	before, err := os.ReadFile(policy)
	there := err == nil
	t.Cleanup(func() {
		if there {
			writeFile(t, policy, string(before))
		} else if err := os.Remove(policy); err != nil {
			t.Error(err)
		}
	})
	writeFile(t, policy, `{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {"registry.k8s.io/layers": [{"type": "reject"}]}}}`)
	wants("an image that the policy forbids", registry+"layers:2", "SignatureValidationFailed")
}

func TestPullsThatFail(t *testing.T) {
	guard(t)
	e := dial(t)
	for image, want := range map[string]codes.Code{
		"nosuch:latest": codes.NotFound, "busybox:nosuchtag": codes.NotFound, "multi:foreign": codes.OK, "schema1:latest": codes.OK,
		"hostile/truncated:latest": codes.OK, "hostile/wrong-digest:latest": codes.OK, "hostile/wrong-size:latest": codes.OK, "hostile/wrong-config:latest": codes.OK,
		"hostile/wrong-diffid:latest": codes.OK, "hostile/missing-blob:latest": codes.OK, "hostile/no-tar:latest": codes.OK, "hostile/half-tar:latest": codes.OK,
		"hostile/few-diffids:latest": codes.OK,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience(time.Minute))
		_, err := e.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: registry + image}})
		cancel()
		if err == nil {
			t.Errorf("%s was pulled", image)
			if _, err := e.images.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: registry + image}}); err != nil {
				t.Error(err)
			}
			continue
		}
		if got := status.Code(err); want != codes.OK && got != want {
			t.Errorf("%s: %s, want %s: %v", image, got, want, err)
		}
	}
}

func TestPullWithPassword(t *testing.T) {
	guard(t)
	needsGantry(t) // another engine is not told that these speak plain HTTP
	e := dial(t)
	for _, image := range []string{"127.0.0.1:5001/busybox:oci", "127.0.0.1:5002/busybox:oci"} {
		spec := &cri.ImageSpec{Image: image}
		if _, err := e.images.PullImage(t.Context(), &cri.PullImageRequest{Image: spec}); err == nil {
			t.Errorf("%s was pulled without the password", image)
		}
		if _, err := e.images.PullImage(t.Context(), &cri.PullImageRequest{Image: spec, Auth: &cri.AuthConfig{Username: "trial", Password: "wrong"}}); err == nil {
			t.Errorf("%s was pulled with a wrong password", image)
		}
		if _, err := e.images.PullImage(t.Context(), &cri.PullImageRequest{Image: spec, Auth: &cri.AuthConfig{Username: "trial", Password: "let me in"}}); err != nil {
			t.Errorf("%s with the password: %v", image, err)
		}
		if _, err := e.images.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: spec}); err != nil {
			t.Error(err)
		}
	}
}

// TestHostileImages pulls and starts images that attack. Each may be refused or
// run harmlessly: the host must be as before.
func TestHostileImages(t *testing.T) {
	guard(t)
	e := dial(t)
	shadow := sh(t, "sha256sum /etc/shadow /etc/hostname /etc/passwd /etc/group")
	for _, name := range strings.Fields(sh(t, "curl -sf http://127.0.0.1:5000/trial/images")) {
		if !strings.HasPrefix(name, "hostile/") {
			continue
		}
		t.Run(strings.TrimSuffix(strings.TrimPrefix(name, "hostile/"), ":latest"), func(t *testing.T) { e.attack(t, registry+name) })
		for _, path := range []string{"/etc/trial-pwned", "/trial-pwned", "/var/lib/trial-pwned", "/var/lib/gantry/trial-pwned"} {
			if _, err := os.Lstat(path); err == nil {
				t.Fatalf("%s wrote %s on the host", name, path)
			}
		}
		if now := sh(t, "sha256sum /etc/shadow /etc/hostname /etc/passwd /etc/group"); now != shadow {
			t.Fatalf("%s changed the host:\n%s", name, now)
		}
	}
}

// attack pulls an image, runs a look around in it, and removes all of it.
func (e engine) attack(t *testing.T, image string) {
	spec := &cri.ImageSpec{Image: image}
	ctx, cancel := context.WithTimeout(t.Context(), patience(15*time.Second))
	defer cancel()
	defer func() {
		// containerd 2.4 does hang, on a FIFO in the place of /etc/passwd.
		if ctx.Err() != nil {
			t.Errorf("the engine hangs: no answer after %s", patience(15*time.Second))
		}
	}()
	if _, err := e.images.PullImage(ctx, &cri.PullImageRequest{Image: spec}); err != nil {
		t.Logf("refused: %v", err)
		return
	}
	t.Cleanup(func() {
		if _, err := e.images.RemoveImage(context.WithoutCancel(t.Context()), &cri.RemoveImageRequest{Image: spec}); err != nil {
			t.Error(err)
		}
	})
	p := e.run(t, onHost(e.podConfig(t, "hostile")))
	config := containerConfig("look", "cat /shadow /etc/shadow /link/shadow /up 2>/dev/null; echo done")
	config.Image = spec
	created, err := p.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		t.Logf("pulled, but no container can be created: %v", err)
		return
	}
	if err := os.MkdirAll(p.config.LogDirectory+"/look", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := p.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		t.Logf("pulled, but no container can be started: %v", err)
		return
	}
	c := container{p, created.ContainerId, config}
	c.wait(t, 20*time.Second)
	if out := texts(c.logFile(t), "stdout"); strings.Contains(out, "root:") {
		t.Errorf("a container sees the host's secrets:\n%s", out)
	}
}
