package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"gantry/internal/pod"
)

type portForwardOptions struct {
	address string
}

func portForwardCommand(env *Env) *cobra.Command {
	var o portForwardOptions
	cmd := command(env, "port-forward [OPTIONS] POD [LOCAL:]PORT...", "Forward ports of this host to a pod", cobra.MinimumNArgs(2), o.run)
	cmd.Long = `Listen on ports of this host and pass connections on to ports of a pod, also to what listens on its loopback alone, until
ctrl-c. Without LOCAL the port is the same; LOCAL 0 takes one that is free. What it listens on is printed.`
	cmd.Example = `  gantry port-forward web 8080:80
  gantry port-forward --address 0.0.0.0 web 0:80 5432`
	cmd.ValidArgsFunction = completePods(env)
	cmd.Flags().StringVar(&o.address, "address", "127.0.0.1", "listen on `IP` of this host")
	return cmd
}

// forward is one port of the host and where it leads to.
type forward struct{ local, remote uint16 }

func parseForward(s string) (forward, error) {
	local, remote, both := strings.Cut(s, ":")
	if !both {
		remote = local
	}
	from, err := strconv.ParseUint(local, 10, 16)
	to, toErr := strconv.ParseUint(remote, 10, 16)
	if err != nil || toErr != nil {
		return forward{}, usagef("%q: want PORT or LOCAL:PORT, numbers up to 65535", s)
	}
	if to == 0 {
		return forward{}, usagef("%q: a pod has no port 0", s)
	}
	return forward{uint16(from), uint16(to)}, nil
}

func (o *portForwardOptions) run(ctx context.Context, env *Env, args []string) error {
	if net.ParseIP(o.address) == nil {
		return usagef("--address %q: want an IP address", o.address)
	}
	var forwards []forward
	for _, s := range args[1:] {
		f, err := parseForward(s)
		if err != nil {
			return err
		}
		forwards = append(forwards, f)
	}
	if err := needRoot(env, "port-forward"); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return env.with(ctx, func(be *Backend) error {
		p, err := findPod(be.Engine, args[0])
		if err != nil {
			return err
		}
		if !p.Ready {
			return fmt.Errorf("port-forward to pod %s: it is %s: %w", nameOf(p), phaseOf(p), pod.ErrState)
		}
		return o.serve(ctx, env, be.Engine, p, forwards)
	})
}

// serve listens on all ports before it says so of one: either all are there or none.
func (o *portForwardOptions) serve(ctx context.Context, env *Env, e Engine, p pod.PodStatus, forwards []forward) error {
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for _, f := range forwards {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(o.address, strconv.Itoa(int(f.local))))
		if err != nil {
			return fmt.Errorf("port-forward to pod %s: %w", nameOf(p), err)
		}
		listeners = append(listeners, l)
	}
	all, ctx := errgroup.WithContext(ctx) // where one cannot listen any more all end
	for i, l := range listeners {
		fmt.Fprintf(env.Stdout, "%s -> %d\n", l.Addr(), forwards[i].remote)
		context.AfterFunc(ctx, func() { l.Close() })
		all.Go(func() error { return acceptAll(ctx, env, e, p, l, forwards[i].remote, all) })
	}
	return all.Wait()
}

// acceptAll passes connections on until there is nothing to listen on. One that fails is told
// of, and the others go on.
func acceptAll(ctx context.Context, env *Env, e Engine, p pod.PodStatus, l net.Listener, port uint16, all *errgroup.Group) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("port-forward to pod %s: %w", nameOf(p), err)
		}
		all.Go(func() error {
			defer conn.Close()
			if err := e.PortForward(ctx, p.ID, port, conn); err != nil && ctx.Err() == nil {
				fmt.Fprintf(env.Stderr, "gantry: port-forward to port %d of pod %s: %s\n", port, printable(nameOf(p)), oneLine(err.Error()))
			}
			return nil
		})
	}
}
