"""What README and docs say is so: names are all there, examples run, links lead somewhere."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lbagent import arguments, errors
from lbagent.checks.finding import Kind
from lbagent.errors import LbagentError
from lbagent.roles import loader
from lbagent.roles.keys import HAPROXY_KEYS, ROLE_KEYS, SERVICE_KEYS, TOP_KEYS
from tests.helpers.real_programs import free_port

HERE = Path(__file__).resolve().parent.parent.parent
README = (HERE / "README.md").read_text(encoding="utf-8")
PAGES = [HERE / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(
    (HERE / "docs").rglob("*.md")
)
DOCS = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md")

WEB01 = b"web01\t10.0.0.5\tweb\trole=web\n"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def lbagent(folder: Path, *words: str, event: str = "", stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """One run of lbagent with roles.yml and state in `folder`; as Serf's handler where there is an event."""
    environ = {
        "PATH": f"{os.environ['PATH']}:/usr/sbin",
        "LBAGENT_ROLES": str(folder / "roles.yml"),
        "LBAGENT_STATE_DIR": str(folder / "state"),
        **({"SERF_EVENT": event, "SERF_SELF_NAME": "lb01"} if event else {}),
    }
    command = [sys.executable, "-m", "lbagent", *words]
    return subprocess.run(command, input=stdin, env=environ, cwd=HERE, capture_output=True, timeout=60, check=False)


