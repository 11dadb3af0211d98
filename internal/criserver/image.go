package criserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"gantry/internal/image"
	"gantry/internal/pod"
)

// imageName takes the name of an image out of a request.
func (s *Server) imageName(spec *runtimeapi.ImageSpec) (string, error) {
	if spec.GetImage() == "" {
		return "", fmt.Errorf("image.image: must not be empty: %w", pod.ErrInvalid)
	}
	return spec.Image, s.knows("image.runtime_handler", spec.RuntimeHandler)
}

// PullImage asks the registry in any case; r.SandboxConfig would matter for
// policies of a namespace, which Gantry does not have.
func (s *imageService) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	name, err := s.imageName(r.GetImage())
	if err != nil {
		return nil, err
	}
	began, one := time.Now(), s.pulls.begin(name)
	defer one.end()
	img, err := s.cfg.Images.Pull(ctx, name, image.PullOptions{Auth: auth(r.Auth), Progress: one.progress})
	if err != nil {
		return nil, pullError(err)
	}
	s.log.Info("image pulled", "image", name, "id", img.ID, "size", img.Size, "took", time.Since(began).Round(time.Millisecond))
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// auth takes credentials in any of the forms that a client may use. They are not
// kept, and never logged.
func auth(a *runtimeapi.AuthConfig) *image.Auth {
	if a == nil || a.Username == "" && a.Password == "" && a.Auth == "" && a.IdentityToken == "" && a.RegistryToken == "" {
		return nil
	}
	return &image.Auth{
		Username: a.Username, Password: a.Password, Auth: a.Auth,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, ServerAddress: a.ServerAddress,
	}
}

func (s *imageService) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	if err := s.knows("filter.image.runtime_handler", r.GetFilter().GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	images, err := s.images(r.GetFilter().GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	pinned, err := s.pinned()
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListImagesResponse{}
	for _, img := range images {
		resp.Images = append(resp.Images, fromImage(img, pinned))
	}
	return resp, nil
}

func (s *Server) images(name string) ([]*image.Image, error) {
	if name == "" {
		return s.cfg.Images.Images()
	}
	img, err := s.cfg.Images.Image(name)
	switch {
	case errors.Is(err, pod.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return []*image.Image{img}, nil
}

// ImageStatus answers without an image if there is none: that is not an error. One that is
// damaged is none, so that kubelet pulls it again.
func (s *imageService) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	name, err := s.imageName(r.GetImage())
	if err != nil {
		return nil, err
	}
	images, err := s.images(name)
	if err != nil || len(images) == 0 {
		return &runtimeapi.ImageStatusResponse{}, err
	}
	if err := s.cfg.Images.Whole(images[0]); err != nil {
		s.log.Warn("an image is told to be none", "err", err)
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	pinned, err := s.pinned()
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: fromImage(images[0], pinned)}
	if !r.Verbose {
		return resp, nil
	}
	b, err := json.Marshal(images[0])
	if err != nil {
		return nil, fmt.Errorf("encode info: %w", err)
	}
	resp.Info = map[string]string{"info": string(b)}
	return resp, nil
}

// RemoveImage forgets an image with all its names.
func (s *imageService) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	name, err := s.imageName(r.GetImage())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Images.Remove(ctx, name); err != nil && !errors.Is(err, pod.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo tells of the one file system that holds images and writable layers: what the
// ones take of it, and the others when they were last looked at.
func (s *imageService) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	info, err := s.cfg.Images.Info()
	if err != nil {
		return nil, err
	}
	used := func(bytes, inodes uint64) []*runtimeapi.FilesystemUsage {
		return []*runtimeapi.FilesystemUsage{{
			Timestamp: time.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: info.Mountpoint},
			UsedBytes: number(bytes), InodesUsed: number(inodes),
		}}
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     used(info.UsedBytes, info.Inodes),
		ContainerFilesystems: used(s.cfg.Engine.LayersUsed(ctx)),
	}, nil
}

// pinned lists the images that pods of the command line use. Kubelet cannot see
// these pods and would collect their images as unused.
func (s *Server) pinned() (map[string]bool, error) { return s.cfg.Engine.ImagesOf(pod.OwnerCLI) }

func fromImage(img *image.Image, pinned map[string]bool) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id:          img.ID,
		RepoTags:    slices.Clone(img.Tags),
		RepoDigests: slices.Clone(img.Digests),
		Size:        uint64(max(img.Size, 1)), // 0 is not allowed
		Pinned:      img.Pinned || pinned[img.ID],
	}
	if len(img.Annotations) > 0 {
		out.Spec = &runtimeapi.ImageSpec{Image: img.ID, Annotations: img.Annotations}
	}
	// The group after the colon has no place in the message.
	user, _, _ := strings.Cut(img.Config.User, ":")
	if uid, err := strconv.ParseUint(user, 10, 32); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: int64(uid)}
	} else {
		out.Username = user
	}
	return out
}

// pullError gives an error its name, if the CRI has one: kubelet makes events of
// these that tell people where to look.
func pullError(err error) error {
	switch {
	case errors.Is(err, image.ErrSignature):
		return &namedError{crierrors.ErrSignatureValidationFailed, err}
	case errors.Is(err, pod.ErrUnavailable):
		return &namedError{crierrors.ErrRegistryUnavailable, err}
	}
	return err
}
