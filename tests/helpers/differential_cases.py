"""The compared cases: each server keyword of HAProxy's manual, alone, inherited and in pairs, and each check option."""

from __future__ import annotations

from itertools import combinations

from tests.helpers.differential import Case
from tests.helpers.recording_backend import CERTIFICATE

CHECK = "check inter 1s"
TLS = "ssl verify none"

_FILE = str(CERTIFICATE)

KEYWORDS: dict[str, str] = {
    "addr": "addr 127.0.0.1 port 1",
    "agent-addr": "agent-addr 127.0.0.1",
    "agent-check": "agent-check agent-port 1",
    "agent-inter": "agent-inter 3s",
    "agent-port": "agent-port 9",
    "agent-send": "agent-send x",
    "allow-0rtt": f"{TLS} allow-0rtt",
    "alpn": f"{TLS} alpn http/1.1",
    "backup": "backup",
    "ca-file": f"ssl verify required ca-file {_FILE}",
    "check": CHECK,
    "check-alpn": f"{CHECK} {TLS} check-alpn http/1.1",
    "check-pool-conn-name": f"{CHECK} check-pool-conn-name x",
    "check-proto": f"{CHECK} check-proto h1",
    "check-reuse-pool": f"{CHECK} check-reuse-pool",
    "check-send-proxy": f"{CHECK} check-send-proxy",
    "check-sni": f"{CHECK} {TLS} check-sni check.test",
    "check-ssl": f"{CHECK} check-ssl verify none",
    "check-via-socks4": f"{CHECK} check-via-socks4",
    "ciphers": f"{CHECK} {TLS} ssl-max-ver TLSv1.2 ciphers ECDHE-ECDSA-AES256-GCM-SHA384",
    "ciphersuites": f"{CHECK} {TLS} ciphersuites TLS_AES_256_GCM_SHA384",
    "client-sigalgs": f"{CHECK} {TLS} client-sigalgs ECDSA+SHA256",
    "cookie": "cookie one",
    "crl-file": f"{CHECK} ssl verify required ca-file {_FILE} crl-file {_FILE}",
    "crt": f"{CHECK} {TLS} crt {_FILE}",
    "curves": f"{CHECK} {TLS} curves P-256",
    "disabled": "disabled",
    "downinter": "check inter 1s downinter 2s",
    "enabled": "enabled",
    "error-limit": "error-limit 3",
    "fall": f"{CHECK} fall 5",
    "fastinter": "check inter 1s fastinter 500ms",
    "force-sslv3": f"{CHECK} {TLS} force-sslv3",
    "force-tlsv10": f"{CHECK} {TLS} force-tlsv10",
    "force-tlsv11": f"{CHECK} {TLS} force-tlsv11",
    "force-tlsv12": f"{CHECK} {TLS} force-tlsv12",
    "force-tlsv13": f"{CHECK} {TLS} force-tlsv13",
    "guid": "guid of-one",
    "hash-key": "hash-key addr",
    "id": "id 77",
    "idle-ping": "idle-ping 5s",
    "init-addr": "init-addr last,libc,none",
    "init-state": f"{CHECK} init-state down",
    "inter": "check inter 1500ms",
    "log-bufsize": "log-bufsize 1024",
    "log-proto": "log-proto legacy",
    "max-reuse": "max-reuse 2",
    "maxconn": "maxconn 5",
    "maxqueue": "maxqueue 5",
    "minconn": "minconn 5",
    "namespace": "namespace other",
    "no-agent-check": "no-agent-check",
    "no-backup": "no-backup",
    "no-check": "no-check",
    "no-check-reuse-pool": f"{CHECK} no-check-reuse-pool",
    "no-check-ssl": f"{CHECK} {TLS} no-check-ssl",
    "no-send-proxy": "no-send-proxy",
    "no-send-proxy-v2": "no-send-proxy-v2",
    "no-send-proxy-v2-ssl": "no-send-proxy-v2-ssl",
    "no-send-proxy-v2-ssl-cn": "no-send-proxy-v2-ssl-cn",
    "no-ssl": "no-ssl",
    "no-ssl-reuse": f"{CHECK} {TLS} no-ssl-reuse",
    "no-sslv3": f"{CHECK} {TLS} no-sslv3",
    "no-tfo": "no-tfo",
    "no-tls-tickets": f"{CHECK} {TLS} no-tls-tickets",
    "no-tlsv10": f"{CHECK} {TLS} no-tlsv10",
    "no-tlsv11": f"{CHECK} {TLS} no-tlsv11",
    "no-tlsv12": f"{CHECK} {TLS} no-tlsv12",
    "no-tlsv13": f"{CHECK} {TLS} no-tlsv13",
    "no-verifyhost": "no-verifyhost",
    "non-stick": "non-stick",
    "npn": f"{TLS} npn http/1.1",
    "observe": f"{CHECK} observe layer7",
    "on-error": f"{CHECK} on-error mark-down",
    "on-marked-down": "on-marked-down shutdown-sessions",
    "on-marked-up": "on-marked-up shutdown-backup-sessions",
    "pool-conn-name": f"{TLS} pool-conn-name str(x)",
    "pool-low-conn": "pool-low-conn 2",
    "pool-max-conn": "pool-max-conn 0",
    "pool-purge-delay": "pool-purge-delay 1s",
    "port": f"{CHECK} port 1",
    "proto": "proto h1",
    "proxy-v2-options": "send-proxy-v2 proxy-v2-options crc32c,unique-id",
    "redir": "redir http://elsewhere.test",
    "resolve-net": "resolve-net 10.0.0.0/8",
    "resolve-opts": "resolve-opts allow-dup-ip",
    "resolve-prefer": "resolve-prefer ipv4",
    "resolvers": "resolvers dns",
    "rise": f"{CHECK} rise 3",
    "send-proxy": "send-proxy",
    "send-proxy-v2": "send-proxy-v2",
    "send-proxy-v2-ssl": "send-proxy-v2-ssl",
    "send-proxy-v2-ssl-cn": "send-proxy-v2-ssl-cn",
    "set-proxy-v2-tlv-fmt": "send-proxy-v2 set-proxy-v2-tlv-fmt(0xE1) %[str(x)]",
    "shard": "shard 1",
    "sigalgs": f"{CHECK} {TLS} sigalgs ECDSA+SHA256",
    "slowstart": f"{CHECK} slowstart 60s",
    "sni": f"{TLS} sni str(sni.test)",
    "socks4": "socks4 127.0.0.1:1",
    "source": "source 127.9.9.9",
    "ssl": TLS,
    "ssl-max-ver": f"{CHECK} {TLS} ssl-max-ver TLSv1.2",
    "ssl-min-ver": f"{CHECK} {TLS} ssl-min-ver TLSv1.3",
    "ssl-reuse": f"{TLS} ssl-reuse",
    "stick": "stick",
    "strict-maxconn": "maxconn 5 strict-maxconn",
    "tcp-ut": "tcp-ut 5s",
    "tfo": "tfo",
    "tls-tickets": f"{TLS} tls-tickets",
    "track": "track other/web",
    "verify": f"{CHECK} ssl verify none",
    "verifyhost": f"{CHECK} ssl verify required ca-file {_FILE} verifyhost backend.test",
    "weight": "weight 7",
    "ws": "ws h1",
}
"""Each keyword of section 5.2 with what it needs to have an effect."""

