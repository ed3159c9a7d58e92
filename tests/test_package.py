"""The package as people get it: light to import, whole without extras, typed, true to its README,
and nobody's prompts in its books."""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import client

import behest_integrations
from behest_integrations import Meter
from behest_integrations.sandbox import Sandbox

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "behest_integrations"


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **env}
    )


FRAMEWORKS = (
    "openai", "anthropic", "google.genai",
    "langchain_core", "langgraph", "llama_index", "starlette", "uvicorn", "aiohttp",
    "jwt", "prometheus_client", "httpx", "rich",
)  # fmt: skip


def test_importing_it_imports_no_framework_and_little_else() -> None:
    said = python("import sys, behest_integrations; print(' '.join(sys.modules))")
    loaded = set(said.stdout.split())
    assert not loaded & {*FRAMEWORKS, "sqlalchemy", "alembic", "genai_prices", "click"}


# In the place of packages that are not installed: whoever imports one is told so.
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def test_it_works_without_any_extra(tmp_path: Path) -> None:
    code = WITHOUT % ((*FRAMEWORKS[:-1], "bpe_openai"),) + (
        "from behest_integrations import Meter, Usage\n"
        "from behest_integrations.wire import bound_request\n"
        f"meter = Meter('sqlite:///{tmp_path}/b.db', budgets=['$1 per session'])\n"
        "body = {'model': 'gpt-4o', 'messages': [{'role': 'user', 'content': 'hello'}]}\n"
        "meter.reserve(meter.plan('chat', 'gpt-4o', bound_request('chat', body))).settle(Usage(9, 9))\n"
        "print(meter.spend()[0])\n"
        "from behest_integrations.cli import main\n"
        f"main(['report', '--store', '{tmp_path}/b.db'])\n"
    )
    said = python(code)
    assert said.returncode == 0, said.stderr
    assert "$1 per session" in said.stdout


def test_a_missing_extra_says_what_to_install(tmp_path: Path) -> None:
    Meter(f"sqlite:///{tmp_path}/b.db").close()
    missing = WITHOUT % (("openai",),)
    said = python(missing + "from behest_integrations import Meter\nMeter('memory://').openai(object())")
    assert "pip install 'behest-integrations[openai]'" in said.stderr
    said = python(
        WITHOUT % (("anthropic",),)
        + "from behest_integrations import Meter\nMeter('memory://').anthropic(object())"
    )
    assert "pip install 'behest-integrations[anthropic]'" in said.stderr
    said = python(
        WITHOUT % (("google",),)
        + "from behest_integrations import Meter\nMeter('memory://').google_genai(object())"
    )
    assert "pip install 'behest-integrations[google-genai]'" in said.stderr
    said = python(WITHOUT % (("agno",),) + "from behest_integrations import Meter\nMeter('memory://').agno()")
    assert "pip install 'behest-integrations[agno]'" in said.stderr
    said = python(missing + "from behest_integrations.cli import main; main(['demo'])")
    assert "pip install 'behest-integrations[openai,sandbox]'" in said.stderr
    assert "Traceback" not in said.stderr
    for door in ("langchain()", "langchain_model(object())", "langchain_embeddings(object())"):
        said = python(
            WITHOUT % (("langchain_core",),)
            + f"from behest_integrations import Meter\nMeter('memory://').{door}"
        )
        assert "pip install 'behest-integrations[langchain]'" in said.stderr
    for door in ("llama_index(object())", "llama_index_handler()"):
        said = python(
            WITHOUT % (("llama_index",),)
            + f"from behest_integrations import Meter\nMeter('memory://').{door}"
        )
        assert "pip install 'behest-integrations[llama-index]'" in said.stderr
    if find_spec("langchain_core"):
        missing = WITHOUT % (("langchain",),)
        code = "from behest_integrations import Meter\nMeter('memory://').langchain_middleware()"
        assert "pip install 'behest-integrations[langgraph]'" in python(missing + code).stderr
    said = python(WITHOUT % (("starlette",),) + "import behest_integrations.sandbox")
    assert "pip install 'behest-integrations[sandbox]'" in said.stderr
    for name in ("starlette", "jinja2", "uvicorn"):
        code = f"from behest_integrations.cli import main; main(['dashboard', '--store', '{tmp_path}/b.db'])"
        said = python(WITHOUT % ((name,),) + code)
        assert "pip install 'behest-integrations[dashboard]'" in said.stderr
    for name in ("starlette", "aiohttp", "jwt", "prometheus_client", "tenacity"):
        code = "from behest_integrations.cli import main; main(['serve', '--keyless'])"
        said = python(WITHOUT % ((name,),) + code)
        assert "pip install 'behest-integrations[gateway]'" in said.stderr
        assert "Traceback" not in said.stderr


def imports_of(path: Path) -> set[str]:
    """The package's own modules that a file imports, as dotted names."""
    found = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # what only type checkers read is not imported
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            found.add(".".join([*base, *(node.module or "").split(".")]).rstrip("."))
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


CORE = [
    p
    for p in PACKAGE.rglob("*.py")
    if not {"integrations", "gateway", "dashboard", "sandbox", "reports", "cli", "testing"}
    & set(p.relative_to(PACKAGE).parts)
]


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_core_imports_no_framework_and_no_reports(path: Path) -> None:
    found = imports_of(path)
    frameworks = {"langchain_core", "llama_index", "starlette", "httpx", "aiohttp", "jwt"}
    if path.name == "sentinel.py":  # a classifier at an address, asked where one is configured
        frameworks -= {"httpx"}
    assert not {name.split(".")[0] for name in found} & frameworks
    others = r"behest_integrations\.(reports|gateway|integrations)"
    if path.name == "meter.py":  # its doors and reports, each imported when it is asked for
        others = r"behest_integrations\.gateway"
    assert not {n for n in found if re.match(others, n)}


