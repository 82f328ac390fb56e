# The project's commands; each is complete on a fresh machine with Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test test-vllm check bench bench-vllm proto format clean help

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed  ## Real models over a real socket: devices draft, the server verifies, the texts are compared
	@$(BIN)/wisp demo $(ARGS)

test: $(VENV)/.installed  ## The test suite
	$(BIN)/python -m pytest $(ARGS)

test-vllm: build/vllm-venv/.installed  ## The target engines' contract on vLLM, in an environment of its own
	build/vllm-venv/bin/python -m pytest tests/engines/vllm $(ARGS)

check: $(VENV)/.installed  ## Style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed  ## Ratios measured side by side in one run
	$(BIN)/python -m wisp.bench.ratios $(ARGS)

bench-vllm: build/vllm-venv/.installed  ## WISP on vLLM beside vLLM by itself, and beside WISP on transformers
	build/vllm-venv/bin/python -m wisp.bench.vllm $(ARGS)

format: $(VENV)/.installed  ## Reformat the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Generated with the floor versions: code from a newer generator refuses older runtimes.
proto:  ## Regenerate the protobuf code after a change of wisp.proto
	$(PYTHON) -m venv build/proto-venv
	build/proto-venv/bin/pip install --quiet 'grpcio-tools==1.74.0' 'mypy-protobuf==3.6.0' 'setuptools<80'
	cd src && PATH="$(CURDIR)/build/proto-venv/bin:$$PATH" ../build/proto-venv/bin/python -m grpc_tools.protoc \
		-I . --python_out=. --grpc_python_out=. --mypy_out=. wisp/protocol/wisp.proto

$(VENV)/.installed: pyproject.toml tools/install.sh
	PYTHON=$(PYTHON) VENV=$(VENV) bash tools/install.sh
	@touch $@

build/vllm-venv/.installed: pyproject.toml tools/install.sh tools/install_vllm.sh
	PYTHON=$(PYTHON) VENV=build/vllm-venv bash tools/install_vllm.sh
	@touch $@

clean:  ## Remove what the commands above made
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
