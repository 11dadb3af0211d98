package cli

import (
	"context"
	"os"

	"gantry/internal/config"
	"gantry/internal/node"
)

// failpoints is a variable of the environment that tests set; see engine.
const failpoints = "GANTRY_FAILPOINTS"

// OpenNode opens the engine of this machine, configured by the files in
// config.Dir.
func OpenNode(ctx context.Context, o OpenOptions) (*Backend, error) {
	c, _, err := config.Load(config.Dir)
	if err != nil {
		return nil, err
	}
	options := node.FromConfig(c)
	options.Log, options.Failpoints = o.Log, os.Getenv(failpoints)
	n, err := node.Open(ctx, options)
	if err != nil {
		return nil, err
	}
	return &Backend{Engine: n, Images: n.Images(), Root: node.Root, Close: n.Close}, nil
}

// OpenTeardown opens what gives back the networks of this machine's pods.
func OpenTeardown(o OpenOptions) (Teardown, error) {
	c, _, err := config.Load(config.Dir)
	if err != nil {
		return nil, err
	}
	options := node.FromConfig(c)
	options.Log = o.Log
	return node.OpenTeardown(options)
}
