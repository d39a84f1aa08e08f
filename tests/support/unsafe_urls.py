"""URLs that nothing made for a tenant may reach, as attackers write them."""

from typing import Final

# `{port}` is the canary's. Those that are names resolve to loopback in the test.
UNSAFE_URLS: Final = (
    # loopback and its spellings
    "http://127.0.0.1:{port}/", "http://127.0.0.1/", "http://127.1/", "http://127.0.1/", "http://127.255.255.254/",
    "http://localhost:{port}/", "http://localhost/", "http://LOCALHOST/", "http://localhost./", "http://foo.localhost/",
    "http://[::1]:{port}/", "http://[::1]/", "http://[0:0:0:0:0:0:0:1]/", "http://0.0.0.0:{port}/", "http://0.0.0.0/",
    "http://0/", "http://[::]/",
    # numbers that resolvers read as addresses
    "http://2130706433/", "http://2130706433:{port}/", "http://0x7f000001/", "http://0x7f.1/", "http://0x7f.0x0.0x0.0x1/",
    "http://017700000001/", "http://0177.0.0.1/", "http://127.0.0.1.:{port}/", "http://0x7F.1:{port}/", "http://1/",
    "http://00000177.0.0.1/", "http://127.0.0.01/", "http://4294967295/", "http://256.256.256.256/",
    # IPv4 inside IPv6
    "http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/", "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b:1::7f00:1]/", "http://[2002:7f00:1::]/", "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "http://[2606:4700::5efe:7f00:1]/", "http://[::ffff:0:127.0.0.1]/",
    # private, link-local, metadata, multicast, reserved
    "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/",
    "http://168.63.129.16/", "http://100.100.100.200/", "http://100.64.0.1/", "http://224.0.0.1/", "http://240.0.0.1/",
    "http://255.255.255.255/", "http://198.18.0.1/", "http://192.0.0.1/", "http://192.0.2.1/", "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/", "http://[fc00::1]/", "http://[fd00:ec2::254]/", "http://[ff02::1]/", "http://[2001:db8::1]/",
    "http://[100::1]/", "http://192.88.99.1/",
    # user names, encodings, look-alikes
    "http://example.com@127.0.0.1/", "http://example.com:80@127.0.0.1:{port}/", "http://127.0.0.1#@example.com/",
    "http://example.com\\@127.0.0.1/", "http://127.0.0.1\\.example.com/", "http://%31%32%37.0.0.1/", "http://127%2e0.0.1/",
    "http://①②⑦.⓪.⓪.①/", "http://１２７.０.０.１/", "http://127。0。0。1/", "http://ⓛocalhost/",
    "http://exämple.com/", "http://ex\u00adample.com/", "http://exa\u200bmple.com/", "http://example.com%00.evil.com/",
    # forms that readers disagree about
    "http:///127.0.0.1/", "http:/127.0.0.1/", "http:127.0.0.1", "//127.0.0.1/", "http://", "http://:{port}/", "http://.com/",
    "http://a..b.com/", "http://example.com:/", "http://example.com:0/", "http://example.com:65536/",
    "http://example.com:-80/", "http://example.com:８０/", "http://example.com:80:80/", "http:// 127.0.0.1/",
    " http://example.com/", "http://example.com/\r\nHost: 127.0.0.1", "http://example.com/\tx", "http://[::1/", "http://::1/",
    "http://[127.0.0.1]/", "http://[v1.x]/", "http://-example.com/", "http://example-.com/", "http://exa_mple.com/",
    # other schemes
    "file:///etc/passwd", "ftp://example.com/", "gopher://127.0.0.1:{port}/", "javascript:alert(1)", "data:text/plain,x",
    "unix:///var/run/x.sock", "https+unix://x/", "jar:http://127.0.0.1!/", "HTTP//127.0.0.1/", "", "x",
    # ports and names that are not the public web
    "http://example.com:22/", "http://example.com:8080/", "https://example.com:{port}/", "http://intranet/",
    "http://metadata.google.internal/", "http://printer.local/", "http://db.corp/", "http://x.test/", "http://x.home.arpa/",
    "http://x.onion/", "http://x.invalid/",
    # public names that resolve to loopback, wholly or in part (see the resolver)
    "http://loopback.example.com/", "https://loopback.example.com/", "http://loopback.example.com:{port}/",
    "http://mixed.example.com/", "http://mapped.example.com/",
    "http://scoped.example.com/", "http://garbage.example.com/",
    "http://" + "a" * 3_000 + ".com/", "http://" + "a." * 130 + "com/",
)  # fmt: skip
