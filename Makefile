# make demo and make test do everything on a fresh Debian machine with Go and gcc:
# what is missing is installed from Debian, once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PURE := countersignd countersignctl relayd countersign-client
CGO  := hsm-worker hsm-probe
BIN  := $(addprefix bin/,$(PURE) $(CGO))
# Debian package and the file that shows it is there.
DEBS := softhsm2:/usr/bin/softhsm2-util opensc:/usr/bin/pkcs11-tool openssl:/usr/bin/openssl libp11-kit-dev:/usr/include/p11-kit-1/p11-kit/pkcs11.h \
	age:/usr/bin/age jq:/usr/bin/jq libnss3-tools:/usr/bin/certutil p11-kit:/usr/bin/p11-kit p11-kit-modules:/usr/share/doc/p11-kit-modules
# What the other PKCS#11 modules of the matrix come from.
MATRIX_DEBS := libnss3:/usr/share/doc/libnss3 opencryptoki:/usr/sbin/pkcsslotd \
	libtpm2-pkcs11-1:/usr/share/doc/libtpm2-pkcs11-1 swtpm:/usr/bin/swtpm libtss2-tcti-swtpm0:/usr/share/doc/libtss2-tcti-swtpm0
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# One set of flags for all builds, so that the cache holds each package once.
export GOFLAGS ?= -buildvcs=false -trimpath

.PHONY: help deps build check test demo attack-test hsm-faults rotate-test disaster-test hostile-test connections-test mutants before-test breaks-test acceptance bench hsm-bench hsm-masks hsm-matrix clean cross cross-all

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

deps: ## install what is missing from Debian
	@missing=""; for d in $(DEBS); do [ -e "$${d#*:}" ] || missing="$$missing $${d%%:*}"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; \
	  $(SUDO) apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

build: $(BIN) ## build the six programs into bin/

# go build decides what is out of date; the flags make the build reproducible.
RELEASE := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := -s -w -X countersign/internal/version.release=$(RELEASE)
$(addprefix bin/,$(PURE)): bin/%: FORCE
	@CGO_ENABLED=0 go build -ldflags='$(LDFLAGS)' -o $@ ./cmd/$*
$(addprefix bin/,$(CGO)): bin/%: FORCE
	@CGO_ENABLED=1 go build -ldflags='$(LDFLAGS)' -o $@ ./cmd/$*
bin/faultshim.so: $(wildcard softhsm-test/faultshim/*)
	@mkdir -p bin
	@softhsm-test/faultshim/build $@
FORCE:

check: deps cross ## format, vet, staticcheck, unreachable functions, builds for devices
	@out=$$(go tool gofumpt -l .); [ -z "$$out" ] || { echo "not gofumpt-ed:"; echo "$$out"; exit 1; }
	@go vet ./...
	@go tool staticcheck ./...
	@.ci/deadcode

# What runs on a device, for 32-bit processors; the rest is in cross-all.
cross:
	@$(call build_for,arm,./cmd/relayd ./cmd/countersign-client)

# Every program without cgo, for every processor.
cross-all:
	@$(call build_for,amd64 arm64 arm,$(addprefix ./cmd/,$(PURE)))

build_for = for arch in $(1); do \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$$arch go build -o /dev/null $(2) || { echo "pure-Go build for linux/$$arch failed"; exit 1; }; \
	done

# The race detector skips SQLite, which is translated from C: with it, tests that open a store take several
# times as long. It must see every package that uses generics of package sync, since the linker keeps one copy.
RACE := -race -gcflags='modernc.org/sqlite/lib=-race=false'

# make check runs vet. The suites of softhsm-test run in parts; make acceptance runs them whole.
test: deps build bin/faultshim.so ## run every test, with the race detector
	@go test $(RACE) -vet=off -short -timeout 15m ./...

demo: deps build ## narrate the main job with the real programs
	@go test -c -o bin/demo ./softhsm-test/demo
	@bin/demo

attack-test: deps build ## play relay and phone at byte level against the real programs
	@go test -c -o bin/attack ./softhsm-test/attack
	@bin/attack

hsm-faults: deps build bin/faultshim.so ## break the HSM in every way that is known, under load
	@go test -c -o bin/faults ./softhsm-test/faults
	@bin/faults

rotate-test: deps build ## rotate every key under load, then with kill -9 within each step
	@go test -c -o bin/rotate ./softhsm-test/rotate
	@bin/rotate

disaster-test: deps build ## lose token and state, and come back from backup, database and shares
	@go test -c -o bin/disaster ./softhsm-test/disaster
	@bin/disaster

hostile-test: deps build ## write to the database and to backup files behind the appliance's back
	@go test -c -o bin/hostile ./softhsm-test/hostile
	@bin/hostile

connections-test: deps build ## hold connections open without a certificate, by the thousand, and measure an honest device
	@go test -c -o bin/connections ./softhsm-test/connections
	@bin/connections

mutants: deps build ## change one decision of the product at a time, and see a test fail (MUTANTS_SEED draws others)
	@go test -c -o bin/mutants ./softhsm-test/mutants
	@bin/mutants

# The last commit before the packages were split.
BEFORE := 7c4772c

before-test: deps build ## go from the programs of $(BEFORE) to today's on one database, token and phone
	@work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	git archive $(BEFORE) | tar -x -C "$$work"; $(MAKE) -s -C "$$work" build; \
	COUNTERSIGN_BEFORE="$$work/bin" go test -count=1 -run TestForward ./softhsm-test

breaks-test: deps build bin/faultshim.so ## break the product in every way that the suites know, and see them fail
	@go test -count=1 -run TestBreaks ./softhsm-test/...

acceptance: cross-all demo attack-test hsm-faults rotate-test disaster-test hostile-test connections-test hsm-masks mutants before-test breaks-test ## the long harnesses

hsm-matrix: DEBS += $(MATRIX_DEBS)
hsm-matrix: deps bin/faultshim.so ## run the HSM contract on every PKCS#11 module that Debian has, and behind masks of others
	@go build -o bin/hsm-table ./softhsm-test/matrix/table
	@{ COUNTERSIGN_MATRIX=all go test -json -count=1 -timeout 20m -run "TestModules|TestMasks" ./softhsm-test/matrix || true; } | tee bin/hsm-matrix.json | bin/hsm-table

bench: deps build ## measure, with the raw speed of the token beside it
	@.ci/bench

hsm-masks: deps build bin/faultshim.so ## take an appliance through its main jobs behind masks of vendors' modules
	@go test -c -o bin/masks ./softhsm-test/masks
	@bin/masks

hsm-bench: deps build ## hold the speed of the HSM service against the token's
	@go build -o bin/hsmbench ./softhsm-test/hsmbench
	@bin/hsmbench

clean: ## remove what was built
	@rm -rf bin
