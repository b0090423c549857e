# Thin: every target sets up .venv when it is missing or out of date, then calls one command.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A file's tests share what is costly to make; the order is that of tests/conftest.py.
TWO := -n 2 --dist loadfile --no-loadscope-reorder
FAST := not slow and not compiles and not browser and not wheel and not shared and not torch

.PHONY: demo evidence evidence-fast test test-slow test-fast test-random test-wheel test-notebook test-pythons test-beam test-interop test-medspacy lint bench bench-entities chaos attacks plan test-tpu test-gpu test-gcs wheel-data clean

demo: $(VENV)/.installed
	$(BIN)/mmclip demo

# The real tables are fetched where they are missing; without a network the tests on them are skipped, which is said.
test: $(VENV)/.installed-dev
	@[ -d data/wheels ] || $(MAKE) --no-print-directory wheel-data || \
	  echo "the real tables could not be fetched: the tests on them will be skipped"
	$(BIN)/python -m pytest $(TWO) -m "not slow"

# Whole runs: processes that are killed, devices and processes compared, downloads at full size, chaos, attacks.
test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(TWO) -m slow

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(TWO) -m "$(FAST)"

# Property tests take the same examples in every `make test`. This draws others; a failure says how to repeat it.
test-random: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(TWO) -m "hypothesis and not slow" --hypothesis-profile random

# The wheel, in an empty environment and an empty folder.
test-wheel:
	PYTHON=$(PYTHON) .ci/wheel

# The notebook from its first cell to its last, in an empty folder; what it shows goes to .notebook/.
.notebook/.installed: requirements-notebook.txt | $(VENV)/bin/python
	rm -rf .notebook
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --target .notebook -r requirements-notebook.txt
	@touch $@

test-notebook: .notebook/.installed $(VENV)/.installed
	PYTHONPATH=$(CURDIR)/.notebook $(BIN)/python examples/execute.py --out .notebook/quickstart.ipynb

# A short suite on each of Python 3.11, 3.12 and 3.13 that is here, with the newest JAX for it.
test-pythons:
	.ci/pythons

# Builds on Apache Beam: its versions of shared packages are not those that JAX wants, so it has an environment of its own.
test-beam: .venv-beam/.installed
	.venv-beam/bin/python -m pytest -q --noconftest -p no:cacheprovider tests/data/builders/test_beam.py

.venv-beam/.installed: requirements-beam.txt
	$(PYTHON) -m venv .venv-beam
	.venv-beam/bin/pip install -q --disable-pip-version-check -r requirements-beam.txt
	.venv-beam/bin/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

# The compiler for TPUs, beside the environment: inside it JAX would look for TPUs. 210 MB to download, 0.7 GB on disk.
.tpu/.installed: requirements-tpu.txt | $(VENV)/bin/python
	rm -rf .tpu
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --target .tpu -r requirements-tpu.txt
	@touch $@

test-tpu: .tpu/.installed $(VENV)/.installed-dev
	PYTHONPATH=.tpu $(BIN)/python -m pytest -q tests/plan/test_plan.py -k tpu

# The compiler for GPUs, likewise: 480 MB on disk.
.gpu/.installed: requirements-gpu.txt | $(VENV)/bin/python
	rm -rf .gpu
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --target .gpu -r requirements-gpu.txt
	@touch $@

test-gpu: .gpu/.installed $(VENV)/.installed-dev
	PYTHONPATH=.gpu $(BIN)/python -m pytest -q tests/plan/test_plan_gpu.py

# Workdirs and data sets in buckets, against a stand-in for Cloud Storage.
.gcs/.installed: requirements-gcs.txt | $(VENV)/bin/python
	rm -rf .gcs
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --target .gcs -r requirements-gcs.txt
	@touch $@

test-gcs: .gcs/.installed $(VENV)/.installed-dev
	PYTHONPATH=.gcs $(BIN)/python -m pytest -q tests/test_cloud.py

# Importers of other programs' checkpoints, against transformers. torch brings gigabytes for GPUs unless pip is told of PyTorch's
# index for CPUs (PIP_EXTRA_INDEX_URL).
test-interop: .venv-interop/.installed
	.venv-interop/bin/python -m pytest -q -p no:cacheprovider -m torch

