# `make demo` shows docferry, `make test` tests it. Both need only Python 3.11 or newer with pip. `make help` lists the rest.

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP   := $(BIN)/python -m pip --disable-pip-version-check --no-input

# Tests start docferry hundreds of times: without bytecode on disk each start would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

# Arguments for one run: make test ARGS="tests/simulator -x"
ARGS ?=
# COV=1 measures line coverage too, and fails below 90 %.
COVERAGE := $(if $(COV),--cov --cov-report=term:skip-covered --cov-fail-under=90)

# The first of these that runs and is new enough; PYTHON=/path/to/python overrides the search.
PYTHONS := $(or $(PYTHON),python3.11 python3 python3.12 python3.13 python3.14)
define find_python
python=; for each in $(PYTHONS); do \
    if "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$each; break; fi; \
done; \
if [ -z "$$python" ]; then \
    echo "docferry needs Python 3.11 or newer; tried: $(PYTHONS). Name yours with: make PYTHON=/path/to/python3.11" >&2; \
    exit 1; \
fi
endef

.PHONY: help demo test screenshots soak storm fleet seeds catalogue bench lint check lock dist sbom deb rpm image test-packages clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	    || sed -n 's/^\([a-z-]*\):.*## /  make \1  /p' Makefile

demo: $(STAMP) ## run docferry on a temporary folder with a local simulator, within a minute
	@$(BIN)/docferry demo
	@echo "docferry demo --page keeps it and its status page open: $(BIN)/docferry demo --page"

# Most tests wait for something, so four at a time use two cores; tests that measure time run alone.
test: $(STAMP) ## all tests; ARGS="tests/simulator -x" for some of them, COV=1 for coverage of at least 90 %
ifdef ARGS
	@$(BIN)/python -m pytest $(COVERAGE) $(ARGS)
else
	@$(BIN)/python -m pytest $(if $(COV),--cov --cov-report=) -m "not alone and not packages" -n 4 --dist worksteal
	@$(BIN)/python -m pytest $(if $(COV),--cov-append) $(COVERAGE) -m alone
endif

screenshots: $(STAMP) ## pictures of the status page, in docs/img; needs Debian's chromium
	@PYTHONPATH=tests $(BIN)/python tests/web/screenshots.py

soak: $(STAMP) ## 2,000 times kill -9, at random and at every transition; ARGS="--kills 200" for fewer
	@$(BIN)/python tests/crash/soak.py $(ARGS)

storm: $(STAMP) ## 10,000 documents while half of all requests fail, half of them over TLS; ARGS="--documents 500" for fewer
	@$(BIN)/python tests/crash/storm.py $(ARGS)

fleet: $(STAMP) ## 2,000 faults of four hosts on one PostgreSQL queue, 20,000 documents; ARGS="--faults 100 --documents 2000" for fewer
	@$(BIN)/python tests/crash/fleet.py $(ARGS)

seeds: $(STAMP) ## 100,000 simulated runs of a queue, each decided by its seed; ARGS=17:18 repeats one, ARGS="0:1000 postgresql"
	@PYTHONPATH=tests $(BIN)/python tests/property/simulated.py $(or $(ARGS),0:100000)

# Each test starts a process: five minutes. The suite compares both ways in tests/senders.
test-senders: $(STAMP) ## the tests of HTTP and of uploads once more, with every document sent by a sender process
	@THROUGH_SENDERS=1 $(BIN)/python -m pytest -n 2 $(patsubst %,tests/contract/test_http_%.py,client connect hostile progress proxy tls) tests/upload $(ARGS)

# -s shows the progress of long runs, and the figures.
catalogue: $(STAMP) ## fault rows W, C, Z and S in full size, with figures; ARGS="-k w2" for some of them
	@DOCFERRY_FULL=1 $(BIN)/python -m pytest -v -s $(patsubst %,tests/faults/test_%.py,watch complete zip system) $(ARGS)

