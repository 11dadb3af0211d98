package unit

import (
	"bytes"
	"testing"
)

func TestCPUMask(t *testing.T) {
	t.Parallel()
	for list, want := range map[string][]byte{
		"0": {1}, "0-3,7": {0x8f}, "8": {0, 1}, "1, 9": {2, 2}, "15-16": {0, 0x80, 1},
	} {
		got, err := CPUMask(list)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("CPUMask(%q) = %x, %v, want %x", list, got, err, want)
		}
	}
	for _, list := range []string{"", "a", "3-1", "-1", "1-", "0,", "99999", "0-8192", "+1"} {
		if got, err := CPUMask(list); err == nil {
			t.Errorf("CPUMask(%q) = %x, want an error", list, got)
		}
	}
}

func FuzzCPUMask(f *testing.F) {
	f.Add("0-3,7")
	f.Fuzz(func(t *testing.T, list string) {
		if mask, err := CPUMask(list); err == nil && (len(mask) == 0 || len(mask) > maxCPU/8+1) {
			t.Errorf("CPUMask(%q) has %d bytes", list, len(mask))
		}
	})
}
