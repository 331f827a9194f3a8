# Each target works as the first command in a fresh clone: it makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip

# Two test processes share two cores; more threads inside each would only contend.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo tutorials test slow recipes matrix mutants bench gpt bench-solve docs format release clean

demo: $(VENV)/.has-demo
	$(BIN)/python tutorials/01_orthogonal_gru.py

# each asserts its answer at its end
tutorials: $(VENV)/.has-demo
	set -e; for file in tutorials/[0-9]*.py; do echo "== $$file"; MPLBACKEND=agg $(BIN)/python $$file; done

test: $(VENV)/.has-test,demo,docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -n 2 --dist worksteal

# every case of every test, of which `make test` takes up to 12, and the tests that take long
slow: $(VENV)/.has-test,demo,docs
	$(PYTEST) -n 2 --dist worksteal --every-case -m "not recipes"

# the pages of docs/recipes that need the libraries of others
recipes: $(VENV)/.has-test,demo,docs $(VENV)/.has-recipes
	$(PYTEST) -n 2 --dist worksteal -m recipes tests/test_docs.py

# the tests under ten other seeds, each with one of the instruction sets and one or two threads; a table at its end
matrix: $(VENV)/.has-test,demo,docs
	$(BIN)/python -m tests.matrix $(MATRIX)

# hours: which changes of one operator no test sees, in one file: make mutants MUTANTS=manifolds/sphere.py MUTANT_TESTS=tests/manifolds/test_sphere.py
MUTANTS ?= manifolds/sphere.py
MUTANT_TESTS ?= tests/manifolds/test_sphere.py
mutants: $(VENV)/.has-test,demo,docs,mutation
	printf '[cosmic-ray]\nmodule-path = "%s"\ntimeout = 300\nexcluded-modules = []\ntest-command = "%s"\n[cosmic-ray.distributor]\nname = "local"\n' \
		"$(MUTANTS)" "$(BIN)/python -m pytest -x -q -p no:cacheprovider $(MUTANT_TESTS)" > mutants.toml
	$(BIN)/cosmic-ray init mutants.toml mutants.sqlite
	OMP_NUM_THREADS=1 $(BIN)/cosmic-ray exec mutants.toml mutants.sqlite
	$(BIN)/cr-report --show-pending mutants.sqlite | tail -n 40

# make bench BENCH="--rows gru"
bench: $(VENV)/.has-bench
	$(BIN)/python -m benchmarks $(BENCH)

# the GPT of docs/transformer.md: hours on a processor, run by run, and it goes on where it was: make gpt GPT="--device cuda"
gpt: $(VENV)/.has-bench
	$(BIN)/python -m benchmarks.gpt $(GPT)

# solvers beside pymanopt's, about four minutes, into docs/solve.md: make bench-solve BENCH="--only pca procrustes"
bench-solve: $(VENV)/.has-bench
	$(BIN)/python -m benchmarks.solving --docs docs $(BENCH)

# the whole site, with the tutorials run; the tests build it with what they last showed
docs: $(VENV)/.has-demo,docs
	OMP_NUM_THREADS=2 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

format: $(VENV)/.has-test,demo,docs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# wheel and sdist, each installed in an environment of its own and tried outside of this folder
release: $(VENV)/.has-test,demo,docs
	rm -rf dist build
	$(PIP) install build
	$(BIN)/python -m build
	set -e; for file in dist/*; do \
		where=$$(mktemp -d); $(PYTHON) -m venv $$where/env; \
		$$where/env/bin/python -m pip install -q torch==2.13.0; \
		$$where/env/bin/python -m pip install -q $$(realpath $$file); \
		(cd $$where && env/bin/python -c "$$SMOKE"); rm -rf $$where; echo "$$file works"; \
	done

define SMOKE
import importlib.metadata, pathlib, torch, constraints, manifolds
from constraints import Riemannian, constrain, report
from constraints.optim import RiemannianAdam
from manifolds import Stiefel
gru = constrain(torch.nn.GRU(4, 8), "weight_hh_l0", Stiefel**3, Riemannian())
step = RiemannianAdam(gru, lr=1e-2)
gru(torch.randn(5, 2, 4))[0].sum().backward()
step.step()
assert report(gru)[0].ok
for package in (constraints, manifolds):
    assert (pathlib.Path(package.__file__).parent / "py.typed").exists()
print(importlib.metadata.version("manifold-constraints"))
endef
export SMOKE

clean:
	rm -rf $(VENV) build dist *.egg-info

# torch first and pinned, so that nothing that depends on it chooses another version
$(VENV)/.has-torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install torch==2.13.0
	@touch $@

$(VENV)/.has-%: $(VENV)/.has-torch pyproject.toml
	$(PIP) install -e ".[$*]"
	@touch $@
