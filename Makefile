# Everything runs inside this checkout: uv in .tools, the environment in .venv. `make` alone lists the commands.

UV_VERSION := 0.13
UV_HOME := .tools/uv-$(UV_VERSION)
UV := $(UV_HOME)/bin/uv
BIN := .venv/bin
COMPOSE := docker compose --file deploy/docker-compose.yml $(if $(TLS),--file deploy/docker-compose.tls.yml) \
    $(if $(LOGS),--file deploy/docker-compose.logs.yml) $(if $(TRACES),--file deploy/docker-compose.traces.yml)
SEEDED := $(if $(SEED),TRADELOOP_TEST_SEEDS="$(SEED)")

# A user's shell may point pip, uv or Python at other environments and package sources. Indexes, proxies, certificates
# and caches stay: a machine behind a mirror needs them.
# Without compiled modules every process that starts would compile all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH
unexport PIP_CONSTRAINT PIP_FIND_LINKS PIP_PREFIX PIP_REQUIREMENT PIP_ROOT PIP_TARGET PIP_USER
unexport UV_CONSTRAINT UV_EXCLUDE_NEWER UV_FIND_LINKS UV_FROZEN UV_LOCKED UV_NO_DEFAULT_GROUPS UV_NO_DEV UV_NO_EDITABLE
unexport UV_NO_GROUP UV_NO_SYNC UV_OVERRIDE UV_PRERELEASE UV_PROJECT UV_PROJECT_ENVIRONMENT UV_RESOLUTION
unexport UV_WORKING_DIRECTORY UV_WORKING_DIR

.PHONY: help demo up passwords certificates down up-native down-native k8s-secrets test soak images test-compose test-k8s
.PHONY: check docs generator dist release-images audit licences sbom bench format sync clean
.DEFAULT_GOAL := help

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: sync ## Train, trade and report in one process: BARS= SOURCE= STRATEGY= OUT=demo SEED= STEPS=
	@set -- --out "$${OUT:-demo}"; \
	[ -z "$$BARS" ] || set -- "$$@" --bars "$$BARS"; \
	[ -z "$$STRATEGY" ] || set -- "$$@" --strategy "$$STRATEGY"; \
	[ -z "$$SEED" ] || set -- "$$@" --seed "$$SEED"; \
	[ -z "$$SOURCE" ] || set -- "$$@" --source "$$SOURCE"; \
	[ -z "$$STEPS" ] || set -- "$$@" --steps "$$STEPS"; \
	exec $(BIN)/tradeloop demo "$$@"

up: passwords $(if $(TLS),certificates) ## Build and start the whole stack in Docker, and wait: TLS=1 MONITORING=1
	@docker compose version >/dev/null 2>&1 || { \
	    echo "make up needs a Docker engine and Compose v2: https://docs.docker.com/engine/install" >&2; exit 1; }
	COMMIT=$$(git rev-parse HEAD 2>/dev/null) $(COMPOSE) $(if $(MONITORING),--profile monitoring) up --detach --build --wait
	@$(COMPOSE) ps --format 'table {{.Service}}\t{{.Status}}\t{{.Ports}}'

down: ## Stop that stack; what it stored stays, unless CLEAN=1
	$(COMPOSE) --profile monitoring down $(if $(CLEAN),--volumes)

deploy/.env:
	@umask 077; while IFS= read -r line; do case "$$line" in \
	    *_PASSWORD=) echo "$$line$$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;; \
	    *) printf '%s\n' "$$line" ;; \
	esac; done < deploy/.env.example > $@.new && mv $@.new $@
	@echo "Wrote $@ from deploy/.env.example, with new passwords"

# One from before knows fewer passwords.
passwords: deploy/.env
	@sed -n 's/^\([A-Z_]*_PASSWORD\)=$$/\1/p' deploy/.env.example | while read -r name; do \
	    grep -q "^$$name=." deploy/.env && continue; \
	    echo "$$name=$$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" >> deploy/.env; \
	    echo "Added $$name to deploy/.env"; \
	done

up-native: sync ## Start the whole stack without containers, and wait until it is ready: PORTFOLIOS= SOURCES= TLS=1
	@exec $(BIN)/python -m deploy.native up $(if $(PORTFOLIOS),--portfolios '$(PORTFOLIOS)') \
	    $(if $(SOURCES),--sources '$(SOURCES)') $(if $(TLS),--tls)

certificates: sync ## Issue or renew certificates of a private authority for the servers: NAMES= DAYS=30 OUT=deploy/tls
	@for server in kafka timescaledb redis mlflow; do \
	    set -- "$$@" "$$server=$$server,localhost,127.0.0.1$${NAMES:+,$$NAMES}"; \
	done; \
	exec $(BIN)/python -m deploy.certificates "$${OUT:-deploy/tls}" "$$@" $(if $(DAYS),--days '$(DAYS)')

down-native: sync ## Stop that stack; what it stored stays, unless CLEAN=1
	@exec $(BIN)/python -m deploy.native down $(if $(CLEAN),--clean)

k8s-secrets: sync ## Write the Secrets of deploy/k8s/overlays/local, with new passwords where there are none
	@$(BIN)/python -m deploy.kubernetes.secrets

test: sync generator ## Run every test, in lanes side by side: SEED=
	@$(SEEDED) $(BIN)/python -m tests.lanes