ADAPTERS = sorted(p for p in (PACKAGE / "integrations").glob("[!_]*") if p.is_dir() and p.name != "kit")


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda p: p.stem)
def test_no_adapter_imports_another(adapter: Path) -> None:
    files = [adapter] if adapter.is_file() else sorted(adapter.rglob("*.py"))
    own = f"behest_integrations.integrations.{adapter.stem}"
    kit = "behest_integrations.integrations.kit"
    for path in files:
        found = {n for n in imports_of(path) if n.startswith("behest_integrations.integrations.")}
        assert not {n for n in found if not n.startswith((own, kit))}, path


def test_money_is_never_a_float() -> None:
    """No float literal and no float() where money is counted."""
    for name in (
        "ledger/admission.py",
        "prices/pricing.py",
        "engine/booking.py",
        "rules/units.py",
        "ledger/book.py",
        "ledger/memory.py",
    ):
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "float") or (
                ast.unparse(node) == "float('inf')"  # a moment that never comes
            ), f"{name}:{node.lineno}"
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), f"{name}: {node}"


SECRET = "the-secret-of-the-prompt"


def test_prompts_and_answers_are_never_written_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("openai").setLevel(logging.CRITICAL)  # the SDK's own debug log does tell
    with Sandbox() as sandbox, Meter(f"sqlite:///{tmp_path}/b.db", budgets=["$0.01"]) as meter:
        metered = meter.openai(client(sandbox))
        answers = []
        for _ in range(2):
            sandbox.fault("status", status=500)
            for stream in (False, True):
                try:
                    reply = metered.chat.completions.create(
                        model="gpt-4o",
                        messages=[{"role": "user", "content": SECRET}],
                        max_tokens=40,
                        stream=stream,  # type: ignore[call-overload]
                        metadata={"note": SECRET},
                    )
                except Exception as error:
                    assert SECRET not in str(error)
                    continue
                if not stream:
                    answers.append(reply.choices[0].message.content)
                else:
                    answers += [c.choices[0].delta.content for c in reply]
    answers = [a for a in answers if a and len(a) > 20]
    assert answers
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    ours = "".join(r.getMessage() for r in caplog.records if r.name.startswith("behest"))
    for words in [SECRET, *answers]:
        assert words.encode() not in written
        assert words not in ours


def test_the_readme_is_true() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for text in re.search(r"```text\n(\$0.*?)```", readme, re.DOTALL)[1].strip().splitlines():  # type: ignore[index]
        assert str(behest_integrations.Budget.parse(text)) == text
    from behest_integrations.config import Config, tomllib
    from behest_integrations.gateway import GatewaySettings

    books = (ROOT / "quickstarts" / "BOOKS.md").read_text(encoding="utf-8")
    service = (ROOT / "quickstarts" / "gateway" / "README.md").read_text(encoding="utf-8")
    (prices,), (gateway,) = (re.findall(r"```toml\n(.*?)```", text, re.DOTALL) for text in (readme, service))
    for text in re.findall(r"```toml\n(.*?)```", books, re.DOTALL):
        Config.model_validate(tomllib.loads(text))
    with Meter("memory://", **Config.model_validate(tomllib.loads(prices)).arguments()) as meter:
        assert meter.pricing.find("my-model").source == "your own price"
        assert meter.pricing.find("our-deployment").model == "gpt-4o"
    settings = GatewaySettings.of(Config.model_validate(tomllib.loads(gateway)).gateway)
    assert [r.provider for r in settings.all_routes()] == ["openai"]
    assert len(settings.tier_budgets()) == 3 * 3 + 3
    for quickstart in re.findall(r"\]\((quickstarts/[^)#]+)", readme):
        assert (ROOT / quickstart).is_file()
    there = {p.name for p in (ROOT / "quickstarts").glob("*.py")}
    assert there == set(re.findall(r"\(quickstarts/([^)]+\.py)\)", readme))
    choice = (ROOT / "quickstarts" / "README.md").read_text(encoding="utf-8")
    assert there == set(re.findall(r"\]\(([^)]+\.py)\)", choice))
    for door in re.findall(r"`meter\.(\w+)\(", readme + choice):
        assert hasattr(Meter, door), door
    from behest_integrations.cli import main

    for command in re.findall(r"^(?:\.venv/bin/)?behest (\w+)", readme + books + service, re.MULTILINE):
        assert command in main.commands


def test_the_readmes_python_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(from behest.*?)```", readme, re.DOTALL)[1]  # type: ignore[index]
    with Sandbox() as sandbox:
        said = python(code, OPENAI_API_KEY="none", OPENAI_BASE_URL=sandbox.base_url, BEHEST_STORE="memory://")
        assert said.returncode == 0, said.stderr
        assert len(sandbox.bill.lines) == 1


def test_it_is_typed_and_its_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert (PACKAGE / "py.typed").exists()
    assert version("behest-integrations") == behest_integrations.__version__


def test_every_public_name_is_there_and_documented() -> None:
    for name in behest_integrations.__all__:
        value = getattr(behest_integrations, name)
        assert name == "__version__" or value.__doc__, name
