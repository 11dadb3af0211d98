package oci

import (
	"encoding/json"
	"fmt"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/isolator/recipe"
)

// TestProfilesThatDifferInErrorNumbers: without those numbers, as crun's hash sees
// them, they must still differ.
func TestProfilesThatDifferInErrorNumbers(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, text := range []string{
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30}]}`,
		`{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ALLOW"}]}`,
		`{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ALLOW"}]}`,
	} {
		p, err := recipe.ParseSeccomp([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		hashed := withoutErrno(apart(p.Resolve("amd64", nil)))
		if other, ok := seen[hashed]; ok {
			t.Errorf("crun takes these for one:\n%s\n%s", text, other)
		}
		seen[hashed] = text
	}
}

func withoutErrno(s *specs.LinuxSeccomp) string {
	s.DefaultErrnoRet = nil
	for i := range s.Syscalls {
		s.Syscalls[i].ErrnoRet = nil
	}
	data, err := json.Marshal(s)
	return fmt.Sprintf("%s %v", data, err)
}
