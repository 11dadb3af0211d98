package external

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"gantry/internal/pod"
)

func TestFind(t *testing.T) {
	t.Parallel()
	first, second, open := t.TempDir(), t.TempDir(), t.TempDir()
	put := func(dir, name string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+usualFeatures+"'\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	put(first, "good", 0o755)
	put(first, "group-writable", 0o775)
	put(first, "writable", 0o757)
	put(first, "not-executable", 0o644)
	put(first, "Bad_Name", 0o755)
	put(first, "oci", 0o755)
	put(first, "runc", 0o755)
	put(second, "good", 0o755)
	put(second, "other", 0o555)
	put(open, "any", 0o755)
	for _, err := range []error{
		os.Mkdir(filepath.Join(first, "dir"), 0o755), os.Symlink("good", filepath.Join(first, "link")), os.Chmod(open, 0o777),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c := config()
	c.AnyOwner, c.Owner = false, uint32(os.Getuid())
	found, err := Find([]string{first, "/no/such/directory", second, open}, c, map[string]string{"oci": "Gantry's own", "runc": "a handler"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]error{
		first + "/good": nil, second + "/other": nil,
		first + "/group-writable": pod.ErrForbidden, first + "/writable": pod.ErrForbidden, first + "/not-executable": pod.ErrForbidden,
		first + "/Bad_Name": pod.ErrInvalid, first + "/oci": pod.ErrExists, first + "/runc": pod.ErrExists, second + "/good": pod.ErrExists,
		first + "/dir": pod.ErrForbidden, first + "/link": pod.ErrForbidden, open + "/any": pod.ErrForbidden,
	}
	for _, x := range found {
		kind, ok := want[x.Source()]
		if err := x.Usable(); !ok || !errors.Is(err, kind) {
			t.Errorf("%s: want %v, got %v", x.Source(), kind, err)
		}
		delete(want, x.Source())
	}
	for path := range want {
		t.Errorf("%s was not found", path)
	}
	c.Owner++
	found, err = Find([]string{second}, c, nil)
	if err != nil || len(found) != 2 || !errors.Is(found[0].Usable(), pod.ErrForbidden) {
		t.Errorf("of another owner: %v, %v", found, err)
	}
}
