"""roles.yml: every mistake is named with its place, key path and fix, all of them in one run."""

# ruff: noqa: E501, ISC004  # a message is in one line, a file in several

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import yaml

from lbagent.errors import RolesRefused
from lbagent.roles import loader, yaml_text

LONG = "".join(f"x{number:02}" for number in range(30))

BROKEN: list[tuple[str, list[str]]] = [
    (
        "",
        [
            ": is empty; declare at least one role below roles:",
        ],
    ),
    (
        "# only a comment\n",
        [
            ": is empty; declare at least one role below roles:",
        ],
    ),
    (
        "42\n",
        [
            ":1:1: '42' is not a mapping of keys to values; write roles: with at least one role below it",
        ],
    ),
    (
        "[a, b]\n",
        [
            ":1:1: is a list, not a mapping of keys to values; write roles: with at least one role below it",
        ],
    ),
    (
        "services: {iis: {port: 80}}\n",
        [
            ": roles: declares no role; write ROLE: {SECTION: [SERVICE]}",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles: {}\n",
        [
            ":2:8: roles: declares no role; write ROLE: {SECTION: [SERVICE]}",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n",
        [
            ":2:7: roles: has no keys; write ROLE: {SECTION: [SERVICE]} below it",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles: [web]\n",
        [
            ":2:8: roles: is a list, not a mapping of keys to values; write ROLE: {SECTION: [SERVICE]} below it",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n",
        [
            ":3:7: roles.web: has no keys; indent the keys below it further, or write web: {SECTION: [iis]}",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n\tweb:\n\t\tlb: [iis]\n",
        [
            ":3:1: roles.web: is indented with a tab; use spaces",
            ":4:1: roles.web.lb: is indented with a tab; use spaces",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n  \tlb: [iis]\n    interval: 60\n",
        [
            ":4:3: roles.web.lb: is indented with a tab; use spaces",
            ":5:15: roles.web.interval: '60' has no unit; write 60s",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n   interval: 60s\n",
        [
            ":5:4: roles.web.interval: is indented by 3 spaces, unlike any line above; indent it by 2 or 4 spaces",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n      interval: 60s\n",
        [
            ":5:7: roles.web.interval: is indented by 6 spaces, unlike any line above; indent it by 2 or 4 spaces",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    interval: 60s\n      lb: [iis]\n",
        [
            ":5:7: roles.web.lb: is indented by 6 spaces, unlike any line above; indent it by 2 or 4 spaces",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n    web:\n      lb: [iis]\n  api:\n      lb: [iis]\n",
        [
            ":5:3: roles.api: is indented by 2 spaces, unlike any line above; indent it by 4 or 6 spaces",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n  lb: [iis]\n",
        [
            ":3:7: roles.web: has no keys; indent the keys below it further, or write web: {SECTION: [iis]}",
            ":4:3: roles.lb: is a list, not a role; indent it further if it is a section, or write lb: {SECTION: [iis]}",
        ],
    ),
    (
        "services:\n  iis: {port: 80}\n  roles:\n    web: {lb: [iis]}\n",
        [
            ":3:3: services.roles: is not a service; indent roles: like services:",
        ],
    ),
    (
        "services:\n  iis:\n    port: {tag:port|80}\nroles: {web: {lb: [iis]}}\n",
        [
            ':3:11: services.iis.port: {tag:port|80} needs quotes; write "{tag:port|80}"',
        ],
    ),
    (
        "services:\n  iis:\n    port: 80\n    options: {name}\nroles: {web: {lb: [iis]}}\n",
        [
            ':4:14: services.iis.options: {name} needs quotes; write "{name}"',
        ],
    ),
    (
        "services:\n  iis:\n    port: 80\n    options: {name} check\nroles: {web: {lb: [iis]}}\n",
        [
            ':4:14: services.iis.options: {name} check needs quotes; write "{name} check"',
        ],
    ),
    (
        "services:\n  iis: {port: 80, options: check inter {interval} rise 2}\nroles: {web: {lb: [iis]}}\n",
        [
            ':2:28: services.iis: check inter {interval} rise 2 needs quotes; write "check inter {interval} rise 2"',
        ],
    ),
    (
        "services:\n  iis: {port: {tag:port|80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ':2:15: services.iis.port: {tag:port|80} needs quotes; write "{tag:port|80}"',
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis}\n",
        [
            ":3:13: roles.web: the list is not closed; add ]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis]\n",
        [
            ":3:8: roles.web: the mapping is not closed; add }",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis\n    interval: 60s\n",
        [
            ":4:9: roles.web.lb: the list is not closed; add ]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]]\n",
        [
            ":4:14: roles.web.lb: unmatched ]; remove it",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    options: "check\n    interval: 60\n',
        [
            ':5:14: roles.web.options: the quote is not closed; add "',
            ":6:15: roles.web.interval: '60' has no unit; write 60s",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    options: @check\n",
        [
            ':5:14: roles.web.options: a value cannot begin with @ without quotes; write "@check"',
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    options: *check\n",
        [
            ':5:14: roles.web.options: a value cannot begin with * without quotes; write "*check"',
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    options: check: inter 2s\n",
        [
            ':5:14: roles.web.options: a value with : needs quotes; write "check: inter 2s"',
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    options: "check\\q"\n',
        [
            ":5:20: roles.web.options: unknown escape sequence; use single quotes, in which a backslash has no meaning",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb:[iis]\n    interval: 60s\n",
        [
            ":4:7: roles.web.lb: missing space after ':'; write lb: [iis]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb [iis]\n    interval: 60s\n",
        [
            ":4:5: roles.web.lb: missing ':' after the key; write lb: [iis]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web\n    lb: [iis]\n",
        [
            ":3:3: roles.web: missing ':' after the key; write web:",
        ],
    ),
    (
        "services:\n  iis:{port: 80}\n  b: {port: 81}\nroles: {web: {lb: [iis]}}\n",
        [
            ":2:3: services.iis: missing space after ':'; write iis: with a space after it",
        ],
    ),
    (
        "services:\n  iis: {port:80}\nroles: {web: {lb: [iis]}}\n",
        [
            ":2:9: services.iis.port:80: missing space after ':'; write port: 80",
        ],
    ),
    (
        "a: 1\n---\nb: 2\n",
        [
            ":1:4: a: '1' is not a mapping of keys to values; indent the keys below it further, or write a: {SECTION: [SERVICE]}",
            ":2:1: begins a second YAML document; remove the line ---",
            ":3:4: b: '2' is not a mapping of keys to values; indent the keys below it further, or write b: {SECTION: [SERVICE]}",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nrole: {web: {lb: [iis]}}\n",
        [
            ":2:1: role: unknown key; did you mean roles?",
        ],
    ),
    (
        "service: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:1: service: unknown key; did you mean services?",
        ],
    ),
    (
        "haprox: {config: /x.cfg}\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:1: haprox: unknown key; did you mean haproxy?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\nweb2: {lb: [iis]}\n",
        [
            ":3:1: web2: unknown key; use one of: haproxy, services, roles; roles belong below roles:",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\nroles: {api: {lb: [iis]}}\n",
        [
            ":3:1: roles: duplicate key; remove one, the first is in line 2",
        ],
    ),
    (
        "haproxy: {confg: /x.cfg}\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:11: haproxy.confg: unknown key; did you mean config?",
        ],
    ),
    (
        "haproxy: {config: haproxy.cfg}\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:19: haproxy.config: 'haproxy.cfg' is not an absolute path; write /etc/haproxy/haproxy.cfg",
        ],
    ),
    (
        "haproxy: {config: []}\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:19: haproxy.config: is an empty list; write an absolute path, or a list of them",
        ],
    ),
    (
        "haproxy: {reload: systemctl reload haproxy}\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:19: haproxy.reload: 'systemctl reload haproxy' is not a list; write [systemctl, reload, haproxy]",
        ],
    ),
    (
        "haproxy: {runtime: maybe}\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:20: haproxy.runtime: unknown value 'maybe'; write on or off",
        ],
    ),
    (
        "haproxy: {timeout: 30}\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:20: haproxy.timeout: '30' has no unit; write 30s",
        ],
    ),
    (
        "haproxy: {timeout: 0s}\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:20: haproxy.timeout: '0s' is too short; write a time with its unit, such as 30s",
        ],
    ),
    (
        "haproxy: {timeout: soon, min_reload_interval: -2s}\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:20: haproxy.timeout: 'soon' is not a time; write a time with its unit, such as 30s",
            ":1:47: haproxy.min_reload_interval: '-2s' is not a time; write a time with its unit, such as 30s",
        ],
    ),
    (
        "haproxy: on\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:10: haproxy: 'on' is not a mapping of keys to values; write KEY: VALUE below it; the keys are config, reload, runtime, timeout, min_reload_interval",
        ],
    ),
    (
        "services: [iis]\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:11: services: is a list, not a mapping of keys to values; write NAME: {port: 80} below it",
            ":2:20: roles.web.lb: service 'iis' is not declared; declare it below services: (declared: none)",
        ],
    ),
    (
        "services:\n  shop: 8000\nroles: {web: {lb: [shop]}}\n",
        [
            ":2:9: services.shop: '8000' is not a mapping of keys to values; write shop: {port: 8000}",
        ],
    ),
    (
        "services:\n  iis:\nroles: {web: {lb: [iis]}}\n",
        [
            ":2:7: services.iis: has no keys; write iis: {port: 80}",
        ],
    ),
    (
        "services:\n  iis: {}\nroles: {web: {lb: [iis]}}\n",
        [
            ":2:3: services.iis: has no port; write iis: {port: 80}",
        ],
    ),
    (
        "services:\n  iis: {prt: 80}\nroles: {web: {lb: [iis]}}\n",
        [
            ":2:9: services.iis.prt: unknown key; did you mean port?",
        ],
    ),
    (
        "services:\n  iis: {port: 80, option: check, check: on}\nroles: {web: {lb: [iis]}}\n",
        [
            ":2:19: services.iis.option: unknown key; did you mean options?",
            ":2:34: services.iis.check: unknown key; use one of: port, options",
        ],
    ),
    (
        "services:\n  a.b: {port: 80}\n  none: {port: 81}\nroles: {web: {lb: [none]}}\n",
        [
            ":2:3: services.a.b: invalid service name; use at most 63 letters, digits, '-' and '_', beginning with a letter or digit",
            ":3:3: services.none: reserved name; rename the service",
        ],
    ),
    (
        "services:\n  iis: {port: 080}\nroles: {web: {lb: [iis]}}\n",
        [
            ":2:15: services.iis.port: '080' is not a port; write 1 to 65535, or \"{tag:port|8080}\"",
        ],
    ),
    (
        "services:\n  iis: {port: 65536}\nroles: {web: {lb: [iis]}}\n",
        [
            ":2:15: services.iis.port: '65536' is not a port; write 1 to 65535, or \"{tag:port|8080}\"",
        ],
    ),
    (
        "services:\n  iis: {port: [80, 81]}\nroles: {web: {lb: [iis]}}\n",
        [
            ':2:15: services.iis.port: is a list, not a single value; write 1 to 65535, or "{tag:port|8080}"',
        ],
    ),
    (
        'services:\n  iis: {port: "{tag:port"}\nroles: {web: {lb: [iis]}}\n',
        [
            ":2:15: services.iis.port: '{tag:port' contains an unmatched brace; write it as in {tag:port|8080}",
        ],
    ),
    (
        'services:\n  iis:\n    port: 80\n    options: "check # comment"\nroles: {web: {lb: [iis]}}\n',
        [
            ":4:14: services.iis.options: 'check # comment' contains #, which begins a comment in haproxy.cfg; remove the #",
        ],
    ),
    (
        "services:\n  iis:\n    port: 80\n    options: check inter {intervall}\nroles: {web: {lb: [iis]}}\n",
        [
            ":4:14: services.iis.options: 'check inter {intervall}' contains an unknown placeholder; did you mean {interval}?",
        ],
    ),
    (
        "services:\n  iis:\n    port: 80\n    options: check weight {tags:weight|5}\nroles: {web: {lb: [iis]}}\n",
        [
            ":4:14: services.iis.options: 'check weight {tags:weight|5}' contains an unknown placeholder; did you mean {tag:weight|5}?",
        ],
    ),
    (
        'services:\n  iis:\n    port: 80\n    options: "check\\nserver evil 6.6.6.6:80"\nroles: {web: {lb: [iis]}}\n',
        [
            ":4:14: services.iis.options: 'check\\nserver evil 6.6.6.6:80' contains a control character; write HAProxy's words for a server, such as check",
        ],
    ),
    (
        "services: {iis: {port: 80}, iis: {port: 81}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:29: services.iis: duplicate key; remove one, the first is in line 1",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    intervall: 60s\n",
        [
            ":5:5: roles.web.intervall: unknown key; did you mean interval?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    network: [10.0.0.0/8]\n",
        [
            ":5:5: roles.web.network: unknown key; did you mean networks?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    network: [iis]\n",
        [
            ":5:5: roles.web.network: unknown key; did you mean networks?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    on-failed: remove\n    Max: 5\n",
        [
            ":5:5: roles.web.on-failed: unknown key; did you mean on_failed?",
            ":6:5: roles.web.Max: unknown key; did you mean max?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    shop: 8000\n",
        [
            ":5:11: roles.web.shop: '8000' is not a list of services; write shop: [SERVICE], or use a known key: interval, networks, options, address, on_failed, on_pause, max",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: iis\n",
        [
            ":4:9: roles.web.lb: 'iis' is not a list of services; write lb: [iis]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb:\n",
        [
            ":4:8: roles.web.lb: has no value; write lb: [none] for a section without services",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: {iis: 80}\n",
        [
            ":4:9: roles.web.lb: is a mapping, not a list of services; write lb: [SERVICE], or use a known key: interval, networks, options, address, on_failed, on_pause, max",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iss, mongo]\n",
        [
            ":4:10: roles.web.lb: service 'iss' is not declared; did you mean iis?",
            ":4:15: roles.web.lb: service 'mongo' is not declared; declare it below services: (declared: iis)",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis, iis]\n    monitor: [none, iis]\n",
        [
            ":4:15: roles.web.lb: service 'iis' appears twice; remove one",
            ":5:15: roles.web.monitor: lists none together with services; remove none, or the services",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  w b: {lb: [iis]}\n",
        [
            ":3:3: roles.w b: invalid role name; use at most 63 letters, digits, '.', '-' and '_', beginning with a letter or digit",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {l b: [iis]}\n",
        [
            ":3:9: roles.web.l b: invalid section name; use at most 63 letters, digits, '.', '-' and '_', beginning with a letter or digit",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], interval: 60}\n",
        [
            ":3:30: roles.web.interval: '60' has no unit; write 60s",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], interval: 1h30m}\n",
        [
            ":3:30: roles.web.interval: '1h30m' is not a time; write a time with its unit, such as 60s",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], networks: 10.0.0.0/8}\n",
        [
            ":3:30: roles.web.networks: '10.0.0.0/8' is not a list; write [10.0.0.0/8]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], networks: [10.0.0.1/8, intranet]}\n",
        [
            ":3:31: roles.web.networks: '10.0.0.1/8' is not a network; write 10.0.0.0/8",
            ":3:43: roles.web.networks: 'intranet' is not a network; write a list of networks, such as [10.0.0.0/8]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], networks: []}\n",
        [
            ":3:30: roles.web.networks: is an empty list, so no address is allowed; list networks, or remove the key",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], on_failed: removed}\n",
        [
            ":3:31: roles.web.on_failed: unknown value 'removed'; did you mean remove?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], max: 0}\n",
        [
            ":3:25: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], max: many}\n",
        [
            ":3:25: roles.web.max: 'many' is not a number; write a number from 1 to 20000",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], address: 10.0.0.5}\n",
        [
            ":3:29: roles.web.address: '10.0.0.5' is the same for every node; write a Serf tag, such as \"{tag:ip}\"",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], address: {tag:ip}}\n",
        [
            ':3:29: roles.web.address: {tag:ip} needs quotes; write "{tag:ip}"',
        ],
    ),
    (
        "services: {c: {port: 80}, b-c: {port: 81}}\nroles:\n  web: {a-b: [c]}\n  app: {a: [b-c]}\n",
        [
            ":4:9: roles.app.a: marker '# additional-a-b-c-server' is ambiguous, it could mean section a, service b-c or section a-b, service c; rename one",
        ],
    ),
    (
        "haproxy:\n"
        "  config: haproxy.cfg\n"
        "services:\n"
        "  iis: {prot: 80}\n"
        "  shop: 8000\n"
        "roles:\n"
        "  web:\n"
        "    lb: [isi]\n"
        "    intervall: 60s\n"
        "    networks: 10.0.0.0/8\n"
        "    on_failed: drop\n",
        [
            ":2:11: haproxy.config: 'haproxy.cfg' is not an absolute path; write /etc/haproxy/haproxy.cfg",
            ":4:9: services.iis.prot: unknown key; did you mean port?",
            ":5:9: services.shop: '8000' is not a mapping of keys to values; write shop: {port: 8000}",
            ":8:10: roles.web.lb: service 'isi' is not declared; did you mean iis?",
            ":9:5: roles.web.intervall: unknown key; did you mean interval?",
            ":10:15: roles.web.networks: '10.0.0.0/8' is not a list; write [10.0.0.0/8]",
            ":11:16: roles.web.on_failed: unknown value 'drop'; write keep or remove",
        ],
    ),
    (
        "services:\n"
        "\tiis: {port: {tag:port|80}}\n"
        "roles:\n"
        "  web:\n"
        "    lb: [iis]\n"
        "   interval: 60\n"
        "    network: [10.0.0.0/8]\n",
        [
            ":2:1: services.iis: is indented with a tab; use spaces",
            ':2:15: services.iis.port: {tag:port|80} needs quotes; write "{tag:port|80}"',
            ":6:4: roles.web.interval: is indented by 3 spaces, unlike any line above; indent it by 2 or 4 spaces",
            ":6:15: roles.web.interval: '60' has no unit; write 60s",
            ":7:5: roles.web.network: unknown key; did you mean networks?",
        ],
    ),
    (
        "services:\n  shop: 8000\nrole:\n  web:\n    lb: [shop]\n    intervall: 60s\n",
        [
            ":2:9: services.shop: '8000' is not a mapping of keys to values; write shop: {port: 8000}",
            ":3:1: role: unknown key; did you mean roles?",
            ":6:5: roles.web.intervall: unknown key; did you mean interval?",
        ],
    ),
    (
        "# nothing\n",
        [
            ": is empty; declare at least one role below roles:",
        ],
    ),
    (
        "just words\n",
        [
            ":1:1: 'just words' is not a mapping of keys to values; write roles: with at least one role below it",
        ],
    ),
    (
        "- a\n- b\n",
        [
            ":1:1: is a list, not a mapping of keys to values; write roles: with at least one role below it",
        ],
    ),
    (
        "haproxy: {}\n",
        [
            ": roles: declares no role; write ROLE: {SECTION: [SERVICE]}",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\nservice: {}\n",
        [
            ":3:1: service: unknown key; did you mean services?",
        ],
    ),
    (
        "roles: {web: {}}\nroles: {app: {}}\n",
        [
            ":2:1: roles: duplicate key; remove one, the first is in line 1",
        ],
    ),
    (
        "haproxy: x\nroles: {web: {}}\n",
        [
            ":1:10: haproxy: 'x' is not a mapping of keys to values; write KEY: VALUE below it; the keys are config, reload, runtime, timeout, min_reload_interval",
        ],
    ),
    (
        "haproxy:\nroles: {web: {}}\n",
        [
            ":1:9: haproxy: has no keys; write KEY: VALUE below it; the keys are config, reload, runtime, timeout, min_reload_interval",
        ],
    ),
    (
        "haproxy: {conf: /x}\nroles: {web: {}}\n",
        [
            ":1:11: haproxy.conf: unknown key; did you mean config?",
        ],
    ),
    (
        "haproxy: {config: x.cfg}\nroles: {web: {}}\n",
        [
            ":1:19: haproxy.config: 'x.cfg' is not an absolute path; write /etc/haproxy/x.cfg",
        ],
    ),
    (
        "haproxy:\n  config:\n  - /a\n  - b\nroles: {web: {}}\n",
        [
            ":4:5: haproxy.config: 'b' is not an absolute path; write /etc/haproxy/b",
        ],
    ),
    (
        "haproxy: {config: {}}\nroles: {web: {}}\n",
        [
            ":1:19: haproxy.config: is a mapping, not a single value; write an absolute path, or a list of them",
        ],
    ),
    (
        "haproxy: {config: []}\nroles: {web: {}}\n",
        [
            ":1:19: haproxy.config: is an empty list; write an absolute path, or a list of them",
        ],
    ),
    (
        "haproxy: {config: }\nroles: {web: {}}\n",
        [
            ":1:19: haproxy.config: has no value; write an absolute path, or a list of them",
        ],
    ),
    (
        "haproxy: {reload: systemctl reload haproxy}\nroles: {web: {}}\n",
        [
            ":1:19: haproxy.reload: 'systemctl reload haproxy' is not a list; write [systemctl, reload, haproxy]",
        ],
    ),
    (
        "haproxy: {runtime: maybe}\nroles: {web: {}}\n",
        [
            ":1:20: haproxy.runtime: unknown value 'maybe'; write on or off",
        ],
    ),
    (
        "haproxy: {timeout: 30}\nroles: {web: {}}\n",
        [
            ":1:20: haproxy.timeout: '30' has no unit; write 30s",
        ],
    ),
    (
        "haproxy: {timeout: soon}\nroles: {web: {}}\n",
        [
            ":1:20: haproxy.timeout: 'soon' is not a time; write a time with its unit, such as 30s",
        ],
    ),
    (
        "haproxy: {min_reload_interval: -2s}\nroles: {web: {}}\n",
        [
            ":1:32: haproxy.min_reload_interval: '-2s' is not a time; write a time with its unit, such as 30s",
        ],
    ),
    (
        "services: [iis]\nroles: {web: {}}\n",
        [
            ":1:11: services: is a list, not a mapping of keys to values; write NAME: {port: 80} below it",
        ],
    ),
    (
        "services:\n  iis:\nroles: {web: {}}\n",
        [
            ":2:7: services.iis: has no keys; write iis: {port: 80}",
        ],
    ),
    (
        "services:\n  iis: 80\nroles: {web: {}}\n",
        [
            ":2:8: services.iis: '80' is not a mapping of keys to values; write iis: {port: 80}",
        ],
    ),
    (
        "services:\n  iis: {}\nroles: {web: {}}\n",
        [
            ":2:3: services.iis: has no port; write iis: {port: 80}",
        ],
    ),
    (
        "services:\n  iis: {prt: 80}\nroles: {web: {}}\n",
        [
            ":2:9: services.iis.prt: unknown key; did you mean port?",
        ],
    ),
    (
        "services:\n  a.b: {port: 80}\nroles: {web: {}}\n",
        [
            ":2:3: services.a.b: invalid service name; use at most 63 letters, digits, '-' and '_', beginning with a letter or digit",
        ],
    ),
    (
        "services:\n  none: {port: 80}\nroles: {web: {}}\n",
        [
            ":2:3: services.none: reserved name; rename the service",
        ],
    ),
    (
        "services: {iis: {port: 80}, iis: {port: 81}}\nroles: {web: {}}\n",
        [
            ":1:29: services.iis: duplicate key; remove one, the first is in line 1",
        ],
    ),
    (
        "services:\n  iis:\n    port: 080\nroles: {web: {}}\n",
        [
            ":3:11: services.iis.port: '080' is not a port; write 1 to 65535, or \"{tag:port|8080}\"",
        ],
    ),
    (
        "services:\n  iis:\n    port: 0\nroles: {web: {}}\n",
        [
            ":3:11: services.iis.port: '0' is not a port; write 1 to 65535, or \"{tag:port|8080}\"",
        ],
    ),
    (
        "services:\n  iis:\n    port: 65536\nroles: {web: {}}\n",
        [
            ":3:11: services.iis.port: '65536' is not a port; write 1 to 65535, or \"{tag:port|8080}\"",
        ],
    ),
    (
        "services:\n  iis:\n    port: 0x50\nroles: {web: {}}\n",
        [
            ":3:11: services.iis.port: '0x50' is not a port; write 1 to 65535, or \"{tag:port|8080}\"",
        ],
    ),
    (
        "services:\n  iis:\n    port: 80.0\nroles: {web: {}}\n",
        [
            ":3:11: services.iis.port: '80.0' is not a port; write 1 to 65535, or \"{tag:port|8080}\"",
        ],
    ),
    (
        "services:\n  iis:\n    port: [80]\nroles: {web: {}}\n",
        [
            ':3:11: services.iis.port: is a list, not a single value; write 1 to 65535, or "{tag:port|8080}"',
        ],
    ),
    (
        'services:\n  iis:\n    port: "{tag:port"\nroles: {web: {}}\n',
        [
            ":3:11: services.iis.port: '{tag:port' contains an unmatched brace; write it as in {tag:port|8080}",
        ],
    ),
    (
        'services:\n  iis:\n    port: 80\n    options: "check # x"\nroles: {web: {}}\n',
        [
            ":4:14: services.iis.options: 'check # x' contains #, which begins a comment in haproxy.cfg; remove the #",
        ],
    ),
    (
        'services:\n  iis:\n    port: 80\n    options: "check\\nserver evil 6.6.6.6:80"\nroles: {web: {}}\n',
        [
            ":4:14: services.iis.options: 'check\\nserver evil 6.6.6.6:80' contains a control character; write HAProxy's words for a server, such as check",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    intervall: 60s\n",
        [
            ":4:5: roles.web.intervall: unknown key; did you mean interval?",
        ],
    ),
    (
        "services: {iis: {port: 80}, b: {port: 81}}\nroles:\n  web:\n    lb:\n    - b\n    - iss\n",
        [
            ":6:7: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        "roles:\n  web: {lb: [iis]}\n",
        [
            ":2:14: roles.web.lb: service 'iis' is not declared; declare it below services: (declared: none)",
        ],
    ),
    (
        "web: {lb: [iis]}\n",
        [
            ":1:12: web.lb: service 'iis' is not declared; declare it below services: (declared: none)",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis, iis]}\n",
        [
            ":3:19: roles.web.lb: service 'iis' appears twice; remove one",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [[iis]]}\n",
        [
            ":3:14: roles.web.lb: is a list, not a single value; write lb: [SERVICE]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], lb: [iis]}\n",
        [
            ":3:20: roles.web.lb: duplicate key; remove one, the first is in line 3",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {interval: 60}\n",
        [
            ":3:19: roles.web.interval: '60' has no unit; write 60s",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {interval: 1h30m}\n",
        [
            ":3:19: roles.web.interval: '1h30m' is not a time; write a time with its unit, such as 60s",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {interval: s}\n",
        [
            ":3:19: roles.web.interval: 's' is not a time; write a time with its unit, such as 60s",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {networks: 10.0.0.0/8}\n",
        [
            ":3:19: roles.web.networks: '10.0.0.0/8' is not a list; write [10.0.0.0/8]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {networks: []}\n",
        [
            ":3:19: roles.web.networks: is an empty list, so no address is allowed; list networks, or remove the key",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {networks: [10.0.0.1/8]}\n",
        [
            ":3:20: roles.web.networks: '10.0.0.1/8' is not a network; write 10.0.0.0/8",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    networks:\n    - 10.0.0.0/8\n    - intranet\n",
        [
            ":6:7: roles.web.networks: 'intranet' is not a network; write a list of networks, such as [10.0.0.0/8]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {on_failed: drop}\n",
        [
            ":3:20: roles.web.on_failed: unknown value 'drop'; write keep or remove",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {max: 0}\n",
        [
            ":3:14: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {max: many}\n",
        [
            ":3:14: roles.web.max: 'many' is not a number; write a number from 1 to 20000",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {max: 20001}\n",
        [
            ":3:14: roles.web.max: '20001' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {max: '0001000000'}\n",
        [
            ":3:14: roles.web.max: '0001000000' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {options: [check]}\n",
        [
            ":3:18: roles.web.options: is a list, not a single value; write HAProxy's words for a server, such as check",
        ],
    ),
    (
        "roles: {1: {}, ? [a] : {}}\n",
        [
            ":1:18: roles: invalid key; write KEY: VALUE",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: none}\n",
        [
            ":3:13: roles.web.lb: 'none' is not a list of services; write lb: [none]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: 'iis,none'}\n",
        [
            ":3:13: roles.web.lb: 'iis,none' is not a list of services; write lb: [iis, none]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {options: 'check {serve}'}\n",
        [
            ":3:18: roles.web.options: 'check {serve}' contains an unknown placeholder; did you mean {server}?",
        ],
    ),
    (
        "services: {none: {port: 1}}\nroles:\n  web: [x]\n",
        [
            ":1:12: services.none: reserved name; rename the service",
            ":3:3: roles.web: is a list, not a role; indent it further if it is a section, or write web: {SECTION: [SERVICE]}",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {interval:60s}\n",
        [
            ":3:9: roles.web.interval:60s: missing space after ':'; write interval: 60s",
        ],
    ),
    (
        'services:\n  iis:\n    port: 80\n    options: "check \\d"\n    prt: 5\nroles: {web: {}}\n',
        [
            ":4:21: services.iis.options: unknown escape sequence; use single quotes, in which a backslash has no meaning",
            ":5:5: services.iis.prt: unknown key; did you mean port?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles: {web: {lb: [iis]}, 'a]': {lb: [iis]\n",
        [
            ":2:33: roles: the mapping is not closed; add }",
        ],
    ),
    (
        "services: {iis: {port: 80}}}\nroles: {web: {lb: [iss]}}\n",
        [
            ":1:28: services: unmatched }; remove it",
            ":2:20: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n\tweb:\n\t\tlb: [iis, iss]\n",
        [
            ":3:1: roles.web: is indented with a tab; use spaces",
            ":4:1: roles.web.lb: is indented with a tab; use spaces",
            ":4:15: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "check {naem}"}\n',
        [
            ":3:18: roles.web.options: 'check {naem}' contains an unknown placeholder; did you mean {name}?",
        ],
    ),
    (
        'services: {iis: {port: ""}}\nroles: {web: {lb: [iis]}}\n',
        [
            ':1:24: services.iis.port: is empty; write 1 to 65535, or "{tag:port|8080}"',
        ],
    ),
    (
        "services: {iis: {port: {a: 1}}}\nroles: {web: {lb: [iis]}}\n",
        [
            ':1:24: services.iis.port: is a mapping, not a single value; write 1 to 65535, or "{tag:port|8080}"',
        ],
    ),
    (
        'services: {iis: {port: 80, options: "check}}\n---\nroles: {web: {lb: [iis]}}\n',
        [
            ':1:37: services: the quote is not closed; add "',
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    options: 'it''s [ \"'\n    lb: [iis, [x], # [ {\n",
        [
            ":5:9: roles.web.lb: the list is not closed; add ]",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web:\n    options: "{\\"["\n    max: 0\n    lb: [iis,\n\n',
        [
            ":4:14: roles.web.options: '{\"[' contains an unmatched brace; write it as in {tag:port|8080}",
            ":5:10: roles.web.max: '0' is out of range; write a number from 1 to 20000",
            ":6:9: roles.web.lb: the list is not closed; add ]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis],\n",
        [
            ":3:8: roles.web: the mapping is not closed; add }",
        ],
    ),
    (
        "services: {iis: {port: 80}}}\nroles:\n  web: {lb: [iis,\n\n",
        [
            ":1:28: services: unmatched }; remove it",
            ":3:13: roles.web: the list is not closed; add ]",
        ],
    ),
    (
        "services: {iis: {port: 0\n",
        [
            ":1:17: services: the mapping is not closed; add }",
        ],
    ),
    (
        "services: {iis: {port: 80 options: check}}\nroles: {web: {lb: [iss]}}\n",
        [
            ":1:27: services: a comma is missing in the mapping; add it",
            ":2:20: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {lb: ["iis" "iss"], max: 0}\n',
        [
            ":3:20: roles.web: a comma is missing in the list; add it",
            ":3:21: roles.web.lb: service 'iss' is not declared; did you mean iis?",
            ":3:34: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {lb: ["iis"{a: b}]}\n',
        [
            ":3:19: roles.web: a comma is missing in the list; add it",
            ":3:21: roles.web.lb: is a mapping, not a single value; write lb: [SERVICE]",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [isi}}\n",
        [
            ":3:13: roles.web: the list is not closed; add ]",
            ":3:14: roles.web.lb: service 'isi' is not declared; did you mean iis?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: {max: 0]}\n",
        [
            ":3:13: roles.web: the mapping is not closed; add }",
            ":3:13: roles.web.lb: is a mapping, not a list of services; write lb: [SERVICE], or use a known key: interval, networks, options, address, on_failed, on_pause, max",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    networks: [10.0.0.0/8}\n    lb: [isi]\n",
        [
            ":4:15: roles.web.networks: the list is not closed; add ]",
            ":5:10: roles.web.lb: service 'isi' is not declared; did you mean iis?",
        ],
    ),
    (
        "services: {a: &x {port: 80},\n  b: &x {port: 0}}\nroles: {web: {lb: [a]}}\n",
        [
            ":2:6: services.b: duplicate anchor; rename one, the first is in line 1",
            ":2:17: services.b.port: '0' is not a port; write 1 to 65535, or \"{tag:port|8080}\"",
        ],
    ),
    (
        "a: 1\n...\nb: 2\n",
        [
            ":3:1: b: invalid YAML: did not find expected <document start>",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    options: & check\n    networks: [@x]\n",
        [
            ':5:14: roles.web.options: a value cannot begin with & without quotes; write "& check"',
            ':6:16: roles.web.networks: a value cannot begin with @ without quotes; write "@x"',
            ":6:16: roles.web.networks: '@x' is not a network; write a list of networks, such as [10.0.0.0/8]",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web:\n    options: "\\x1z"\n    max: 0\n',
        [
            ":4:15: roles.web.options: unknown escape sequence; use single quotes, in which a backslash has no meaning",
            ":5:10: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web:\n    options: "\\\\ \\d \\#"\n    max: 0\n',
        [
            ":4:14: roles.web.options: '\\\\ \\\\d \\\\#' contains #, which begins a comment in haproxy.cfg; remove the #",
            ":4:18: roles.web.options: unknown escape sequence; use single quotes, in which a backslash has no meaning",
            ":4:22: roles.web.options: unknown escape sequence; use single quotes, in which a backslash has no meaning",
            ":5:10: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        'services: {iis: {port: 80, options: "check}}\nroles: {web: {lb: [iss]}}\n',
        [
            ':1:37: services: the quote is not closed; add "',
            ":2:20: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles: {web: {lb: ['iss]}}\n",
        [
            ":2:20: roles: the quote is not closed; add '",
            ":2:20: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles: {web: {lb: ["iis], max: 0}}\n',
        [
            ':2:20: roles: the quote is not closed; add "',
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n    web:\n\tlb: [iss]\n",
        [
            ":4:1: roles.web.lb: is indented with a tab; use spaces",
            ":4:14: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n    web:\n        lb: [iis]\n\tmax: 0\n",
        [
            ":5:1: roles.max: is indented with a tab; use spaces",
            ":5:10: roles.max: '0' is not a mapping of keys to values; indent the keys below it further, or write max: {SECTION: [iis]}",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n    web:\n      lb: [iss]\n\tmax: 0\n",
        [
            ":4:12: roles.web.lb: service 'iss' is not declared; did you mean iis?",
            ":5:1: roles.max: is indented with a tab; use spaces",
            ":5:10: roles.max: '0' is not a mapping of keys to values; indent the keys below it further, or write max: {SECTION: [iis]}",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n\tlb: [iis]\n\tmax:\t0\n",
        [
            ":4:1: roles.web.lb: is indented with a tab; use spaces",
            ":5:1: roles.web.max: is indented with a tab; use spaces",
            ":5:10: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "roles:\n\tweb\n\t\tlb: [iis\n",
        [
            ":2:1: roles: is indented with a tab; use spaces",
            ":2:3: roles.web: missing ':' after the key; write web:",
            ":3:1: roles.lb: is indented with a tab; use spaces",
            ":3:9: roles.web.lb: the list is not closed; add ]",
            ":3:10: roles.web.lb: service 'iis' is not declared; declare it below services: (declared: none)",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n   monitor:\n   - iis\n   max: 0\n",
        [
            ":5:4: roles.web.monitor: is indented by 3 spaces, unlike any line above; indent it by 2 or 4 spaces",
            ":7:10: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n app:\n  lb: [iis]\n  interval: 60s\n",
        [
            ":5:2: roles.app: is indented by 1 spaces, unlike any line above; indent it by 0 or 2 or 4 spaces",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n app:\n  lb: [iis]\n\n  monitor:\n    - iis\n  # comment\n  interval: 60s\n",
        [
            ":5:2: roles.app: is indented by 1 spaces, unlike any line above; indent it by 0 or 2 or 4 spaces",
        ],
    ),
    (
        "haproxy:\n    config:\n  - /a\n  - b\nroles: {web: {}}\n",
        [
            ":3:3: haproxy.config: is indented by 2 spaces, unlike any line above; indent it by 4 spaces",
            ":4:7: haproxy.config: 'b' is not an absolute path; write /etc/haproxy/b",
        ],
    ),
    (
        "haproxy:\n  config:\n# comment\n- /a\n  - b\nroles: {web: {}}\n",
        [
            ":4:1: haproxy.config: is indented by 0 spaces, unlike any line above; indent it by 0 or 2 spaces",
            ":5:5: haproxy.config: 'b' is not an absolute path; write /etc/haproxy/b",
        ],
    ),
    (
        "haproxy:\n  config:\n  - /a\n - b\nroles: {web: {}}\n",
        [
            ":4:2: haproxy.config: is indented by 1 spaces, unlike any line above; indent it by 0 or 2 spaces",
            ":4:5: haproxy.config: 'b' is not an absolute path; write /etc/haproxy/b",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis]}\n app: {lb: [iis]}\nhaproxy: {}\n",
        [
            ":4:2: roles.app: is indented by 1 spaces, unlike any line above; indent it by 0 or 2 spaces",
        ],
    ),
    (
        "haproxy:\n  config: /x\n   # comment\n timeout: 5\nroles: {web: {}}\n",
        [
            ":4:2: haproxy.timeout: is indented by 1 spaces, unlike any line above; indent it by 0 or 2 spaces",
            ":4:12: haproxy.timeout: '5' has no unit; write 5s",
        ],
    ),
    (
        "roles: {web: {}}\n  haproxy: {}\n",
        [
            ":2:3: haproxy: is indented by 2 spaces, unlike any line above; indent it by 0 spaces",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb:[iis]\n\n    # comment\n    max: 0\n",
        [
            ":4:7: roles.web.lb: missing space after ':'; write lb: [iis]",
            ":7:10: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    interval 60\n",
        [
            ":5:5: roles.web.interval: missing ':' after the key; write interval: 60",
            ":5:15: roles.web.interval: '60' has no unit; write 60s",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    interval # 60\n    max: 0\n",
        [
            ":5:5: roles.web.interval: missing ':' after the key; write interval: # 60",
            ":5:14: roles.web.interval: has no value; write a time with its unit, such as 60s",
            ":6:10: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "just words\niis:\n  port: 80\n",
        [
            ":1:1: just: missing ':' after the key; write just: words",
            ":1:7: just: 'words' is not a mapping of keys to values; indent the keys below it further, or write just: {SECTION: [SERVICE]}",
            ":3:9: iis.port: '80' is not a list of services; write port: [SERVICE], or use a known key: interval, networks, options, address, on_failed, on_pause, max",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n    networks: a: b\n    options: check: {serve}\n",
        [
            ':5:15: roles.web.networks: a value with : needs quotes; write "a: b"',
            ":5:15: roles.web.networks: 'a: b' is not a list; write [a: b]",
            ':6:14: roles.web.options: a value with : needs quotes; write "check: {serve}"',
            ":6:14: roles.web.options: 'check: {serve}' contains an unknown placeholder; did you mean {server}?",
        ],
    ),
    (
        "haproxy: {reload: {a: b}, config: [/a, \"\"]}\nroles: {web: {networks: ''}}\n",
        [
            ":1:19: haproxy.reload: is not a list; write a list of words, such as [systemctl, reload, haproxy]",
            ":1:40: haproxy.config: is empty; write an absolute path, or a list of them",
            ":2:25: roles.web.networks: is not a list; write a list of networks, such as [10.0.0.0/8]",
        ],
    ),
    (
        "haproxy: {reload: ''}\nroles: ~\nservices: {iis: null}\n",
        [
            ":1:19: haproxy.reload: is not a list; write a list of words, such as [systemctl, reload, haproxy]",
            ":2:8: roles: has no keys; write ROLE: {SECTION: [SERVICE]} below it",
            ":3:17: services.iis: has no keys; write iis: {port: 80}",
        ],
    ),
    (
        'roles: {"": {}, "a\\tb": {}, ? [x] : {}, web: {max: 0}}\n',
        [
            ":1:9: roles: invalid key ''; write KEY: VALUE",
            ":1:17: roles: invalid key 'a\\tb'; write KEY: VALUE",
            ":1:31: roles: invalid key; write KEY: VALUE",
            ":1:52: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "services: {iis: {port: 80}, iis: {port: 81}, b: {port: 0}}\nroles: {web: {}}\n",
        [
            ":1:29: services.iis: duplicate key; remove one, the first is in line 1",
            ":1:56: services.b.port: '0' is not a port; write 1 to 65535, or \"{tag:port|8080}\"",
        ],
    ),
    (
        "services:\n  iis:{port: 80}\n  b: {port: 0}\nroles:{web: {lb: [iis]}\nhaproxy: x\n",
        [
            ": roles: declares no role; write ROLE: {SECTION: [SERVICE]}",
            ":2:3: services.iis: missing space after ':'; write iis: with a space after it",
            ":3:13: services.b.port: '0' is not a port; write 1 to 65535, or \"{tag:port|8080}\"",
            ":4:1: roles: missing space after ':'; write roles: with a space after it",
            ":5:10: haproxy: 'x' is not a mapping of keys to values; write KEY: VALUE below it; the keys are config, reload, runtime, timeout, min_reload_interval",
        ],
    ),
    (
        "roles:{a: b\nhaproxy: x\n",
        [
            ": roles: declares no role; write ROLE: {SECTION: [SERVICE]}",
            ":1:1: roles: missing space after ':'; write roles: with a space after it",
            ":2:10: haproxy: 'x' is not a mapping of keys to values; write KEY: VALUE below it; the keys are config, reload, runtime, timeout, min_reload_interval",
        ],
    ),
    (
        "services: {iis: {port: 80, foo:5: x, options:check: 1}}\nroles: {web: {}}\n",
        [
            ":1:28: services.iis.foo:5: unknown key; use one of: port, options",
            ":1:38: services.iis.options:check: missing space after ':'; write options: check",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {on-failed: [iis]}\n  app: {onfailed: [iis]}\n",
        [
            ":3:9: roles.web.on-failed: unknown key; did you mean on_failed?",
            ":4:9: roles.app.onfailed: unknown key; did you mean on_failed?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {max: {a, b}, interval: {name: x}, options: {? [a] : }, on_failed: {}}\n",
        [
            ':3:14: roles.web.max: {a, b} needs quotes; write "{a, b}"',
            ":3:32: roles.web.interval: is a mapping, not a single value; write a time with its unit, such as 60s",
            ":3:52: roles.web.options: is a mapping, not a single value; write HAProxy's words for a server, such as check",
            ":3:75: roles.web.on_failed: is a mapping, not a single value; write keep or remove",
        ],
    ),
    (
        "roles:\n  web: {address: {tag:a, tag:b}}\n",
        [
            ':2:18: roles.web.address: {tag:a, tag:b} needs quotes; write "{tag:a, tag:b}"',
        ],
    ),
    (
        "services: {iis: {port: [80]}}\nroles: {web: {lb: [[iis], {iis}, iss]}}\n",
        [
            ':1:24: services.iis.port: is a list, not a single value; write 1 to 65535, or "{tag:port|8080}"',
            ":2:20: roles.web.lb: is a list, not a single value; write lb: [SERVICE]",
            ':2:27: roles.web.lb: {iis} needs quotes; write "{iis}"',
        ],
    ),
    (
        "services:\nroles:\n  web: {lb: [none]}\n  : {}\n",
        [
            ":4:3: roles.web: invalid YAML: did not find expected key",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:{lb: [iis], networks: []}\n",
        [
            ":3:6: roles.web: missing space after ':'; write web: {lb: [iis], networks: []}",
            ":3:30: roles.web.networks: is an empty list, so no address is allowed; list networks, or remove the key",
        ],
    ),
    (
        "services:\n  iis:{port: 80}\n b: {port: 0}\nroles: {web: {lb: [iis]}}\n",
        [
            ":2:3: services.iis: missing space after ':'; write iis: with a space after it",
            ":3:2: services.b: is indented by 1 spaces, unlike any line above; indent it by 0 or 2 spaces",
            ":3:13: services.b.port: '0' is not a port; write 1 to 65535, or \"{tag:port|8080}\"",
        ],
    ),
    (
        'services: {iis: {port: 80, options: "X}}\nroles: {web: {lb: [iss]}}\n',
        [
            ':1:37: services: the quote is not closed; add "',
            ":2:20: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {lb: ["iis" X, iss]}\n',
        [
            ":3:20: roles.web: a comma is missing in the list; add it",
            ":3:21: roles.web.lb: service 'X' is not declared; declare it below services: (declared: iis)",
            ":3:24: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], options: "[",\n',
        [
            ":3:8: roles.web: the mapping is not closed; add }",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], options: '[',\n",
        [
            ":3:8: roles.web: the mapping is not closed; add }",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {lb: [iis], options: "\\"[",\n',
        [
            ":3:8: roles.web: the mapping is not closed; add }",
        ],
    ),
    (
        "services: {iis: {port: 80}}} # comment\nroles: {web: {lb: [iss]}}\n",
        [
            ":1:28: services: unmatched }; remove it",
            ":2:20: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web:\n    options: "\\d\\#"\n',
        [
            ":4:14: roles.web.options: '\\\\d\\\\#' contains #, which begins a comment in haproxy.cfg; remove the #",
            ":4:15: roles.web.options: unknown escape sequence; use single quotes, in which a backslash has no meaning",
            ":4:18: roles.web.options: unknown escape sequence; use single quotes, in which a backslash has no meaning",
        ],
    ),
    (
        "haproxy: {config: /x}\n  roles\n",
        [
            ":2:3: haproxy.roles: missing ':' after the key; write roles:",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n   Xa: [iss]\n    max: 0\n",
        [
            ":5:4: roles.web.Xa: is indented by 3 spaces, unlike any line above; indent it by 2 or 4 spaces",
            ":5:10: roles.web.Xa: service 'iss' is not declared; did you mean iis?",
            ":6:10: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iis]\n     Xa: [iis]\n     Xb: [iss]\n",
        [
            ":5:6: roles.web.Xa: is indented by 5 spaces, unlike any line above; indent it by 2 or 4 spaces",
            ":6:10: roles.web.Xb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nhaproxy:\n    config: /x\n      timeout: 5s\n      runtime: on\nroles:\n     web:\n      lb: [iss]\n",
        [
            ":4:7: haproxy.timeout: is indented by 6 spaces, unlike any line above; indent it by 4 spaces",
            ":8:12: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
    (
        "a: : 1\n",
        [
            ':1:4: a: a value with : needs quotes; write ": 1"',
            ":1:4: a: ': 1' is not a mapping of keys to values; indent the keys below it further, or write a: {SECTION: [SERVICE]}",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    networks:\n    - x\n      y:z\n    interval 60\n    max: 0\n",
        [
            ":5:7: roles.web.networks: 'x y:z' is not a network; write a list of networks, such as [10.0.0.0/8]",
            ":7:5: roles.web.interval: missing ':' after the key; write interval: 60",
            ":7:15: roles.web.interval: '60' has no unit; write 60s",
            ":8:10: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "services:\n  iis: {port: 80}\nservices: {}\nroles: {web: {max: 0}}\n",
        [
            ":3:1: services: duplicate key; remove one, the first is in line 1",
            ":4:20: roles.web.max: '0' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        "roles: {web: {}}\nhaproxy:{a: b}\n",
        [
            ":2:1: haproxy: missing space after ':'; write haproxy: with a space after it",
        ],
    ),
    (
        "services:\n  iis:\n   - port: 80\n    options: check\nroles: {web: {lb: [iis]}}\n",
        [
            ":3:4: services.iis: is a list, not a mapping of keys to values; write iis: {port: 80}",
            ":4:5: services.options: is indented by 4 spaces, unlike any line above; indent it by 2 or 3 spaces",
            ":4:12: services.options: 'check' is not a mapping of keys to values; write options: {port: 80}",
        ],
    ),
    (
        'services: {iis: {port: {tag:port}"0"}}\nroles: {web: {}}\n',
        [
            ':1:24: services: {tag:port} needs quotes; write "{tag:port}"',
            ":1:36: services: a comma is missing in the mapping; add it",
            ":1:38: services.iis.0: unknown key; use one of: port, options",
        ],
    ),
    (
        "haproxy: {reload: []}\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:19: haproxy.reload: is an empty list; write a list of words, such as [systemctl, reload, haproxy]",
        ],
    ),
    (
        "haproxy: {timeout: 0h}\nservices: {iis: {port: 80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:20: haproxy.timeout: '0h' is too short; write a time with its unit, such as 30s",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {max: X5}\n",
        [
            ":3:14: roles.web.max: 'X5' is not a number; write a number from 1 to 20000",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {max: +5}\n",
        [
            ":3:14: roles.web.max: '+5' is out of range; write a number from 1 to 20000",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {address: ""}\n',
        [
            ':3:18: roles.web.address: is empty; write a Serf tag, such as "{tag:ip}"',
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {on_pause: stop}\n",
        [
            ":3:19: roles.web.on_pause: unknown value 'stop'; write remove or drain",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "check é"}\n',
        [
            ":3:18: roles.web.options: 'check é' contains a character that is not printable ASCII; remove it",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "check \\x7F"}\n',
        [
            ":3:18: roles.web.options: 'check \\x7f' contains a character that is not printable ASCII; remove it",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "check {naem|x}"}\n',
        [
            ":3:18: roles.web.options: 'check {naem|x}' contains an unknown placeholder; did you mean {name}?",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "check {rol}"}\n',
        [
            ":3:18: roles.web.options: 'check {rol}' contains an unknown placeholder; did you mean {role}?",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "check {intervl}"}\n',
        [
            ":3:18: roles.web.options: 'check {intervl}' contains an unknown placeholder; did you mean {interval}?",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "check {weight}"}\n',
        [
            ":3:18: roles.web.options: 'check {weight}' contains an unknown placeholder; use {interval}, {name}, {role}, {server}, {tag:NAME} and {tag:NAME|default}",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "weight {tg:weight}"}\n',
        [
            ":3:18: roles.web.options: 'weight {tg:weight}' contains an unknown placeholder; did you mean {tag:weight}?",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "weight {tag:my weight}"}\n',
        [
            ":3:18: roles.web.options: 'weight {tag:my weight}' contains an unknown placeholder; for a tag and its default, use at most 64 letters, digits, '.', '-' and '_'",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "weight {env:weight}"}\n',
        [
            ":3:18: roles.web.options: 'weight {env:weight}' contains an unknown placeholder; use {interval}, {name}, {role}, {server}, {tag:NAME} and {tag:NAME|default}",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "{{name}}"}\n',
        [
            ":3:18: roles.web.options: '{{name}}' contains an unknown placeholder; use {interval}, {name}, {role}, {server}, {tag:NAME} and {tag:NAME|default}",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "check {name}}"}\n',
        [
            ":3:18: roles.web.options: 'check {name}}' contains an unmatched brace; write it as in {tag:port|8080}",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nrole:\n",
        [
            ":2:1: role: unknown key; did you mean roles?",
            ":2:6: roles: has no keys; write ROLE: {SECTION: [SERVICE]} below it",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nrole: [web]\n",
        [
            ":2:1: role: unknown key; did you mean roles?",
            ":2:7: roles: is a list, not a mapping of keys to values; write ROLE: {SECTION: [SERVICE]} below it",
        ],
    ),
    (
        "haprox: {config: /x.cfg}\nservices: {iis: {port: 80}}\nweb: {lb: [iis]}\n",
        [
            ":1:1: haprox: unknown key; did you mean haproxy?",
        ],
    ),
    (
        "service: {iis: {port: 80}}\nweb: {lb: [iis]}\n",
        [
            ":1:1: service: unknown key; did you mean services?",
        ],
    ),
    (
        "services: {iis: {weight: 5}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:12: services.iis: has no port; write iis: {port: 80}",
            ":1:18: services.iis.weight: unknown key; use one of: port, options",
        ],
    ),
    (
        "services: {iis: {port:80}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:18: services.iis.port:80: missing space after ':'; write port: 80",
        ],
    ),
    (
        "services: {iis: {option: check}}\nroles: {web: {lb: [iis]}}\n",
        [
            ":1:12: services.iis: has no port; write iis: {port: 80}",
            ":1:18: services.iis.option: unknown key; did you mean options?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {intervl: 60s}\n",
        [
            ":3:9: roles.web.intervl: unknown key; did you mean interval?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {optins: check}\n",
        [
            ":3:9: roles.web.optins: unknown key; did you mean options?",
        ],
    ),
    (
        'services: {iis: {port: 80}}\nroles:\n  web: {options: "check {name} weight {intervl}"}\n',
        [
            ":3:18: roles.web.options: 'check {name} weight {intervl}' contains an unknown placeholder; did you mean {interval}?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web:\n    lb: [iss]]}\n",
        [
            ":4:10: roles.web.lb: service 'iss' is not declared; did you mean iis?",
            ":4:14: roles.web.lb: unmatched ]; remove it",
            ":4:15: roles.web.lb: unmatched }; remove it",
        ],
    ),
    (
        "}services: {iis: {port: 80}}\nroles: {web: {lb: [iss]}}\n",
        [
            ":1:1: services: unmatched }; remove it",
            ":2:20: roles.web.lb: service 'iss' is not declared; did you mean iis?",
        ],
    ),
]
"""Broken files, each with its messages after the file's name."""

OTHER_WORDS_WITHOUT_LIBYAML = [
    "haproxy: {config: }\nroles: {web: {}}\n",
    "a: 1\n...\nb: 2\n",
    "services: {iis: {port: 80}}\nroles:\n  web:\n\tlb: [iis]\n\tmax:\t0\n",
    "services:\nroles:\n  web: {lb: [none]}\n  : {}\n",
]
"""Broken files of which PyYAML's own parser reports another place or in other words."""


def list_mistakes(content: bytes) -> list[str]:
    """Return the messages for a roles.yml, without the file's name."""
    with pytest.raises(RolesRefused) as refused:
        loader.parse_roles(content, "roles.yml")
    assert all(one.startswith("roles.yml") for one in refused.value.mistakes)
    return [one.removeprefix("roles.yml") for one in refused.value.mistakes]


BROKEN_NAMES: list[tuple[str, list[str]]] = [
    (
        "services: {iis: {port: 80}}\nrole: {}\n",
        [
            ":2:1: role: unknown key; did you mean roles?",
            ":2:7: roles: declares no role; write ROLE: {SECTION: [SERVICE]}",
        ],
    ),
    (
        "haprox: {}\nservices: {iis: {port: 80}}\nweb: {lb: [iis]}\n",
        [
            ":1:1: haprox: unknown key; did you mean haproxy?",
        ],
    ),
    (
        "services: {iis: {port: 80}}\nroles:\n  web: {internal: [iss]}\n",
        [
            ":3:9: roles.web.internal: unknown key; did you mean interval?",
        ],
    ),
]
"""Broken files that match the JSON schema, in which the name of a role or a section is free."""


@pytest.mark.parametrize(("text", "sentences"), [*BROKEN, *BROKEN_NAMES], ids=itertools.count())
def test_every_mistake_is_named_in_one_run(text: str, sentences: list[str]) -> None:
    assert list_mistakes(text.encode()) == sentences


@pytest.mark.parametrize("end", ["\r\n", "\r", "\x85", "\u2028", "\u2029"])
def test_every_line_end_of_yaml_gives_the_same_mistakes(end: str) -> None:
    assert [text for text, sentences in BROKEN if list_mistakes(text.replace("\n", end).encode()) != sentences] == []


def test_a_file_without_the_last_line_end_has_the_same_mistakes() -> None:
    assert [text for text, sentences in BROKEN if list_mistakes(text.rstrip("\n").encode()) != sentences] == []


def test_without_libyaml_the_same_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "_LOADER", yaml.SafeLoader)

    different = [text for text, sentences in BROKEN if list_mistakes(text.encode()) != sentences]

    assert different == OTHER_WORDS_WITHOUT_LIBYAML
    assert list_mistakes(b"roles: " + b"[" * 2_000) == [": is nested too deeply"]


def test_the_first_200_mistakes_are_named() -> None:
    services = "".join(f"  s{number}: {{port: 0}}\n" for number in range(201))

    assert list_mistakes(f"services:\n{services}roles: {{web: {{}}}}\n".encode()) == [
        f":{number + 2}:{13 + len(str(number))}: services.s{number}.port: '0' is not a port; write 1 to 65535, or \"{{tag:port|8080}}\""
        for number in range(200)
    ]


def test_the_first_20_syntax_errors_are_named() -> None:
    keys = "".join(f"s{number}: @\n" for number in range(21))

    assert list_mistakes(keys.encode()) == [
        f':{number + 1}:{len(str(number)) + 4}: s{number}: a value cannot begin with @ without quotes; write "@"'
        for number in range(20)
    ]


def test_a_text_has_at_most_2000_characters() -> None:
    file = "services: {{iis: {{port: 80, options: {}}}}}\nroles: {{web: {{lb: [iis]}}}}\n"

    assert loader.parse_roles(file.format("o" * 2000).encode(), "roles.yml").services["iis"].options.text == "o" * 2000
    assert list_mistakes(file.format("o" * 2001).encode()) == [
        ":1:37: services.iis.options: has 2001 characters; use at most 2000"
    ]


def test_a_key_has_at_most_2000_characters() -> None:
    file = "services: {{iis: {{port: 80}}}}\nroles:\n  web: {{lb: [iis]}}\n  ? {}\n  : {{}}\n  app: {{max: 0}}\n"

    assert [one[:22] for one in list_mistakes(file.format("k" * 2000).encode())] == [
        ":4:5: roles.kkkkkkkkkk",
        ":6:14: roles.app.max: ",
    ]
    assert list_mistakes(file.format("k" * 2001).encode()) == [
        f":4:5: roles: invalid key '{'k' * 60}'; write KEY: VALUE",
        ":6:14: roles.app.max: '0' is out of range; write a number from 1 to 20000",
    ]


@pytest.mark.parametrize("bad", [b"\x07", b"\xff"])
def test_a_syntax_error_is_named_though_the_end_of_a_long_file_is_no_text(bad: bytes) -> None:
    padding = b"#" * 100_000 + b"\n"

    assert list_mistakes(b"roles: {web: {lb: [iis}}\n" + padding + bad + b"\n")[0] == (
        ":1:19: roles: the list is not closed; add ]"
    )


def test_the_table_has_at_least_50_mistakes() -> None:
    assert len({text for text, _ in BROKEN}) >= 50


def test_the_table_of_mistakes_has_a_row_for_each_of_50_files() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.roles.print_mistakes"], capture_output=True, text=True, check=True, timeout=60
    )
    rows = done.stdout.splitlines()

    assert rows[0] == "| | roles.yml | messages |"
    assert len(rows) == 52
    assert all(row.count(" | ") == 2 and "roles.yml:" in row.rpartition(" | ")[2] for row in rows[2:])


def test_the_error_message_is_the_first_mistake_in_one_line() -> None:
    with pytest.raises(RolesRefused) as refused:
        loader.parse_roles(b"services: {iis: {prt: 80}, b: 81}\nroles: {web: {lb: [iis]}}\n", "roles.yml")

    assert str(refused.value) == (
        "roles.yml:1:18: services.iis.prt: unknown key; did you mean port? (and 1 more mistake: run lbagent check)"
    )


@pytest.mark.parametrize(
    "section", ["internal", "lb", "monitor", "network-lb", "public", "inner", "maps", "mapi", "optional"]
)
def test_a_section_that_resembles_a_key_but_lists_services_is_a_section(section: str) -> None:
    text = f"services: {{iis: {{port: 80}}}}\nroles: {{web: {{{section}: [iis]}}}}\n"

    assert loader.parse_roles(text.encode(), "roles.yml").roles["web"].sections == {section: ("iis",)}


def test_a_file_that_is_not_utf_8_is_refused() -> None:
    assert list_mistakes(b"a: \xff\n") == [":1:4: is not UTF-8 text; save it as UTF-8"]


def test_long_values_are_cut_in_messages() -> None:
    text = (
        f"haproxy: {{config: {'x' * 99}}}\nservices: {{iis: {{port: 80}}}}\n"
        f"roles:\n  web: {{networks: [{'n' * 99}], lb: [{'s' * 99}], options: '{'o' * 99}{{'}}\n"
    )

    assert list_mistakes(text.encode()) == [
        f":1:19: haproxy.config: '{'x' * 80}' is not an absolute path; write /etc/haproxy/{'x' * 80}",
        f":4:20: roles.web.networks: '{'n' * 60}' is not a network; write a list of networks, such as [10.0.0.0/8]",
        f":4:127: roles.web.lb: service '{'s' * 60}' is not declared; declare it below services: (declared: iis)",
        f":4:238: roles.web.options: '{'o' * 60}' contains an unmatched brace; write it as in {{tag:port|8080}}",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"on_failed: {LONG}", f"on_failed: unknown value '{LONG[:40]}'; write keep or remove"),
        (f"max: {LONG}", f"max: '{LONG[:40]}' is not a number; write a number from 1 to 20000"),
        (f"interval: {LONG}", f"interval: '{LONG[:40]}' is not a time; write a time with its unit, such as 60s"),
        (f"interval: {'6' * 99}", f"interval: '{'6' * 40}' has no unit; write {'6' * 40}s"),
        (f"networks: {LONG}", f"networks: '{LONG[:60]}' is not a list; write [{LONG[:60]}]"),
        (f"address: {LONG}", f'address: \'{LONG[:60]}\' is the same for every node; write a Serf tag, such as "{{tag:ip}}"'),
        (f"lb: [{LONG}, {LONG}]", f"lb: service '{LONG[:60]}' appears twice; remove one"),
        (f"lb: {LONG}", f"lb: '{LONG[:60]}' is not a list of services; write lb: [{LONG}]"),
    ],
)  # fmt: skip
def test_a_long_value_of_a_role_is_cut(row: str, message: str) -> None:
    text = f"services: {{{LONG}: {{port: 80}}}}\nroles:\n  web:\n    {row}\n"

    mistakes = list_mistakes(text.encode())

    assert [one.partition(" roles.web.")[2] for one in mistakes if "roles.web" in one] == [message]


def test_long_values_of_haproxy_and_services_are_cut() -> None:
    text = (
        f"haproxy: {{reload: {' '.join('abcdefghi')}}}\nservices: {{iis: {{port: {'p' * 99}}}}}\n"
        f"roles: {{web: {{lb: [iis]}}}}\n"
    )

    assert list_mistakes(text.encode()) == [
        ":1:19: haproxy.reload: 'a b c d e f g h i' is not a list; write [a, b, c, d, e, f, g, h]",
        f":2:24: services.iis.port: '{'p' * 40}' is not a port; write 1 to 65535, or \"{{tag:port|8080}}\"",
    ]


def test_at_most_20_declared_services_are_listed() -> None:
    names = [f"s{number:02}" for number in range(21)]
    text = f"services: {{{', '.join(f'{name}: {{port: 80}}' for name in names)}}}\nroles: {{web: {{lb: [iis]}}}}\n"

    assert list_mistakes(text.encode()) == [
        ":2:20: roles.web.lb: service 'iis' is not declared; declare it below services: (declared: "
        f"{', '.join(names[:20])})"
    ]


@pytest.mark.parametrize("name", ["role1", "haproxy1"])
def test_a_role_of_the_older_form_may_resemble_a_top_level_key(name: str) -> None:
    text = f"services: {{iis: {{port: 80}}}}\n{name}: {{lb: [iis]}}\n"

    assert loader.parse_roles(text.encode(), "roles.yml").roles[name].sections == {"lb": ("iis",)}


def test_a_service_may_have_the_name_of_a_top_level_key() -> None:
    text = b"services: {haproxy: {port: 81}}\nroles: {web: {lb: [haproxy]}}\n"

    assert loader.parse_roles(text, "roles.yml").services["haproxy"].port.text == "81"


def test_a_section_without_services_may_resemble_a_key() -> None:
    text = b"services: {iis: {port: 80}}\nroles: {web: {internal: [none]}}\n"

    assert loader.parse_roles(text, "roles.yml").roles["web"].sections == {"internal": ()}


def test_empty_settings_are_no_role_of_the_older_form() -> None:
    text = b"services: {iis: {port: 80}}\nhaproxy: {}\nweb: {lb: [iis]}\n"

    assert list(loader.parse_roles(text, "roles.yml").roles) == ["web"]
