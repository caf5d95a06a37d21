# One short target per habit.
.PHONY: demo up test check fmt lint docs agreement phoenix deny fuzz cluster-up cluster-test cluster-down guided bench bench-scaling bench-soak instructions clean help

CARGO ?= cargo
# What needs a cluster is left out of the demo, which builds sooner without. Programs are built together with the tests: without them, what others wrote would have fewer features, and be
# built twice.
CLUSTER = --features weft-control-plane/kubernetes,weft/kubernetes,weft-bench/kubernetes
SECONDS ?= 30

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

demo:            ## a whole mesh on this machine: no root, no cluster
	@scripts/need demo
	@echo "building (a cold build takes a few minutes)"
	@$(CARGO) build --bins -p weft -p weft-sidecar -p weft-control-plane -p weft-redirect
	@target/debug/weft demo $(ARGS)

test:            ## all tests, in namespaces of their own
	@scripts/need demo test
	@$(CARGO) build --workspace --bins --tests $(CLUSTER)
	@$(CARGO) test --workspace $(CLUSTER) --no-fail-fast -- --test-threads=2 2>&1 | scripts/count

check:           ## does it compile
	@$(CARGO) check --workspace --all-targets $(CLUSTER),weft-tests/cluster,weft-tests/phoenix

fmt:             ## format
	@$(CARGO) fmt --all

lint:            ## format, lints, and that core is pure
	@$(CARGO) fmt --all -- --check
	@$(CARGO) clippy --workspace --all-targets $(CLUSTER),weft-tests/cluster,weft-tests/phoenix -- -D warnings
	@scripts/pure

docs:            ## pages that are made of the code: docs/metrics.md
	@WEFT_WRITE=1 $(CARGO) test -q -p weft-core --lib metrics::tests::the_page

agreement:       ## what we read of Gateway API, beside somebody else's reading of it
	@$(CARGO) test -p weft-control-plane --features agreement --test agreement

phoenix:         ## a trace in Arize Phoenix, a page for traces that others wrote (850 MB of Python packages)
	@scripts/need demo test phoenix
	@$(CARGO) build --workspace --bins --tests $(CLUSTER)
	@$(CARGO) test --workspace $(CLUSTER),weft-tests/phoenix --test phoenix -- --test-threads=1

deny:            ## licences, advisories, banned crates (needs cargo-deny)
	@command -v cargo-deny >/dev/null || { echo "install it: cargo install --locked cargo-deny" >&2; exit 1; }
	@$(CARGO) deny check bans licenses sources

fuzz:            ## every parser of hostile bytes, SECONDS=30 each, TARGETS="detect http1" alone (needs cargo-fuzz)
	@scripts/need fuzz
	@fuzz/run $(SECONDS) $(TARGETS)

guided:          ## what ships, the sidecar built by what it was seen to do (root): target/guided/ship
	@bench/guided

bench: guided    ## measure the sidecar beside real proxies (root); figures and pictures go to target/bench
	@mkdir -p target/bench
	@target/ship/weft-bench control-plane
	@bench/compare --weft target/guided/ship --json target/bench/compare.json $(ARGS)
	@bench/plot costs target/bench/compare.json target/bench/costs.svg
	@bench/plot latency target/bench/compare.json target/bench/latency.svg

bench-scaling:   ## what a request costs as the mesh around it grows (root)
	@$(CARGO) build --profile ship --bins -p weft -p weft-sidecar -p weft-control-plane -p weft-redirect
	@mkdir -p target/bench
	@bench/scaling --json target/bench/scaling.json $(ARGS)
	@bench/plot lines target/bench/scaling.json target/bench/scaling.svg

bench-soak:      ## memory under load for half an hour (root)
	@$(CARGO) build --profile ship --bins -p weft -p weft-sidecar -p weft-control-plane -p weft-redirect
	@mkdir -p target/bench
	@bench/soak --json target/bench/soak.json $(ARGS)
	@bench/plot lines target/bench/soak.json target/bench/soak.svg

instructions:    ## instructions of the hot parts, beside those recorded: no other load matters
	@scripts/need instructions
	@$(CARGO) build --profile ship --bin weft-bench
	@bench/instructions $(ARGS)

cluster-up:      ## a real Kubernetes of one node, from Debian packages (root)
	@tests/cluster/setup
	@tests/cluster/up

cluster-test:    ## the tests on that cluster, or on the one that KUBECONFIG names
	@scripts/need demo test
	@$(CARGO) build --workspace --bins --tests $(CLUSTER)
	@FEATURES="$(CLUSTER)" tests/cluster/with tests/cluster/run $(ARGS)

cluster-down:    ## and away
	@tests/cluster/down

clean:           ## remove what was built
	@$(CARGO) clean
