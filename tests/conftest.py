"What every test run shares: one thread a worker, and the closing line `N passed, N failed`."
import os

if "PYTEST_XDIST_WORKER" in os.environ:
    for var in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(var, "1")

import pytest

passed, failed = set(), set()

def pytest_collection_modifyitems(items):
    "Notebooks first, tutorials before the others: the longest pieces must not start last"
    items.sort(key=lambda o: (not o.nodeid.startswith("tests/test_notebooks.py"), "tutorials/" not in o.nodeid))

def pytest_runtest_logreport(report):
    "A test that fails anywhere, set-up and tear-down too, has failed"
    if report.failed: failed.add(report.nodeid)
    elif report.when == "call" and report.passed: passed.add(report.nodeid)

def pytest_collectreport(report):
    if report.failed: failed.add(report.nodeid)

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    "Nothing run is a failure, and so is a run that was cut short"
    if not (passed or failed) and exitstatus == 0: session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
    if exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR) and not failed: failed.add("session")

def pytest_unconfigure(config):
    "The last thing a run prints"
    if hasattr(config, "workerinput") or config.option.collectonly or config.option.help: return
    print(f"{len(passed - failed)} passed, {len(failed)} failed", flush=True)