ALONE = [Case(options) for options in KEYWORDS.values()]
CHECKED = [Case(options if "check" in options.split() else f"{CHECK} {options}") for options in KEYWORDS.values()]
BY_DEFAULT = [Case("", default=options) for keyword, options in KEYWORDS.items() if keyword not in ("id", "guid")]

PAIRED = [
    "observe layer7", "observe layer4", "on-error mark-down", "on-error sudden-death", "on-error fastinter",
    "error-limit 3", TLS, "check-ssl verify none", "no-check-ssl", "send-proxy", "send-proxy-v2", "send-proxy-v2-ssl",
    "proxy-v2-options crc32c", "check-send-proxy", "no-send-proxy", "port PORT", "addr 127.0.0.1", "backup",
    "no-backup", "weight 3", "weight 0", "maxconn 3", "minconn 2", "slowstart 60s", "disabled", "enabled",
    "on-marked-down shutdown-sessions", "no-check", "no-ssl", "cookie two", "id 5", "rise 3", "source 127.9.9.9",
    "sni str(sni.test)", "check-sni check.test", "init-state down", "init-state fully-down", "init-state none",
    "check-reuse-pool", "pool-max-conn 0", "proto h1", "alpn http/1.1", "no-tlsv12",
]  # fmt: skip

PAIRS = [
    *(Case(f"{CHECK} {TLS} {word}") for word in PAIRED),
    *(Case(f"{CHECK} send-proxy {word}") for word in PAIRED),
    *(Case(f"{CHECK} {word}", default=f"{TLS} send-proxy-v2") for word in PAIRED),
    *(Case(f"{CHECK} {word}", default="observe layer7 weight 9 backup") for word in PAIRED),
]
"""Pairs of keywords that interact."""

EVERY_PAIR = [Case(f"{CHECK} {one} {other}") for one, other in combinations(PAIRED, 2)]
EVERY_PAIR += [Case(f"{CHECK} {one}", default=other) for one in PAIRED for other in PAIRED]

