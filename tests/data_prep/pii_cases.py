"""Hard cases of personal data, and text that looks like it: written for this test, before the patterns were changed.

`python tests/data_prep/pii_cases.py` prints how many of each kind are masked whole, and which are not.
"""

from data_prep.filters.pii import Kind, PiiConfig, mask

# Text around the item, the item, text after it. A case counts if the item, and nothing else, is replaced.
HARD: dict[Kind, list[tuple[str, str, str]]] = {
    "email": [
        ("Write to ", "o'brien@x.ie", "."),
        ("Ask ", "d'arcy.o'neil@tcd.ie", " now"),
        ("said '", "john@uni-bonn.de", "'"),
        ("dept ", "r&d@siemens.com", ", room 5"),
        ("", "~jane@tilde.club", ""),
        ("an ", "müller@uni-bonn.de", " schreiben"),
        ("at ", "info@müller-söhne.de", ";"),
        ("пишите ", "иван@почта.рф", "."),
        ("στο ", "γιώργος@uoa.gr", " σήμερα"),
        ("联系", "john@x.com", "联系"),
        ("_", "jane@x.org", "_"),
        ("**", "jane@x.org", "**"),
        ("<", "J.DOE@X.ORG", ">"),
        ("mailto:", "a.b%40@x.org", "?subject=x"),
        ("to ", '"john doe"@x.org', " and"),
        ("root is ", "postmaster@[85.214.132.117]", ""),
        ("v6 ", "me@[IPv6:2a00:1450:4001:82b::200e]", ""),
        ("spam-safe: ", "jane [at] uni-bonn [dot] de", ","),
        ("or ", "jane(at)uni-bonn.de", ")"),
        ("or ", "jane{at}uni-bonn{dot}de", ""),
        ("encoded ", "jane%40uni-bonn.de", "&x=1"),
        ("entity ", "jane&#64;uni-bonn.de", ""),
        ("wide ", "jane＠uni-bonn.de", ""),
        ("x=", "a+b_c-d@mail.sub.uni-bonn.co.uk", "&y=2"),
    ],
    "ipv4": [
        ("from ", "85.214.132.117", "."),
        ("IP: ", "8.8.8.8", ""),
        ("nameserver ", "1.1.1.1", "\n"),
        ("http://", "9.9.9.9", "/x"),
        ("ssh root@", "23.11.4.9", ""),
        ("open ", "8.8.4.4", ":53 udp"),
        ("route ", "12.0.0.0", "/8 via"),
        ("ip-", "85.214.132.117", ""),
        ("addr/", "85.214.132.117", ""),
        ("::ffff:", "85.214.132.117", ""),
        ("defanged ", "85.214.132[.]117", ""),
        ("defanged ", "85[.]214[.]132[.]117", "/x"),
        ("defanged ", "85(.)214(.)132(.)117", ""),
        ("range ", "85.214.132.1", "-9"),
        ("地址", "85.214.132.117", "的"),
        ("(", "212.58.244.70", ")"),
        ('"ip":"', "23.5.11.9", '"'),
        ("client ", "4.2.2.1", " sent"),
    ],
    "ipv6": [
        ("at ", "2a00:1450:4001:82b::200e", ": unreachable"),
        ("inet6 addr:", "2a00:1450:4001:82b::200e", "/64"),
        ("IPv6:", "2001:4860:4860::8888", ""),
        ("[", "2606:4700:4700::1111", "]:53"),
        ("host ", "2620:fe::fe", " up"),
        ("IPv6 address ", "2600::", ""),
        ("nat ", "2a00:1450:4001:82b:0:0:85.214.132.117", ""),
        ("zone ", "2A00:1450:4001:082B:0000:0000:0000:200E", "%eth0"),
    ],
    "phone": [
        ("Tel.: ", "+49 (0)69 380 795 200", "\n"),
        ("", "+44 20 7123 4567", ""),
        ("", "+442071234567", ""),
        ("", "＋49 30 901820", ""),
        ("call ", "0049 30 901820", "."),
        ("call ", "00 44 20 7123 4567", ""),
        ("Berlin ", "(030) 901820", ""),
        ("London ", "(020) 7123 4567", ""),
        ("Tel: ", "030/901820", ""),
        ("Tel. ", "030 - 90 18 20", ""),
        ("Telefon: ", "089 12345678", ""),
        ("Tél. : ", "01 42 68 53 00", ""),
        ("Phone: ", "4122687393", ""),
        ("phone number ", "412 268 7393", ""),
        ("mobile ", "0171 1234567", ""),
        ("Mob: ", "07700 123456", ""),
        ("fax no. ", "(02) 9374 4000", ""),
        ("tel:", "+1-412-268-7393", ""),
        ("WhatsApp ", "98765 43210", ""),
        ("тел. ", "8 (495) 123-45-67", ""),
        ("电话:", "010-62751234", ""),
        ("電話 ", "03-1234-5678", ""),
        ("Teléfono: ", "91 123 45 67", ""),
        ("", "(412) 268-7393", " x5"),
        ("", "412.268.7393", ""),
        ("", "1-800-292-9263", ""),
        ("", "+1 (412) 268-7393", ""),
        ("", "+86 138 0013 8000", ""),
        ("", "+91-98765-43210", ""),
        ("", "+33.1.42.68.53.00", ""),
    ],
}
# Hard cases that are not masked, since the same words stand before ordinary numbers: precision goes before recall.
MISSED: dict[Kind, list[str]] = {
    "email": [],
    "ipv4": ["23.11.4.9", "4.2.2.1"],
    "ipv6": [],
    "phone": ["(030) 901820", "(020) 7123 4567", "0171 1234567"],
}
SIMILAR = [
    "version 85.214.132.117, release 9.9.9.9, v8.8.8.8, build: 10.0.19041.1",
    "from 1.2.3.4 to 1.2.4.0, Chrome/85.214.13.1, openssl-85.214.13.1, 8.8.8.8 and 2.31.1.10",
    "section 85.1.2.33, 1.3.6.1.4.1.311, 3.14.15.926, 256.256.256.256, 12.5.2024",
    "IP: 192.168.1.1, address 10.0.0.1, http://127.0.0.1:80/",
    "12:34:56:78, aa:bb:cc:dd:ee:ff, std::vector, 2024:05:17, C++20::x, 2a00::x, fe80::1, 2001:db8::1",
    "john@example.com, jane [at] example.com, @handle, foo@bar, a @ b.com, icon@2x.png, x=1@2, 5 % 40 x",
    "look at this dot com bubble; at x.com; (at) home; 3 [at] 5; f(at).x; array[at] [dot] x",
    "ISBN 978-0-306-40615-7, ISBN 0-306-40615-2, 9783161484100, ISSN 0378-5955, doi 10.1000/182",
    "2024-05-17, 17.05.2024, 05/17/2024 12:30:45, 1999-2003, 2024-05-17T12:30:45+02:00",
    "call 2024-05-17, phone 17.05.2024, call 12:30:45, tel 2024/05/17",
    "iPhone 14 2022 2023 2024, Phone 7 8 9 10 11 12, phone 64 128 256, telephone 1876",
    "01 02 03 04 05 06, 412 268 7393, 4122687393, 030 901820, 0012345678, 1234-5678-9012",
    "$1,234,567.89, 1.234.567, 4111 1111 1111 1111, 078-05-1120, DE89 3704 0044 0532 0130 00",
    "(2019) 12345, (01) 04012345678901, (0.5) 123456, f(030) 12, 00 11 22, 0049, 007 123",
    "call 911 or 112, telephone exchange 12, hotel 1234567, cell 1200 of 1300, fax 2",
    "UTC+01:00, +2147483647 bytes, x+49 30, +1.234.567, 10^+12 34 56 78 90, C+11 2014 12 15",
    "DE89 3704 0044 0532 0130 00 1, phone 256 2048, call 12 345 678 people, tel 12345678",
    "client 4.2.0.1, gateway 2.1.0.5, pkg@1.4.2.11, host 8.8.8.8, peer 1.2.3.4",
    "the call 123456789 was declined, see (0123) 456 7890, SMS 160 160 1600 characters, mobile 10 000 000 users",
    "cell 123 456 789 of the table, handy 1 234 567 890 steps",
    "555-0100, 202-555-0123, tel 202-555-0100, +1 202 555 0123",
]


def masked_whole(kind: Kind) -> list[bool]:
    """Return for each hard case whether the item, and nothing else, is replaced by one mask of its kind."""
    config = PiiConfig(enabled=True, email="<E>", ipv4="<4>", ipv6="<6>", phone="<P>")
    sign = getattr(config, kind)
    return [mask(f"{before}{item}{after}", config)[0] == f"{before}{sign}{after}" for before, item, after in HARD[kind]]


if __name__ == "__main__":
    for kind, cases in HARD.items():
        found = masked_whole(kind)
        print(
            kind, sum(found), "of", len(found), [case[1] for case, whole in zip(cases, found, strict=True) if not whole]
        )
    print("similar", [text for text in SIMILAR if mask(text, PiiConfig(enabled=True))[1]])
