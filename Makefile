# One short target per habit.
.PHONY: demo up test check fmt lint deny fuzz bench clean help

CARGO ?= cargo
SECONDS ?= 30

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo:            ## a whole mesh on this machine: no root, no cluster
	@scripts/need demo
	@echo "building (a cold build takes a few minutes)"
	@$(CARGO) build --bins -p weft -p weft-sidecar -p weft-control-plane -p weft-redirect
	@target/debug/weft demo $(ARGS)

test:            ## all tests, in namespaces of their own
	@scripts/need demo test
	@$(CARGO) build --workspace --bins
	@$(CARGO) test --workspace --no-fail-fast -- --test-threads=2 2>&1 | scripts/count

check:           ## does it compile
	@$(CARGO) check --workspace --all-targets

fmt:             ## format
	@$(CARGO) fmt --all

lint:            ## format, lints, and that core is pure
	@$(CARGO) fmt --all -- --check
	@$(CARGO) clippy --workspace --all-targets -- -D warnings
	@scripts/pure

deny:            ## licences, advisories, banned crates (needs cargo-deny)
	@command -v cargo-deny >/dev/null || { echo "install it: cargo install --locked cargo-deny" >&2; exit 1; }
	@$(CARGO) deny check bans licenses sources

fuzz:            ## every parser of hostile bytes, SECONDS=30 each, TARGETS="detect http1" alone (needs cargo-fuzz)
	@scripts/need fuzz
	@fuzz/run $(SECONDS) $(TARGETS)

bench:           ## measure the sidecar beside real proxies (root)
	@$(CARGO) build --profile ship --bins -p weft -p weft-sidecar -p weft-control-plane -p weft-redirect -p weft-bench
	@target/ship/weft-bench control-plane
	@bench/compare $(ARGS)

clean:           ## remove what was built
	@$(CARGO) clean
