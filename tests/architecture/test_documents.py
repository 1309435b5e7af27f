"""The documents for contributors say what the code does."""

import re

from test_layers import LAYERS, ROOT

from parsupd.core.unit_keys import UNIT_KEYS

DOCUMENTS = [*sorted(ROOT.glob("*.md")), ROOT / "tests" / "README.md"]


def layers_of_the_document() -> dict[str, int]:
    rows = re.findall(r"^\| (\d) [^|]*\|[^|]*\|([^|]*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return {module: int(layer) for layer, modules in rows for module in re.findall(r"`([\w.]+)`", modules)}


def test_the_layer_table_is_the_one_that_is_held() -> None:
    """CONTRIBUTING.md lists exactly the modules of the layer test, in the same layers."""
    assert layers_of_the_document() == LAYERS


def test_links_lead_somewhere() -> None:
    """Each relative link in a document names a file of the repository."""
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_tests_that_are_named_exist() -> None:
    """Files in tests/README.md; files and tests, which may be cut short with dots, in the table of Rpc_parallel's."""
    folder = ROOT / "tests" / "system"
    behaviours = (folder / "test_as_rpc_parallel.py").read_text().partition('\n"""\n')[0]
    text = (ROOT / "tests" / "README.md").read_text() + behaviours
    files = {path.name for path in folder.glob("test_*.py")}
    defined = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in folder.glob("test_*.py"))))
    for name in re.findall(r"`(test_[\w.]+)`", text):
        stem = name.rstrip(".")
        assert name in files or any(
            test == name or (name.endswith("...") and test.startswith(stem)) for test in defined
        ), name
    for name in re.findall(r"`([a-z]+/[\w/.]+\.py)`", text):
        assert (ROOT / "tests" / name).exists(), name


def test_each_key_of_a_unit_is_tried_with_a_real_process() -> None:
    """By name, in a test that starts parsupd."""
    folders = [ROOT / "tests" / name for name in ("system", "crash", "machine")]
    text = "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    limits = {f"limit_{name}" for name in re.findall(r'"([a-z]+)"', text)}
    assert {key for key in UNIT_KEYS if key not in text and key not in limits} == set()


def test_the_changelog_has_the_version() -> None:
    """The version of the code has its section in the changelog."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "workerlib" / "version.py").read_text())
    assert version is not None
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_folders_of_tests_are_described() -> None:
    """Each folder of tests has its line in the table of tests/README.md."""
    text = (ROOT / "tests" / "README.md").read_text()
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert {name for name in folders if f"| `{name}/` |" not in text} == set()


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by name: a second one of that name keeps all of them from running."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
