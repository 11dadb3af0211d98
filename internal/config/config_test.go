package config

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestNoFiles(t *testing.T) {
	t.Parallel()
	got, files, err := Load(t.TempDir())
	if diff := cmp.Diff(Default(), got); diff != "" || err != nil || len(files) != 0 {
		t.Errorf("%v, %q\n%s", err, files, diff)
	}
}

func TestDropInsWinInTheirOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "config.toml", "[cri]\nsocket = \"/a\"\nslow = \"1s\"\n[network]\nbin-dirs = [\"/x\"]\n")
	write(t, dir, "config.d/20-b.toml", "[cri]\nslow = \"3s\"\n")
	write(t, dir, "config.d/10-a.toml", "[cri]\nslow = \"2s\"\n[image]\nmax-layer = \"1GiB\"\nparallel = 2\n[stdio]\njournal = false\n")
	write(t, dir, "config.d/ignored.conf", "no = toml")
	got, files, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.CRISocket, want.CRISlow, want.NetworkBinDirs = "/a", 3*time.Second, []string{"/x"}
	want.ImageMaxLayer, want.ImageParallel, want.StdioJournal = 1<<30, 2, false
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for i, f := range files {
		files[i] = strings.TrimPrefix(f, dir+"/")
	}
	if got := strings.Join(files, " "); got != "config.toml config.d/10-a.toml config.d/20-b.toml" {
		t.Errorf("files: %s", got)
	}
}

func TestErrorsNameFileAndKey(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"root = \"/a\"":                     "root: there is no such key",
		"[cri]\nsocket_ = \"/a\"":           "cri.socket_: there is no such key (is cri.socket meant?)",
		"[cri]\nsockett = \"/a\"":           "cri.sockett: there is no such key",
		"[network]\nbin_dirs = []":          "network.bin_dirs: there is no such key (is network.bin-dirs meant?)",
		"[cri.more]\nsocket = \"/a\"":       "cri.more: there is no such key",
		"[nothing]\na = 1":                  "nothing.a: there is no such key",
		"[cri]\nsocket = \"a\"":             "cri.socket: \"a\": want an absolute path",
		"[cri]\nsocket = 5":                 "cri.socket: 5: want a string",
		"[cri.socket]\na = 1":               "cri.socket: map[a:1]: want a string",
		"[cri]\nslow = 5":                   "cri.slow: 5: want a duration",
		"[cri]\nslow = \"-1s\"":             "cri.slow: -1s: want at least 0s",
		"[cri]\nslow = \"soon\"":            "cri.slow: \"soon\": want a duration",
		"[cri]\nstream-address = \"here\"":  "cri.stream-address: \"here\": want HOST:PORT",
		"[image]\nparallel = 0":             "image.parallel: 0: want 1 to 64",
		"[image]\nparallel = \"2\"":         "image.parallel: 2: want a number",
		"[image]\nmax-layer = \"1GB\"":      "image.max-layer: \"1GB\": want a size such as 128GiB",
		"[image]\nmax-layer = \"1KiB\"":     "image.max-layer: 1KiB: want 1MiB to 1024TiB",
		"[image]\nmount = \"usb\"":          "image.mount: \"usb\": want one of",
		"[stdio]\njournal = 1":              "stdio.journal: 1: want true or false",
		"[network]\nbin-dirs = \"/a\"":      "network.bin-dirs: /a: want a list of strings",
		"[network]\nbin-dirs = [1]":         "network.bin-dirs: 1: want a string",
		"[network]\nbin-dirs = [\"a\"]":     "network.bin-dirs: \"a\": want an absolute path",
		"[isolator]\ndefault = \"\"":        "isolator.default: must not be empty",
		"[oci]\nruntimes = [\"runc\"]":      "oci.runtimes: \"runc\": want NAME=PROGRAM",
		"[oci]\nruntimes = [\"1a=/x\"]":     "oci.runtimes: \"1a=/x\": want NAME=PROGRAM",
		"[oci]\nruntimes = [\"fly=/x\"]":    "oci.runtimes: \"fly=/x\": isolator fly is Gantry's own",
		"[oci]\nruntimes = [\"a:kata=/x\"]": "oci.runtimes: \"a:kata=/x\": kind \"kata\": want one of crun, runc",
		"[oci]\nruntimes = [\"runc=runc\"]": "oci.runtimes: \"runc=runc\": want the absolute path",
		"[oci]\nruntimes = [\"runc=\"]":     "oci.runtimes: \"runc=\": want the absolute path",
		"x = ":                              "toml: line 1",
	} {
		dir := t.TempDir()
		write(t, dir, "config.d/x.toml", text)
		_, _, err := Load(dir)
		if err == nil || !strings.HasPrefix(err.Error(), "read configuration "+dir+"/config.d/x.toml: "+want) {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
}

func TestTextGivesTheSameAgain(t *testing.T) {
	t.Parallel()
	c := Default()
	c.OCIRuntime, c.ImageParallel, c.ImageAuth, c.CRISlow = []string{"/usr/bin/runc", "--debug", "a \"b\""}, 7, "/odd\tpath", 1500*time.Millisecond
	c.OCIRuntimes = []string{"runc=/usr/sbin/runc", "gvisor:runsc=/x --debug"}
	dir := t.TempDir()
	write(t, dir, "config.toml", c.Text())
	got, _, err := Load(dir)
	if diff := cmp.Diff(c, got); diff != "" || err != nil {
		t.Errorf("%v\n%s\n%s", err, diff, c.Text())
	}
}

func TestTableIsWhole(t *testing.T) {
	t.Parallel()
	c := Default()
	seen := map[string]bool{}
	bound := map[uintptr]bool{}
	for _, o := range c.Options() {
		if seen[o.Key] || o.Usage == "" || strings.Count(o.Key, ".") > 1 {
			t.Errorf("option %q", o.Key)
		}
		seen[o.Key] = true
		bound[reflect.ValueOf(o.Value).Elem().Field(0).Pointer()] = true
		if err := o.Value.Set(o.Value.String()); err != nil {
			t.Errorf("%s: the default is refused: %v", o.Key, err)
		}
	}
	v := reflect.ValueOf(&c).Elem()
	for i := range v.NumField() {
		if !bound[v.Field(i).Addr().Pointer()] {
			t.Errorf("no option sets the field %s", v.Type().Field(i).Name)
		}
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	c := Default()
	f := flag.NewFlagSet("x", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	for _, o := range c.Options() {
		f.Var(o.Value, o.Flag(), o.Usage)
	}
	if err := f.Parse([]string{"--cri-socket=/x", "--stdio-journal=false", "--oci-runtime", "crun --debug", "--oci-runtimes", "runc=/usr/sbin/runc  runsc=/x --platform=systrap -q b:crun=/y", "--image-max-layer=5MiB"}); err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.CRISocket, want.StdioJournal, want.OCIRuntime, want.ImageMaxLayer = "/x", false, []string{"crun", "--debug"}, 5<<20
	want.OCIRuntimes = []string{"runc=/usr/sbin/runc", "runsc=/x --platform=systrap -q", "b:crun=/y"}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if err := f.Parse([]string{"--cri-slow=x"}); err == nil {
		t.Error("a bad flag is taken")
	}
}

func FuzzApply(f *testing.F) {
	c := Default()
	f.Add(c.Text())
	f.Add("[cri]\nslow = 1979-05-27")
	f.Fuzz(func(t *testing.T, text string) {
		c := Default()
		if c.apply(text) == nil {
			again := Default()
			if err := again.apply(c.Text()); err != nil {
				t.Errorf("%v\n%s", err, c.Text())
			}
		}
	})
}
