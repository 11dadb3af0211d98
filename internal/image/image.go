// Package image is Gantry's image store: it pulls container images, keeps every
// layer as one EROFS blob and every image as one small EROFS image of metadata
// over its layers, and says how an image is mounted.
//
// A pull streams: download, digest, decompression, checks of the archive and
// conversion run at the same time, and nothing of a layer is visible before all of
// it was verified. What is on disk is complete or in prepare/, which the next pull
// or GC takes. Names are files in refs/; an image's own directory never changes.
package image

import (
	"log/slog"
	"time"

	"gantry/internal/unit"
)

// Config says where a Store lives and what it uses. The zero values of all but
// Root and Run are the defaults.
type Config struct {
	Root string // /var/lib/gantry
	Run  string // /run/gantry: mounted trees go to Run/images
	Log  *slog.Logger

	// The files of containers-registries.conf(5), containers-auth.json(5) and
	// containers-policy.json(5); "" is their defaults.
	RegistriesConf, RegistriesConfDir, PolicyFile, AuthFile string

	// Label is the SELinux label of all files in mounted trees; "" gives none.
	Label string
	// MaxLayerBytes bounds a layer's uncompressed size; 0 is 128 GiB.
	MaxLayerBytes int64
	// Parallel is how many layers one pull handles at a time; 0 is 4.
	Parallel int
	// Patience is how long a registry may say nothing; 0 is 2 minutes.
	Patience time.Duration
	// KeepBlobs keeps the compressed layers in blobs/ after conversion.
	KeepBlobs bool
	// Mount says how trees are mounted; "" probes the kernel.
	Mount MountMode
	// InUse tells whether something still needs the image: Remove then refuses.
	InUse func(id string) bool
}

// MountMode is a way to mount an image's tree.
type MountMode string

// The modes. MountFile needs Linux 6.12 and a real file system below Root;
// MountLoop works everywhere, for the price of a copy of the layers per image.
const (
	MountFile MountMode = "file"
	MountLoop MountMode = "loop"
)

// Auth is what a caller gives for one pull; it is never stored.
type Auth struct {
	Username, Password string
	// Auth is base64 of user:password, as in a docker config file.
	Auth string
	// IdentityToken is an OAuth2 refresh token, RegistryToken a bearer token.
	IdentityToken, RegistryToken string
	ServerAddress                string
}

// PullPolicy says when a registry is asked.
type PullPolicy string

// The policies; "" is Always.
const (
	Always    PullPolicy = "always"
	IfMissing PullPolicy = "missing"
	Never     PullPolicy = "never"
)

// PullOptions are the options of one pull.
type PullOptions struct {
	Auth              *Auth
	OS, Arch, Variant string // "" is this machine's
	// Progress is called from several goroutines, one call at a time.
	Progress func(Progress)
	Policy   PullPolicy
}

// The stages of a pull.
const (
	StageManifest = "manifest"
	StageLayer    = "layer"
	StageStore    = "store"
	StageDone     = "done"
)

// Progress of a pull. Layer counts from 1; it is 0 for a stage of the whole image.
type Progress struct {
	Stage         string
	Layer, Layers int
	Bytes, Total  int64 // compressed bytes so far, of this layer
	Here          bool  // the layer was here before: nothing is downloaded
}

// Image is an image in the store.
type Image struct {
	ID      string // sha256:… of the config
	Digest  string // of the manifest it was first pulled by
	Tags    []string
	Digests []string  // repository@sha256:…
	Size    int64     // bytes on disk, layers that other images share included
	Created time.Time // by its builder, from the config
	Pulled  time.Time
	OS      string
	Arch    string
	Config  ImageConfig
	Layers  []Layer
	Pinned  bool
	// Annotations of the manifest that it was first pulled by.
	Annotations map[string]string

	manifests []string // digests of the manifests in blobs/
}

// ImageConfig is what an image says about how to run it.
type ImageConfig struct {
	User         string
	Env          []string
	Entrypoint   []string
	Cmd          []string
	WorkingDir   string
	StopSignal   string
	Volumes      []string
	ExposedPorts []string
	Labels       map[string]string
}

// Layer is one layer, lowest first in Image.Layers.
type Layer struct {
	DiffID string // sha256:… of the uncompressed archive; names the blob
	Digest string // as it was downloaded
	Size   int64  // bytes on disk
}

// FsInfo is the use of the store's file system.
type FsInfo struct {
	Mountpoint string
	UsedBytes  uint64 // by the store
	Inodes     uint64
}

// Tree is an image's read-only tree and the mount unit that keeps it in place.
// It holds whiteouts no more and must be mounted once per host.
type Tree struct {
	Path  string
	Mount unit.Unit
}

// User is a user of an image, resolved.
type User struct {
	UID, GID uint32
	Groups   []uint32 // all of them, GID first
	Name     string   // "" if the image does not name the number
	Home     string
}

// GCOptions say what GC may take.
type GCOptions struct {
	DryRun bool
	// Keep tells whether an image is in use. It is asked for every image when
	// Images is set; nil keeps all.
	Keep   func(id string) bool
	Images bool // take images that Keep does not want, with their names
}

// GCItem is one thing that GC took, or would take.
type GCItem struct {
	Kind  string // directory, image, layer, blob, ref
	Name  string
	Why   string
	Bytes int64
}
