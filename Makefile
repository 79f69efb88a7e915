# make demo: prune and compile a real model.  make test: what CI runs.
# The first that runs and can make virtual environments: some launchers exist without a Python behind them.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& command -v $$p && break; done)
BIN := .venv/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: install demo test lint bench sparse-bench alignment zoo variants speed accuracy fuzz profiles validate-speed mutations tvm-zoo sparse-zoo exports arm-setup arm-counts arm-rpc cuda-kernels int8-bench test-gpu clean

install: .venv/.installed

.venv/.python:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "onnx-prune needs Python 3.11 or newer with venv; name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tvm]'
	@touch $@

.venv/.tested: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tvm,arm,cuda,test]'
	@touch $@

# Half of the arithmetic goes, with kept counts that suit vector units. 200 images without labels are enough to
# choose channels and to fit the layers that stay again.
demo: .venv/.installed
	@mkdir -p demo
	$(BIN)/onnx-prune prune models/digits_resnet.onnx --macs 50% --multiple 8 -o demo/digits_resnet.onnx \
		--calibration onnx_prune.models.digits:unlabelled --save-plan demo/plan.json
	$(BIN)/onnx-prune compile models/digits_resnet.onnx -o demo/digits_resnet_dense.so
	$(BIN)/onnx-prune compile demo/digits_resnet.onnx -o demo/digits_resnet_pruned.so
	$(BIN)/python tools/demo.py

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

# What compiling for 64-bit ARM and running that here takes: a linker, QEMU and TVM's runtime for it.
arm-setup: .venv/.installed
	@for tool in qemu-aarch64 aarch64-linux-gnu-g++ llvm-mca-19; do \
		command -v $$tool >/dev/null || missing=$$tool; done; \
		[ -z "$$missing" ] || $(SUDO) apt-get install --yes --quiet --no-install-recommends \
		qemu-user g++-aarch64-linux-gnu libc6-dev-arm64-cross llvm-19
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tvm,arm]'
	$(BIN)/python -m onnx_prune.backends.emulator.tools

# Slow: instructions of nets on emulated processors of 64-bit ARM; the table goes to docs/arm_counts.md.
arm-counts: arm-setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tvm,arm,peers]'
	$(BIN)/python tools/arm_table.py

# Slow: models on a server of TVM's RPC for 64-bit ARM, which runs under QEMU; needs Debian's packages.
arm-rpc: arm-setup
	$(BIN)/python tools/arm_rpc.py

# Slow: nets compiled for GPUs, their tensor cores emulated; the table goes to docs/cuda_kernels.md.
cuda-kernels: .venv/.tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tvm,cuda,peers]'
	$(BIN)/python tools/cuda_table.py

# Slow: quantised nets beside ONNX Runtime, and counted on 64-bit ARM; the table goes to docs/int8.md.
int8-bench: arm-setup
	$(BIN)/python tools/int8_bench.py

# Only where there is a GPU of NVIDIA; the comparison needs a PyTorch with CUDA in the same environment.
test-gpu: .venv/.tested
	$(BIN)/python -m pytest -q -m gpu
	$(BIN)/python tools/gpu_bench.py

# Slow: every graph of the zoo is pruned and certified; the table goes to docs/coverage.md.
zoo: .venv/.installed
	$(BIN)/python tools/zoo_table.py

# Slow: exports and variants beyond the zoo; the table goes to docs/variants.md.
variants: .venv/.tested
	$(BIN)/python tools/variants_table.py

# Slow: the analysis timed on the zoo and on generated nets; the table goes to docs/analysis_speed.md.
speed: .venv/.installed
	$(BIN)/python tools/analysis_speed.py

# Slow: 10,000 random graphs, equal to the last bit.
fuzz: .venv/.tested
	ONNX_PRUNE_EXAMPLES=10000 $(BIN)/python -m pytest -q tests/test_random_graphs.py

# Slow: graphs of the zoo made to satisfy each profile, and our backend run through the conformance kits; the
# tables go to docs/profiles_zoo.md and docs/conformance_runs.md.
profiles: .venv/.installed
	$(BIN)/python tools/profiles_table.py
	$(BIN)/python tools/conformance_table.py

# Slow: models of 1 GB validated; the table goes to docs/validate_speed.md.
validate-speed: .venv/.installed
	$(BIN)/python tools/validate_speed.py

# Slow: every rule broken on purpose; the table goes to docs/mutations.md.
mutations: .venv/.tested
	$(BIN)/python tools/mutation_table.py

# Slow: every graph of the zoo is compiled with TVM; the table goes to docs/tvm_zoo.md.
tvm-zoo: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tvm,peers]'
	$(BIN)/python tools/tvm_zoo.py

# Slow: the same with zeros in every layer; the table goes to docs/sparse_zoo.md.
sparse-zoo: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tvm,peers]'
	$(BIN)/python tools/tvm_zoo.py --zeros

# Slow, and needs torch: accuracy against what was removed, ours and peers'; docs/accuracy.md and its figure.
accuracy: .venv/.tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tvm,test,models,peers]'
	$(BIN)/python tools/accuracy_table.py

# Slow, and needs torch: times against ONNX Runtime and OpenVINO; the table goes to docs/benchmarks.md.
bench: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tvm,peers]'
	$(BIN)/python tools/bench.py

# Slow: layers and nets with zeros against dense ones; the table goes to docs/sparse_benchmarks.md.
sparse-bench: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tvm,peers]'
	$(BIN)/python tools/sparse_bench.py --tune 30

# Slow: time against ratio with and without aligned channels; the table goes to docs/alignment.md.
alignment: .venv/.installed
	$(BIN)/python tools/alignment_table.py

# Slow, and needs torch: the exports that tests prune, made again.
exports: .venv/.tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tvm,test,models]'
	$(BIN)/python tools/export_models.py
	$(BIN)/python tools/fuse_exports.py

clean:
	rm -rf .venv demo build dist .mypy_cache .ruff_cache .pytest_cache
