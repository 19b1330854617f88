# make demo and make test do everything on a fresh Debian machine with Go and gcc:
# what is missing is installed from Debian, once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PURE := countersignd countersignctl relayd countersign-client
BIN  := $(addprefix bin/,$(PURE) hsm-worker)
# Debian package and the file that shows it is there.
DEBS := softhsm2:/usr/bin/softhsm2-util opensc:/usr/bin/pkcs11-tool openssl:/usr/bin/openssl libp11-kit-dev:/usr/include/p11-kit-1/p11-kit/pkcs11.h
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
export GOFLAGS ?= -buildvcs=false

.PHONY: help deps build check test demo attack-test rotate-test acceptance bench clean cross

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

deps: ## install what is missing from Debian
	@missing=""; for d in $(DEBS); do [ -e "$${d#*:}" ] || missing="$$missing $${d%%:*}"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; \
	  $(SUDO) apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

build: $(BIN) ## build the five programs into bin/

# go build decides what is out of date; the flags make the build reproducible.
$(addprefix bin/,$(PURE)): bin/%: FORCE
	@CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $@ ./cmd/$*
bin/hsm-worker: FORCE
	@CGO_ENABLED=1 go build -trimpath -ldflags='-s -w' -o $@ ./cmd/hsm-worker
FORCE:

check: cross ## format, vet, staticcheck, arrows, pure-Go builds
	@out=$$(go tool gofumpt -l .); [ -z "$$out" ] || { echo "not gofumpt-ed:"; echo "$$out"; exit 1; }
	@go vet ./...
	@go tool staticcheck ./...
	@.ci/arrows

cross:
	@for arch in amd64 arm64 arm; do \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$$arch go build -o /dev/null $(addprefix ./cmd/,$(PURE)) 2>&1 || { echo "pure-Go build for linux/$$arch failed"; exit 1; }; \
	done

test: deps build ## run every test, with the race detector
	@go test -race -timeout 15m ./...

demo: deps build ## narrate the main job with the real programs
	@go build -o bin/demo ./softhsm-test/demo
	@bin/demo

attack-test: deps build ## play relay and phone at byte level against the real programs
	@go build -o bin/attack ./softhsm-test/attack
	@bin/attack

rotate-test: deps build ## rotate every key under load, then with kill -9 within each step
	@go build -o bin/rotate ./softhsm-test/rotate
	@bin/rotate

acceptance: demo attack-test rotate-test ## the long harnesses

bench: deps build ## measure, with the raw speed of the token beside it
	@.ci/bench

clean: ## remove what was built
	@rm -rf bin
