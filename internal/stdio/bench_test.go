package stdio

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkLines prints 300,000 lines of about 60 bytes, one write each, and waits
// until they are in the log. The floor is the same into a pipe that is only read.
func BenchmarkLines(b *testing.B) {
	const lines = 300000
	var text [][]byte
	for i := range lines {
		text = append(text, fmt.Appendf(nil, "line %d of a program that prints what it does at length\n", i))
	}
	write := func(f *os.File) {
		fd := int(f.Fd())
		for _, l := range text {
			if _, err := unix.Write(fd, l); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("log", func(b *testing.B) {
		s := supervise(b)
		for b.Loop() {
			a := s.newApp(nil)
			s.start(a)
			write(a.stdout)
			a.close()
			s.drain(a)
			st, err := os.Stat(a.spec.Log)
			if err != nil || st.Size() < lines*90 {
				b.Fatal(st.Size(), err)
			}
		}
	})
	b.Run("floor", func(b *testing.B) {
		for b.Loop() {
			r, w, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				buf := make([]byte, 64<<10)
				for {
					if n, err := unix.Read(int(r.Fd()), buf); n <= 0 || err != nil {
						return
					}
				}
			}()
			write(w)
			w.Close()
			<-done
			r.Close()
		}
	})
}

// BenchmarkIdleApp is what an app costs that prints nothing.
func BenchmarkIdleApp(b *testing.B) {
	s := supervise(b)
	before := serverRSS(b, s)
	var all []*app
	began := time.Now()
	for range 1000 {
		a := s.newApp(nil)
		s.start(a)
		all = append(all, a)
	}
	b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "µs/start")
	time.Sleep(tidyDelay + 500*time.Millisecond)
	b.ReportMetric(float64(serverRSS(b, s)-before)/1000, "KB/app")
	s.kill()
	began = time.Now()
	st := s.status("")
	b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/restart")
	if st.Apps != len(all) {
		b.Errorf("%d apps after a restart", st.Apps)
	}
	time.Sleep(tidyDelay + 500*time.Millisecond)
	b.ReportMetric(float64(serverRSS(b, s)-before)/1000, "KB/app-restarted")
	for _, a := range all {
		a.close()
		s.drain(a)
	}
}

func serverRSS(b *testing.B, s *supervisor) (kb int) {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.status("").PID))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		b.Fatal(err)
	}
	return kb
}
