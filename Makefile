# Every target does its own set-up. PYTHON selects the interpreter for the environments.
PYTHON ?= python3
BOOTSTRAP = $(PYTHON) environments/bootstrap.py
BIN = .venv/bin
# At most two processes; quant_assets_tests/conftest.py groups the tests.
PYTEST = $(BIN)/python -m pytest --numprocesses auto --maxprocesses 2 --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-groupwise fuzz ui check setup setup-groupwise pins schemas bench-gguf bench-listings bench-peers bench-memory bench-regret bench-criteria

demo:  ## set up and run the main job: listings, artifacts, benchmarks, marts
	@$(BOOTSTRAP) main --with demo
	@$(BIN)/quant-assets demo

test:  ## set up and run the tests
	@$(BOOTSTRAP) main --with demo --with test --with live
	@$(PYTEST) -m "not quantizers" $(PYTEST_ARGS)

test-groupwise:  ## set up the worker environments of GPTQ and AWQ, and run their tests
	@$(BOOTSTRAP) main --with demo --with test --with live
	@$(BOOTSTRAP) gptq
	@$(BOOTSTRAP) awq
	@$(PYTEST) -m quantizers $(PYTEST_ARGS)

fuzz:  ## 20,000 mutated files of every kind, with fresh seeds
	@$(BOOTSTRAP) main --with demo --with test --with live
	@FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-20000} $(BIN)/python -m pytest -m fuzz --timeout 7200 $(PYTEST_ARGS)

check:  ## set up and run the linter, the formatter's check, the type checker and the import contracts
	@$(BOOTSTRAP) main --with demo --with test --with live
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

ui:  ## set up and open the Dagster UI on localhost
	@$(BOOTSTRAP) main --with demo
	@$(BIN)/quant-assets ui

setup:  ## set up only
	@$(BOOTSTRAP) main --with demo --with test --with live

setup-groupwise:  ## set up the worker environments of GPTQ and AWQ
	@$(BOOTSTRAP) main --with demo
	@$(BOOTSTRAP) gptq
	@$(BOOTSTRAP) awq

pins:  ## regenerate the pin files from pyproject.toml; ARGS="--upgrade PACKAGE" takes newer versions
	@$(BOOTSTRAP) main --with demo --with test --with live
	@$(BIN)/python environments/lock.py $(ARGS)

schemas:  ## regenerate docs/schemas from the models of the commands' documents
	@$(BOOTSTRAP) main
	@$(BIN)/python -m quant_assets.cli.schemas docs/schemas

bench-gguf:  ## one pass against convert + llama_model_quantize, on a synthetic 1.2B Llama and SmolLM2
	@$(BOOTSTRAP) main --with demo --with test --with live
	@$(BIN)/python benchmarks/gguf_one_pass.py $(BENCH_ARGS)

bench-listings:  ## a million listings end to end, ten million, and a per-row loop
	@$(BOOTSTRAP) main
	@$(BIN)/python benchmarks/listings_scale.py $(BENCH_ARGS)

bench-peers:  ## speed and quality against llama.cpp's own tools
	@$(BOOTSTRAP) main --with demo --with test --with live
	@$(BIN)/python benchmarks/peers.py $(BENCH_ARGS)

bench-regret:  ## what `recommend --cpu` loses with a fifth of a grid measured; on an idle machine, 12 minutes
	@$(BOOTSTRAP) main --with demo
	@$(BIN)/python benchmarks/regret.py $(BENCH_ARGS)

bench-memory:  ## the memory arithmetic against what llama.cpp allocates, over more than 50 tiny architectures
	@$(BOOTSTRAP) main --with test
	@$(BIN)/python benchmarks/allocator_agreement.py $(BENCH_ARGS)

bench-criteria:  ## the specification's success criteria, measured; BENCH_ARGS="--only SC-002" for one
	@$(BOOTSTRAP) main --with demo --with test --with live
	@$(BIN)/python benchmarks/criteria.py $(BENCH_ARGS)