def described(folder: Path, config: str, roles: str, joining: bytes) -> None:
    """A load balancer as an example shows it: `joining` has been heard, and nothing has been done about it."""
    (folder / "haproxy.cfg").write_text(config, encoding="utf-8")
    where = f"haproxy: {{config: {folder}/haproxy.cfg}}\n"
    (folder / "roles.yml").write_text(where + roles, encoding="utf-8")
    (folder / "state").mkdir()
    with (folder / "state" / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert lbagent(folder, "handle", event="member-join", stdin=joining).returncode == 0


def options(of: argparse.ArgumentParser) -> list[str]:
    """Every option and verb of a parser and of the parsers below it."""
    found: list[str] = []
    for action in of._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                found += [verb, *options(below)]
    return sorted(set(found) - {"-h"})


def statuses(of: type[LbagentError]) -> set[int]:
    """The exit statuses of an error and of all its kinds."""
    return {of.exit_status}.union(*(statuses(kind) for kind in of.__subclasses__()))


@pytest.mark.parametrize("word", options(arguments.build_parser()))
def test_every_verb_and_option_is_documented(word: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", DOCS)


def test_every_kind_of_finding_is_documented_and_no_other() -> None:
    page = (HERE / "docs" / "reference" / "check.md").read_text(encoding="utf-8").partition("\n## JSON\n")[0]

    assert sorted(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == sorted(Kind)


@pytest.mark.parametrize("status", sorted(statuses(errors.LbagentError) | {0, 3}))
def test_every_exit_status_is_documented(status: int) -> None:
    table = (HERE / "docs" / "reference" / "exit-statuses.md").read_text(encoding="utf-8")

    assert f"\n| **{status}** |" in table


@pytest.mark.parametrize(
    "key",
    [*TOP_KEYS, *sorted({key.name for keys in (HAPROXY_KEYS, SERVICE_KEYS, ROLE_KEYS) for key in keys})],
)
def test_every_key_of_roles_yml_is_documented(key: str) -> None:
    page = (HERE / "docs" / "reference" / "roles-yml.md").read_text(encoding="utf-8")
    example = (HERE / "roles.yml").read_text(encoding="utf-8")

    assert f"`{key}`" in page or f"\n## {key}\n" in page
    assert re.search(rf"\b{key}\b", example)


def test_the_commented_example_loads() -> None:
    content = (HERE / "roles.yml").read_bytes()

    roles = loader.parse_roles(content, "roles.yml")

    assert list(roles.list_pairs()) == ["lb-iis", "lb-web_service_a", "monitor-iis", "monitor-mongo"]


def test_the_commented_example_loads_with_what_is_commented_out() -> None:
    text = (HERE / "roles.yml").read_text(encoding="utf-8")
    whole, uncommented = re.subn(r"^( +)# (?=[a-z_]+: )", r"\1", text, flags=re.MULTILINE)

    web = loader.parse_roles(whole.encode(), "roles.yml").roles["web"]

    assert uncommented == 9
    assert (web.max, web.remove_failed, web.options and web.options.text) == (1000, False, "check inter {interval}")
    assert web.address
    assert web.address.text == "{tag:ip}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_roles_in_the_docs_load(page: Path) -> None:
    for block in blocks(page, "yaml"):
        loader.parse_roles(block.encode(), page.name)


def test_the_readme_shows_the_diff_that_lbagent_makes(tmp_path: Path) -> None:
    page = HERE / "README.md"
    [config], [roles], [diff] = blocks(page, "haproxy"), blocks(page, "yaml"), blocks(page, "diff")
    described(tmp_path, config, roles, WEB01)

    plan = lbagent(tmp_path, "plan")

    assert plan.returncode == 2
    assert plan.stdout.decode().replace(str(tmp_path), "/etc/haproxy") == diff
    assert plan.stderr == b""


def test_the_readme_shows_the_line_of_a_paused_node(tmp_path: Path) -> None:
    page = HERE / "README.md"
    [config], [roles] = blocks(page, "haproxy"), blocks(page, "yaml")
    described(tmp_path, config, roles, WEB01.replace(b"role=web", b"role=web,lbagent=paused"))

    plan = lbagent(tmp_path, "plan").stdout.decode()

    added = [line[1:].strip() for line in plan.splitlines() if line.startswith("+ ")]
    assert added == ["# lbagent paused web01 10.0.0.5 role=web"]
    assert f"`{added[0]}`" in README


def test_adopting_shows_the_diff_of_the_docs(tmp_path: Path) -> None:
    [diff] = blocks(HERE / "docs" / "reference" / "markers.md", "diff")
    [roles] = blocks(HERE / "README.md", "yaml")
    lines = [line[1:] for line in diff.splitlines() if line[0] in "- "]
    config = "\n".join(["defaults", "    mode http", "listen lb-iis", "    bind 127.0.0.1:0", *lines, ""])
    joining = b"web05\t10.0.0.9\tweb\trole=web\nweb06\t10.0.0.20\tweb\trole=web\n"
    described(tmp_path, config, roles, joining)

    adopted = lbagent(tmp_path, "apply", "--adopt", "--yes", "--no-reload")

    assert diff in adopted.stdout.decode()


def test_hand_written_backends_become_managed_by_the_steps_of_the_page(tmp_path: Path) -> None:
    page = (HERE / "docs" / "how-to" / "from-hand-written-backends.md").read_text(encoding="utf-8")
    [config] = re.findall(r"^ +```haproxy\n(.*?)^ +```$", page, re.DOTALL | re.MULTILINE)
    [roles] = blocks(HERE / "README.md", "yaml")
    joining = WEB01 + b"web02\t10.0.0.6\tweb\trole=web\n"
    described(tmp_path, f"defaults\n    mode http\n    timeout check 1s\n{textwrap.dedent(config)}", roles, joining)

    before = lbagent(tmp_path, "status").stdout.decode()
    adopted = lbagent(tmp_path, "apply", "--adopt", "--yes", "--no-reload")

    assert before.count(" not managed ") == 2
    assert "`lbagent status` shows `not managed`" in page
    assert adopted.returncode == 0
    lines = [line.strip() for line in (tmp_path / "haproxy.cfg").read_text().splitlines()]
    assert [line for line in lines if line.startswith("server ")] == [
        "server web01 10.0.0.5:80 check inter 60s rise 2 fall 2 # lbagent role=web",
        "server web02 10.0.0.6:80 check inter 60s rise 2 fall 2 # lbagent role=web",
    ]


def test_the_serf_configuration_of_a_linux_server_is_accepted(tmp_path: Path) -> None:
    if shutil.which("serf") is None:
        pytest.skip("no serf here")
    [block] = blocks(HERE / "docs/get-started/linux-server.md", "json")
    settings = json.loads(block)
    key = subprocess.run(["serf", "keygen"], capture_output=True, text=True, check=True).stdout.strip()
    settings |= {"encrypt_key": key, "retry_join": [], "snapshot_path": str(tmp_path / "snapshot")}
    (tmp_path / "serf.json").write_text(json.dumps(settings), encoding="utf-8")
    where = [f"-bind=127.0.0.79:{free_port()}", f"-rpc-addr=127.0.0.79:{free_port()}"]
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    command = ["serf", "agent", f"-config-file={tmp_path}/serf.json", *where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ) as agent:
        assert agent.stdout
        output = []
        for line in agent.stdout:  # to the end if the agent refuses its configuration
            output.append(line)
            if "Serf agent running!" in line:
                agent.terminate()

    assert "Serf agent running!" in "".join(output)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))

    assert [target for target in targets if not (page.parent / target).exists()] == []


def list_anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and code hosts make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_a_heading_lead_to_one(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*\.md|)#([^)]+)\)", page.read_text(encoding="utf-8"))

    dead = [
        (path, anchor) for path, anchor in links if anchor not in list_anchors(page.parent / path if path else page)
    ]
    assert dead == []


@pytest.mark.parametrize("goal", re.findall(r"^\$ make (\w+)", README, re.MULTILINE))
def test_the_commands_of_the_readme_exist(goal: str) -> None:
    assert re.search(rf"^{goal}:", (HERE / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_changelog_has_each_kind_of_change_once_per_version_in_order() -> None:
    text = (HERE / "CHANGELOG.md").read_text(encoding="utf-8")
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]

    for version in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        found = re.findall(r"^### (.*)$", version, re.MULTILINE)
        assert found == [kind for kind in kinds if kind in found], version.partition("\n")[0]


def test_troubleshooting_quotes_messages_of_the_code() -> None:
    page = (HERE / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in (HERE / "lbagent").rglob("*.py"))
    of_serf = {"Error invoking script"}

    # A message is put together from pieces; `…` and `N` stand for what varies.
    quoted = [part.strip() for title in re.findall(r"^## .*?`(.*)`", page, re.MULTILINE) for part in title.split("…")]
    pieces = [piece for part in quoted for piece in re.split(r"\b[NM]\b|'#.*|`[^`]*`", part) if len(piece.strip()) > 8]
    assert len(pieces) > 3
    assert [piece for piece in pieces if piece.strip() not in code and piece.strip() not in of_serf] == []


def test_contributing_names_each_package_and_modules_that_exist() -> None:
    page = (HERE / "CONTRIBUTING.md").read_text(encoding="utf-8")
    packages = {str(path.parent.relative_to(HERE / "lbagent")) for path in (HERE / "lbagent").rglob("*/__init__.py")}

    named = set(re.findall(r"^ +([a-z]+)/ ", page, re.MULTILINE))
    assert named == {package.rpartition("/")[2] for package in packages}
    modules = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", page)
    bases = (HERE, HERE / "lbagent")
    assert [name for name in modules if not any((base / name).exists() for base in bases)] == []
