package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gantry/internal/image"
	"gantry/internal/pod"
)

func imageCommand(env *Env) *cobra.Command {
	cmd := &cobra.Command{Use: "image COMMAND", Short: "List, show and remove images", Aliases: []string{"images"}}
	cmd.Args = noSuchCommand
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(imageListCommand(env), imageStatusCommand(env), imageRmCommand(env), fetchCommand(env))
	return cmd
}

// imageJSON is an image as --format json prints it; see podJSON.
type imageJSON struct {
	ID      string      `json:"id"`
	Names   []string    `json:"names"`
	Digests []string    `json:"digests"`
	Size    int64       `json:"size"`
	Created time.Time   `json:"created,omitzero"`
	Pulled  time.Time   `json:"pulled,omitzero"`
	OS      string      `json:"os"`
	Arch    string      `json:"arch"`
	Pinned  bool        `json:"pinned"`
	Layers  []layerJSON `json:"layers"`
	Config  configJSON  `json:"config"`
}

type layerJSON struct {
	DiffID string `json:"diffID"`
	Size   int64  `json:"size"`
}

type configJSON struct {
	User         string            `json:"user"`
	Entrypoint   []string          `json:"entrypoint"`
	Cmd          []string          `json:"cmd"`
	WorkingDir   string            `json:"workingDir"`
	StopSignal   string            `json:"stopSignal"`
	Volumes      []string          `json:"volumes"`
	ExposedPorts []string          `json:"exposedPorts"`
	Labels       map[string]string `json:"labels"`
}

func imageOut(i *image.Image) imageJSON {
	c := i.Config
	out := imageJSON{
		ID: i.ID, Names: list(i.Tags), Digests: list(i.Digests), Size: i.Size, Created: i.Created, Pulled: i.Pulled,
		OS: i.OS, Arch: i.Arch, Pinned: i.Pinned, Layers: []layerJSON{},
		Config: configJSON{c.User, list(c.Entrypoint), list(c.Cmd), c.WorkingDir, c.StopSignal, list(c.Volumes), list(c.ExposedPorts), orEmpty(c.Labels)},
	}
	for _, l := range i.Layers {
		out.Layers = append(out.Layers, layerJSON{l.DiffID, l.Size})
	}
	return out
}

// list makes an empty list of none, so that JSON has no null.
func list(l []string) []string { return append([]string{}, l...) }

func shortImage(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

type imageListOptions struct {
	format          format
	quiet, noLegend bool
}

func imageListCommand(env *Env) *cobra.Command {
	var o imageListOptions
	cmd := command(env, "list [OPTIONS]", "List images", cobra.NoArgs, o.run)
	cmd.Aliases = []string{"ls"}
	f := cmd.Flags()
	o.format.flag(f)
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print whole IDs only")
	f.BoolVar(&o.noLegend, "no-legend", false, "print no line of headings")
	return cmd
}

func (o *imageListOptions) run(ctx context.Context, env *Env, _ []string) error {
	return env.with(ctx, func(be *Backend) error {
		images, err := be.Images.Images()
		if err != nil {
			return err
		}
		switch {
		case o.quiet:
			for _, i := range images {
				fmt.Fprintln(env.Stdout, i.ID)
			}
			return nil
		case o.format == formatJSON:
			out := struct {
				Images []imageJSON `json:"images"`
			}{[]imageJSON{}}
			for _, i := range images {
				out.Images = append(out.Images, imageOut(i))
			}
			return printJSON(env.Stdout, out)
		}
		return o.table(env, images)
	})
}

func (o *imageListOptions) table(env *Env, images []*image.Image) error {
	header := []string{"IMAGE", "NAME", "SIZE", "PULLED"}
	if o.noLegend {
		header = nil
	}
	t := newTable(env.Stdout, header...)
	for _, i := range images {
		names := i.Tags
		if len(names) == 0 {
			names = i.Digests
		}
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			t.row(shortImage(i.ID), name, size(i.Size), age(env.Now(), i.Pulled))
		}
	}
	return t.flush()
}

type imageStatusOptions struct{ format format }

