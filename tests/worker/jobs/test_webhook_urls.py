"""Which addresses a webhook may have: no spelling of a private one gets through, and no name server is asked."""

import ipaddress
import random
import socket
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.jobs.spec import Spec, Webhook
from worker.jobs.spec.addresses import check_url, is_public, origin
from worker.jobs.spec.webhooks import Told
from worker.jobs.states import WebhookEvent

GOOD = {
    "https://hooks.example.com": ("hooks.example.com", 443, "/"),
    "https://hooks.example.com/": ("hooks.example.com", 443, "/"),
    "https://hooks.example.com/a/b?c=d&e=%20": ("hooks.example.com", 443, "/a/b?c=d&e=%20"),
    "https://hooks.example.com?x=1": ("hooks.example.com", 443, "/?x=1"),
    "HTTPS://Hooks.EXAMPLE.com/Path": ("hooks.example.com", 443, "/Path"),
    "https://hooks.example.com.:443/": ("hooks.example.com", 443, "/"),
    "https://hooks.example.com:8443/": ("hooks.example.com", 8443, "/"),
    "https://hooks.example.com:1024/": ("hooks.example.com", 1024, "/"),
    "https://hooks.example.com:65535/": ("hooks.example.com", 65535, "/"),
    "https://hooks.example.com/a@b:c": ("hooks.example.com", 443, "/a@b:c"),
    "https://xn--bcher-kva.example/": ("xn--bcher-kva.example", 443, "/"),
    "https://localhost.example.com/": ("localhost.example.com", 443, "/"),
    "https://127.0.0.1.example.com/": ("127.0.0.1.example.com", 443, "/"),
    "https://10.example/": ("10.example", 443, "/"),
    "https://0x7f.example/": ("0x7f.example", 443, "/"),
    "https://8.8.8.8/": ("8.8.8.8", 443, "/"),
    "https://134744072/": ("8.8.8.8", 443, "/"),
    "https://[2606:4700:4700::1111]/": ("2606:4700:4700::1111", 443, "/"),
    "https://[2606:4700:4700:0::1111]:8443/x": ("2606:4700:4700::1111", 8443, "/x"),
}

NOT_URLS = [
    *("", " ", "https", "https:", "https:/", "https://", "https:///", "https:///path", "https://:443/", "//a.example/"),
    *("a.example", "/path", "?q", "https:a.example", "https:/a.example/", "https//a.example"),
    # other schemes
    *("http://a.example/", "HTTP://a.example/", "ftp://a.example/", "file:///etc/passwd", "file://a.example/etc"),
    *("gopher://a.example:70/_x", "dict://a.example:11211/", "ldap://a.example/", "javascript:alert(1)"),
    *("data:text/plain,x", "ws://a.example/", "wss://a.example/", "unix:///run/docker.sock", "jar:https://a.example!/"),
    *("httpss://a.example/", "https+unix://a.example/", "view-source:https://a.example/"),
    # users, passwords and what looks like them
    *("https://user@a.example/", "https://user:word@a.example/", "https://@a.example/", "https://:@a.example/"),
    *("https://a.example@127.0.0.1/", "https://a.example:443@127.0.0.1/", "https://127.0.0.1@a.example/"),
    *("https://a.example%40127.0.0.1/", "https://a.example%2f@127.0.0.1/"),
    # fragments, backslashes, spaces, controls
    *("https://a.example/#", "https://a.example/#x", "https://a.example#@127.0.0.1/", "https://127.0.0.1#.a.example/"),
    *("https://a.example\\@127.0.0.1/", "https:\\\\a.example\\", "https://127.0.0.1\\.a.example/"),
    *(
        " https://a.example/",
        "https://a.example/ ",
        "https://a.exam ple/",
        "https://a.example/a b",
        "https://a.example\t/",
    ),
    *("https://a.example/\n", "\nhttps://a.example/", "https://a.example/\r\nHost: b", "ht\ntps://a.example/"),
    *("https://a.exa\rmple/", "https://a.example/\x00", "https://127.0.0.1\x00.a.example/", "https://a.example/\x7f"),
    *("https://a.example/\x1b[31m", "https://a.example/\ud800", "https://a.example/\u202e"),
    # ports
    *("https://a.example:/", "https://a.example:0/", "https://a.example:1/", "https://a.example:22/"),
    *("https://a.example:25/", "https://a.example:80/", "https://a.example:1023/", "https://a.example:65536/"),
    *("https://a.example:99999/", "https://a.example:-1/", "https://a.example:+443/", "https://a.example:443x/"),
    *("https://a.example:443:443/", "https://a.example:0x1bb/", "https://a.example:%34%34%33/"),
    *("https://a.example:100000000000000000443/", "https://a.example:٤٤٣/"),
    # names that there cannot be
    *("https://-a.example/", "https://a-.example/", "https://a..example/", "https://.a.example/", "https://./"),
    *("https://../", "https://a.example../", "https://a_b.example/", "https://*.example/", "https://a.example;b/"),
    *("https://a,b.example/", "https://%61.example/", "https://127%2e0%2e0%2e1/", "https://$(id).example/"),
    *("https://{a}.example/", "https://a'.example/", f"https://{'a' * 64}.example/", f"https://{'a.' * 127}example/"),
    *("https://bücher.example/", "https://a。example/", "https://ⓔxample.com/", "https://127。0。0。1/"),
    *("https://\uff11\uff12\uff17.0.0.1/", "https://①②⑦.⓪.⓪.①/", "https://\uff4cocalhost/", "https://a.example/é"),
    # addresses that there cannot be
    *("https://[]/", "https://[::1/", "https://::1/", "https://[::1]]/", "https://[[::1]]/", "https://[a.example]/"),
    *("https://[127.0.0.1]/", "https://[1]/", "https://[::g]/", "https://[1:2:3:4:5:6:7:8:9]/", "https://[::1]x/"),
    *("https://[::1%25lo]/", "https://[::1%lo]/", "https://[fe80::1%25eth0]/", "https://[v1.a]/"),
    *("https://256.0.0.1/", "https://1.2.3.4.5/", "https://1.2.3.256/", "https://08.8.8.8/", "https://0x/"),
    *("https://4294967296/", "https://0x100000000/", "https://8.8.8.0x/", "https://a.b.1/", "https://1.2.3.4.0x5/"),
]

