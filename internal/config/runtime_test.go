package config

import (
	"slices"
	"strings"
	"testing"
)

func TestParseRuntime(t *testing.T) {
	t.Parallel()
	r, err := ParseRuntime("gvisor:runsc=/usr/local/bin/runsc --platform=systrap  --x=a=b")
	if err != nil || r.Name != "gvisor" || r.Kind != "runsc" || !slices.Equal(r.Command, []string{"/usr/local/bin/runsc", "--platform=systrap", "--x=a=b"}) {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = ParseRuntime("runc=/usr/sbin/runc")
	if err != nil || r.Name != "runc" || r.Kind != "" || !slices.Equal(r.Command, []string{"/usr/sbin/runc"}) {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestNamesOfIsolators: one name chooses one isolator, whichever files it stands in.
func TestNamesOfIsolators(t *testing.T) {
	t.Parallel()
	for want, text := range map[string]string{
		"":                   "[oci]\nruntimes = [\"runc=/a\", \"crun=/b\"]\n[isolator]\nhandlers = [\"old=runc\"]",
		"oci.runtimes: runc": "[oci]\nruntimes = [\"runc=/a\", \"runc=/b\"]",
		"isolator.handlers: runc: there is another isolator of that name, of oci.runtimes": "[oci]\nruntimes = [\"runc=/a\"]\n[isolator]\nhandlers = [\"runc=oci\"]",
	} {
		dir := t.TempDir()
		write(t, dir, "config.toml", text)
		_, _, err := Load(dir)
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), "check configuration: "+want)) {
			t.Errorf("%s\n got %v\nwant %s", text, err, want)
		}
	}
}
