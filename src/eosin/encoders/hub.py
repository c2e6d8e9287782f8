"""Files of weights: on this machine, at the Hugging Face Hub, or at an address."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import get_session

from eosin.core.console import note
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file
from eosin.core.home import eosin_home

__all__ = ["address_file", "encoders_home", "hub_file", "hub_folder"]

PROBE_SECONDS = 5.0
ADDRESS_SECONDS = 30.0


def encoders_home() -> Path:
    """Return ``$EOSIN_HOME/encoders``, where files that were downloaded by hand are looked for first."""
    return eosin_home() / "encoders"


def hub_folder(repository: str, revision: str | None = None) -> Path:
    """Return the folder in which a repository's files are looked for first, such as ``encoders/owner--name``."""
    return encoders_home() / (repository.replace("/", "--") + (f"@{revision}" if revision else ""))


def hub_file(
    spec: str,
    repository: str,
    names: Sequence[str],
    placed: Path,
    *,
    revision: str | None = None,
    optional: bool = False,
) -> Path | None:
    """Find the first of several files of a repository: placed by hand, in the Hugging Face cache, or at the Hub.

    Args:
        spec: What to name in an error.
        repository: Owner and name.
        names: The names the file may have, the preferred one first.
        placed: Where the first of them is looked for; the others beside it.
        revision: Branch, tag or commit; the repository's main branch if not given.
        optional: Return None where the file is nowhere to be had, instead of raising.

    Raises:
        EosinError: If the file is not on this machine and there is no network, the repository is not open to this
            user, or it has no such file.
    """
    for path in (placed, *(placed.with_name(name) for name in names[1:])):
        if path.is_file():
            return path
    for name in names:
        cached = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    fix = f"download {names[0]} from huggingface.co/{repository} and place it at {placed}"
    # The Hub's client retries for half a minute before it gives up; one short question comes first.
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        if optional:
            return None
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} is out of reach"
        raise EosinError(f"{spec}: the weights are not on this machine and {reason}; {fix}")
    try:
        found = _download(spec, repository, names, revision, fix)
    except EosinError:
        if optional:
            return None
        raise
    if found is None and not optional:
        raise EosinError(f"{spec}: huggingface.co/{repository} has no {' or '.join(names)}; is the name right?")
    return found


def _download(spec: str, repository: str, names: Sequence[str], revision: str | None, fix: str) -> Path | None:
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except GatedRepoError:
            raise EosinError(
                f"{spec}: huggingface.co/{repository} gives its weights to those who accept its licence; accept it at "
                f"https://huggingface.co/{repository}, then log in here with `hf auth login`"
            ) from None
        except RepositoryNotFoundError:
            raise EosinError(
                f"{spec}: huggingface.co has no repository {repository} that you may see; check the name, or log in "
                "with `hf auth login` if it is private"
            ) from None
        except LocalEntryNotFoundError as error:
            raise EosinError(f"{spec}: the download failed ({_first_line(error)}); {fix}") from None
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise EosinError(f"{spec}: the download failed ({_first_line(error)}); {fix}") from None
    return None


def _reachable(endpoint: str) -> bool:
    try:
        get_session().head(endpoint, timeout=PROBE_SECONDS)
    except Exception:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def address_file(spec: str, address: str, placed: Path) -> Path:
    """Return the file at `placed`, downloaded from `address` if it is not there; whole or not at all.

    Raises:
        EosinError: If it is not there and cannot be downloaded, or the download ends early.
    """
    if placed.is_file():
        return placed
    fix = f"download it elsewhere and place it at {placed}"
    if constants.HF_HUB_OFFLINE:
        raise EosinError(f"{spec}: {address} is not on this machine and HF_HUB_OFFLINE is set; {fix}")
    try:
        response = _open(address)
    except (OSError, ValueError) as error:
        raise EosinError(f"{spec}: {address} cannot be downloaded ({_first_line(error)}); {fix}") from None
    placed.parent.mkdir(parents=True, exist_ok=True)
    with response, atomic_file(placed) as file:
        expected = int(response.headers.get("Content-Length") or 0)
        note(f"{spec}: downloading {address}" + (f" ({expected / 1e6:,.0f} MB)" if expected else ""))
        while True:
            try:
                block = response.read(1 << 20)
            except (OSError, http.client.HTTPException) as error:
                # Of the network alone: the numbers of TLS's errors are those of a disk's.
                raise EosinError(f"{spec}: the download of {address} broke off ({_first_line(error)}); {fix}") from None
            if not block:
                break
            file.write(block)
        if expected and file.tell() != expected:
            raise EosinError(f"{spec}: {address} gave {file.tell():,} of {expected:,} bytes; run the command again")
    return placed


def _open(address: str) -> Any:
    # Addresses come from the table of encoders, never from a user or a file.
    response = urllib.request.urlopen(address, timeout=ADDRESS_SECONDS)  # noqa: S310
    if address.startswith("https:") and not response.url.startswith("https:"):
        response.close()
        raise OSError(f"leads from https to {response.url}")
    return response
