// Package isolatortest runs what every isolator must keep to as a test: a new isolator
// costs one call of Run.
package isolatortest

import (
	"testing"

	"gantry/internal/isolator"
	"gantry/internal/isolator/contract"
)

// Run checks an isolator against the contract of isolator.Isolator. change, which
// may be nil, makes the suite's pods such as the isolator takes.
func Run(t *testing.T, iso isolator.Isolator, change func(*isolator.App)) {
	for _, c := range contract.Checks(iso, change) {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Run(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
