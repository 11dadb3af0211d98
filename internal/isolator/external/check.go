package external

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gantry/internal/isolator"
	"gantry/internal/isolator/contract"
	"gantry/internal/pod"
)

// Checks are what an executable has to pass. The first are about it as one, the rest are
// those of every isolator.
func Checks(x *External) []contract.Check {
	own := func(check func() error) func(context.Context) error {
		return func(context.Context) error { return check() }
	}
	checks := []contract.Check{
		{Name: "the file can be executed", Run: own(func() error { _, err := x.verify(); return err })},
		{Name: "it tells its features", Run: own(x.Usable)},
		{Name: "another version is refused", Run: own(x.refusesVersion)},
		{Name: "an unknown verb is refused", Run: own(x.refusesVerb)},
		{Name: "no secret is an argument", Run: own(x.noSecretArguments)},
	}
	forget := contract.Check{Name: "cleanup of an app that left nothing", Run: x.forgetsTwice}
	return append(append(checks, contract.Checks(x, x.suit)...), forget)
}

// suit makes a pod such as the isolator takes.
func (x *External) suit(in *isolator.App) {
	if !x.Features().PodNetwork {
		in.Pod.Namespaces.Network, in.App.Namespaces.Network = pod.NamespaceNode, pod.NamespaceNode
	}
}

// forgetsTwice: cleanup of an app has no pod. While it fails nobody can remove the app.
func (x *External) forgetsTwice(ctx context.Context) error {
	for range 2 {
		if err := x.Forget(ctx, contract.Input(x).App.ID); err != nil {
			return fmt.Errorf("cleanup of an app, without a pod: %w", err)
		}
	}
	return nil
}

// refusesVersion: a later Gantry may mean something else by the same words.
func (x *External) refusesVersion() error {
	out, said, err := x.run(verbFeatures, []byte(`{"version":1000000,"verb":"features"}`), never)
	_, err = judge(verbFeatures, out, said, err)
	return wantUnsupported("version 1000000", err)
}

func (x *External) refusesVerb() error {
	_, err := x.ask(request{Verb: "no-such-verb"}, never)
	return wantUnsupported(`verb "no-such-verb"`, err)
}

func wantUnsupported(what string, err error) error {
	if !errors.Is(err, pod.ErrUnsupported) {
		return fmt.Errorf("%s: want an error of kind \"unsupported\", got %w", what, orNone(err))
	}
	return nil
}

func orNone(err error) error {
	if err == nil {
		return errors.New("none")
	}
	return err
}

// noSecretArguments: everybody on the machine sees arguments.
func (x *External) noSecretArguments() error {
	in := contract.Input(x)
	x.suit(&in)
	_, in, err := x.check(in)
	if err != nil {
		return err
	}
	inside, err := x.inside.Inside(in)
	if err != nil {
		return err
	}
	req, err := appRequest(in, inside)
	if err != nil {
		return err
	}
	a, err := x.ask(req, never)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(a.Plan.Run.Argv, func(arg string) bool { return strings.Contains(arg, contract.Secret) }) {
		return errors.New("run.argv has the value of a variable of the app: everybody sees it")
	}
	return nil
}
