"""The hub, as `crusades setup` meets it: the token, what its errors mean in words, and one commit fetched whole.

The client's own fallbacks are not used: told to go on while the hub is away, it returns a half-filled folder as if it were
complete. So the commit and its list of files are asked for first, and what arrived is compared with that list.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crusades.errors import ConfigError, CrusadesError

TOKEN_ADVICE = "put an access token (https://huggingface.co/settings/tokens) as HF_TOKEN into the environment or into .env"


class HubFault(CrusadesError):
    """The hub could not be asked, or sent damage. The outside's fault: run `crusades setup` again."""


def hub_token() -> str | None:
    """HF_TOKEN from the environment, else from `.env`."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    env = Path(".env")
    for line in env.read_text().splitlines() if env.is_file() else []:
        key, _, value = line.partition("=")
        if key.strip().removeprefix("export ").strip() == "HF_TOKEN":
            return value.strip().strip("'\"") or None
    return None


@contextlib.contextmanager
def asking_hub(repo: str) -> Iterator[None]:
    """While the hub is asked for `repo`: its client's errors as ConfigError (ours to mend) or HubFault (wait, try again)."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name of the hub: it reads owner/name ({error})") from error
    except errors.GatedRepoError as error:
        raise ConfigError(f"the hub guards {repo}: accept its terms at https://huggingface.co/{repo}, then {TOKEN_ADVICE}") from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{repo} has no such revision on the hub: correct `revision` in hparams.toml ({_short(error)})") from error
    except errors.RepositoryNotFoundError as error:
        token = f"HF_TOKEN may not read it: {TOKEN_ADVICE} of an account that may" if hub_token() else f"it is private and no HF_TOKEN is set: {TOKEN_ADVICE}"
        raise ConfigError(f"the hub shows no {repo}: either the name in hparams.toml is wrong, or {token}") from error
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise ConfigError(f"the hub refuses {repo}: {'HF_TOKEN is wrong or may not read it' if hub_token() else 'no HF_TOKEN is set'}; {TOKEN_ADVICE}") from error
        raise HubFault(f"the hub could not answer for {repo} ({_short(error)}); run the same command again later, it resumes") from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined,unused-ignore]  # the first is its HTTP library's, no OSError
        raise HubFault(f"the hub could not be reached for {repo} ({_short(error)}): check the network, a proxy, and HF_HUB_OFFLINE; then run the same command again, it resumes") from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"[:300]


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository."""

    repo: str
    kind: str
    """"model" or "dataset"."""
    commit: str
    files: dict[str, tuple[int | None, str | None]]
    """name → (bytes, sha256), as far as the hub says."""

    def matching(self, patterns: tuple[str, ...]) -> dict[str, tuple[int | None, str | None]]:
        """Files whose name fits one of `patterns`."""
        return {name: known for name, known in self.files.items() if any(fnmatch.fnmatch(name, p) for p in patterns)}


def look_up(repo: str, kind: str, revision: str) -> Snapshot:
    """What `revision` of a repository is now; empty = its main branch. Raises ConfigError or HubFault."""
    from huggingface_hub import HfApi

    with asking_hub(repo):
        api = HfApi(token=hub_token())
        ask = api.model_info if kind == "model" else api.dataset_info
        info = ask(repo, revision=revision or None, files_metadata=True)
    if not info.sha:
        raise HubFault(f"the hub names no commit of {repo}; run the same command again later")
    return Snapshot(repo, kind, info.sha, {s.rfilename: (s.size, s.lfs.sha256 if s.lfs else None) for s in info.siblings or []})


def fetch(snapshot: Snapshot, patterns: tuple[str, ...], folder: Path) -> dict[str, tuple[int | None, str | None]]:
    """Download the files that fit into `folder`, resuming; returns what must lie there. Raises ConfigError or HubFault."""
    from huggingface_hub import snapshot_download

    wanted = snapshot.matching(patterns)
    if not wanted:
        raise ConfigError(f"{snapshot.repo} has no file that we could use ({', '.join(patterns)})")
    with asking_hub(snapshot.repo):
        snapshot_download(snapshot.repo, repo_type=snapshot.kind, revision=snapshot.commit, local_dir=folder, allow_patterns=list(patterns), token=hub_token())
    return wanted


def fetch_file(snapshot: Snapshot, name: str) -> Path:
    """One file of a snapshot, in the client's own cache. Raises ConfigError or HubFault."""
    from huggingface_hub import hf_hub_download

    with asking_hub(snapshot.repo):
        return Path(hf_hub_download(snapshot.repo, name, repo_type=snapshot.kind, revision=snapshot.commit, token=hub_token()))
