package main

import "net/http"

// The one account of the doors that ask for one.
const (
	accountUser     = "trial"
	accountPassword = "let me in"
	accountToken    = "dHJpYWwtdG9rZW4"
)

// door is one of the addresses that the registry is served on. Clients learn at
// /v2/ how a registry wants to be asked, so that differs by address and not by
// repository.
type door int

const (
	open   door = iota // to anybody
	locked             // with the password each time
	token              // with a token got for the password
)

// admits lets a request through or answers it.
func (d door) admits(w http.ResponseWriter, r *http.Request) bool {
	switch d {
	case locked:
		user, password, _ := r.BasicAuth()
		if user == accountUser && password == accountPassword {
			return true
		}
		w.Header().Set("Www-Authenticate", `Basic realm="trial"`)
	case token:
		if r.Header.Get("Authorization") == "Bearer "+accountToken {
			return true
		}
		w.Header().Set("Www-Authenticate", `Bearer realm="http://`+r.Host+`/trial/token",service="trial"`)
	default:
		return true
	}
	refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}

// serveToken gives whoever knows the password the token.
func serveToken(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	if user != accountUser || password != accountPassword {
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong password")
		return
	}
	reply(w, map[string]any{"token": accountToken, "expires_in": 300})
}
