package criserver

import "testing"

func TestSemver(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                   "0.0.0",
		"1.2.3":              "1.2.3",
		"v0.1.0":             "v0.1.0",
		"v0.1.0-3-gabc1234":  "v0.1.0-3-gabc1234",
		"abc1234-dirty":      "0.0.0+abc1234-dirty",
		"unknown (devel) 1!": "0.0.0+unknown.devel.1.",
	} {
		if got := Semver(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
