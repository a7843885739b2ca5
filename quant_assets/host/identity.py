"""The id of this machine in records: stable, short, and without a name that could be looked up.

It is HMAC-SHA256 of the machine's key over the project's name and hardware facts, cut to
`ID_LENGTH` hexadecimal digits; systemd's machine-id(5) asks for a keyed hash wherever the raw id
would leave the machine. The key is the system's machine id, or, where there is none (most
containers), a random one kept in the data root. The facts keep machines apart that share a key: a
container image that carries a machine id, or a data root on a shared disk. A machine with another
processor therefore counts as another machine; a reboot, a new host name or a new address changes
nothing.
"""

import hashlib
import hmac
import json
import re
import uuid
from pathlib import Path

import psutil

from quant_assets.host.conditions import cpu_name
from quant_assets.host.locks import exclusive_lock
from quant_assets.record_files import write_record
from quant_assets.settings import get_settings

ID_LENGTH = 12
"""Hexadecimal digits: 48 bits, one collision expected among some 20 million machines."""

_PROJECT = "quant-assets"
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_DMI = Path("/sys/class/dmi/id")
_DMI_FACTS = ("sys_vendor", "product_name")
_KEY = re.compile(r"(?!0{32})[0-9a-f]{32}")
_KEY_FILE = "machine_key"


def host_id(home: Path | None = None) -> str:
    """The id of this machine; where the system has no key, the data root `home` keeps one.

    Raises `ResourceError` when that key cannot be written.
    """
    keys = filter(None, map(_read_key, _MACHINE_IDS))
    key = next(keys, None) or _kept_key(home or get_settings().home)
    facts = [cpu_name(), psutil.cpu_count(), *(_line(_DMI / name) for name in _DMI_FACTS)]
    message = json.dumps([_PROJECT, *facts]).encode()
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()[:ID_LENGTH]


def _kept_key(home: Path) -> str:
    path = home / _KEY_FILE
    with exclusive_lock(home / "locks" / f"{_KEY_FILE}.lock", "the key of this machine's id"):
        key = _read_key(path)
        if key is None:
            key = uuid.uuid4().hex
            write_record(path, key + "\n", "key of this machine's id")
    return key


def _read_key(path: Path) -> str | None:
    line = _line(path)
    return line if line is not None and _KEY.fullmatch(line) else None


def _line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
