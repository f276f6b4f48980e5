"""Who counts: deployed hosts and those in development, programs, and what is excluded.

Host names and values come as they stand in a line: as JSON text.
"""

import ipaddress
import re
from collections.abc import Callable
from fnmatch import translate
from functools import cache

from report.values import value_of

# What the name of a host in development ends with, and what each of them is.  A name of one label
# and an address that is not global are local, too.
ENDINGS = {
    **dict.fromkeys(
        (
            *(".localhost", ".local", ".localdomain", ".lan", ".home", ".corp", ".intranet"),
            *(".internal", ".test", ".example", ".invalid", ".home.arpa", ".nip.io", ".sslip.io"),
        ),
        "local",
    ),
    **dict.fromkeys(
        (
            *(".csb.app", ".codesandbox.io", ".webcontainer.io", ".stackblitz.io", ".gitpod.io"),
            *(".gitpod.dev", ".github.dev", ".replit.dev", ".repl.co", ".cloudworkstations.dev"),
        ),
        "sandbox",
    ),
    **dict.fromkeys(
        (
            *(".ngrok.io", ".ngrok.app", ".ngrok.dev", ".ngrok-free.app", ".ngrok-free.dev"),
            *(".trycloudflare.com", ".loca.lt", ".lhr.life", ".serveo.net", ".devtunnels.ms"),
        ),
        "tunnel",
    ),
}
PREVIEW = re.compile(
    r"""
    .*--.*\.(?:netlify|web)\.app |
    .*-git-.*-.*\.vercel\.app |
    [^.]*\.[^.]*\.pages\.dev |
    .*-pr-[0-9]+\.onrender\.com
    """,
    re.VERBOSE,
)
DEVELOPMENT_ENDINGS = tuple(ENDINGS)

# Parts of the names of browsers that are programs.
PROGRAMS = ("bot", "crawl", "spider", "slurp", "headless", "phantomjs", "inspectiontool")


@cache
def is_in_development(hostname: bytes) -> bool:
    name = value_of(hostname)
    if name is None:
        return False
    if is_address(name):
        return not ipaddress.ip_address(name).is_global
    is_named_so = "." not in name or name.endswith(DEVELOPMENT_ENDINGS)
    return is_named_so or bool(PREVIEW.fullmatch(name))


def is_address(name: str) -> bool:
    if ":" not in name and not name[-1:].isdigit():
        return False  # without the cost of an exception
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_network(address: bytes) -> bool:
    """Tell whether an address is its own /24 or /48, as masked ones are."""
    try:
        number = ipaddress.ip_address(value_of(address))
    except ValueError:
        return False
    host_bits = 8 if number.version == 4 else 80
    return int(number) % (1 << host_bits) == 0


def is_program(browser: str | None) -> bool:
    return any(part in (browser or "").lower() for part in PROGRAMS)


def excluder(patterns: tuple[str, ...]) -> Callable[[bytes], bool]:
    """Return what tells whether a host name matches one of the shell patterns."""
    matcher = re.compile("|".join(translate(pattern.lower()) for pattern in patterns) or r"(?!)")

    @cache
    def is_excluded(hostname: bytes) -> bool:
        name = value_of(hostname)
        return name is not None and bool(matcher.match(name.lower()))

    return is_excluded
