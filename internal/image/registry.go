package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	ociimage "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"gantry/internal/pod"
)

var (
	// ErrUnauthorized says that a registry refused the credentials, or their lack.
	ErrUnauthorized = fmt.Errorf("credentials refused: %w", pod.ErrInvalid)
	// ErrSignature says that the signature policy forbids the image.
	ErrSignature = fmt.Errorf("signature policy: %w", pod.ErrInvalid)
)

const userAgent = "gantry"

// system is what the library must know for one pull.
func (s *Store) system(named reference.Named, o PullOptions) (*types.SystemContext, error) {
	// The library reads registries.conf once and for all: a server would never see a change.
	sysregistriesv2.InvalidateCache()
	sys := &types.SystemContext{
		SystemRegistriesConfPath:    s.cfg.RegistriesConf,
		SystemRegistriesConfDirPath: s.cfg.RegistriesConfDir,
		SignaturePolicyPath:         s.cfg.PolicyFile,
		AuthFilePath:                s.cfg.AuthFile,
		DockerRegistryUserAgent:     userAgent,
		OSChoice:                    o.OS,
		ArchitectureChoice:          o.Arch,
		VariantChoice:               o.Variant,
	}
	if sys.OSChoice == "" {
		sys.OSChoice = "linux"
	}
	return sys, o.Auth.apply(sys, reference.Domain(named))
}

// apply puts credentials in place. Those for another registry are not sent.
func (a *Auth) apply(sys *types.SystemContext, domain string) error {
	if a == nil || !a.meantFor(domain) {
		return nil
	}
	if a.RegistryToken != "" {
		// The empty one says that there are credentials, and that they are for this
		// registry only: without it the library sends the token to mirrors, too.
		sys.DockerBearerRegistryToken, sys.DockerAuthConfig = a.RegistryToken, &types.DockerAuthConfig{}
		return nil
	}
	user, password := a.Username, a.Password
	if user == "" && password == "" && a.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(strings.TrimRight(a.Auth, "\x00"))
		if err != nil { // its text could hold part of the secret
			return fmt.Errorf("credentials: auth is not base64: %w", pod.ErrInvalid)
		}
		var ok bool
		if user, password, ok = strings.Cut(string(raw), ":"); !ok {
			return fmt.Errorf("credentials: auth is not user:password: %w", pod.ErrInvalid)
		}
		password = strings.TrimRight(password, "\x00")
	}
	if user == "" && password == "" && a.IdentityToken == "" {
		return nil
	}
	sys.DockerAuthConfig = &types.DockerAuthConfig{Username: user, Password: password, IdentityToken: a.IdentityToken}
	return nil
}

func (a *Auth) meantFor(domain string) bool {
	if a.ServerAddress == "" {
		return true
	}
	address := a.ServerAddress
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	return registryHost(u.Host) == registryHost(domain)
}

func registryHost(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	default:
		return host
	}
}

// remote is an image in a registry, its manifest and config read and verified,
// and allowed by the policy.
type remote struct {
	source    types.ImageSource
	top       digest.Digest     // of what the name stands for: a manifest or an index
	manifests map[string][]byte // by digest
	configID  digest.Digest
	rawConfig []byte
	config    imgspec.Image
	layers    []blob
	infos     []types.BlobInfo
	// annotations of the manifest; those of the index are the index's.
	annotations map[string]string
}

// maxLayers bounds the layers of an image. Others stop at 127.
const maxLayers = 1000

// openRemote contacts the registry.
func openRemote(ctx context.Context, named reference.Named, sys *types.SystemContext) (r *remote, err error) {
	ref, err := docker.NewReference(named)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, pod.ErrInvalid)
	}
	source, err := ref.NewImageSource(ctx, sys)
	if err != nil {
		return nil, kind(err)
	}
	r = &remote{source: source, manifests: map[string][]byte{}}
	defer func() {
		if err != nil {
			source.Close()
		}
	}()
	unparsed, err := r.instance(ctx, sys)
	if err != nil {
		return nil, kind(err)
	}
	if err := allowed(ctx, sys, unparsed); err != nil {
		return nil, err
	}
	img, err := ociimage.FromUnparsedImage(ctx, sys, unparsed)
	if err != nil { // the manifest was read already; here it is understood
		return nil, fmt.Errorf("%w: %w", err, pod.ErrInvalid)
	}
	if err := r.readConfig(ctx, img); err != nil {
		return nil, kind(err)
	}
	return r, nil
}

