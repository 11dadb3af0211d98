package criserver

import "regexp"

var (
	semver      = regexp.MustCompile(`^v?[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$`)
	notInSemver = regexp.MustCompile(`[^0-9A-Za-z.-]+`)
)

// Semver makes a version that kubelet can parse of any: builds between releases
// are named by a commit, and kubelet shows a node's runtime as unknown then.
func Semver(version string) string {
	if semver.MatchString(version) {
		return version
	}
	if version = notInSemver.ReplaceAllString(version, "."); version == "" {
		return "0.0.0"
	}
	return "0.0.0+" + version
}
