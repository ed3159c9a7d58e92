"""Texts with what is somebody's own in them, labelled; and texts that only look as if: from a seed."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import NamedTuple

Label = tuple[str, str]
"""A kind, and the text that is of it."""


class Labelled(NamedTuple):
    text: str
    labels: list[Label]


# Around what is to be found: several scripts, and no word that a recogniser could take for its own.
AROUND = (
    "Please look at {}, and tell me what you think of it.",
    "Bitte prüfen Sie {}; danke für Ihre Mühe, schöne Grüße.",
    "Проверьте, пожалуйста, {} и ответьте мне.",
    "请检查 {} ,然后告诉我。",
    "يرجى التحقق من {} ثم الرد.",
    "बताइए कि {} सही है या नहीं।",
    "これは {} です。確認してください。",
    "{}",
    "it said:\n- {}\n- nothing else",
)


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice(string.digits) for _ in range(count))


def luhn(number: str) -> str:
    """The check digit of a card's number."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        n = int(digit) * (2 if place % 2 == 0 else 1)
        total += n - 9 if n > 9 else n
    return str(-total % 10)


def email(rng: random.Random) -> str:
    name = rng.choice(("ada", "björn", "иван", "j.doe+test", "x_y-z"))
    return (
        f"{name}{digits(rng, 2)}@{rng.choice(('example.com', 'mail.example.co.uk', 'firma.de', 'bücher.de'))}"
    )


def phone(rng: random.Random) -> str:
    return rng.choice(
        (f"+1 212 555 0{digits(rng, 3)}", f"+44 20 7946 0{digits(rng, 3)}", f"+49 30 9018 20{digits(rng, 2)}")
    )


def card(rng: random.Random) -> str:
    number = rng.choice(("4", "51", "54")) + digits(rng, 14)
    number = number[:15]
    number += luhn(number)
    join = rng.choice(("", " ", "-"))
    return join.join(number[i : i + 4] for i in range(0, 16, 4))


def iban(rng: random.Random) -> str:
    account = digits(rng, 18)
    check = 98 - int(account + "131400") % 97
    whole = f"DE{check:02}{account}"
    return whole if rng.random() < 0.5 else " ".join(whole[i : i + 4] for i in range(0, 22, 4))


def ip(rng: random.Random) -> str:
    return ".".join(str(rng.randint(1, 254)) for _ in range(4))


def ipv6(rng: random.Random) -> str:
    return "2001:db8:" + ":".join(f"{rng.randint(4096, 65535):x}" for _ in range(6))


def ssn(rng: random.Random) -> str:
    return f"{rng.randint(100, 600)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}"


def aws(rng: random.Random) -> str:
    return "AKIA" + "".join(rng.choice(string.ascii_uppercase + string.digits) for _ in range(16))


def github(rng: random.Random) -> str:
    return "ghp_" + "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(36))


def slack(rng: random.Random) -> str:
    return f"xoxb-{digits(rng, 12)}-{digits(rng, 12)}-" + "".join(
        rng.choice(string.ascii_letters) for _ in range(24)
    )


def stripe(rng: random.Random) -> str:
    return "sk_live_" + "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(24))


def private_key(rng: random.Random) -> str:
    lines = "\n".join("".join(rng.choice(string.ascii_letters) for _ in range(40)) for _ in range(3))
    return f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----"


def mac(rng: random.Random) -> str:
    return ":".join(f"{rng.randint(16, 255):02X}" for _ in range(6))


KINDS: dict[str, tuple[str, Callable[[random.Random], str]]] = {
    "e-mail": ("EMAIL_ADDRESS", email),
    "phone": ("PHONE_NUMBER", phone),
    "card": ("CREDIT_CARD", card),
    "IBAN": ("IBAN_CODE", iban),
    "IPv4": ("IP_ADDRESS", ip),
    "IPv6": ("IP_ADDRESS", ipv6),
    "SSN": ("US_SSN", ssn),
    "MAC": ("MAC_ADDRESS", mac),
    "AWS key": ("SECRET", aws),
    "GitHub token": ("SECRET", github),
    "Slack token": ("SECRET", slack),
    "Stripe key": ("SECRET", stripe),
    "private key": ("SECRET", private_key),
}


def broken_card(rng: random.Random) -> str:
    number = card(rng).replace(" ", "").replace("-", "")
    return number[:-1] + str((int(number[-1]) + 1) % 10)


def broken_iban(rng: random.Random) -> str:
    whole = iban(rng).replace(" ", "")
    return f"{whole[:2]}{(int(whole[2:4]) + 1) % 100:02}{whole[4:]}"


NEAR: dict[str, Callable[[random.Random], str]] = {
    "a card's number with a wrong check digit": broken_card,
    "an IBAN with a wrong checksum": broken_iban,
    "an address without a domain": lambda rng: f"user{digits(rng, 2)}@localhost",
    "a handle": lambda rng: f"@ada_{digits(rng, 3)}",
    "a version": lambda rng: f"v{rng.randint(1, 9)}.{rng.randint(10, 20)}.{rng.randint(1, 9)}",
    "a price": lambda rng: f"${rng.randint(1, 9)},{digits(rng, 3)}.{digits(rng, 2)}",
    "a date": lambda rng: f"20{rng.randint(10, 29)}-0{rng.randint(1, 9)}-1{rng.randint(0, 9)}",
    "a short hash": lambda rng: "commit " + "".join(rng.choice("abcdef") for _ in range(7)),
    "too many parts": lambda rng: f"{rng.randint(300, 999)}.{rng.randint(300, 999)}.1.2.3",
}


def labelled(seed: int, each: int) -> list[tuple[str, Labelled]]:
    """So many texts of each kind and of each near miss, by its name."""
    rng = random.Random(seed)
    made: list[tuple[str, Labelled]] = []
    for name, (entity, make) in KINDS.items():
        for number in range(each):
            value = make(rng)
            made.append((name, Labelled(AROUND[number % len(AROUND)].format(value), [(entity, value)])))
    for name, make in NEAR.items():
        for number in range(each):
            made.append((name, Labelled(AROUND[number % len(AROUND)].format(make(rng)), [])))
    return made
