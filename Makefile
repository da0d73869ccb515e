# NetSpectra's tasks. `make demo` and `make test` need nothing but Rust on a Debian machine.

.DEFAULT_GOAL := help
.PHONY: help demo live live-demo test-deps test crash-test bench live-bench cluster-bench query-bench writer-bench outage-bench soak fuzz install-deps

BUILD_DEPS := gcc libc6-dev libpcap-dev
TEST_DEPS  := nats-server tcpreplay tcpdump iproute2 openssl util-linux mount strace systemd prometheus python3-venv
BENCH_DEPS := tcpdump nfdump softflowd argus-server hyperfine python3
FUZZ_DEPS  := g++
SUDO       := $(if $(filter 0,$(shell id -u)),,sudo)
TARGET     := $(abspath $(or $(CARGO_TARGET_DIR),target))
PYTHON     := $(TARGET)/test-python
CORPUS     := $(wildcard $(or $(NETSPECTRA_CORPUS),../shared/pcaps))
SECONDS    ?= 600
ROUNDS     ?= 30
FAULTS     ?= 1000
SEED       ?= 1
IFACE      ?= $(or $(shell ip -o route show default 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p;q'),any)

# Installs those of the packages $(1) that are missing; elsewhere than on Debian it only says what is needed.
define install
@missing=; for package in $(1); do \
	dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
done; \
if [ -z "$$missing" ]; then exit 0; fi; \
if ! command -v apt-get >/dev/null; then echo "not a Debian system; assuming that these are there:$$missing"; exit 0; fi; \
echo "installing$$missing"; \
$(SUDO) apt-get update -q && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing
endef

help:	## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

install-deps:	## install what the build needs: a C compiler and libpcap's headers
	$(call install,$(BUILD_DEPS))

demo: install-deps	## build, generate a capture with planted events in ./demo, analyse it, show the table
	cargo build --release
	@mkdir -p demo
	@echo; echo "planted in demo/capture.pcap:"
	@$(TARGET)/release/pcapgen --events -o demo/capture.pcap
	@echo; $(TARGET)/release/pcap-analyzer -o demo/snapshots demo/capture.pcap
	@cd demo && $(TARGET)/release/pcap-analyzer -q -c ../examples/alerts.yaml --window 3s capture.pcap
	@echo; echo "raised by the rules of examples/alerts.yaml (demo/alerts.jsonl):"
	@sed -n 's/.*"event":"raised","rule":"\([^"]*\)".*"key":\([^}]*}\).*"window_start":"\([^"]*\)".*/  \3  \1  \2/p' demo/alerts.jsonl

live: install-deps	## watch IFACE (that of the default route) until Ctrl-C: a folder every 10 s in ./live; root or sudo
	cargo build --release
	@echo; echo "watching $(IFACE): every 10 s a folder in ./live; Ctrl-C ends it"
	@$(SUDO) $(TARGET)/release/ns-engine --iface $(IFACE) --window 10s -o live

# The server takes any free port and writes it into a file; whatever happens, all three programs are gone in the end.
live-demo: install-deps	## nats-server, ns-engine and a replaying ns-probe in one, no root; the books and folders it leaves in ./demo
	$(call install,nats-server)
	cargo build --release
	@mkdir -p demo && rm -rf demo/live demo/offline demo/nats && mkdir demo/nats
	@$(TARGET)/release/pcapgen --events -o demo/capture.pcap
	@set -e; bin=$(TARGET)/release; server=; engine=; \
	trap 'kill $$engine $$server 2>/dev/null || true; wait' EXIT; trap 'exit 130' INT TERM; \
	has() { until grep -qs "$$2" $$3; do kill -0 $$1 2>/dev/null || { cat demo/nats/*.log; exit 1; }; sleep 0.1; done; }; \
	nats-server -a 127.0.0.1 -p -1 --ports_file_dir demo/nats -l demo/nats/server.log & server=$$!; \
	has $$server 'nats:.*}' "demo/nats/*.ports"; \
	url=$$(sed 's/.*"\(nats:[^"]*\)".*/\1/' demo/nats/*.ports); \
	$$bin/ns-engine --nats $$url --window 60s -o demo/live 2>demo/nats/engine.log & engine=$$!; \
	has $$engine 'subscribed to' demo/nats/engine.log; \
	$$bin/ns-probe --nats $$url --read demo/capture.pcap; \
	kill $$engine; wait $$engine; engine=; \
	echo; echo "demo/live/ledger.json:"; cat demo/live/ledger.json; echo; ls -d demo/live/*/; \
	$$bin/pcap-analyzer -q --window 60s -o demo/offline demo/capture.pcap >/dev/null; \
	diff -r -x ledger.json demo/offline demo/live && echo "byte for byte what pcap-analyzer --window 60s makes of the capture"

# ClickHouse as a library, readers of Parquet, and what tries the API; from PyPI, into the target folder.
$(PYTHON)/installed: tests/requirements.txt
	python3 -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

test-deps: install-deps	## install what the tests need
	$(call install,$(TEST_DEPS))
	@$(MAKE) --no-print-directory $(PYTHON)/installed

test: test-deps	## formatting, lints, every test, documentation
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || rustup component add rustfmt clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --quiet

crash-test: install-deps	## kill -9 at random: ROUNDS=30 of 2 M packets from SEED=1 on; FAULTS=1000 system calls that fail or kill; each held against a run without
	$(call install,$(TEST_DEPS))
	NETSPECTRA_FAULTS=$(FAULTS) NETSPECTRA_FAULT_SEED=$(SEED) cargo test --release --test faults -- --nocapture
	NETSPECTRA_CRASH_ROUNDS=$(ROUNDS) NETSPECTRA_CRASH_PACKETS=2000000 NETSPECTRA_CRASH_SEED=$(SEED) \
		cargo test --release --test crash -- --nocapture kills_at_random

bench: install-deps	## all that is promised of speed, in one run: stages, other programs, memory, scaling, live (BENCH_FLAGS=--quick, or "--report BENCHMARKS.md")
	$(call install,$(BENCH_DEPS) $(TEST_DEPS))
	cargo build --release
	cargo bench
	python3 benches/bench.py $(BENCH_FLAGS)

live-bench: install-deps	## rate over NATS, capture cost beside tcpdump, latency, idling (BENCH_FLAGS=--quick); root, or less
	$(call install,$(TEST_DEPS) python3)
	cargo build --release
	python3 benches/live.py $(BENCH_FLAGS)

cluster-bench: install-deps	## processor time of 1, 2 and 4 processes, a slow sink (BENCH_FLAGS=--quick, --slow-sink); root for the latter
	$(call install,$(TEST_DEPS) python3)
	cargo build --release
	python3 benches/cluster.py $(BENCH_FLAGS)

writer-bench: install-deps	## what Parquet and JSON lines beside csv cost the batch job
	$(call install,python3)
	cargo build --release
	python3 benches/writers.py

outage-bench: test-deps	## ClickHouse killed for 30 s under 500 000 packets/s: what is lost, doubled, kept in memory, and when it has caught up
	cargo build --release
	python3 benches/outage.py

soak: test-deps	## an hour of event time in 7 minutes, all writers, kills of nats-server, wrong clocks: what grows, is it exact (SOAK_FLAGS=--quick)
	$(call install,python3)
	cargo build --release
	python3 benches/soak.py --seed $(SEED) $(SOAK_FLAGS)

query-bench: install-deps	## what standing queries, sketches and alerts cost: a window with few changes, and the batch job
	$(call install,python3)
	cargo build --release
	cargo bench --bench standing
	python3 benches/queries.py

# No sanitizer, so that a stable compiler of any version will do.
# New inputs go under target/; the committed seeds and, where it is, the corpus of .ci/run are only read.
fuzz: install-deps	## fuzz the reader, the decoder and the messages, SECONDS=600 in all
	$(call install,$(FUZZ_DEPS))
	@cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
	@set -e; for target in reader decoder messages; do \
		mkdir -p $(TARGET)/fuzz/$$target fuzz/corpus/$$target; \
		cargo fuzz run -s none $$target $(TARGET)/fuzz/$$target $(abspath fuzz/corpus)/$$target $(abspath $(CORPUS)) -- \
			-max_total_time=$$(($(SECONDS) / 3)) -max_len=65536 -print_final_stats=1; \
	done