LOOPBACK = [
    *("127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "127.000.000.001", "2130706433", "0x7f000001", "0X7F000001"),
    *(
        "0x7f.0.0.1",
        "0x7f.1",
        "017700000001",
        "0177.0.0.1",
        "0177.1",
        "00000177.0.0.1",
        "127.0.0.0x1",
        "127.255.255.254",
    ),
    *("0177.0x0.0.01", "0x0000007f.1", "2130706433.", "127.65535", "127.16777215"),
    *("[::1]", "[0:0:0:0:0:0:0:1]", "[::0001]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::FFFF:127.0.0.1]"),
    *("[0:0:0:0:0:ffff:7f00:0001]", "[::127.0.0.1]", "[::7f00:1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]"),
    *("[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2002:7f00:0001::1]", "[2001:0:7f00:1::]"),
]
PRIVATE = [
    *("0", "0.0.0.0", "0x0", "00", "0.1", "0.255.255.255", "10.0.0.1", "10.1", "012.0.0.1", "0xa000001", "167772161"),
    *("172.16.0.1", "172.31.255.255", "0xac100001", "192.168.0.1", "192.168.1", "3232235521", "0300.0250.0.1"),
    *("169.254.169.254", "169.254.43518", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "169.254.170.2"),
    *("100.64.0.1", "100.100.100.200", "100.127.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1"),
    *("198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    *("255.255.255.255", "4294967295", "0xffffffff", "037777777777"),
    *("[::]", "[::ffff:0.0.0.0]", "[::ffff:10.0.0.1]", "[::ffff:a9fe:a9fe]", "[::ffff:169.254.169.254]"),
    *("[::ffff:0:127.0.0.1]", "[fe80::1]", "[febf::1]", "[fec0::1]", "[fc00::1]", "[fd00:ec2::254]", "[fdff::1]"),
    *(
        "[ff02::1]",
        "[ff0e::1]",
        "[100::1]",
        "[2001:db8::1]",
        "[3fff::1]",
        "[2001:10::1]",
        "[2001:20::1]",
        "[2001:2::1]",
    ),
    *("[2002:a9fe:a9fe::]", "[2002:c0a8:1::1]", "[2002:0a00:1::]", "[64:ff9b::169.254.169.254]", "[64:ff9b::a00:1]"),
    *("[64:ff9b:1::808:808]", "[2001::1]", "[2001:0:4136:e378:8000:63bf:3fff:fdd2]", "[5f00::1]", "[4000::1]"),
    *("[::8.8.8.8]", "[::ffff:100.64.0.1]", "[e000::1]"),
]
HOUSE_NAMES = [
    *(
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "a.b.LocalHost.",
        "localhost.localdomain",
        "x.localdomain",
    ),
    *("intranet", "router", "router.", "kubernetes", "metadata", "a", "xn--bcher-kva", "com", "com."),
    *("printer.local", "a.b.local.", "metadata.google.internal", "x.internal", "host.docker.internal", "a.home.arpa"),
    *("kubernetes.default.svc.cluster.local", "nas.lan", "nas.home", "a.intranet", "a.corp", "a.private", "a.test"),
    *("1.0.0.127.in-addr.arpa", "x.ip6.arpa", "a.onion", "a.invalid", "local", "internal", "home.arpa"),
]


@pytest.fixture(autouse=True)
def no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: object, **more: object) -> None:
        raise AssertionError("a name server was asked")

    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
        monkeypatch.setattr(socket, name, asked)


@pytest.mark.parametrize(("url", "leads_to"), GOOD.items())
def test_a_good_url_leads_where_it_says(url: str, leads_to: tuple[str, int, str]) -> None:
    assert check_url(url) == leads_to


@pytest.mark.parametrize("url", NOT_URLS, ids=ascii)
def test_what_is_no_such_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^[A-Z].*\.$") as refused:
        check_url(url)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("host", [*LOOPBACK, *PRIVATE])
@pytest.mark.parametrize("port", ["", ":443", ":8443"])
def test_no_spelling_of_an_address_that_is_not_public_gets_through(host: str, port: str) -> None:
    with pytest.raises(ValueError, match=r"^The address [0-9a-f.:]+ is not on the public network; .*\.$"):
        check_url(f"https://{host}{port}/x")


@pytest.mark.parametrize("host", HOUSE_NAMES)
def test_names_of_the_house_are_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"^The name [a-z0-9.-]+ is of this network and not of the public one; .*\.$"):
        check_url(f"https://{host}/x")


