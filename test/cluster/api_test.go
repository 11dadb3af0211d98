//go:build e2e

package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"gantry/test/machine"
)

const (
	apiServer = "https://127.0.0.1:6443"
	// token is in the server's tokens.csv.
	token = "trial"
)

// api is a client of the API server. It knows little, so that nothing of Kubernetes
// reaches go.mod: what is sent is YAML, and of what comes these few fields are read.
type api struct{ client *http.Client }

func newAPI() api {
	return api{&http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the server's certificate is its own, and new at each start
	}, Timeout: patience(30 * time.Second)}}
}

type list[T any] struct{ Items []T }

type condition struct{ Type, Status, Reason, Message string }

type node struct {
	Status struct {
		Conditions      []condition
		RuntimeHandlers []struct {
			Name     string
			Features struct{ RecursiveReadOnlyMounts, UserNamespaces bool }
		}
	}
}

type podObject struct {
	Metadata struct{ Name, Namespace, UID, DeletionTimestamp string }
	Spec     struct{ Overhead map[string]string }
	Status   struct {
		Phase, PodIP, Reason, Message string
		Conditions                    []condition
		ContainerStatuses             []containerStatus
	}
}

// container is the status of one, empty if there is none yet.
func (p podObject) container(name string) containerStatus {
	for _, c := range p.Status.ContainerStatuses {
		if c.Name == name {
			return c
		}
	}
	return containerStatus{}
}

func (p podObject) String() string {
	text, err := json.Marshal(p.Status)
	return fmt.Sprint(string(text), err)
}

type containerStatus struct {
	Name, ContainerID string
	Ready             bool
	State             struct {
		Running    *struct{ StartedAt string }
		Waiting    *struct{ Reason, Message string }
		Terminated *struct {
			ExitCode int
			Reason   string
		}
	}
}

type event struct {
	Type, Reason, Message string
}

// try is one request. The code is that of the answer.
func (a api) try(t *testing.T, method, path, body string) (data []byte, code int, err error) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // it is for clean-ups, too
	req, err := http.NewRequestWithContext(ctx, method, apiServer+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	switch {
	case method == http.MethodPatch:
		req.Header.Set("Content-Type", "application/merge-patch+json")
	case body != "":
		req.Header.Set("Content-Type", "application/yaml")
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	data, err = io.ReadAll(resp.Body)
	return data, resp.StatusCode, err
}

// do is a request that has to succeed, some time: on a busy emulated machine the server may
// take longer for one than it gives itself. A second try to create may find the first's.
func (a api) do(t *testing.T, method, path, body string) (data []byte) {
	t.Helper()
	var code int
	var err error
	tries := 0
	eventually(t, 30*time.Second, method+" "+path, func() bool {
		tries++
		data, code, err = a.try(t, method, path, body)
		return err == nil && code < http.StatusInternalServerError
	})
	found := method == http.MethodPost && tries > 1 && code == http.StatusConflict
	if code/100 != 2 && !found {
		t.Fatalf("%s %s: %d: %s\n%s", method, path, code, data, body)
	}
	return data
}

// make creates an object that may be there.
func (a api) make(t *testing.T, path, manifest string) {
	t.Helper()
	if data, code, err := a.try(t, http.MethodPost, path, manifest); err != nil || code != http.StatusConflict && code/100 != 2 {
		t.Fatalf("create in %s: %d, %v: %s\n%s", path, code, err, data, manifest)
	}
}

func decode[T any](t *testing.T, data []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return v
}

func podsOf(space string) string { return "/api/v1/namespaces/" + space + "/pods" }

// pod is one of the cluster.
type pod struct {
	api
	space, name, uid string
}

func (p pod) path() string { return podsOf(p.space) + "/" + p.name }

// run makes a pod on the node; spec is all but that.
func (a api) run(t *testing.T, space, name, spec string) pod {
	t.Helper()
	made := a.do(t, http.MethodPost, podsOf(space), "apiVersion: v1\nkind: Pod\nmetadata: {name: "+name+"}\nspec:\n  nodeName: "+nodeName+
		"\n  automountServiceAccountToken: false\n"+spec)
	p := pod{api: a, space: space, name: name}
	if p.uid = decode[podObject](t, made).Metadata.UID; p.uid == "" { // it was made by a try whose answer did not come
		p.uid = p.get(t).Metadata.UID
	}
	return p
}

func (p pod) get(t *testing.T) podObject {
	t.Helper()
	return decode[podObject](t, p.do(t, http.MethodGet, p.path(), ""))
}

// until waits for the pod to be as wanted, and says what it was if that does not happen.
func (p pod) until(t *testing.T, limit time.Duration, what string, ok func(podObject) bool) podObject {
	t.Helper()
	var last podObject
	defer func() {
		if t.Failed() {
			t.Logf("pod %s: %v; events: %v", p.name, last, p.events(t, ""))
		}
	}()
	eventually(t, limit, "pod "+p.name+": "+what, func() bool {
		last = p.get(t)
		return ok(last)
	})
	return last
}

// running waits for all containers of the pod.
func (p pod) running(t *testing.T, limit time.Duration) podObject {
	t.Helper()
	return p.until(t, limit, "it runs", func(o podObject) bool { return o.Status.Phase == "Running" && o.Status.PodIP != "" })
}

// events are those of the pod, with this reason or all. Another of its name has another uid.
func (p pod) events(t *testing.T, reason string) []event {
	t.Helper()
	selector := "involvedObject.uid=" + p.uid
	if reason != "" {
		selector += ",reason=" + reason
	}
	return decode[list[event]](t, p.do(t, http.MethodGet, "/api/v1/namespaces/"+p.space+"/events?fieldSelector="+url.QueryEscape(selector), "")).Items
}

// says waits for an event whose message has this text.
func (p pod) says(t *testing.T, limit time.Duration, reason, text string) {
	t.Helper()
	var last []event
	defer func() {
		if t.Failed() {
			t.Logf("events of pod %s: %v", p.name, last)
		}
	}()
	eventually(t, limit, fmt.Sprintf("pod %s: an event %s with %q", p.name, reason, text), func() bool {
		last = p.events(t, reason)
		for _, e := range last {
			if strings.Contains(e.Message, text) {
				return true
			}
		}
		return false
	})
}

func (p pod) log(t *testing.T, container string) string {
	t.Helper()
	return string(p.do(t, http.MethodGet, p.path()+"/log?container="+container, ""))
}

// exec runs a program in a container, through the API server and kubelet.
func (p pod) exec(t *testing.T, container string, argv ...string) (stdout, stderr, ended string) {
	t.Helper()
	q := url.Values{"container": {container}, "command": argv, "stdout": {"true"}, "stderr": {"true"}}
	conn := machine.DialWebSocket(t, apiServer+p.path()+"/exec?"+q.Encode(), header(), "v4.channel.k8s.io")
	defer conn.Close()
	got := machine.Hear(t, conn, nil)
	return got[machine.ChannelStdout], got[machine.ChannelStderr], got[machine.ChannelError]
}

// output is what a program that has to succeed prints.
func (p pod) output(t *testing.T, container, script string) string {
	t.Helper()
	out, errOut, ended := p.exec(t, container, "sh", "-c", script)
	if !strings.Contains(ended, `"Success"`) {
		t.Fatalf("pod %s: %s: %q, %s", p.name, script, out+errOut, ended)
	}
	return strings.TrimSpace(out)
}

func header() http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