soak: sync ## An hour of bars with random faults, then the crash proof with more seeds: MINUTES=60 SEED="1 2 3" LENGTH=4
	TRADELOOP_SOAK_MINUTES=$(or $(MINUTES),60) $(BIN)/python -m pytest tests/e2e/soak.py
	$(or $(SEEDED),TRADELOOP_TEST_SEEDS="1 2 3") TRADELOOP_TEST_LENGTH=$(or $(LENGTH),4) \
	    $(BIN)/python -m pytest tests/e2e/test_crashes.py

images: sync ## Build the images of that stack as make test-compose does, which then has less to do
	@$(BIN)/python -m deploy.compose_test build

test-compose: sync $(if $(TLS),certificates) ## Run that stack in Docker for a test: build, trade, kill a service, compare, take down: TLS=1
	@$(BIN)/python -m deploy.compose_test $(if $(TLS),tls)

test-k8s: sync ## Run that stack on the cluster of KUBECONFIG for a test: apply, trade, upgrade, kill, compare, take down
	@$(BIN)/python -m deploy.kubernetes

check: sync generator ## Lint, layout, types, import contracts, lock files, generated files, site, subjects of commits
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	$(UV) lock --check --quiet
	$(UV) lock --check --quiet --project benchmarks
	$(BIN)/tradeloop topics --markdown | diff -u docs/topics.md -
	$(BIN)/tradeloop features --markdown | diff -u docs/features.md -
	$(BIN)/tradeloop metrics --markdown | diff -u docs/metrics.md -
	$(BIN)/tradeloop reference --check docs
	$(BIN)/python -m docs.site
	.ci/subjects

docs: sync generator ## Build the site of the documentation into build/docs/site: strict, and it asks no other host
	@$(BIN)/python -m docs.site

dist: $(UV) ## Build the packages of a release into dist/, as wheels and as source
	@rm -rf dist
	$(UV) build --quiet --all-packages --out-dir dist

release-images: passwords ## Build the images of the Docker stack, from nothing but their sources, for a release
	COMMIT=$$(git rev-parse HEAD) $(COMPOSE) build --pull --no-cache

generator: sync
	@$(UV) sync --frozen --inexact --only-group docs

# Exit statuses of uv: 1 is found, more is not looked up. The latter must not read like a clean result.
audit: $(UV) ## Look up known vulnerabilities of what both uv.lock pin, at OSV or at SERVICE=
	@found=0; for project in . benchmarks; do \
	    said=$$($(UV) audit --preview-features audit-command --frozen --project $$project \
	        $(if $(SERVICE),--service-url '$(SERVICE)') 2>&1); status=$$?; \
	    if [ $$status -gt 1 ]; then \
	        printf '%s\n' "$$said" | awk '{ sub(/^ *(error|cause): /, ": "); all = all $$0 } \
	            END { print "Nothing is known of the vulnerabilities of what is locked" all }' >&2; \
	        exit $$status; \
	    fi; \
	    printf '%s\n' "$$said"; [ $$status -eq 0 ] || found=1; \
	done; exit $$found

licences: sync ## List the licence of every package that ships; fails for one that may not
	@exec $(BIN)/python -m deploy.licences

sbom: $(UV) ## Write what ships, as uv.lock pins it, in CycloneDX: OUT=sbom.json
	@$(UV) export --quiet --frozen --no-dev --all-packages --format cyclonedx1.5 --preview-features sbom-export \
	    --output-file "$${OUT:-sbom.json}" > /dev/null

bench: sync ## Measure against peers and rewrite benchmarks/RESULTS.md: SUBJECTS=
	@UV_PROJECT_ENVIRONMENT='$(CURDIR)/.venv/peers' $(UV) sync --frozen --project benchmarks --python $(BIN)/python
	$(BIN)/python -m benchmarks.run $(SUBJECTS)

format: sync ## Fix what can be fixed: lint, layout, generated files
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/tradeloop topics --markdown > .venv/topics.md && mv .venv/topics.md docs/topics.md
	$(BIN)/python -m deploy.kubernetes.generate
	$(BIN)/tradeloop metrics --markdown > .venv/metrics.md && mv .venv/metrics.md docs/metrics.md
	$(BIN)/python -m deploy.grafana
	$(BIN)/tradeloop features --markdown > .venv/features.md && mv .venv/features.md docs/features.md
	$(BIN)/tradeloop reference --into docs

sync: $(UV) ## Bring .venv to what uv.lock says
	@$(UV) sync --frozen --inexact

clean: ## Remove the environment, the tools and all caches
	rm -rf .venv .tools .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find benchmarks deploy libs services strategies tests -name __pycache__ -prune -exec rm -rf {} +

# Any interpreter that can make a virtual environment, or else one with pip, may install uv; uv then finds Python 3.11 or
# 3.12 by itself. A name on the PATH proves nothing (pyenv's shims refuse to run), so each candidate is tried.
$(UV):
	@for python in python3 python3.11 python3.12; do \
	    "$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
	    echo "Installing uv $(UV_VERSION) into $(UV_HOME)"; \
	    "$$python" -m venv --clear $(UV_HOME) || exit 1; \
	    exec $(UV_HOME)/bin/python -m pip install --quiet --disable-pip-version-check 'uv==$(UV_VERSION).*'; \
	done; \
	for python in python3 python3.11 python3.12; do \
	    "$$python" -m pip --version >/dev/null 2>&1 || continue; \
	    echo "Installing uv $(UV_VERSION) into $(UV_HOME)"; \
	    exec "$$python" -m pip install --quiet --disable-pip-version-check --target $(UV_HOME) 'uv==$(UV_VERSION).*'; \
	done; \
	echo "No Python with venv or pip was found to install uv with. On Debian and Ubuntu, as root: apt-get install -y python3-venv" >&2; \
	exit 1