// instance reads the manifest, and for an index the one of our platform.
func (r *remote) instance(ctx context.Context, sys *types.SystemContext) (*ociimage.UnparsedImage, error) {
	unparsed := ociimage.UnparsedInstance(r.source, nil)
	raw, mime, err := unparsed.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	if r.top, err = manifest.Digest(raw); err != nil {
		return nil, err
	}
	r.manifests[r.top.String()] = raw
	if !manifest.MIMETypeIsMultiImage(mime) {
		r.annotations = annotations(raw)
		return unparsed, nil
	}
	list, err := manifest.ListFromBlob(raw, mime)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, pod.ErrInvalid)
	}
	chosen, err := list.ChooseInstance(sys)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, pod.ErrNotFound)
	}
	unparsed = ociimage.UnparsedInstance(r.source, &chosen)
	if raw, _, err = unparsed.Manifest(ctx); err != nil {
		return nil, err
	}
	r.manifests[chosen.String()] = raw
	r.annotations = annotations(raw)
	return unparsed, nil
}

// maxAnnotations bounds the annotations of an image, names and values together: they
// are in every list of images, and a client takes no more than 16 MiB.
const maxAnnotations = 16 << 10

// annotations reads those of a manifest, which only OCI's have. Too many are as none:
// nothing depends on them.
func annotations(raw []byte) map[string]string {
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil // the library says what is wrong with the manifest
	}
	size := 0
	for k, v := range m.Annotations {
		size += len(k) + len(v)
	}
	if size > maxAnnotations {
		return nil
	}
	return m.Annotations
}

// allowed asks the signature policy.
func allowed(ctx context.Context, sys *types.SystemContext, unparsed types.UnparsedImage) (err error) {
	policy, err := readPolicy(sys)
	if err != nil {
		return fmt.Errorf("read signature policy: %w: %w", err, pod.ErrInvalid)
	}
	pc, err := signature.NewPolicyContext(policy)
	if err != nil {
		return fmt.Errorf("read signature policy: %w: %w", err, pod.ErrInvalid)
	}
	defer func() { err = errors.Join(err, pc.Destroy()) }()
	if ok, err := pc.IsRunningImageAllowed(ctx, unparsed); err != nil || !ok {
		return fmt.Errorf("%w: %w", err, ErrSignature)
	}
	return nil
}

func readPolicy(sys *types.SystemContext) (*signature.Policy, error) {
	if sys.SignaturePolicyPath != "" {
		return signature.NewPolicyFromFile(sys.SignaturePolicyPath)
	}
	return signature.DefaultPolicy(sys)
}

// readConfig reads the config and the list of layers, which must agree.
func (r *remote) readConfig(ctx context.Context, img types.Image) (err error) {
	if r.rawConfig, err = img.ConfigBlob(ctx); err != nil {
		return err
	}
	r.configID = img.ConfigInfo().Digest
	config, err := img.OCIConfig(ctx)
	if err != nil {
		return fmt.Errorf("image config: %w: %w", err, pod.ErrInvalid)
	}
	r.config = *config
	r.infos = img.LayerInfos()
	diffIDs := config.RootFS.DiffIDs
	switch {
	case hexOf(r.configID.String()) == "":
		return fmt.Errorf("image config: digest %s: only sha256: %w", shown(r.configID.String()), pod.ErrUnsupported)
	case len(diffIDs) == 0 && len(r.infos) > 0:
		return fmt.Errorf("image config: type %s is not that of a container image: %w", shown(img.ConfigInfo().MediaType), pod.ErrUnsupported)
	case len(diffIDs) != len(r.infos):
		return fmt.Errorf("image config: %d layers, the manifest has %d: %w", len(diffIDs), len(r.infos), pod.ErrInvalid)
	case len(diffIDs) == 0:
		return fmt.Errorf("image has no layers: %w", pod.ErrInvalid)
	case len(diffIDs) > maxLayers:
		return fmt.Errorf("image has %d layers, at most %d are possible: %w", len(diffIDs), maxLayers, pod.ErrUnsupported)
	}
	for i, info := range r.infos {
		b := blob{digest: info.Digest, diffID: diffIDs[i], size: info.Size}
		if hexOf(b.digest.String()) == "" || hexOf(b.diffID.String()) == "" {
			return fmt.Errorf("layer %d: digests %s and %s: only sha256: %w", i+1, shown(b.digest.String()), shown(b.diffID.String()), pod.ErrUnsupported)
		}
		if info.Size < 0 { // what a layer may unpack to depends on it
			return fmt.Errorf("layer %d: size %d: %w", i+1, info.Size, pod.ErrInvalid)
		}
		if strings.HasSuffix(info.MediaType, "+encrypted") {
			return fmt.Errorf("layer %d: encrypted: %w", i+1, pod.ErrUnsupported)
		}
		r.layers = append(r.layers, b)
	}
	return nil
}