bench: $(STAMP) ## measure docferry beside other programs; QUICK=1 in under two minutes, ARGS="--only w1" for a part
	@$(BIN)/python -m benchmarks --install-peers $(if $(QUICK),--quick) $(ARGS)

lint: $(STAMP) ## ruff, codespell, mypy --strict, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases tests
	$(BIN)/mypy --explicit-package-bases benchmarks/*.py packaging/*.py
	$(BIN)/lint-imports

check: lint test ## lint and test, as CI does it

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' daemon/docferry/__init__.py)
WHEEL   = dist/docferry-$(VERSION)-py3-none-any.whl
LOCKED  = dist/docferry-$(VERSION).lock
SBOM    = dist/docferry-$(VERSION).cdx.json
# The Debian releases that packages are built for, each with its own Python.
SUITES ?= bookworm trixie

# The lock beside the wheel names the wheel too, with its hash: one file is enough to install all of it.
dist: $(STAMP) ## a wheel, a source archive and the lock to install them with, in dist/
	$(BIN)/python -m hatchling build -d dist
	@{ cat packaging/requirements.lock && echo "docferry[postgresql,receipts,socks]==$(VERSION)" \
	    "--hash=sha256:$$(sha256sum $(WHEEL) | cut -d ' ' -f 1)"; } > $(LOCKED)

sbom: dist ## a CycloneDX bill of materials of what a service needs, in dist/
	rm -rf build/runtime
	$(BIN)/python -m venv --without-pip build/runtime
	$(PIP) --python build/runtime/bin/python install --quiet --no-compile --require-hashes --find-links dist --requirement $(LOCKED)
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-format JSON --output-reproducible \
	    --output-file $(SBOM) build/runtime/bin/python

deb: sbom ## Debian packages in dist/, for each release of SUITES; needs mmdebstrap
	@for suite in $(SUITES); do packaging/build $$suite deb || exit 1; done

rpm: sbom ## an RPM package in dist/, for distributions that have Python 3.11; needs mmdebstrap
	@packaging/build bookworm rpm

image: sbom ## a container image in dist/, from Debian and the package; needs root, mmdebstrap and buildah
	@packaging/build trixie deb
	@packaging/build-image

test-packages: image ## build all packages, install each in a clean root, upgrade and purge it; as root
	@packaging/build bookworm deb rpm
	@$(BIN)/python -m pytest -m packages tests/shipping $(ARGS)

# Only this target needs uv. It resolves everything again: review the difference before you commit it.
# The second file is the part of the first that a service needs: packages, images and installations by root use it.
COMPILE = UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile pyproject.toml --quiet --universal \
    --generate-hashes --python-version 3.11
lock: $(STAMP) ## write requirements.lock and packaging/requirements.lock again from pyproject.toml
	$(PIP) install --quiet 'uv>=0.5'
	$(COMPILE) --upgrade --extra test --extra lint --extra build --output-file requirements.lock
	$(COMPILE) --upgrade --extra postgresql --extra receipts --extra socks --constraint requirements.lock \
	    --no-annotate --output-file packaging/requirements.lock

clean: ## remove everything that make has made
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made again after each change of its prerequisites. Without ensurepip (Debian without python3-venv) pip itself is
# installed into the new environment.
$(STAMP): requirements.lock pyproject.toml
	@$(BIN)/python -c '' 2>/dev/null && $(PIP) --version >/dev/null 2>&1 || { $(find_python); \
	    echo "making $(VENV) with $$python"; \
	    "$$python" -m venv --clear $(VENV) >/dev/null 2>&1 \
	        || { "$$python" -m venv --clear --without-pip $(VENV) \
	             && "$$python" -m pip --python $(BIN)/python install --quiet pip; } \
	        || { echo "$$python cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }; }
	@echo "installing what requirements.lock names"
	@$(PIP) install --quiet --require-hashes --requirement requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
