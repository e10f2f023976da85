PYTHON ?= python
N ?= 2000

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help format lint type test test-thorough smoke coverage golden parity fuzz kills mutants kills-suite bench bench-capture bench-certificates bench-checkpoint bench-ranking bench-shrink check

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

format: ## format the code and mend what ruff can mend
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint: ## check format and lint
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

type: ## check types
	$(PYTHON) -m pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

test: ## run the quick tests
	$(PYTHON) -m pytest

test-thorough: ## run what the quick tests leave out
	$(PYTHON) -m pytest -m thorough

smoke: ## run something of every room, in a minute
	$(PYTHON) -m pytest -m smoke $$(grep -rl --include='test_*.py' 'mark\.smoke' tests)

coverage: ## run every test and show the lines and branches not reached
	$(PYTHON) -m pytest -m "" --cov

golden: ## rewrite the golden files; read the diff before committing it
	FXPRUNE_UPDATE_GOLDEN=1 $(PYTHON) -m pytest -m ""

parity: ## compare N random pruning sequences with torch.nn.utils.prune, bit for bit
	$(PYTHON) -m tests.functional.parity.run --count $(N)

fuzz: ## hand N broken inputs of every kind to what reads them; N=100000 takes about half an hour
	$(PYTHON) -W ignore -m tests.fuzz --count $(N)

kills: ## kill N processes that write, at random moments; N=500 takes about five minutes
	$(PYTHON) -W ignore -m tests.kills --count $(N)

mutants: ## plant faults in the compiler and see that its checker catches each, with no false alarm
	$(PYTHON) -m tests.mutants

kills-suite: ## see that the quick tests notice what all tests notice; N=10 for ten of the 131 faults
	$(PYTHON) -m tests.kills_suite --count $(N)

bench: ## measure time and memory against hooked and dense models
	$(PYTHON) -m tests.bench

bench-capture: ## measure capture beside one torch.export, and the whole job beside Torch-Pruning
	$(PYTHON) -m tests.bench.capture

bench-certificates: ## measure what the checks of compile cost
	$(PYTHON) -m tests.bench.certificates

bench-checkpoint: ## measure pruning a checkpoint on disk against copying it
	$(PYTHON) -m tests.bench.checkpoint

bench-ranking: ## measure global ranking against torch.nn.utils.prune.global_unstructured
	$(PYTHON) -m tests.bench.ranking

bench-shrink: ## measure coupled pruning and shrink beside Torch-Pruning, where it is installed
	$(PYTHON) -m tests.bench.shrink

check: test lint type test-thorough ## all that CI runs
