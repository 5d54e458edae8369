# SPDX-License-Identifier: MIT
# The everyday commands, over the presets of CMakePresets.json. Each installs
# what it needs by itself the first time (tools/setup.sh).

.DEFAULT_GOAL := help
.PHONY: build python run test test-all lint format asan tsan clean distclean help \
  setup setup-lint setup-parity setup-model

# make run: text and budget of the answer. They travel in the environment, so
# that no quoting is lost on the way.
export PROMPT RAM MODEL

JOBS := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
CTEST = ctest --output-on-failure --no-tests=error

build: setup ## build/release/mlx-flash
	@tools/build.sh release
	@tools/build.sh release

run: build ## answer a prompt (PROMPT=..., RAM=64MB, MODEL=...)
	@tools/run_default_model.sh

# Unit tests first and side by side; what loads models and measures memory or
# disks runs alone.
test: build python setup-model ## all tests but the slow ones
	@cd build/release && $(CTEST) -j $(JOBS) -LE '^(model|disk|slow)$$'
	@cd build/release && $(CTEST) -L '^(model|disk)$$' -LE '^slow$$'

test-all: build python setup-model ## the slow tests too
	@cd build/release && $(CTEST) -j $(JOBS) -LE '^(model|disk|slow)$$'
	@cd build/release && $(CTEST) -L '^(model|disk|slow)$$'

python: setup setup-parity ## the Python package's extension, for tests
	@tools/build.sh python _engine

lint: setup-lint setup-parity ## formatting, layers, sizes, headers, clang-tidy, -Werror
	@tools/lint.sh

format: setup-lint ## clang-format over our sources
	@tools/lint.sh --fix-format

# Sanitizers slow MLX-free code down 2-5 times; the slow tests stay out.
asan: setup setup-parity setup-model ## address + undefined sanitizers, whole suite
	@tools/build.sh asan
	@ctest --preset asan --no-tests=error -j $(JOBS) -LE '^(disk|slow)$$'

tsan: setup ## thread sanitizer: base, io, residency
	@tools/build.sh tsan src/base/all src/io/all src/residency/all
	@ctest --preset tsan --no-tests=error -L '^(base|io|residency)$$' -LE '^slow$$'

clean: ## remove what was built, keep what was downloaded
	@rm -rf build/release build/dev build/asan build/tsan build/lint

distclean: ## remove build/ altogether
	@rm -rf build

setup:
	@tools/setup.sh build

setup-lint: setup
	@tools/setup.sh lint

setup-parity: setup
	@tools/setup.sh parity

# Tests that need the default model say SKIP without it.
setup-model: setup
	@tools/run_default_model.sh --path >/dev/null || true

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | \
	  expand -t 20