// statusText is how the library writes an answer that is not JSON. Its type is
// not exported.
var statusText = regexp.MustCompile(`\bStatusCode: (\d{3}), "`)

// query is that of an address in a text.
var query = regexp.MustCompile(`(https?://[^\s"?]*)\?[^\s"]*`)

// hideQueries takes the queries out of the addresses in an error. Registries send
// us on to addresses that are signed: whoever reads one, in an event of the
// cluster, could fetch the blob.
func hideQueries(err error) error {
	text := err.Error()
	if hidden := query.ReplaceAllString(text, "$1?…"); hidden != text {
		return &textError{hidden, err}
	}
	return err
}

// textError is an error with another text.
type textError struct {
	text string
	err  error
}

func (e *textError) Error() string { return e.text }
func (e *textError) Unwrap() error { return e.err }

// kind tells what sort of error a registry's answer is.
func kind(err error) error {
	var (
		unauthorized docker.ErrUnauthorizedForCredentials
		status       docker.UnexpectedHTTPStatusError
		answer       errcode.ErrorCoder
		network      net.Error
	)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, pod.ErrInvalid), errors.Is(err, pod.ErrNotFound), errors.Is(err, pod.ErrUnsupported), errors.Is(err, pod.ErrUnavailable), errors.Is(err, pod.ErrExhausted):
		return err
	case errors.As(err, &unauthorized):
		return fmt.Errorf("%w: %w", err, ErrUnauthorized)
	case errors.Is(err, docker.ErrTooManyRequests):
		return fmt.Errorf("%w: %w", err, pod.ErrUnavailable)
	case errors.As(err, &status):
		return fmt.Errorf("%w: %w", err, statusKind(status.StatusCode))
	case errors.As(err, &answer):
		return fmt.Errorf("%w: %w", err, answerKind(answer.ErrorCode()))
	case statusText.MatchString(err.Error()):
		code, _ := strconv.Atoi(statusText.FindStringSubmatch(err.Error())[1])
		return fmt.Errorf("%w: %w", err, statusKind(code))
	case errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("%w: %w", err, pod.ErrUnavailable)
	default: // an answer came, and it makes no sense
		return fmt.Errorf("%w: %w", err, pod.ErrInvalid)
	}
}

func statusKind(code int) error {
	switch code {
	case http.StatusNotFound, http.StatusGone:
		return pod.ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return ErrUnauthorized
	default:
		return pod.ErrUnavailable
	}
}

func answerKind(code errcode.ErrorCode) error {
	switch code {
	case v2.ErrorCodeManifestUnknown, v2.ErrorCodeNameUnknown, v2.ErrorCodeBlobUnknown:
		return pod.ErrNotFound
	case errcode.ErrorCodeUnauthorized, errcode.ErrorCodeDenied:
		return ErrUnauthorized
	case v2.ErrorCodeNameInvalid, v2.ErrorCodeTagInvalid, v2.ErrorCodeDigestInvalid, v2.ErrorCodeManifestInvalid:
		return pod.ErrInvalid
	default:
		return pod.ErrUnavailable
	}
}
