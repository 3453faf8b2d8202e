"""The house, read from the syntax trees: who imports whom, how large things are, and what has to be documented."""

import ast
import re
import sys
from pathlib import Path

import pytest

from app import settings

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("app", "workers", "wal", "ops", "loadtest")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CONTRACT = {"appender", "batch", "count", "dead_letter", "errors", "log", "moment", "settings", "size", "stream"}
MAY_IMPORT = {
    "app": {"app", "wal"},
    "workers": {"workers", "wal", *(f"app.{name}" for name in CONTRACT)},
    "wal": {"wal"},
    "ops": {"app", "ops", "wal", "workers"},
    "loadtest": {"loadtest"},
}
FRAMEWORKS = {"falcon", "gevent", "gunicorn", "prometheus_client"}
NO_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager", "handler", "core", "misc"}
# `run` of a greenlet or a process, and the HTTP handler of last resort.
MAY_CATCH_ALL = {"app/committer.py", "app/connection.py", "app/lane.py", "app/tally.py"}
SESSION = {"readonly", "deferrable", "isolation_level"}


def tree_of(path):
    return ast.parse(path.read_text(), str(path))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports_of(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: imports are absolute"
            # `from app import log` imports the module app.log.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_allowed(imported, allowed):
    return any(imported == prefix or imported.startswith(f"{prefix}.") for prefix in allowed)


def test_the_checkout_has_modules():
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_dependencies_point_one_way(path):
    package = name_of(path).split("/")[0]
    ours = [imported for imported in imports_of(path) if imported.split(".")[0] in PACKAGES]
    wrong = [imported for imported in ours if not is_allowed(imported, MAY_IMPORT[package])]
    assert not wrong, f"{package} may import {sorted(MAY_IMPORT[package])}"
    if package == "wal":
        assert all(imported.split(".")[0] in {*sys.stdlib_module_names, "wal"} for imported in imports_of(path))


@pytest.mark.parametrize("path", [ROOT / "app" / f"{name}.py" for name in sorted(CONTRACT)], ids=name_of)
def test_contract_modules_import_no_framework_and_no_other_module_of_app(path):
    for imported in imports_of(path):
        assert imported.split(".")[0] not in FRAMEWORKS
        if imported.startswith("app."):
            assert imported.split(".")[1] in CONTRACT


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_have_names_sizes_and_docstrings(path):
    assert path.stem not in NO_NAMES
    assert path.read_text().count("\n") <= 250
    assert ast.get_docstring(tree_of(path)), "a module says what it owns"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_are_short_and_public_ones_documented(path):
    tree = tree_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, f"{node.name} is over 40 lines"
    for place in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
        for node in place.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                is_stub = isinstance(node.body[-1], ast.Expr) and isinstance(node.body[-1].value, ast.Constant)
                assert is_stub or ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_swallowed(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
            if isinstance(node.type, ast.Name) and node.type.id == "Exception":
                assert name_of(path) in MAY_CATCH_ALL, f"line {node.lineno}"


def lasting(path):
    """Yields what a module leaves on a connection to PostgreSQL, or asks of a session: a pooler by transaction gives
    that to other clients, or refuses it."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "set_session":
                yield node.lineno, "set_session"
            if node.func.attr == "connect" and any(word.arg == "options" for word in node.keywords):
                yield node.lineno, "options"
        if isinstance(node, ast.Dict) and any(isinstance(key, ast.Constant) and key.value == "options"
                                              for key in node.keys):
            yield node.lineno, "options"
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in SESSION:
            yield node.lineno, node.attr
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.search(r"(^|[;\n]\s*)SET (?!LOCAL |TRANSACTION |CONSTRAINTS )", node.value):
                yield node.lineno, "SET"


# The benchmark has servers of its own, and no pooler.
@pytest.mark.parametrize("path", [one for one in MODULES if not name_of(one).startswith("ops/bench/")], ids=name_of)
def test_nothing_is_set_on_a_connection_beyond_its_transaction(path):
    assert not list(lasting(path)), "ops/snapshot.py has how it is done"


def test_what_lasts_on_a_connection_is_found(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("""
connection = psycopg2.connect(url, options="-c statement_timeout=2s")
PARAMETERS = {"options": "-c lock_timeout=2s"}
connection.set_session(readonly=True, autocommit=True)
connection.readonly = True
cursor.execute("BEGIN; SET work_mem = '1GB'")
cursor.execute("SET TRANSACTION READ ONLY; SET LOCAL work_mem = '1GB'; UPDATE one SET two = 3")
connection.autocommit = True
""")
    assert [line for line, _ in sorted(lasting(path))] == [2, 3, 4, 5, 6]


def test_every_handover_names_a_test_that_exists():
    named = {
        (name_of(path), test) for path in MODULES for test in re.findall(r"tests/[\w/]+\.py", path.read_text())
    }
    assert named
    assert not [pair for pair in named if not (ROOT / pair[1]).exists()]


def test_every_metric_is_documented_and_every_documented_metric_exists():
    reference = (ROOT / "ops/REFERENCE.md").read_text()
    documented = set(re.findall(r"^\| `((?:ingest_|wal_)\w+)`", reference, re.MULTILINE))
    defined = {name for path in MODULES for name in re.findall(r'(?:Counter|Histogram|Gauge\w*)\(\s*"(\w+)"',
                                                               path.read_text())}
    assert defined == documented


def test_the_table_of_settings_is_the_code():
    assert settings.table() in (ROOT / "ops/REFERENCE.md").read_text()
