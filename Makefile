# make install   the set-up alone: .venv with everything in requirements-dev.txt
# make demo      watch the method find harmful images across 83 centers (docs/demo.md)
# make test      ruff, mypy and the test suite; every change must pass it and test-federated (.ci/run)
# make test-fast   the tests that train nothing: under a minute
# make federated-demo   four centers of a small cohort in NVIDIA FLARE's simulator
# make test-federated   the tests of what runs across hospitals
# make bench     what verification costs (see tests/benchmarks/RESULTS.md)
.PHONY: install demo test test-fast test-slow federated-demo test-federated bench clean

# The newest Python at hand that TensorFlow supports; PYTHON=... chooses another.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; print("$(name)" if (3, 11) <= sys.version_info[:2] <= (3, 13) else "")' 2>/dev/null)))
INSTALLED := .venv/installed

install: $(INSTALLED)

$(INSTALLED): requirements.txt requirements-dev.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
		{ echo "error: Python 3.11, 3.12 or 3.13 is needed (TensorFlow 2.21 runs on no other); found: \
	$$(python3 --version 2>&1 || true). Try: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(INSTALLED)
	.venv/bin/python reproduce/reproduce.py --demo

test: $(INSTALLED)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/python -m pytest -m "not slow" --ignore tests/federated

# Without the files of which most tests train a model.
test-fast: $(INSTALLED)
	.venv/bin/python -m pytest -m "not slow" --ignore tests/federated $(foreach file,\
		inputs bad_input scripts model golden extending prepare_images,--ignore tests/test_$(file).py)

test-slow: $(INSTALLED)
	.venv/bin/python -m pytest -m slow

FEDERATED := .venv/federated

$(FEDERATED): $(INSTALLED) requirements-federated.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-federated.txt
	@touch $@

# Three centers of a small demo cohort, and one that holds only inverted images, each in a process of its own.
federated-demo: $(FEDERATED)
	.venv/bin/python reproduce/make_demo_cohort.py --output-folder federated_demo/cohort --shrink 8 --overwrite
	.venv/bin/python standard_travelling_model/enc_PD_train_distributed.py -fn_train \
		federated_demo/cohort/training_set.csv -cycles 7 -batch_size 5 --width 0.125 --learning-rate 0.001 \
		--output-folder federated_demo/pretrained --overwrite
	awk -F, 'NR == 1 || $$2 ~ /^(UKBB|HAMBURG|PD_MCI_CALGARY)$$/' federated_demo/cohort/training_set.csv \
		> federated_demo/cohort/three_centers.csv
	.venv/bin/python generate_harmful_samples/generate_data.py -fn_train federated_demo/cohort/three_centers.csv \
		--kind inverted --centers 1 --output-folder federated_demo/harmful --overwrite
	.venv/bin/python travelling_quality_control/federated/simulate.py -fn_train federated_demo/harmful/training_set.csv \
		-fn_test federated_demo/cohort/test_set.csv -cycles 9 -en federated_demo/pretrained -pd federated_demo/pretrained \
		-revisit 1 -error 0.02 -fn_save federated_demo/qc --cycles-per-job 2 --poll 0.1 --overwrite

test-federated: $(FEDERATED)
	.venv/bin/python -m pytest tests/federated -m "not slow"

bench: $(INSTALLED)
	.venv/bin/python tests/benchmarks/bench.py

clean:
	rm -rf .venv demo federated_demo