.venv-interop/.installed: requirements.txt requirements-interop.txt
	$(PYTHON) -m venv .venv-interop
	.venv-interop/bin/pip install -q --disable-pip-version-check -r requirements-interop.txt
	.venv-interop/bin/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

# medSpaCy in place of the package's own recogniser: it wants NumPy 1, so it has an environment of its own.
test-medspacy: .venv-medspacy/.installed
	.venv-medspacy/bin/python -m pytest -q --noconftest -p no:cacheprovider tests/text/test_medspacy.py

.venv-medspacy/.installed: requirements-medspacy.txt
	$(PYTHON) -m venv .venv-medspacy
	.venv-medspacy/bin/pip install -q --disable-pip-version-check -r requirements-medspacy.txt
	.venv-medspacy/bin/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy

# On CPUs: the step, starting, evaluating, the input pipeline, and the step beside PyTorch's; tables to read, and JSON in
# runs/bench. Half an hour.
bench: $(VENV)/.installed .venv-interop/.installed
	[ -d runs/bench/demo/checkpoints ] || $(BIN)/mmclip demo --workdir runs/bench/demo --steps 20 --scale 0.1
	$(BIN)/python benchmarks/step.py --out runs/bench
	$(BIN)/python benchmarks/startup.py --data runs/bench/demo/data/phantom --json runs/bench/startup.json
	$(BIN)/python benchmarks/evaluate.py --workdir runs/bench/demo --data runs/bench/demo/data/phantom --json runs/bench/evaluate.json
	.venv-interop/bin/python benchmarks/pipeline.py --json runs/bench/pipeline.json
	.venv-interop/bin/python benchmarks/peers.py --out runs/bench

# The paper's claims on the phantom: hours, and goes on where it stopped. The fast form tries the same path in minutes.
evidence: $(VENV)/.installed
	$(BIN)/python benchmarks/evidence.py

evidence-fast: $(VENV)/.installed
	$(BIN)/python benchmarks/evidence.py --fast --workdir runs/evidence-fast

# Kills runs again and again, and prints a table; half an hour on two cores.
chaos: $(VENV)/.installed
	$(BIN)/mmclip data build phantom --data-dir runs/chaos-data --scale 0.03
	$(BIN)/python benchmarks/chaos.py --workdir runs/chaos --data runs/chaos-data/phantom

# Damages files, settings and names on purpose; some minutes, and writes the table of docs/reliability.md.
attacks: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/attacks.py

# What the paper-scale recipe needs of slices and GPUs; 8 to 32 minutes a slice. Augmentation on the device would be compiled
# for three times as long, and adds 0.1 ms to a step.
plan: .tpu/.installed .gpu/.installed $(VENV)/.installed
	set -e; for of in v5p:4x4x8 v5e:16x16 v5e:16x16_1024 v6e:16x16 h100:8x4 h100:8x4_1024; do \
	  topology=$${of%_*}; case $$of in *_*) batch=$${of#*_};; *) batch=8192;; esac; \
	  plan="mmclip plan --config mmclip_vitb16 --topology $$topology --batch $$batch --config.data.augment_on=host"; \
	  out=docs/plans/$$(echo $$of | tr : _).txt; \
	  case $$topology in \
	    h*) compiler=.gpu; plan="$$plan --config.model.remat=false --config.model.unroll=true";; \
	    *) compiler=.tpu; plan="$$plan --config.mesh.shard_optimizer=true";; \
	  esac; \
	  { echo "\$$ $$plan"; echo; PYTHONPATH=$$compiler $(BIN)/$$plan; } > $$out.part; \
	  mv $$out.part $$out; \
	done

bench-entities: $(VENV)/.installed wheel-data
	$(BIN)/python benchmarks/entities.py data/wheels/torchxrayvision/data

# Real reports for some tests: they come inside a public package, which is unpacked and not installed.
wheel-data: data/wheels

data/wheels: | $(VENV)/bin/python
	rm -rf $@.part
	$(BIN)/pip download -q --disable-pip-version-check --no-deps -d $@.part torchxrayvision==1.5.7
	$(BIN)/python -m zipfile -e $@.part/torchxrayvision-1.5.7-*.whl $@.part
	mv $@.part $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) (about 1.3 GB, one to two minutes)"
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-serve.txt $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@