CHECK_OPTIONS: list[tuple[str, ...]] = [
    ("option httpchk",),
    ("option httpchk GET /alive",),
    ("option httpchk OPTIONS /alive HTTP/1.1", "http-check send hdr Host check.test"),
    ("option httpchk", "http-check send meth GET uri /alive ver HTTP/1.1 hdr Host check.test body x"),
    ("option httpchk", "http-check send meth HEAD uri-lf /%[str(alive)]", "http-check expect status 500"),
    ("option httpchk", "http-check expect ! rstatus ^2"),
    ("option httpchk", "http-check connect", "http-check send meth GET uri /one", "http-check expect status 200",
     "http-check connect ssl", "http-check send meth GET uri /two", "http-check expect status 200"),
    ("option httpchk", "http-check connect send-proxy", "http-check send meth GET uri /alive"),
    ("option httpchk", "http-check disable-on-404"),
    ("option httpchk", "http-check send-state"),
    ("option tcp-check",),
    ("option tcp-check", "tcp-check send PING\\r\\n", "tcp-check expect string PONG"),
    ("option tcp-check", "tcp-check connect ssl", "tcp-check send x"),
    ("option tcp-check", "tcp-check connect send-proxy", "tcp-check send x"),
    ("option tcp-check", "tcp-check connect default linger"),
    ("option ssl-hello-chk",),
    ("option smtpchk",),
    ("option smtpchk EHLO lb.test",),
    ("option mysql-check",),
    ("option mysql-check user lb",),
    ("option pgsql-check user lb",),
    ("option redis-check",),
    ("option ldap-check",),
    ("option external-check", "external-check command /bin/true"),
    ("option log-health-checks",),
    ("source 127.9.9.8",),
]  # fmt: skip
"""The options of a proxy that change its checks."""

WITH_CHECK_OPTIONS = [
    Case(f"{CHECK} {words}".rstrip(), proxy=lines) for lines in CHECK_OPTIONS for words in ("", f"{TLS} send-proxy-v2")
]
MORE_CHECK_OPTIONS = [
    Case(f"{CHECK} {words}", proxy=lines)
    for lines in CHECK_OPTIONS
    for words in (TLS, "send-proxy", "check-ssl verify none port PORT", "observe layer7")
]
BY_DEFAULTS = [
    Case(CHECK, defaults=("option httpchk GET /alive", f"default-server {TLS} send-proxy")),
    Case(CHECK, defaults=("default-server weight 7 observe layer7",)),
    Case(CHECK, defaults=("default-server disabled",)),
    Case(CHECK, defaults=("default-server disabled",), default="enabled"),
    Case(f"{CHECK} enabled", defaults=("default-server disabled",)),
    Case(CHECK, defaults=("option external-check", "external-check command /bin/true")),
    Case(
        CHECK,
        defaults=("option external-check", "external-check command /bin/true"),
        proxy=("no option external-check",),
    ),
    Case(CHECK, defaults=("option httpchk GET /alive",), proxy=("no option httpchk",)),
    Case(CHECK, defaults=("cookie C insert",)),
    Case(f"{CHECK} cookie x", defaults=("cookie C insert",)),
]

COOKIES = ("insert", "prefix", "rewrite", "insert indirect nocache")
ALGORITHMS = (
    "roundrobin", "leastconn", "first", "random", "static-rr", "source", "uri", "hdr(host)", "url_param u",
)  # fmt: skip
PROXIES = [
    *(Case(f"{CHECK} cookie x", proxy=(f"cookie C {mode}",)) for mode in COOKIES),
    Case(CHECK, proxy=("cookie C insert dynamic", "dynamic-cookie-key k")),
    Case(f"{CHECK} cookie x", proxy=("cookie C insert dynamic", "dynamic-cookie-key k")),
    *(Case(CHECK, proxy=(f"balance {one}",)) for one in ALGORITHMS),
    *(Case(f"{CHECK} id 7", proxy=(f"balance {one}", "hash-type consistent")) for one in ALGORITHMS),
    Case(CHECK, proxy=("mode tcp",)),
    Case(f"{CHECK} send-proxy", proxy=("mode tcp", "option tcp-check")),
    Case("", proxy=("mode log",), at=":PORT"),
    Case(CHECK, proxy=("option transparent",)),
    Case(CHECK, defaults=("option transparent",), proxy=("no option transparent",)),
    Case(CHECK, proxy=("dispatch 127.0.0.1:1",)),
    Case(CHECK, proxy=("http-reuse never",)),
    Case(CHECK, proxy=("http-reuse safe",)),
    Case("maxconn 2", proxy=("fullconn 10",)),
    Case(f"{CHECK} observe layer7", proxy=("option httpchk",)),
    Case(f"{CHECK} observe layer7 port 1"),
    Case(f"{CHECK} send-proxy-v2 no-send-proxy-v2"),
    Case(f"{CHECK} send-proxy-v2-ssl no-send-proxy-v2"),
    Case(f"{CHECK} send-proxy send-proxy-v2"),
    Case(f"{CHECK} proxy-v2-options unique-id send-proxy-v2", default="proxy-v2-options crc32c"),
]  # fmt: skip

CI = list(dict.fromkeys([*CHECKED, *BY_DEFAULT, *PAIRS, *WITH_CHECK_OPTIONS, *BY_DEFAULTS, *PROXIES]))
"""The cases of `make test`."""

SWEEP = list(dict.fromkeys([*CI, *ALONE, *MORE_CHECK_OPTIONS, *EVERY_PAIR]))
"""All cases: `make test-differential`."""
