# Everything a developer or a packager does with this tree. Run "make" for the list.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# No cgo anywhere, but in test-race: what is tested is compiled as what is shipped.
export CGO_ENABLED := 0

DESTDIR ?=
PREFIX  ?= /usr
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# The tag keeps gpgme, and with it cgo, out of the image library.
TAGS    := containers_image_openpgp
LDFLAGS := -s -w -buildid= -X main.version=$(VERSION)
# The same source and toolchain give the same bytes, wherever they are built.
BUILD   := go build -trimpath -buildvcs=false -tags "$(TAGS)" -ldflags "$(LDFLAGS)"
TRIAL   := go run ./test/trial
TOOL    := go tool -modfile=tools/go.mod
# A program is built as soon as its directory has Go files.
PROGRAMS := $(filter gantry gantry-%,$(notdir $(patsubst %/,%,$(sort $(dir $(wildcard cmd/*/*.go))))))
# The modules of test/ only build foreign programs: to tidy them would fetch all
# that the tests of those need.
MODULES  := . tools
SOURCES  := $(wildcard api bench cmd internal test)

.PHONY: help
help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.PHONY: build
build: ## build the programs into bin/: static, reproducible
	@mkdir -p bin
	@for p in $(PROGRAMS); do echo "build bin/$$p $(VERSION)"; $(BUILD) -o bin/$$p ./cmd/$$p; done
	@bin/gantry internal docs out/docs

# A packager's install: it starts nothing, makes no user and runs no daemon-reload.
.PHONY: install
install: ## copy what was built to DESTDIR/usr
	@[ "$(PREFIX)" = /usr ] || { echo "PREFIX=$(PREFIX) is not supported: units and programs name each other below /usr; DESTDIR puts all of it elsewhere" >&2; exit 1; }
	@test -n "$(wildcard bin/gantry*)" || { echo "nothing is built: run make build first" >&2; exit 1; }
	@root="$(DESTDIR)$(PREFIX)"; \
	put() { local mode=$$1 to=$$2; shift 2; for f; do [ -e "$$f" ] || continue; install -D -m "$$mode" "$$f" "$$root/$$to/$$(basename "$$f")"; done; }; \
	put 0755 bin bin/gantry; \
	put 0755 libexec/gantry bin/gantry-*; \
	for kind in service socket timer slice target path; do put 0644 lib/systemd/system dist/systemd/*.$$kind; done; \
	put 0644 lib/systemd/network dist/systemd/network/*.link; \
	put 0644 share/gantry/apparmor dist/apparmor/*; \
	put 0644 lib/sysusers.d dist/sysusers.d/*.conf; \
	put 0644 lib/tmpfiles.d dist/tmpfiles.d/*.conf; \
	put 0644 share/bash-completion/completions out/docs/completions/bash/*; \
	put 0644 share/zsh/vendor-completions out/docs/completions/zsh/*; \
	put 0644 share/fish/vendor_completions.d out/docs/completions/fish/*; \
	for n in 1 5 7 8; do put 0644 share/man/man$$n dist/man/*.$$n out/docs/man$$n/*.$$n; done; \
	put 0644 share/doc/gantry LICENSE README.md; \
	put 0755 share/doc/gantry/examples/isolators docs/examples/isolators/*; \
	put 0644 share/doc/gantry/examples/kubernetes dist/kubernetes/*.yaml

.PHONY: test
test: test-unit test-vm ## all tests: without root, then in a VM (TEST_VM=0 leaves the VM out)

.PHONY: test-unit
test-unit: ## the tests that need no root and no VM
	go test -tags "$(TAGS)" -json ./... | go run ./test/report

.PHONY: test-race
test-race: ## the same under the race detector; needs a C compiler
	CGO_ENABLED=1 go test -race -tags "$(TAGS)" -json ./internal/... | go run ./test/report

# Etcd, an API server, a kubelet and pods are in one VM here.
test-node-e2e: export GANTRY_VM_MEM ?= 8192
.PHONY: test-node-e2e
test-node-e2e: ## Kubernetes' node suite in a VM (FOCUS= SKIP= regexps, PROCS=n, RECORD=1: keep the results, MISSING=1: what is not kept as passed, ENGINE=containerd)
	$(TRIAL) deps
	$(TRIAL) --name node-e2e node-e2e $(if $(FOCUS),--focus '$(FOCUS)') $(if $(filter undefined,$(origin SKIP)),,--skip '$(SKIP)') $(if $(PROCS),--procs $(PROCS)) $(if $(ENGINE),--engine $(ENGINE)) $(if $(RECORD),--record) $(if $(WITHIN),--within $(WITHIN)) $(if $(MISSING),--missing) $(if $(AGAIN),--again)

# Two suites run side by side, in a VM each; an emulated processor needs one of the host's.
test-vm: export GANTRY_VM_CPUS ?= $(shell [ "$$(nproc)" -ge 4 ] && echo 2 || echo 1)
.PHONY: test-vm
test-vm: ## the end-to-end tests in the VM (RUN=regexp, LONG=1: whole amounts, AGAIN=1: also what passed before, RETRY=false: a failure is one)
ifeq ($(TEST_VM),0)
	@echo "NOT RUN: the end-to-end tests, because TEST_VM=0"
else
	$(TRIAL) deps
	$(TRIAL) up
	$(TRIAL) kubelet
	$(if $(LONG),$(TRIAL) controlplane --build-only)
	$(if $(LONG),$(TRIAL) gvisor --build-only)
	$(TRIAL) $(if $(RUN),test --run '$(RUN)',test-all$(if $(AGAIN), --again)$(if $(RETRY), --retry=$(RETRY)))$(if $(LONG), --long)
endif

.PHONY: check
check: check-format check-vet check-lint check-shape check-shell check-modules check-build ## all that can be told without running the product

.PHONY: check-format
check-format:
	@echo "check: format"
	@out=$$($(TOOL) gofumpt -l $(SOURCES)); [ -z "$$out" ] || { echo "not formatted (make fix mends it):"; echo "$$out"; exit 1; }

.PHONY: check-vet
check-vet:
	@echo "check: vet"
	@go vet -tags "$(TAGS)" ./...
	@go vet -tags "$(TAGS) e2e" ./test/...

.PHONY: check-lint
check-lint:
	@echo "check: staticcheck"
	@$(TOOL) staticcheck -tags "$(TAGS)" ./...
	@$(TOOL) staticcheck -tags "$(TAGS),e2e" ./test/e2e/...

# -count=1: go test would otherwise answer from its cache, which does not see that
# a file was added, nor what "go list" read.
.PHONY: check-shape
check-shape:
	@echo "check: imports, banned calls, docs, changelog"
	@go test -count=1 ./internal/arch
	@go test -count=1 -v -run TestBudgets ./internal/arch | grep -E '^ +[a-z_]+_test.go' || true

.PHONY: check-shell
check-shell:
	@echo "check: shell scripts"
	@scripts=$$(git ls-files -co --exclude-standard | grep -vE '\.(go|md|txtar)$$' | xargs -r grep -lE '^#!.*\b(ba|da)?sh\b' 2>/dev/null | sort -u); \
	if command -v shellcheck >/dev/null; then shellcheck $$scripts; \
	else for s in $$scripts; do bash -n $$s; done; echo "NOT CHECKED by shellcheck, which is not installed: $$scripts"; fi

.PHONY: check-modules
check-modules:
	@echo "check: go.mod of $(MODULES)"
	@for m in $(MODULES); do (cd $$m; go mod tidy -diff); done

# The same tree in another place gives the same programs.
.PHONY: check-build
check-build:
	@echo "check: reproducible build"
	@copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	git ls-files -co --exclude-standard | { while read -r f; do [ ! -f "$$f" ] || echo "$$f"; done; } | tar -cf - -T - | tar -xf - -C "$$copy"; \
	for d in . "$$copy"; do $(MAKE) -s -C "$$d" build VERSION=$(VERSION) >/dev/null; done; \
	for p in $(PROGRAMS); do cmp "bin/$$p" "$$copy/bin/$$p"; done

.PHONY: fix
fix: ## format the code
	$(TOOL) gofumpt -w $(SOURCES)

.PHONY: golden
golden: ## write the golden files anew; read the diff
	go test -tags "$(TAGS)" $$(grep -rlE 'flag\.Bool\("update"' --include='*_test.go' $(SOURCES) | xargs -rn1 dirname | sort -u | sed 's,^,./,') -update

.PHONY: vm
vm: ## boot the VM (the first time, build it) and install Gantry in it
	$(TRIAL) deps
	$(TRIAL) up
	$(TRIAL) install

.PHONY: vm-ssh
vm-ssh: ## open a shell in the VM
	@$(TRIAL) ssh

.PHONY: vm-stop
vm-stop: ## power the VM off and forget its disk
	$(TRIAL) stop

.PHONY: demo
demo: ## a stock kubelet runs pods on Gantry, in the VM, and you see how
	./test/demo/run

.PHONY: bench
bench: ## measure Gantry and containerd in the VM; ONLY=pods,idle ROUNDS=n, RECORD=1 writes it down
	$(TRIAL) deps
	$(TRIAL) bench $(if $(RECORD),--record) -- $(if $(ONLY),-only '$(ONLY)') $(if $(ROUNDS),-rounds '$(ROUNDS)')

.PHONY: clean
clean: ## remove what was built; VMs and caches in ~/.cache/gantry stay
	rm -rf bin out
