// Command gantry runs pods under systemd. See internal/cli.
package main

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/sirupsen/logrus"

	"gantry/internal/cli"
)

// version is set by the Makefile.
var version = "devel"

func main() {
	logrus.SetOutput(io.Discard) // the image library's, which may name signed URLs; its errors are ours to tell
	env := cli.Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, UID: os.Geteuid(), Now: time.Now,
		Version: version, Open: cli.OpenNode, OpenTeardown: cli.OpenTeardown,
	}
	os.Exit(cli.Main(context.Background(), env, os.Args[1:]))
}
