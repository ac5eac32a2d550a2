"""Open Bandit files: a fashion shop's logs of two policies, as a log for off-policy evaluation.

Reads   a folder of BEHAVIOUR/CAMPAIGN/CAMPAIGN.csv, or the wheel of `obp`, which has small ones.
Emits   `models.ope_log.BanditLog`, and the other policy's probabilities of its arms.
Owns    what the files' columns mean, and how `bts` would have chosen.

Each row is one of three places of a page: which item was shown there, with which probability, and
whether it was clicked. `random` chose among all items alike. `bts` drew a rate of clicks for each
item from a Beta distribution and showed the three highest, best first; it kept learning, and only
the probability of what it showed was logged. As a target it is the policy that it began as, by
`prior_bts.yaml`.

Reference: Saito et al., "Open Bandit Dataset and Pipeline", NeurIPS 2021.
"""

import csv
import gzip
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from models.ope_log import BanditLog

BEHAVIOURS: Final = ("random", "bts")
N_ITEMS: Final = {"all": 80, "men": 34, "women": 46}
N_PLACES: Final = 3
_PRIOR: Final = "prior_bts.yaml"
_DRAWS: Final = 100_000  # of all items' rates: a probability of 1% is then known to 3% of itself
_AT_ONCE: Final = 10_000
_USER: Final = "user_feature_"


class Shown(NamedTuple):
    """The rows of one file; each array has N of them."""

    items: NDArray[np.int64]
    places: NDArray[np.int64]  # 0 to 2
    clicks: NDArray[np.float64]
    propensities: NDArray[np.float64]
    users: NDArray[np.float64]  # shape (N, U), 1 where a user has a feature


def read(path: Path, behaviour: str, campaign: str) -> Shown:
    """Return the rows that a policy logged.

    Raises
    ------
    ValueError
        If there is no such file, or it has other columns.
    """
    file = _data(path) / behaviour / campaign / f"{campaign}.csv"
    try:
        rows = list(csv.DictReader(_lines(file)))
        return Shown(
            items=np.array([int(row["item_id"]) for row in rows], np.int64),
            places=np.array([int(row["position"]) - 1 for row in rows], np.int64),
            clicks=np.array([float(row["click"]) for row in rows]),
            propensities=np.array([float(row["propensity_score"]) for row in rows]),
            users=_users(rows),
        )
    except FileNotFoundError as error:
        raise ValueError(f"no file {file}, nor {file.name}.gz beside it") from error
    except (KeyError, TypeError, zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{file} is no file of Open Bandit: {error!r}") from error


def bandit_log(shown: Shown, behaviour: str, campaign: str) -> BanditLog:
    """Return the rows as a log, by place; each is a group, for users are not told apart."""
    n, n_items = len(shown.items), N_ITEMS[campaign]
    chosen = n_items * np.arange(n) + shown.items
    logged = np.full(n * n_items, np.nan if behaviour == "bts" else 1 / n_items)
    logged[chosen] = shown.propensities
    constant = np.hstack([np.ones((n_items, 1)), np.eye(n_items)])
    places = np.eye(N_PLACES)

    def rows(at: int) -> NDArray[np.float64]:
        shared = np.concatenate([places[shown.places[at]], shown.users[at]])
        return np.hstack([constant, np.tile(shared, (n_items, 1))])

    return BanditLog(
        offsets=n_items * np.arange(n + 1),
        probabilities=logged,
        chosen=chosen,
        rewards=shown.clicks,
        groups=np.arange(n),
        reward_range=(0.0, 1.0),
        rows=rows,
        segments=[f"place {place + 1}" for place in shown.places.tolist()],
    )


def target(
    path: Path, name: str, campaign: str, shown: Shown, *, seed: int = 1
) -> NDArray[np.float64]:
    """Return a policy's probabilities of all arms of the rows, shape (N x items,)."""
    n_items = N_ITEMS[campaign]
    if name == "random":
        return np.full(len(shown.items) * n_items, 1 / n_items)
    prior = _prior(path)[campaign]
    shares = thompson(np.array(prior["alpha"]), np.array(prior["beta"]), seed=seed)
    return shares[shown.places].ravel()


def thompson(
    alpha: NDArray[np.float64], beta: NDArray[np.float64], *, seed: int, draws: int = _DRAWS
) -> NDArray[np.float64]:
    """Return how likely each item is shown at each place, shape (places, items), by draws.

    >>> shares = thompson(np.array([9.0, 1, 1, 1]), np.array([1.0, 9, 9, 9]), seed=1, draws=1_000)
    >>> shares[0].round(1).tolist(), shares.sum(axis=1).round(6).tolist()
    ([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros((N_PLACES, len(alpha)))
    for start in range(0, draws, _AT_ONCE):
        rates = rng.beta(alpha, beta, (min(_AT_ONCE, draws - start), len(alpha)))
        best = np.argsort(-rates, axis=1)[:, :N_PLACES]
        for place in range(N_PLACES):
            counts[place] += np.bincount(best[:, place], minlength=len(alpha))
    return counts / draws


def _data(path: Path) -> Any:
    """Return the folder of the policies' folders: a path, on disk or within a wheel."""
    return zipfile.Path(path, "obp/dataset/obd/") if path.is_file() else path


def _prior(path: Path) -> dict[str, dict[str, list[float]]]:
    file: Any = path / _PRIOR
    if path.is_file():
        file = zipfile.Path(path, f"obp/policy/conf/{_PRIOR}")
    if not file.is_file():
        raise ValueError(f"no {file}: take it from the wheel of obp, obp/policy/conf/{_PRIOR}")
    found: dict[str, dict[str, list[float]]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def _lines(file: Any) -> Iterator[str]:
    packed = file.parent / f"{file.name}.gz"
    stream: IO[bytes] = packed.open("rb") if packed.is_file() else file.open("rb")
    with stream:
        plain: Any = gzip.open(stream) if packed.is_file() else stream
        yield from io.TextIOWrapper(plain, encoding="utf-8", newline="")


def _users(rows: list[dict[str, str]]) -> NDArray[np.float64]:
    names = [name for name in (rows[0] if rows else ()) if name.startswith(_USER)]
    columns = [np.unique([row[name] for row in rows], return_inverse=True)[1] for name in names]
    # The first value of a feature is the one that all columns are 0 for.
    hot = [np.eye(codes.max() + 1)[codes][:, 1:] for codes in columns]
    return np.hstack([np.zeros((len(rows), 0)), *hot])
