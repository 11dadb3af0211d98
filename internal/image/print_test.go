package image

import (
	"fmt"
	"io"
	"io/fs"
	"log"
	"strings"
	"testing"

	reader "github.com/erofs/go-erofs"
)

func nopLogger() *log.Logger { return log.New(io.Discard, "", 0) }

func printTree(t testing.TB, tree fs.FS) string {
	t.Helper()
	var b strings.Builder
	err := fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*reader.Stat)
		fmt.Fprintf(&b, "%s %v %d:%d", path, st.Mode, st.UID, st.GID)
		if !info.IsDir() && st.Nlink > 1 {
			fmt.Fprintf(&b, " links=%d", st.Nlink)
		}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := tree.(interface {
				ReadLink(string) (string, error)
			}).ReadLink(path)
			if err != nil {
				return err
			}
			b.WriteString(" -> " + target)
		case info.Mode().IsRegular():
			data, err := fs.ReadFile(tree, path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %.40q", data)
		}
		if len(st.Xattrs) > 0 {
			fmt.Fprintf(&b, " %q", st.Xattrs)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatalf("%v after:\n%s", err, b.String())
	}
	return b.String()
}
