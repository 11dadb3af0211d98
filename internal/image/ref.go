package image

import (
	"fmt"
	"strings"

	"go.podman.io/image/v5/docker/reference"

	"gantry/internal/pod"
)

// parseName reads a name as docker does: docker.io, library/ and latest may be
// left out. A tag next to a digest says nothing and is dropped.
func parseName(s string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return nil, fmt.Errorf("image name %s: %w: %w", shown(s), err, pod.ErrInvalid)
	}
	if digested, ok := named.(reference.Digested); ok {
		if _, tagged := named.(reference.Tagged); !tagged {
			return named, nil
		}
		if named, err = reference.WithDigest(reference.TrimNamed(named), digested.Digest()); err != nil {
			return nil, fmt.Errorf("image name %s: %w: %w", shown(s), err, pod.ErrInvalid)
		}
		return named, nil
	}
	return reference.TagNameOnly(named), nil
}

const idPrefix = "sha256:"

// minPrefix is how much of an ID must be given to mean it.
const minPrefix = 12

// parseID tells whether s can be an ID, or the beginning of one.
func parseID(s string) (hex string, ok bool) {
	hex = strings.TrimPrefix(s, idPrefix)
	if len(hex) < minPrefix || len(hex) > 64 {
		return "", false
	}
	return hex, isHex(hex)
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return s != ""
}

// hexOf is the digest behind "sha256:", "" if that is not what it is.
func hexOf(digest string) string {
	hex, ok := strings.CutPrefix(digest, idPrefix)
	if !ok || len(hex) != 64 || !isHex(hex) {
		return ""
	}
	return hex
}