func imageStatusCommand(env *Env) *cobra.Command {
	var o imageStatusOptions
	cmd := command(env, "status [OPTIONS] IMAGE", "Show an image", cobra.ExactArgs(1), o.run)
	cmd.ValidArgsFunction = completeImages(env)
	o.format.flag(cmd.Flags())
	return cmd
}

func (o *imageStatusOptions) run(ctx context.Context, env *Env, args []string) error {
	return env.with(ctx, func(be *Backend) error {
		i, err := findImage(be.Images, args[0])
		if err != nil {
			return err
		}
		if o.format == formatJSON {
			return printJSON(env.Stdout, imageOut(i))
		}
		t := newTable(env.Stdout)
		t.row("image:", i.ID)
		t.row("names:", strings.Join(i.Tags, ", "))
		t.row("digests:", strings.Join(i.Digests, ", "))
		t.row("platform:", i.OS+"/"+i.Arch)
		t.row("size:", size(i.Size))
		t.row("layers:", fmt.Sprint(len(i.Layers)))
		t.row("created:", when(env, i.Created))
		t.row("pulled:", when(env, i.Pulled))
		t.row("user:", i.Config.User)
		t.row("entrypoint:", words(i.Config.Entrypoint))
		t.row("command:", words(i.Config.Cmd))
		t.row("directory:", i.Config.WorkingDir)
		return t.flush()
	})
}

func words(list []string) string {
	var out []string
	for _, s := range list {
		if s == "" || strings.ContainsAny(s, " \t\n\"'\\") {
			s = fmt.Sprintf("%q", s)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// findImage finds an image by a name the store knows, or by the beginning of its
// ID, as long as only one image fits.
func findImage(images Images, ref string) (*image.Image, error) {
	img, err := images.Image(ref)
	if !errors.Is(err, pod.ErrNotFound) && !errors.Is(err, pod.ErrInvalid) {
		return img, err
	}
	all, listErr := images.Images()
	if listErr != nil {
		return nil, listErr
	}
	var found []*image.Image
	for _, i := range all {
		if len(ref) >= 4 && strings.HasPrefix(strings.TrimPrefix(i.ID, "sha256:"), strings.TrimPrefix(ref, "sha256:")) {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 0:
		return nil, withHint(fmt.Errorf("find image %q: %w", ref, pod.ErrNotFound), "gantry image list shows all images")
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("find image %q: it may be any of %d: %w", ref, len(found), pod.ErrInvalid)
}

func imageRmCommand(env *Env) *cobra.Command {
	cmd := command(env, "rm IMAGE...", "Remove images", cobra.MinimumNArgs(1), runImageRm)
	cmd.Long = `Remove images. A name of an image that has several is taken away from it; its last name, or its ID, removes it. An
image that a pod uses is refused. An image whose record cannot be read is removed by its whole ID, sha256:…, which gantry gc tells.`
	cmd.ValidArgsFunction = completeImages(env)
	return cmd
}

func runImageRm(ctx context.Context, env *Env, args []string) error {
	if err := needRoot(env, "image rm"); err != nil {
		return err
	}
	return env.with(ctx, func(be *Backend) error {
		var errs []error
		for _, ref := range args {
			img, err := findImage(be.Images, ref)
			switch {
			case err == nil:
				err = removeImage(ctx, be.Images, img, ref)
			case errors.Is(err, pod.ErrNotFound):
				if damaged := be.Images.RemoveDamaged(ctx, ref); !errors.Is(damaged, pod.ErrNotFound) {
					err = damaged
				}
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			fmt.Fprintln(env.Stdout, ref)
		}
		return errors.Join(errs...)
	})
}

func removeImage(ctx context.Context, images Images, img *image.Image, ref string) error {
	byID := strings.HasPrefix(img.ID, "sha256:"+strings.TrimPrefix(ref, "sha256:"))
	byDigest := strings.Contains(ref, "@")
	if !byID && (len(img.Tags) > 1 || byDigest && len(img.Tags)+len(img.Digests) > 1) {
		return images.Untag(ctx, ref)
	}
	return images.Remove(ctx, img.ID)
}
