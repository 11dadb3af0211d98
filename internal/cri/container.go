package cri

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

var imageID = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// ImageID tells whether an image is named by its ID.
func ImageID(s string) bool { return imageID.MatchString(s) }

// Env takes the environment of a container, in order, as NAME=value.
func Env(field string, in []*runtimeapi.KeyValue) ([]string, error) {
	var out []string
	for i, kv := range in {
		if kv.GetKey() == "" || strings.Contains(kv.GetKey(), "=") {
			return nil, invalid(fmt.Sprintf("%s[%d].key", field, i), "%q is not the name of a variable", kv.GetKey())
		}
		out = append(out, kv.Key+"="+string(kv.Value))
	}
	return out, nil
}

// LogPath joins the log file of a container with the log directory of its pod.
func LogPath(field, dir, file string) (string, error) {
	switch {
	case file == "":
		return "", nil
	case dir == "":
		return "", invalid(field, "%q: the sandbox has no log_directory", file)
	case path.IsAbs(file) || climbs(file) || strings.HasSuffix(file, "/") || path.Clean(file) == ".":
		return "", invalid(field, "%q is not a file below the sandbox's log_directory", file)
	}
	return path.Join(dir, file), nil
}

// Devices takes devices of the host, or whole directories of them.
func Devices(field string, in []*runtimeapi.Device) ([]pod.Device, error) {
	var out []pod.Device
	for i, d := range in {
		at := fmt.Sprintf("%s[%d]", field, i)
		if err := absolute(at+".host_path", d.GetHostPath()); err != nil {
			return nil, err
		}
		if err := absolute(at+".container_path", d.GetContainerPath()); err != nil {
			return nil, err
		}
		if d.Permissions == "" || strings.Trim(d.Permissions, "rwm") != "" {
			return nil, invalid(at+".permissions", "%q is not made of r, w and m", d.Permissions)
		}
		out = append(out, pod.Device{Path: d.ContainerPath, Source: d.HostPath, Permissions: d.Permissions})
	}
	return out, nil
}

// Mounts takes the mounts of a container.
func Mounts(field string, in []*runtimeapi.Mount) ([]pod.Mount, error) {
	var out []pod.Mount
	for i, m := range in {
		got, err := mount(fmt.Sprintf("%s[%d]", field, i), m)
		if err != nil {
			return nil, err
		}
		out = append(out, got)
	}
	return out, nil
}

func mount(field string, m *runtimeapi.Mount) (pod.Mount, error) {
	if err := absolute(field+".container_path", m.GetContainerPath()); err != nil {
		return pod.Mount{}, err
	}
	if path.Clean(m.ContainerPath) == "/" {
		return pod.Mount{}, invalid(field+".container_path", "is the root of the container")
	}
	out := pod.Mount{
		// As it was written: kubelet looks mounts up by this path.
		Path:              m.ContainerPath,
		HostPath:          m.HostPath,
		ReadOnly:          m.Readonly,
		RecursiveReadOnly: m.RecursiveReadOnly,
		Relabel:           m.SelinuxRelabel,
		ImageSubPath:      m.ImageSubPath,
		Options:           m.MountOptions,
	}
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		out.Propagation = pod.PropagationPrivate
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		out.Propagation = pod.PropagationSlave
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		out.Propagation = pod.PropagationShared
	}
	if m.RecursiveReadOnly && (!m.Readonly || out.Propagation != pod.PropagationPrivate) {
		return pod.Mount{}, invalid(field+".recursive_read_only", "needs readonly and private propagation")
	}
	for i, o := range m.MountOptions {
		if !slices.Contains([]string{"noexec", "nodev", "nosuid"}, o) {
			return pod.Mount{}, invalid(fmt.Sprintf("%s.mount_options[%d]", field, i), "%q is not noexec, nodev or nosuid", o)
		}
	}
	if err := mountSource(field, m, &out); err != nil {
		return pod.Mount{}, err
	}
	var err error
	if out.UIDs, err = idMaps(field+".uidMappings", m.UidMappings); err != nil {
		return pod.Mount{}, err
	}
	if out.GIDs, err = idMaps(field+".gidMappings", m.GidMappings); err != nil {
		return pod.Mount{}, err
	}
	if (len(out.UIDs) == 0) != (len(out.GIDs) == 0) {
		return pod.Mount{}, invalid(field+".uidMappings", "users and groups must be mapped together")
	}
	return out, nil
}

func mountSource(field string, m *runtimeapi.Mount, out *pod.Mount) error {
	if m.Image == nil {
		if m.ImageSubPath != "" {
			return invalid(field+".image_sub_path", "needs an image")
		}
		return absolute(field+".host_path", m.HostPath)
	}
	switch {
	case m.HostPath != "":
		return invalid(field+".host_path", "is set together with an image")
	case m.Image.Image == "":
		return invalid(field+".image.image", "must not be empty")
	case !m.Readonly:
		return invalid(field+".readonly", "an image can only be mounted read-only")
	case out.Propagation != pod.PropagationPrivate:
		return invalid(field+".propagation", "an image can only be mounted private")
	case path.IsAbs(m.ImageSubPath) || climbs(m.ImageSubPath):
		return invalid(field+".image_sub_path", "%q is not a path inside the image", m.ImageSubPath)
	}
	out.Image = ImageOf(m.Image)
	return nil
}

// ImageOf takes the image that a container or a mount asks for: by ID, as kubelet
// does after a pull, or by any name. Name keeps what the user wrote.
func ImageOf(s *runtimeapi.ImageSpec) *pod.Image {
	img := &pod.Image{Name: s.GetUserSpecifiedImage()}
	if ImageID(s.GetImage()) {
		img.ID = s.Image
	}
	if img.ID == "" || img.Name == "" {
		// A name that the caller resolved differs from what the user wrote only
		// when an ID is given too; else the one name there is must do for both.
		if img.ID == "" {
			img.Name = s.GetImage()
		} else {
			img.Name = img.ID
		}
	}
	return img
}

// FromMounts tells mounts in the CRI's words.
func FromMounts(in []pod.Mount) []*runtimeapi.Mount {
	var out []*runtimeapi.Mount
	for _, m := range in {
		to := &runtimeapi.Mount{
			ContainerPath:     m.Path,
			HostPath:          m.HostPath,
			Readonly:          m.ReadOnly,
			RecursiveReadOnly: m.RecursiveReadOnly,
			SelinuxRelabel:    m.Relabel,
			ImageSubPath:      m.ImageSubPath,
			MountOptions:      m.Options,
			UidMappings:       fromIDMaps(m.UIDs),
			GidMappings:       fromIDMaps(m.GIDs),
		}
		if m.Image != nil {
			to.Image = &runtimeapi.ImageSpec{Image: m.Image.ID, UserSpecifiedImage: m.Image.Name, ImageRef: m.Image.Ref}
		} else if m.HostPath == "" {
			to.HostPath = m.Source
		}
		switch m.Propagation {
		case pod.PropagationSlave:
			to.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case pod.PropagationShared:
			to.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
		out = append(out, to)
	}
	return out
}
