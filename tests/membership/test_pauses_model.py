"""Pauses over thousands of random histories: load balancers agree with each other and with a model, nothing revives.

LBAGENT_HISTORIES is the number of histories of each kind; `make histories` runs many more than `make test`.
"""

from __future__ import annotations

import os

import pytest

from tests.helpers.pauses_model import History, Profile

HISTORIES = int(os.environ.get("LBAGENT_HISTORIES", "150"))

PROFILES = {
    "everything": (Profile(), 24),
    "two nodes on two addresses": (Profile(nodes=2, addresses=2), 20),
    "nodes that keep their address": (Profile(nodes=5, addresses=4, moves=False), 20),
    "no load balancer is down, some nodes fail": (Profile(nodes=3, addresses=2, restarts=False), 16),
    "long": (Profile(nodes=6, addresses=4), 60),
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PROFILES)
def test_after_one_sync_all_load_balancers_agree_with_the_model(name: str) -> None:
    profile, steps = PROFILES[name]
    disagreements, revivals = [], []
    for seed in range(HISTORIES):
        history = History(seed, profile)
        verdict = history.run(steps)
        disagreements += [(seed, words) for words in verdict.disagreements]
        revivals += [(seed, words) for words in verdict.revivals]
    print(f"{name}: {HISTORIES} histories, {len(disagreements)} disagreements, {len(revivals)} revivals")

    assert (disagreements[:3], revivals[:3]) == ([], [])


# The model has found each of these: the kind of history that shows it is run separately.
FOUND = {
    "replayed pauses that have ended": Profile(
        nodes=1, addresses=1, moves=False, late=False, early=False, fails=False, clocks=("user",), ends=("for",)
    ),
    "one comment for one address": Profile(nodes=2, addresses=1, restarts=False, late=False, early=False, ends=("",)),
    "a host that was reinstalled under a new name": Profile(
        nodes=2, addresses=1, late=False, early=False, fails=False, clocks=("query",), ends=("",)
    ),
    "a resume before its pause, before its node": Profile(
        nodes=1, addresses=1, moves=False, fails=False, restarts=False, clocks=("user",), ends=("",)
    ),
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FOUND)
def test_histories_that_once_failed_pass(name: str) -> None:
    failed = [seed for seed in range(HISTORIES) if not History(seed, FOUND[name]).run(12).agrees]
    print(f"{name}: {HISTORIES} histories, {len(failed)} fail")

    assert failed[:3] == []