def test_what_is_shown_of_a_url_has_no_path() -> None:
    assert origin("https://Hooks.example.com:8443/T0/secret?key=secret") == "https://hooks.example.com:8443"
    assert origin("https://hooks.example.com:443/secret") == "https://hooks.example.com"
    assert origin("https://[2606:4700:4700::1111]/secret") == "https://[2606:4700:4700::1111]"
    assert origin("https://10.0.0.1/secret") is None


@given(st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_every_spelling_is_judged_as_the_address_that_it_is(number: int, chance: random.Random) -> None:
    """As the system's own parser reads it: what gets through leads where it was judged to."""
    address = ipaddress.IPv4Address(number)
    count = chance.randint(1, 4)
    bits = [8] * (count - 1) + [8 * (5 - count)]
    parts, left = [], 32
    for width in bits:
        left -= width
        parts.append(number >> left & (1 << width) - 1)
    host = ".".join(chance.choice(("{}", "0x{:x}", "0X{:X}", "0{:o}", "000{:o}")).format(part) for part in parts)
    assert socket.inet_aton(host) == address.packed
    if is_public(str(address)):
        assert address.is_global
        assert check_url(f"https://{host}/").host == str(address)
    else:
        with pytest.raises(ValueError, match="not on the public network"):
            check_url(f"https://{host}/")


@given(st.integers(0, 2**128 - 1) | st.integers(2**125, 2**126 - 1))
def test_whatever_is_public_is_so_for_python_too(number: int) -> None:
    address = ipaddress.IPv6Address(number)
    wrapped = address.ipv4_mapped or address.sixtofour
    if is_public(str(address)):
        odd = ("is_private", "is_link_local", "is_multicast", "is_site_local", "is_reserved", "is_loopback")
        assert not any(getattr(address, each) for each in odd)
        assert wrapped is None or is_public(str(wrapped))
    assert is_public(f"::ffff:{ipaddress.IPv4Address(number & 0xFFFF_FFFF)}") == is_public(
        str(ipaddress.IPv4Address(number & 0xFFFF_FFFF))
    )


@pytest.mark.parametrize("text", ["", "localhost", "8.8.8", "8.8.8.8%1", "2606:4700::1%eth0", "fe80::1%eth0", "x"])
def test_what_is_no_address_is_not_public(text: str) -> None:
    assert not is_public(text)


@pytest.mark.parametrize(
    ("hook", "field"),
    [
        ({}, "url"),
        ({"url": ""}, "url"),
        ({"url": 5}, "url"),
        ({"url": "https://a.example/" + "x" * 2000}, "url"),
        ({"url": "https://a.example/\0"}, "url"),
        ({"url": "https://a.example/", "secret": "x"}, "secret"),
        ({"url": "https://a.example/", "events": ["job.began"]}, "events"),
        ({"url": "https://a.example/", "events": "job.failed"}, "events"),
        ({"url": "https://a.example/", "events": ["job.failed"] * 5}, "events"),
        ({"url": "https://a.example/", "events": []}, "0"),
        ({"url": "https://a.example/", "events": ["job.metric"]}, "0"),
        ({"url": "https://a.example/", "metric": {"name": "test_loss"}}, "metric"),
        ({"url": "https://a.example/", "metric": {"name": "test_loss", "above": 1.0, "below": 2.0}}, "metric"),
        ({"url": "https://a.example/", "metric": {"name": "loss", "above": 1.0}}, "name"),
        ({"url": "https://a.example/", "metric": {"name": "test_loss", "above": float("nan")}}, "above"),
    ],
)
def test_a_webhook_that_makes_no_sense_is_refused(hook: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Spec.model_validate({"webhooks": [hook]})
    assert field in [str(part) for part in refused.value.errors()[0]["loc"]]


def test_every_event_can_be_asked_for() -> None:
    assert get_args(Told) == tuple(WebhookEvent)


def test_a_job_has_five_webhooks_at_most() -> None:
    five = [{"url": "https://a.example/"}] * 5
    assert len(Spec.model_validate({"webhooks": five}).webhooks) == 5
    with pytest.raises(ValidationError):
        Spec.model_validate({"webhooks": [*five, *five]})


def test_what_is_left_out_has_a_default() -> None:
    hook = Webhook.model_validate_json('{"url": "https://a.example/", "metric": {"name": "test_loss", "below": 1}}')
    assert hook.events == ["job.succeeded", "job.failed", "job.cancelled"]
    assert Webhook.model_validate(hook.model_dump(mode="json")) == hook
    assert Spec().webhooks == []
