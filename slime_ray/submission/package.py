"""The folder that travels to the cluster: the code of this checkout, the recipes, and what is sent beside them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from slime_ray.errors import ConfigError
from slime_ray.storage import file_hash, folder_files, json_hash, size_text, used_bytes

# Ray keeps it in the head node's memory, and every node that takes part fetches it.
MOST_BYTES = 100_000_000
# Of the checkout: what a job imports. jobs/recipes travels as far as it is named.
_CODE = ("slime_ray", "jobs", "serve")


@contextmanager
def packed(files: Sequence[str], sent: Sequence[str]) -> Iterator[Path]:
    """A folder with the code, the recipes and what is sent, each under its name below the current folder.

    Args:
        files: of recipes.
        sent: files and folders of data and models.

    Raises:
        ConfigError: slime-ray was installed without jobs/.
    """
    code = checkout()
    with tempfile.TemporaryDirectory(prefix="slime-ray-job-") as folder:
        for part in _CODE:
            shutil.copytree(code / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__", "recipes"))
        for name in (*files, *sent):
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(name).is_dir():
                # Without what is hidden, which no hash has: secrets, and lists of what Ray would leave out.
                shutil.copytree(name, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
            else:
                shutil.copyfile(name, target)
        yield Path(folder)


def checkout() -> Path:
    """The folder that this code was taken from, with the entry points of jobs.

    Raises:
        ConfigError: an installed wheel has none.
    """
    root = Path(__file__).parents[2]
    if not (root / "jobs" / "train.py").is_file():
        raise ConfigError(
            f"slime-ray is installed in {root} without its jobs/; submitting sends the code along, so it needs a "
            "checkout: clone the repository and `pip install --editable` it"
        )
    return root


def content(sent: Sequence[str]) -> dict[str, str]:
    """What stands for the content of each file or folder that is sent, by its name.

    Raises:
        ConfigError: too much would be sent, or something cannot be read.
    """
    try:
        size = sum(used_bytes(Path(name)) if Path(name).is_dir() else Path(name).stat().st_size for name in sent)
        if size > MOST_BYTES:
            raise ConfigError(
                f"{', '.join(sent)}: {size_text(size)} would be sent, {size_text(MOST_BYTES)} is the most; copy them "
                "to where the cluster can read them, such as s3://..., and name that"
            )
        return {
            name: json_hash(folder_files(Path(name))) if Path(name).is_dir() else file_hash(Path(name)) for name in sent
        }
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be sent ({error.strerror})") from None
