# make book    set up, execute the chapters that changed, build the site in _build/html
# make test    set up, lint, check types, test
# make serve   show the site at http://127.0.0.1:8000 (PORT names another)
# make lab     open the notebooks in JupyterLab, which it installs
# make report  write report.html, one file to send by mail
# make clean   remove what was built; results/reference and the environment stay
#
# Each target makes .venv when it is missing. PYTHON names the interpreter, 3.11 or later, that makes it.
# CONSTRAINTS names the versions to install, TESTS adds options for pytest, such as --cov=reprolib.

PYTHON  ?= python3
PROFILE ?= reference
DEVICE  ?= auto
JOBS    ?= 2
PORT    ?= 8000
CONSTRAINTS ?= constraints.txt
TESTS   ?=

# DATA, the folder of the image sets, goes through the environment as it is: a shell would read quotes, spaces and
# backticks in its name, and make itself dollars.
ifdef DATA
export REPROLIB_DATA := $(value DATA)
endif

# What is imported is compiled once and kept, whatever the shell says: hundreds of processes import it.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: book test serve lab report clean

book: .venv/.done
	.venv/bin/reprolib book --profile $(PROFILE) --device $(DEVICE) --jobs $(JOBS)

# Types are checked with the newest dependencies alone: older ones are annotated otherwise.
# A process a core, up to four, each with one thread: the tests' tensors are small, and two threads on a busy machine can
# be many times slower than one.
test: .venv/.done
	.venv/bin/ruff check .
	OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses logical --maxprocesses 4 --dist worksteal \
		$(if $(filter constraints.txt,$(CONSTRAINTS)),,--ignore tests/test_types.py) $(TESTS)

serve: .venv/.done
	.venv/bin/reprolib serve --port $(PORT)

lab: .venv/.done
	@.venv/bin/python -c "import jupyterlab" 2>/dev/null || .venv/bin/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[lab]'
	.venv/bin/python -m jupyterlab notebooks

report: .venv/.done
	.venv/bin/reprolib report

clean:
	rm -rf _build book/chapters book/_generated results/runs results/parts report.html

# .done is written last: a set-up that was interrupted starts anew, a finished one is only brought up to date.
.venv/.done: pyproject.toml $(CONSTRAINTS)
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) is not there; name a Python 3.11 or later: make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit("Python 3.11 or later is needed, $(PYTHON) is %d.%d; name another: make PYTHON=..." % v if v < (3, 11) else 0)'
	@echo "Setting up .venv: a few minutes, once"
	@test -f $@ || "$(PYTHON)" -m venv --clear .venv
	@rm -f $@
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@
