package unit

import (
	"fmt"
	"strconv"
	"strings"
)

// maxCPU bounds the mask that a list of a foreign program can ask for.
const maxCPU = 8191

// CPUMask turns a list in the kernel's format ("0-3,7") into the bit mask of
// AllowedCPUs and AllowedMemoryNodes: CPU n is bit n%8 of byte n/8.
func CPUMask(list string) (Bytes, error) {
	mask := Bytes{}
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, err := cpu(first)
		to := from
		if err == nil && isRange {
			to, err = cpu(last)
		}
		if err != nil || to < from {
			return nil, fmt.Errorf("cpu list %q: want numbers and ranges up to %d, such as 0-3,7", list, maxCPU)
		}
		for len(mask) <= to/8 {
			mask = append(mask, 0)
		}
		for n := from; n <= to; n++ {
			mask[n/8] |= 1 << (n % 8)
		}
	}
	return mask, nil
}

func cpu(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, err
	}
	if n > maxCPU {
		return 0, strconv.ErrRange
	}
	return int(n), nil
}
