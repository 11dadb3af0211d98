package main

import "testing"

func TestUnproved(t *testing.T) {
	t.Parallel()
	list, err := parseUnproved("# a comment\n\ne2e TestA it hangs\nnode TestB not tried\ne2e TestC  why not\nnode TestD long: it takes an hour\n")
	if err != nil || len(list) != 4 || list[2].why != "why not" || list[2].long || !list[3].long || list[3].String() != "TestD of node is for long runs: it takes an hour" {
		t.Fatalf("%+v, %v", list, err)
	}
	apart := halves + "|" + apartTest(exitsSuite) + "|" + apartTest(killsSuite) + "|" + apartTest(selinuxSuite)
	if got, want := wholeSuite(list, "e2e"), " -test.skip="+quote("^TestA$|^TestC$|"+apart); got != want {
		t.Errorf("options %q, want %q", got, want)
	}
	if got := wholeSuite(list, "other"); got != " -test.skip="+quote(apart) {
		t.Errorf("options %q of a suite with none", got)
	}
	if got := wholeSuite(list, exitsSuite); got != " -test.run="+quote(apartTest(exitsSuite))+" -test.skip="+quote(halves) {
		t.Errorf("options %q of the long tests", got)
	}
	for _, bad := range []string{"e2e TestA", "e2e", "e2e noTest why"} {
		if _, err := parseUnproved(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
