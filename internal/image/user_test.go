package image

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/pod"
)

const testPasswd = `root:x:0:0:root:/root:/bin/sh
# comment
broken
app:x:1000:1001:An App:/srv:/bin/sh
1000:x:0:0::/root:/bin/sh
big:x:4294967295:1::/:
neg:x:-1:1::/:
nogid:x:7
`

const testGroup = `root:x:0:
app:x:1001:
audit:x:50:app,other
wheel:x:60:other, app
1001:x:0:app
`

func TestResolveUser(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	lower := gzLayer(t, file("etc/passwd", "root:x:9:9::/wrong:\n"), file("etc/group", testGroup))
	upper := gzLayer(t, file("etc/passwd", testPasswd))
	img := pullOf(t, s, r.push(t, "u:1", imageWith(t, v1.Config{User: "app"}, lower, upper)))
	for name, c := range map[string]struct {
		user, group string
		strict      bool
		extra       []uint32
		want        User
		err         error
	}{
		"the image's":        {want: User{UID: 1000, GID: 1001, Groups: []uint32{1001, 0, 50, 60}, Name: "app", Home: "/srv"}},
		"name":               {user: "root", want: User{Groups: []uint32{0}, Name: "root", Home: "/root"}},
		"number with a name": {user: "1000", want: User{UID: 1000, GID: 1001, Groups: []uint32{1001, 0, 50, 60}, Name: "app", Home: "/srv"}},
		"number alone":       {user: "4242", want: User{UID: 4242, Groups: []uint32{0}, Home: "/"}},
		"number and group":   {user: "4242:4343", want: User{UID: 4242, GID: 4343, Groups: []uint32{4343}, Home: "/"}},
		"names":              {user: "app:audit", want: User{UID: 1000, GID: 50, Groups: []uint32{50, 0, 60}, Name: "app", Home: "/srv"}},
		"group wins":         {user: "app:audit", group: "7", want: User{UID: 1000, GID: 7, Groups: []uint32{7, 0, 50, 60}, Name: "app", Home: "/srv"}},
		"strict":             {user: "app", strict: true, extra: []uint32{9, 8, 9}, want: User{UID: 1000, GID: 1001, Groups: []uint32{1001, 8, 9}, Name: "app", Home: "/srv"}},
		"extra":              {user: "4242", extra: []uint32{60000, 0}, want: User{UID: 4242, Groups: []uint32{0, 60000}, Home: "/"}},
		"unknown":            {user: "nobody", err: pod.ErrInvalid},
		"unknown group":      {user: "app:nogroup", err: pod.ErrInvalid},
		"negative":           {user: "-1", err: pod.ErrInvalid},
		"too large":          {user: "4294967296", err: pod.ErrInvalid},
		"no change":          {user: "4294967295", err: pod.ErrInvalid},
		"entry without id":   {user: "big", err: pod.ErrInvalid},
		"short entry":        {user: "nogid", err: pod.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := s.ResolveUser(img, c.user, c.group, c.strict, c.extra)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("error = %v, want %v", err, c.err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestResolveUserWithout(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	for name, layers := range map[string][]v1.Layer{
		"no passwd":         {gzLayer(t, file("f", "x"))},
		"removed passwd":    {gzLayer(t, file("etc/passwd", testPasswd)), gzLayer(t, entry{name: "etc/.wh.passwd"})},
		"directory":         {gzLayer(t, entry{name: "etc/passwd/"})},
		"fifo":              {gzLayer(t, entry{name: "etc/passwd", kind: '6'})},
		"link to the host":  {gzLayer(t, symlink("etc/passwd", "/../../../../../../etc/passwd"))},
		"link loop":         {gzLayer(t, symlink("etc/passwd", "group"), symlink("etc/group", "passwd"))},
		"etc is a file":     {gzLayer(t, file("etc", "x"))},
		"etc links nowhere": {gzLayer(t, symlink("etc", "/nowhere"))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := pullOf(t, s, r.push(t, strings.ReplaceAll(name, " ", "-")+":1", imageWith(t, v1.Config{}, layers...)))
			if u, err := s.ResolveUser(img, "12:34", "", false, nil); err != nil || u.UID != 12 || u.GID != 34 {
				t.Errorf("numbers: %+v, %v", u, err)
			}
			if u, err := s.ResolveUser(img, "app", "", false, nil); !errors.Is(err, pod.ErrInvalid) {
				t.Errorf("name: %+v, %v", u, err)
			}
			if u, err := s.ResolveUser(img, "", "", false, nil); err != nil || u.UID != 0 {
				t.Errorf("nothing: %+v, %v", u, err)
			}
		})
	}
	t.Run("through links", func(t *testing.T) {
		t.Parallel()
		img := pullOf(t, s, r.push(t, "links:1", imageWith(t, v1.Config{},
			gzLayer(t, file("nix/store/passwd", testPasswd), symlink("etc/passwd", "/nix/store/passwd")))))
		if u, err := s.ResolveUser(img, "app", "", false, nil); err != nil || u.UID != 1000 {
			t.Errorf("user = %+v, %v", u, err)
		}
	})
	t.Run("long line", func(t *testing.T) {
		t.Parallel()
		img := pullOf(t, s, r.push(t, "long:1", imageWith(t, v1.Config{}, gzLayer(t, file("etc/passwd", strings.Repeat("x", maxUserLine+10))))))
		if _, err := s.ResolveUser(img, "app", "", false, nil); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("error = %v", err)
		}
	})
}

func FuzzUserFiles(f *testing.F) {
	f.Add(testPasswd)
	f.Add(testGroup)
	f.Add("a:::\n:::\n\x00:1:2:3")
	f.Fuzz(func(t *testing.T, text string) {
		err := eachLine(strings.NewReader(text), func(fields []string) bool {
			if len(fields) < 3 || fields[0] == "" {
				t.Errorf("fields = %q", fields)
			}
			for _, s := range fields {
				if n, ok := parseNumber(s); ok && n == noID {
					t.Errorf("%q is -1", s)
				}
			}
			return true
		})
		if err != nil && !errors.Is(err, pod.ErrInvalid) {
			t.Error(err)
		}
	})
}
