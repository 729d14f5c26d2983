# rvm. `make demo` and `make test` do all the set-up they need, on a fresh Debian 12 with Rust and
# git, as root. `make build` needs the packages that `scripts/setup build` installs.

PREFIX ?= /usr/local
DESTDIR ?=
TARGET := x86_64-unknown-linux-gnu
PROFILE ?= release
BUILT := target/$(TARGET)/$(PROFILE)
DIST := dist

# The agent is built alone: beside the host's programs it would get the features that they want of
# common crates, and be a tenth larger.
.PHONY: build
build:
	cargo build --profile $(PROFILE) --locked --target $(TARGET) --bins --example rvm-pages \
		-p rvm -p rvm-shim -p rvm-vmm
	cargo build --profile $(PROFILE) --locked --target $(TARGET) --bins -p rvm-agent
	@mkdir -p $(DIST)/bin $(DIST)/libexec/rvm $(DIST)/share/rvm
	install -m 755 $(BUILT)/rvm $(BUILT)/containerd-shim-rvm-v2 $(DIST)/bin
	install -m 755 $(BUILT)/rvm-vmm $(DIST)/libexec/rvm/rvm-vmm
	guest-kernel/initramfs $(BUILT)/rvm-agent $(DIST)/share/rvm/initramfs
	kernel=$$(guest-kernel/vmlinux) \
		&& install -m 644 "$$kernel" $(DIST)/share/rvm/vmlinux \
		&& guest-kernel/reference "$$kernel" $(DIST)/share/doc/rvm/guest-kernel
	$(BUILT)/examples/rvm-pages $(DIST)/share

.PHONY: demo
demo:
	scripts/setup demo
	@$(MAKE) --no-print-directory build
	@scripts/demo

.PHONY: check
check:
	scripts/check

# Everything that CI runs: lints first, then every test on both engines.
.PHONY: test
test:
	scripts/setup test
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	$(MAKE) build
	scripts/test

# Below DESTDIR, for packages, and below PREFIX in it.
.PHONY: install
install: build
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(DIST)/bin/rvm $(DIST)/bin/containerd-shim-rvm-v2
	install -D -m 755 $(DIST)/libexec/rvm/rvm-vmm $(DESTDIR)$(PREFIX)/libexec/rvm/rvm-vmm
	mkdir -p $(DESTDIR)$(PREFIX)/share
	cp -R --preserve=mode --remove-destination $(DIST)/share/. $(DESTDIR)$(PREFIX)/share
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/rvm README.md CHANGELOG.md LICENSE
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/rvm/docs docs/*.md
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/rvm/docs/images docs/images/*.svg

# Into dist/packages: a .deb, a tarball, and their checksums.
.PHONY: package
package:
	scripts/setup package
	@$(MAKE) --no-print-directory build
	scripts/package $(DIST) $(DIST)/packages

# Measures what was built; docs/performance.md says what the figures mean.
.PHONY: bench
bench:
	scripts/setup test
	$(MAKE) build
	tests/bench/run
