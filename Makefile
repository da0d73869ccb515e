# NetSpectra's tasks. `make demo` and `make test` need nothing but Rust on a Debian machine.

.DEFAULT_GOAL := help
.PHONY: help demo test bench fuzz install-deps

BUILD_DEPS := gcc libc6-dev libpcap-dev
BENCH_DEPS := tcpdump nfdump hyperfine python3
FUZZ_DEPS  := g++
SUDO       := $(if $(filter 0,$(shell id -u)),,sudo)
TARGET     := $(abspath $(or $(CARGO_TARGET_DIR),target))
CORPUS     := $(wildcard $(or $(NETSPECTRA_CORPUS),../shared/pcaps))
SECONDS    ?= 600

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

test: install-deps	## formatting, lints, every test, documentation
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || rustup component add rustfmt clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --quiet

bench: install-deps	## every stage, then whole programs against tcpdump, wc and nfpcapd (BENCH_FLAGS=--scale: 1, 10 and 40 M packets)
	$(call install,$(BENCH_DEPS))
	cargo build --release
	cargo bench
	python3 benches/compare.py $(BENCH_FLAGS)

# No sanitizer, so that a stable compiler of any version will do.
# New inputs go under target/; the committed seeds and, where it is, the corpus of .ci/run are only read.
fuzz: install-deps	## fuzz the reader and the decoder, SECONDS=600 in all
	$(call install,$(FUZZ_DEPS))
	@cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
	@set -e; for target in reader decoder; do \
		mkdir -p $(TARGET)/fuzz/$$target fuzz/corpus/$$target; \
		cargo fuzz run -s none $$target $(TARGET)/fuzz/$$target $(abspath fuzz/corpus)/$$target $(abspath $(CORPUS)) -- \
			-max_total_time=$$(($(SECONDS) / 2)) -max_len=65536 -print_final_stats=1; \
	done
