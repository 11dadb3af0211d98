package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// engine is a CRI server under measurement.
type engine struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	conn   *grpc.ClientConn

	name     string
	endpoint string
	units    []string // what runs it
	program  string   // its processes' names begin with this
}

func gantry() *engine {
	return &engine{
		name: "gantry", endpoint: "unix:///run/gantry/cri.sock", program: "gantry",
		units: []string{"gantry-cri.socket", "gantry-cri.service"},
	}
}

func containerd() *engine {
	return &engine{
		name: "containerd", endpoint: "unix:///run/containerd/containerd.sock", program: "containerd",
		units: []string{"trial-containerd.service"},
	}
}

func (e *engine) dial() error {
	conn, err := grpc.NewClient(e.endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	e.conn, e.RuntimeServiceClient, e.images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return nil
}

// readyTime bounds how long an engine may take until it is ready.
const readyTime = 2 * time.Minute

// awaitReady waits until the engine can run pods.
func (e *engine) awaitReady(ctx context.Context) error {
	deadline := time.Now().Add(readyTime)
	for {
		// The last try may have been before the socket was there.
		e.conn.ResetConnectBackoff()
		s, err := e.Status(ctx, &cri.StatusRequest{})
		if err == nil && ready(s.Status) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready after %s: %v, %w", e.name, readyTime, s.GetStatus(), err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func ready(s *cri.RuntimeStatus) bool {
	n := 0
	for _, c := range s.GetConditions() {
		if (c.Type == "RuntimeReady" || c.Type == "NetworkReady") && c.Status {
			n++
		}
	}
	return n == 2
}

// mine tells whether a process is the engine's.
func (e *engine) mine(p process) bool { return strings.HasPrefix(p.name, e.program) }

func (e *engine) pull(ctx context.Context, image string) error {
	_, err := e.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
	if err != nil {
		return fmt.Errorf("pull %s: %w", image, err)
	}
	return nil
}
