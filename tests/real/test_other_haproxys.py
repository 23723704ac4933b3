"""A HAProxy is identified by the file that it reads, also in containers, where the file has another path."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.helpers.real_programs import CONFIG, RELOADING, Haproxy, LoadBalancer, binaries, member_line, wait_until

pytestmark = pytest.mark.real

WEB01 = member_line("web01", "127.0.0.11")

WITHOUT_SOCKET = CONFIG.replace("    stats socket {socket} mode 600 level admin expose-fd listeners\n", "")


@pytest.fixture(params=list(binaries().values()), ids=list(binaries()))
def lb(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    with LoadBalancer(roles=RELOADING, binary=request.param) as one:
        yield one


class Container(Haproxy):
    """A HAProxy in a separate mount namespace; `mounts` has source and target folders."""

    def __init__(self, lb: LoadBalancer, mounts: dict[Path, Path], config: str) -> None:
        super().__init__(lb, config=[config])
        self._mounts = mounts

    def __enter__(self) -> Self:
        mounts = [f"mount --bind {what} {where}" for what, where in self._mounts.items()]
        words = ["unshare", "--mount", "sh", "-ec", " && ".join([*mounts, 'exec "$@"']), "sh"]
        if subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
            pytest.skip("unshare is not allowed here")
        argv = [*words, str(self.lb.bin / "haproxy"), "-W", "-p", str(self.pidfile), "-f", *self.config]
        self._master = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=self.lb.env, cwd=self.lb.folder)
        try:
            wait_until(self._up)
        except BaseException:
            self.stop()
            raise
        return self


@contextlib.contextmanager
def run_other_container(lb: LoadBalancer) -> Iterator[Container]:
    """Run a HAProxy in a container that reads another file at the path of our haproxy.cfg."""
    with (
        LoadBalancer(WITHOUT_SOCKET, RELOADING, lb.binary) as other,
        Container(other, {other.etc: lb.etc}, str(lb.cfg)) as one,
    ):
        yield one


@pytest.mark.parametrize("pidfile", ["no pidfile", "a pidfile that names it"])
def test_a_haproxy_of_another_container_does_not_count_as_ours_that_is_down(lb: LoadBalancer, pidfile: str) -> None:
    with run_other_container(lb) as other:
        if pidfile != "no pidfile":
            lb.text = lb.text.replace(b"global\n", f"global\n    pidfile {other.pidfile}\n".encode())
        before = other.workers()

        ended, asked = lb.join(WEB01), lb.send_query("pause", "web01", 1)

        assert (ended.returncode, ended.stderr, asked.stdout) == (0, b"", b"haproxy not seen\n")
        assert lb.list_outcomes() == ["written", "written"]
        assert (other.workers(), other.reloads()) == (before, (0, 0))
        assert b"error    process: no HAProxy runs " in lb.run("check").stdout


@pytest.mark.parametrize("socket", ["with a stats socket", "without a stats socket"])
def test_a_haproxy_of_another_container_beside_ours_is_not_reloaded(lb: LoadBalancer, socket: str) -> None:
    with run_other_container(lb) as other, Haproxy(lb) as ours:
        if socket == "without a stats socket":
            lb.text = lb.text.replace(f"    stats socket {lb.socket}".encode(), b"    # stats socket")

        ended = lb.join(WEB01)

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert (ours.reloads(), other.reloads()) == ((1, 0), (0, 0))


def test_our_haproxy_in_a_container_is_found_by_its_file_at_any_path(lb: LoadBalancer) -> None:
    inside = lb.folder / "usr" / "local" / "etc" / "haproxy"
    inside.mkdir(parents=True)
    with Container(lb, {lb.etc: inside}, str(inside / lb.cfg.name)) as ours:
        ended = lb.join(WEB01)

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert (ours.reloads(), list(ours.servers())) == ((1, 0), ["web01"])


@pytest.mark.parametrize("link", ["absolute", "relative"])
def test_a_link_in_a_container_does_not_lead_to_our_file(lb: LoadBalancer, link: str) -> None:
    with LoadBalancer(WITHOUT_SOCKET, RELOADING, lb.binary) as other:
        # Outside the container the absolute link leads to our file, inside to the other one.
        entry = other.folder / "entry.cfg"
        entry.symlink_to(lb.cfg if link == "absolute" else Path("etc") / other.cfg.name)
        with Container(other, {other.etc: lb.etc}, str(entry)) as one:
            ended = lb.join(WEB01)

            assert (ended.returncode, lb.list_outcomes()) == (0, ["written"])
            assert one.reloads() == (0, 0)


def test_a_haproxy_that_has_changed_its_root_is_found_by_its_path(lb: LoadBalancer) -> None:
    (lb.folder / "empty").mkdir()
    lb.text = lb.text.replace(b"global\n", f"global\n    chroot {lb.folder}/empty\n".encode())
    with Haproxy(lb, "-D") as haproxy:
        ended = lb.join(WEB01)

        assert (ended.returncode, ended.stderr) == (0, b"")
        assert list(haproxy.servers()) == ["web01"]
