package criserver

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"gantry/internal/pod"
)

// telemetry counts what the server does. It is about gantry-cri itself: what pods use
// goes through the CRI.
type telemetry struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	sessions *prometheus.GaugeVec
}

func newTelemetry(s *Server) *telemetry {
	t := &telemetry{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gantry_cri_request_duration_seconds", Help: "Requests of the CRI by method and gRPC code",
			Buckets: []float64{0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 120},
		}, []string{"method", "code"}),
		sessions: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gantry_cri_sessions", Help: "Sessions that are open: exec, attach, and connections to forwarded ports",
		}, []string{"kind"}),
	}
	for _, kind := range []string{"exec", "attach", "portforward"} { // a kind without any is 0
		t.sessions.WithLabelValues(kind)
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "gantry_build_info", Help: "1, with the version of gantry-cri", ConstLabels: prometheus.Labels{"version": s.cfg.Version},
	})
	info.Set(1)
	t.registry.MustRegister(t.requests, t.sessions, info, &census{s},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gantry_cri_requests_in_flight", Help: "Requests that are being served",
		}, func() float64 { return float64(s.active.Load()) }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	t.registry.MustRegister(s.pulls.metrics()...)
	return t
}

func (t *telemetry) count(method string, took time.Duration, err error) {
	t.requests.WithLabelValues(method, code(err).String()).Observe(took.Seconds())
}

// session counts one until what it returns is called.
func (t *telemetry) session(kind string) (end func()) {
	g := t.sessions.WithLabelValues(kind)
	g.Inc()
	return g.Dec
}

// Metrics answers a Prometheus server.
func (s *Server) Metrics() http.Handler {
	return promhttp.HandlerFor(s.telemetry.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// census counts pods and containers when it is asked.
type census struct{ s *Server }

func (c *census) describe(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, []string{"state"}, nil)
}

func (c *census) ready() *prometheus.Desc {
	return prometheus.NewDesc("gantry_ready", "1 if all pods of the node are known; while they are not, requests are refused", nil, nil)
}

func (c *census) pods() *prometheus.Desc {
	return c.describe("gantry_pods", "Pods of the CRI by state")
}

func (c *census) containers() *prometheus.Desc {
	return c.describe("gantry_containers", "Containers of the CRI by state")
}

// Describe implements prometheus.Collector.
func (c *census) Describe(out chan<- *prometheus.Desc) {
	out <- c.ready()
	out <- c.pods()
	out <- c.containers()
}

// Collect implements prometheus.Collector. Numbers that are not known are left out: a
// zero would be an alarm of its own.
func (c *census) Collect(out chan<- prometheus.Metric) {
	all, err := c.s.pods()
	if err == nil {
		err = c.s.cfg.Engine.Ready()
	}
	if err != nil {
		out <- prometheus.MustNewConstMetric(c.ready(), prometheus.GaugeValue, 0)
		return
	}
	out <- prometheus.MustNewConstMetric(c.ready(), prometheus.GaugeValue, 1)
	pods := map[string]int{"ready": 0, "notready": 0}
	containers := map[pod.Phase]int{pod.Prepared: 0, pod.Running: 0, pod.Exited: 0, pod.Unknown: 0}
	for _, p := range all {
		if p.Ready {
			pods["ready"]++
		} else {
			pods["notready"]++
		}
		for _, a := range p.Apps {
			containers[a.Phase]++
		}
	}
	for state, n := range pods {
		out <- prometheus.MustNewConstMetric(c.pods(), prometheus.GaugeValue, float64(n), state)
	}
	for state, n := range containers {
		out <- prometheus.MustNewConstMetric(c.containers(), prometheus.GaugeValue, float64(n), string(state))
	}
}
