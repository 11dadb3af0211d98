package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"gantry/internal/pod"
	"gantry/internal/unit"
)

// podJSON is a pod as --format json prints it. The names of its fields are a
// promise: they are added to, and never changed.
type podJSON struct {
	ID        pod.ID    `json:"id"`
	Name      string    `json:"name"`
	Namespace string    `json:"namespace"`
	UID       string    `json:"uid,omitempty"`
	Owner     pod.Owner `json:"owner"`
	Phase     pod.Phase `json:"phase"`
	Ready     bool      `json:"ready"`
	Created   time.Time `json:"created"`
	Isolator  string    `json:"isolator"`
	// IsolatorReason tells why it is not the node's default, where the pod asked for none.
	IsolatorReason string            `json:"isolatorReason,omitempty"`
	IPs            []string          `json:"ips"`
	HostNetwork    bool              `json:"hostNetwork"`
	Ports          []portJSON        `json:"ports"`
	Labels         map[string]string `json:"labels"`
	Annotations    map[string]string `json:"annotations"`
	Unit           string            `json:"unit"`
	Slice          string            `json:"slice"`
	Apps           []appJSON         `json:"apps"`
}

type portJSON struct {
	Protocol pod.Protocol `json:"protocol"`
	HostIP   string       `json:"hostIP,omitempty"`
	HostPort int32        `json:"hostPort"`
	PodPort  int32        `json:"podPort"`
}

type appJSON struct {
	ID       pod.ID    `json:"id"`
	Name     string    `json:"name"`
	Phase    pod.Phase `json:"phase"`
	Init     bool      `json:"init"`
	Image    string    `json:"image"`
	ImageID  string    `json:"imageID"`
	Command  []string  `json:"command"`
	PID      int       `json:"pid,omitempty"`
	Unit     string    `json:"unit"`
	LogPath  string    `json:"logPath,omitempty"`
	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	Exit     *exitJSON `json:"exit,omitempty"` // once it has exited
}

type exitJSON struct {
	Code    int    `json:"code"`
	Signal  int    `json:"signal,omitempty"`
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

func podOut(p pod.PodStatus) podJSON {
	out := podJSON{
		ID: p.ID, Name: p.Name, Namespace: p.Namespace, UID: p.UID, Owner: p.Owner, Phase: phaseOf(p), Ready: p.Ready,
		Created: p.Created, Isolator: p.Isolator, IsolatorReason: p.IsolatorReason, IPs: append([]string{}, p.IPs...), HostNetwork: p.HostNetwork(),
		Ports: []portJSON{}, Labels: orEmpty(p.Labels), Annotations: orEmpty(p.Annotations),
		Unit: unit.Pod(string(p.ID)), Slice: p.Slice, Apps: []appJSON{},
	}
	for _, port := range p.Ports {
		out.Ports = append(out.Ports, portJSON{port.Protocol, port.HostIP, port.HostPort, port.PodPort})
	}
	for _, a := range p.Apps {
		out.Apps = append(out.Apps, appOut(a))
	}
	return out
}

func appOut(a pod.AppStatus) appJSON {
	out := appJSON{
		ID: a.ID, Name: a.Name, Phase: a.Phase, Init: isInit(a), Image: a.Image.Name, ImageID: a.Image.ID, Command: a.Argv, PID: a.PID,
		Unit: unit.App(string(a.ID)), LogPath: a.LogPath, Created: a.Created, Started: a.Started, Finished: a.Finished,
	}
	if a.Exit != nil {
		out.Exit = &exitJSON{a.Exit.Code, a.Exit.Signal, a.Exit.Reason, a.Exit.Message}
	}
	return out
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// format is the value of --format.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
)

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "table|json" }

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	switch format(s) {
	case formatTable, formatJSON:
		*f = format(s)
		return nil
	}
	return fmt.Errorf("%q: want table or json", s)
}

func (f *format) flag(fs *pflag.FlagSet) {
	*f = formatTable
	fs.VarP(f, "format", "o", "how to print the answer")
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table prints aligned columns. Cells come from others: they are made printable.
type table struct {
	w *tabwriter.Writer
}

func newTable(w io.Writer, header ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)}
	if len(header) > 0 {
		t.row(header...)
	}
	return t
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		if cells[i] = strings.ReplaceAll(printable(c), "\t", " "); c == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t *table) flush() error { return t.w.Flush() }

// age is how long ago something was, in one or two words.
func age(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := now.Sub(t)
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}

// size is a number of bytes in one short word.
func size(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n), -1
	for f >= 999.5 && i < 4 {
		f /= 1000
		i++
	}
	if f < 10 {
		return fmt.Sprintf("%.1f %cB", f, "kMGTP"[i])
	}
	return fmt.Sprintf("%.0f %cB", f, "kMGTP"[i])
}

// exitText is how an app ended, for tables.
func exitText(a pod.AppStatus) string {
	if a.Exit == nil {
		return ""
	}
	switch a.Exit.Reason {
	case pod.ReasonCompleted, pod.ReasonError, "":
		return fmt.Sprint(a.Exit.Code)
	}
	return fmt.Sprintf("%d %s", a.Exit.Code, a.Exit.Reason)
}
