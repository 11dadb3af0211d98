package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"
)

func newServer(shop *workshop, log *slog.Logger) *server {
	return &server{shop: shop, log: log, faults: &faults{}}
}

// server speaks the reading half of the OCI distribution protocol.
type server struct {
	shop   *workshop
	log    *slog.Logger
	faults *faults
}

// handler serves one door. All doors share images and faults.
func (s *server) handler(d door) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		s.faults.record(r)
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		if w, ok := s.faults.strike(w, r); ok && d.admits(w, r) {
			s.serve(w, r)
		}
	})
	mux.HandleFunc("GET /trial/images", s.images)
	mux.HandleFunc("GET /trial/token", serveToken)
	mux.HandleFunc("GET /trial/requests", s.faults.serveRequests)
	mux.HandleFunc("DELETE /trial/requests", s.faults.clearRequests)
	mux.HandleFunc("POST /trial/faults", s.faults.add)
	mux.HandleFunc("DELETE /trial/faults", s.faults.clear)
	return mux
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only")
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	if path == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	for _, kind := range []string{"/manifests/", "/blobs/", "/tags/list"} {
		at := strings.LastIndex(path, kind)
		if at < 0 {
			continue
		}
		repository, reference := path[:at], path[at+len(kind):]
		switch kind {
		case "/manifests/":
			s.manifest(w, r, repository, reference)
		case "/blobs/":
			s.blob(w, r, repository, reference)
		default:
			s.tags(w, repository)
		}
		return
	}
	refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "no such path")
}

func (s *server) manifest(w http.ResponseWriter, r *http.Request, repository, reference string) {
	if strings.Contains(reference, ":") {
		s.manifestByDigest(w, r, repository, reference)
		return
	}
	d, ok, err := s.shop.find(repository, reference)
	switch {
	case err != nil:
		s.log.Error("serve manifest", "image", repository+":"+reference, "err", err)
		refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
	case !ok:
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "no image "+repository+":"+reference)
	default:
		s.file(w, r, d.Digest, d.MediaType)
	}
}

// manifestByDigest makes the repository's images until one has the digest: an
// image may be pulled by digest before anybody asked for its tag.
func (s *server) manifestByDigest(w http.ResponseWriter, r *http.Request, repository, digest string) {
	for _, tag := range append([]string{""}, s.shop.tags(repository)...) {
		if tag != "" {
			if _, _, err := s.shop.find(repository, tag); err != nil {
				s.log.Error("serve manifest", "image", repository+":"+tag, "err", err)
				continue
			}
		}
		if mediaType := s.mediaType(digest); mediaType != "" {
			s.file(w, r, digest, mediaType)
			return
		}
	}
	refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "no manifest "+digest+" in "+repository)
}

// mediaType is what a stored manifest says that it is, empty if it is none.
func (s *server) mediaType(digest string) string {
	f, err := os.Open(s.shop.blob(digest))
	if err != nil {
		return ""
	}
	defer f.Close()
	var head struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.NewDecoder(io.LimitReader(f, 1<<20)).Decode(&head); err != nil {
		return ""
	}
	return head.MediaType
}

func (s *server) blob(w http.ResponseWriter, r *http.Request, repository, digest string) {
	if len(s.shop.tags(repository)) == 0 {
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "no repository "+repository)
		return
	}
	s.file(w, r, digest, "application/octet-stream")
}

// file serves a stored blob; http.ServeContent knows about ranges, which a
// resumed pull asks for.
func (s *server) file(w http.ResponseWriter, r *http.Request, digest, mediaType string) {
	f, err := os.Open(s.shop.blob(digest))
	if errors.Is(err, fs.ErrNotExist) {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "no blob "+digest)
		return
	}
	if err != nil {
		refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Etag", `"`+digest+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
}

func (s *server) tags(w http.ResponseWriter, repository string) {
	tags := s.shop.tags(repository)
	if len(tags) == 0 {
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "no repository "+repository)
		return
	}
	reply(w, map[string]any{"name": repository, "tags": tags})
}

func (s *server) images(w http.ResponseWriter, _ *http.Request) {
	for _, name := range s.shop.names() {
		fmt.Fprintln(w, name)
	}
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// An error here is the client's going away.
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}
